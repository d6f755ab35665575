"""Keeps the command's standard streams open, so that no output ends up in a store or gets lost.

A process may start with descriptor 0, 1 or 2 closed. Its next open file then gets that number, and a
warning would be written into the store. So these descriptors are opened first of all.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from typing import TextIO

_IN, _OUT, _ERR = 0, 1, 2
_LINE_WAIT = 1.0  # seconds to wait for a non-blocking standard error


def open_closed() -> None:
    """Open each closed descriptor of 0 to 2 on /dev/null, and create the streams that Python lacks."""
    for fd in (_IN, _OUT, _ERR):
        try:
            os.fstat(fd)
        except OSError:
            _open_null(fd)
    # Python sets a stream to None if its descriptor was closed at the start.
    if sys.stdin is None:
        with contextlib.suppress(OSError):
            sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(_IN, closefd=False)))
    if sys.stdout is None:
        sys.stdout = _text(_Output(_OUT), "utf-8")
    if sys.stderr is None:
        sys.stderr = _text(_Errors(_ERR), "utf-8")


def protect() -> None:
    """Replace standard error by a stream that never fails, and a non-blocking standard output.

    Another process with the same pipe or terminal may have made the output non-blocking. Only the
    process that runs the command calls this; a program that captures the streams has others.
    """
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        with contextlib.suppress(OSError):
            if not os.get_blocking(_OUT):
                sys.stdout = _text(_Output(_OUT), sys.stdout.encoding)
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _text(_Errors(_ERR), sys.stderr.encoding)


def in_write() -> bool:
    """Whether a thread is inside ``_Output.write``, where a signal must not raise."""
    return _Output.in_write


def write_now(text: str) -> None:
    """Write a line to standard error past all buffers; drop it if the write would block."""
    with contextlib.suppress(OSError, ValueError):
        if _writable(_ERR, 0):
            os.write(_ERR, text.encode(errors="backslashreplace"))


def discard_output() -> None:
    """Point standard output at /dev/null, so that flushing a buffer does not fail again."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


class _Output(io.FileIO):
    """A descriptor whose writes wait until they are done, even if it is non-blocking.

    A signal must not raise inside ``write``, because the buffer above would write the same bytes again.
    """

    in_write = False

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "w", closefd=False)

    def write(self, data: object) -> int:
        """Write all of ``data``, or as much as the file takes; return the bytes written."""
        _Output.in_write = True
        try:
            while (count := super().write(data)) is None:  # type: ignore[arg-type]
                _writable(self.fileno(), None)
            return count
        finally:
            _Output.in_write = False


class _Errors(_Output):
    """Drops what it cannot write: a full disk or a closed pipe must not end the work itself."""

    def write(self, data: object) -> int:
        """Write ``data`` or drop it; return its size either way."""
        size = len(memoryview(data).cast("B"))  # type: ignore[arg-type]
        _Output.in_write = True
        try:
            count = io.FileIO.write(self, data)  # type: ignore[arg-type]
            if count is None and _writable(self.fileno(), _LINE_WAIT):
                count = io.FileIO.write(self, data)  # type: ignore[arg-type]
        except OSError:
            count = None
        finally:
            _Output.in_write = False
        return size if count is None else count


def _text(raw: io.FileIO, encoding: str) -> TextIO:
    # A name that is not UTF-8 must not stop a listing.
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=isinstance(raw, _Errors) or raw.isatty(),
    )


def _open_null(fd: int) -> None:
    try:
        found = os.open(os.devnull, os.O_RDWR)
    # Without /dev, use a folder, which can be neither read from nor written to.
    except OSError:
        found = os.open(os.sep, os.O_RDONLY)
    if found != fd:
        os.dup2(found, fd)
        os.close(found)
    os.set_inheritable(fd, True)


def _writable(fd: int, seconds: float | None) -> bool:
    """Wait up to ``seconds``, or forever if None; return whether a write would not block."""
    waiting = select.poll()
    waiting.register(fd, select.POLLOUT)
    return bool(waiting.poll(None if seconds is None else seconds * 1000))
