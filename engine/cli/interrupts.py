"""Handles SIGINT and SIGTERM of the command: the work stops by itself, or the process ends soon.

Python runs a signal handler only between two steps of its main thread. That thread may be in C code
for minutes: a decoder, an encoder, a build of the index. So another thread reads each signal from
``set_wakeup_fd``. The first signal asks the work to stop. Work that cannot be asked gets a
``KeyboardInterrupt``. If it has not ended after ``PATIENCE`` seconds, ``os._exit`` ends the process. A
second signal does so at once. That is safe: a commit survives any end of the process, even ``kill -9``.

Only the command installs this. A signal that the parent process ignores (``nohup``) stays ignored.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from enum import Enum
from types import FrameType
from typing import Any, NoReturn

from engine.cli import streams
from engine.cli.status import INTERRUPTED

LINE = "interrupted; what was committed is safe"
PATIENCE = 1.5  # seconds
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# "timeout" and some terminals send a signal to the process and to its group. Count both as one.
_ONE_SECONDS = 0.1
_ENDING_SECONDS = 1.0


class _Mode(Enum):
    STARTING = "nothing is open yet: end at once"
    UNWINDING = "raise KeyboardInterrupt"
    STOPPING = "the work polls and stops by itself"
    DONE = "the work is done and reported: end at once, with its status"


class _Interrupts:
    """The signal handling of the process that runs the command."""

    def __init__(self, mode: _Mode) -> None:
        self.mode = mode
        self.asked = False
        self.raised = False
        self.status = INTERRUPTED
        self.message = ""  # written when work is asked to stop
        self.patience: Callable[[], float] = lambda: PATIENCE
        self._first = 0.0
        self._ending: int | None = None  # the thread that ends the process
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._before: dict[int, Any] = {}
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        self._thread: threading.Thread | None = threading.Thread(
            target=self._watch, args=(reading,), name="engine-signals", daemon=True
        )
        try:
            self._thread.start()
        # Without room for a thread, only the handlers see the signals.
        except (RuntimeError, MemoryError):
            self._thread = None

    def uninstall(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._writing)
        if self._thread is not None:
            self._thread.join()

    def end(self) -> NoReturn:
        """End the process at once."""
        thread = threading.get_ident()
        if self._ending is not None and self._ending != thread:
            # The other thread is about to write the line.
            time.sleep(_ENDING_SECONDS)
        elif self._ending is None and self.mode is not _Mode.DONE:
            self._ending = thread
            streams.write_now(f"{_clear()}engine: {LINE}\n{_restore()}")
        os._exit(self.status if self.mode is _Mode.DONE else INTERRUPTED)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Run in the main thread, as soon as Python lets it."""
        self.asked = True
        if self._thread is None:
            self._hear()
        if self.mode is _Mode.STARTING:
            self.end()
        if self.mode is _Mode.UNWINDING and not self.raised and not streams.in_write():
            self.raised = True
            raise KeyboardInterrupt

    def _watch(self, reading: int) -> None:
        with open(reading, "rb", buffering=0) as pipe:
            signals = select.poll()
            signals.register(pipe, select.POLLIN)
            while True:
                wait = None
                if self._first:
                    wait = self._first + self.patience() - time.monotonic()
                    if wait <= 0:
                        self.end()
                if not signals.poll(None if wait is None else wait * 1000 + 1):
                    continue
                numbers = pipe.read(64)
                if not numbers:
                    return
                if self._before.keys() & set(numbers):
                    self._hear()

    def _hear(self) -> None:
        now = time.monotonic()
        if self._first:
            if now - self._first > _ONE_SECONDS:
                self.end()
            return
        self._first = now
        self.asked = True
        if self.mode in (_Mode.STARTING, _Mode.DONE):
            self.end()
        if self.mode is _Mode.STOPPING and self.message:
            streams.write_now(f"{_clear()}engine: {self.message}\n")


_current: _Interrupts | None = None
_bars = 0  # progress bars on a terminal


def install() -> None:
    """Handle signals until the process ends. ``finish`` must end it."""
    global _current
    _current = _Interrupts(_Mode.STARTING)
    # The function registered first is called last. After it, Python removes the handlers.
    atexit.register(_ignore)
    report = sys.unraisablehook

    def unless_interrupted(found: Any) -> None:
        # Python cannot pass on what a finalizer raises. The end of the patience ends the process.
        if found.exc_type is not KeyboardInterrupt:
            report(found)

    sys.unraisablehook = unless_interrupted


def _ignore() -> None:
    """Ignore signals: the work is done and reported, and its status stands."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Inside the block, a signal raises ``KeyboardInterrupt`` once, in the main thread."""
    global _current
    if _current is not None:
        with _mode(_Mode.UNWINDING):
            yield
        return
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    _current = _Interrupts(_Mode.UNWINDING)
    try:
        yield
    finally:
        mine, _current = _current, None
        mine.uninstall()


@contextlib.contextmanager
def stopping(
    message: str, patience: Callable[[], float] | None = None
) -> Iterator[Callable[[], bool]]:
    """Inside the block, a signal raises nothing. The work polls the yielded function and stops itself.

    ``message`` is written at the signal. ``patience`` returns how many seconds the work may then take.
    """
    current = _current
    if current is None:
        yield lambda: False
        return
    before = current.message, current.patience
    current.message, current.patience = message, patience or current.patience
    try:
        with _mode(_Mode.STOPPING):
            yield lambda: current.asked
    finally:
        current.message, current.patience = before


def interruptible(
    unit: str = "what is finished is committed", patience: Callable[[], float] | None = None
) -> contextlib.AbstractContextManager[Callable[[], bool]]:
    """Let Ctrl-C stop the work after its ``unit``; a second Ctrl-C ends the process at once.

    The process also ends after ``patience()`` seconds.
    """
    return stopping(f"stopping after {unit} (Ctrl-C again to stop at once)", patience)


def raised() -> bool:
    """Whether a signal raised ``KeyboardInterrupt``, even if a library has replaced that error."""
    return _current is not None and _current.raised


def finish(status: int) -> NoReturn:
    """End the process with ``status``. After a signal, do not wait for running threads."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if _current is not None:
        _current.status, _current.mode = status, _Mode.DONE
        if _current.asked:
            os._exit(status)
    sys.exit(status)


@contextlib.contextmanager
def bar_shown() -> Iterator[None]:
    """Inside the block, a signal's line replaces the progress bar, and an end restores the cursor."""
    global _bars
    _bars += 1
    try:
        yield
    finally:
        _bars -= 1


def _clear() -> str:
    return "\r\x1b[2K" if _bars else ""


def _restore() -> str:
    return "\x1b[?25h" if _bars else ""


@contextlib.contextmanager
def _mode(mode: _Mode) -> Iterator[None]:
    assert _current is not None
    current, before = _current, _current.mode
    current.mode = mode
    try:
        yield
    finally:
        current.mode = before
