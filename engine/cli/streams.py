"""The command's standard streams: always open, never below them a file of the store, no lost bytes.

A process may start with any of the descriptors 0, 1 and 2 closed. The next files that it opens get
these numbers then, and a warning would be written into a store. So they are opened first of all.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from typing import TextIO

_IN, _OUT, _ERR = 0, 1, 2
_LINE_WAIT = 1.0  # seconds that standard error may keep us waiting if it does not block


def open_closed() -> None:
    """Open each closed descriptor of 0 to 2 on /dev/null, and make streams of those Python lacks."""
    for fd in (_IN, _OUT, _ERR):
        try:
            os.fstat(fd)
        except OSError:
            _open_null(fd)
    # Python has None where a descriptor was closed when it started.
    if sys.stdin is None:
        with contextlib.suppress(OSError):
            sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(_IN, closefd=False)))
    if sys.stdout is None:
        sys.stdout = _text(_Output(_OUT), "utf-8")
    if sys.stderr is None:
        sys.stderr = _text(_Errors(_ERR), "utf-8")


def protect() -> None:
    """Replace standard error by a stream that never fails, and an output that does not block.

    Another process that has the same pipe or terminal may have made it so. For the process that runs
    the command: whoever captures the streams has others.
    """
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        with contextlib.suppress(OSError):
            if not os.get_blocking(_OUT):
                sys.stdout = _text(_Output(_OUT), sys.stdout.encoding)
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _text(_Errors(_ERR), sys.stderr.encoding)


def in_write() -> bool:
    """Whether some thread is in a write of ours, where a signal must not raise."""
    return _Output.in_write


def write_now(text: str) -> None:
    """Write a line to standard error past all buffers; drop it where that would have to wait."""
    with contextlib.suppress(OSError, ValueError):
        if _writable(_ERR, 0):
            os.write(_ERR, text.encode(errors="backslashreplace"))


def discard_output() -> None:
    """Point standard output at /dev/null: what a buffer still holds must not fail once more."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


class _Output(io.FileIO):
    """A descriptor that is written to the end, also where it does not block.

    A signal must raise nothing in ``write``: the buffer above would write the same once more.
    """

    in_write = False

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "w", closefd=False)

    def write(self, data: object) -> int:
        """All of ``data``, or as much as the file takes."""
        _Output.in_write = True
        try:
            while (count := super().write(data)) is None:  # type: ignore[arg-type]
                _writable(self.fileno(), None)
            return count
        finally:
            _Output.in_write = False


class _Errors(_Output):
    """What cannot be told is dropped: a full disk or a closed pipe must not end the work itself."""

    def write(self, data: object) -> int:
        """``data``, or nothing of it."""
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
    # Names that are not UTF-8 must not stop a listing.
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=isinstance(raw, _Errors) or raw.isatty(),
    )


def _open_null(fd: int) -> None:
    try:
        found = os.open(os.devnull, os.O_RDWR)
    except OSError:  # where there is no /dev: nothing can be read from it or written to it
        found = os.open(os.sep, os.O_RDONLY)
    if found != fd:
        os.dup2(found, fd)
        os.close(found)
    os.set_inheritable(fd, True)


def _writable(fd: int, seconds: float | None) -> bool:
    """Whether a write of a line would not block, by then."""
    waiting = select.poll()
    waiting.register(fd, select.POLLOUT)
    return bool(waiting.poll(None if seconds is None else seconds * 1000))
