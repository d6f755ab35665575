"""Opens a file that must not change while it is read, and says what was wrong with it if it fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from engine.errors import SourceError
from engine.sources.decompress import BUFFER_BYTES, CUT, damage, line_of
from engine.sources.items import stamp_of


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
    except OSError as error:
        if error.errno is not None:
            raise SourceError(f"cannot be read: {error.strerror}", retryable=True) from None
        raise SourceError(f"is damaged: {line_of(error)}") from None
    except damage() as error:
        raise SourceError(_reason(error), retryable=_is_limit(error)) from None


def _compare(file: IO[bytes], stamp: tuple[int, int]) -> None:
    status = os.fstat(file.fileno())
    if stamp_of(status) != stamp:
        raise SourceError("changed while it was read: ingest it again", retryable=True)


def _is_limit(error: Exception) -> bool:
    """Whether it would take more memory than it may."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "memory" in text


def _reason(error: Exception) -> str:
    if _is_limit(error):
        return "takes more memory to decompress than there is: raise memory="
    if str(error) == CUT:
        return f"is damaged: {CUT}"
    return f"is damaged: {line_of(error)}"
