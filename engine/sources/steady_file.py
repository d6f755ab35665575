"""Opens a file that must not change while it is read, and says what was wrong with it if it fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from engine.errors import EngineError, SourceError
from engine.sources.decompress import BUFFER_BYTES, damage, line_of
from engine.sources.items import stamp_of

NO_MEMORY = "takes more memory to decompress than there is: raise memory="
_MAX_REASON = 300  # characters of what a library says


@contextmanager
def steady(path: Path, stamp: tuple[int, int]) -> Iterator[IO[bytes]]:
    """A file that is to be as it was stamped (mtime_ns, size) until it is closed.

    ``SourceError`` if it is not, or cannot be read; also for what reading damaged data raises.
    """
    try:
        with path.open("rb", buffering=BUFFER_BYTES) as file:
            _compare(file, stamp)
            try:
                yield file
            except Exception:
                _compare(file, stamp)  # changed rather than damaged
                raise
            _compare(file, stamp)
    except EngineError:  # a UsageError is a ValueError, too
        raise
    except damage() as error:
        raise unreadable(error) from None


def changed() -> SourceError:
    """What is said of a source that is another one by now."""
    return SourceError("changed while it was read: ingest it again", retryable=True)


def unreadable(error: Exception, damaged: str = "is damaged") -> SourceError:
    """What is said of a source whose reading raised ``error``.

    It is ``damaged`` unless the disk failed or memory was short: then another try may succeed.
    """
    if isinstance(error, OSError) and error.errno is not None:
        reason = error.strerror or os.strerror(error.errno)
        return SourceError(f"cannot be read: {' '.join(reason.split())}", retryable=True)
    if is_limit(error):
        return SourceError(NO_MEMORY, retryable=True)
    return SourceError(f"{damaged}: {line_of(error)[:_MAX_REASON]}")


def is_limit(error: Exception) -> bool:
    """Whether it would take more memory than it may."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "memory" in text


def _compare(file: IO[bytes], stamp: tuple[int, int]) -> None:
    if stamp_of(os.fstat(file.fileno())) != stamp:
        raise changed()
