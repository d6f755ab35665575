"""Opens a file that must not change while it is read, and turns failures into ``SourceError``."""

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
_MAX_REASON = 300  # characters of a library's message


@contextmanager
def steady(path: Path, stamp: tuple[int, int]) -> Iterator[IO[bytes]]:
    """Open a file whose stamp must be ``stamp``, (mtime_ns, size), until it is closed.

    ``SourceError`` if it differs, if the file cannot be read, or if its data is damaged.
    """
    try:
        with path.open("rb", buffering=BUFFER_BYTES) as file:
            _compare(file, stamp)
            try:
                yield file
            except Exception:
                # Raise that the file changed, rather than that it is damaged.
                _compare(file, stamp)
                raise
            _compare(file, stamp)
    # Keep UsageError, which is also a ValueError.
    except EngineError:
        raise
    except damage() as error:
        raise unreadable(error) from None


def changed() -> SourceError:
    """The error for a source that has changed."""
    return SourceError("changed while it was read: ingest it again", retryable=True)


def unreadable(error: Exception, damaged: str = "is damaged") -> SourceError:
    """The error for a source whose reading raised ``error``.

    The source is ``damaged``, unless the disk failed or memory was short. Then another try may succeed.
    """
    if isinstance(error, OSError) and error.errno is not None:
        reason = error.strerror or os.strerror(error.errno)
        return SourceError(f"cannot be read: {' '.join(reason.split())}", retryable=True)
    if is_limit(error):
        return SourceError(NO_MEMORY, retryable=True)
    return SourceError(f"{damaged}: {line_of(error)[:_MAX_REASON]}")


def is_limit(error: Exception) -> bool:
    """Whether ``error`` means that decompressing would take too much memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "memory" in text


def _compare(file: IO[bytes], stamp: tuple[int, int]) -> None:
    if stamp_of(os.fstat(file.fileno())) != stamp:
        raise changed()
