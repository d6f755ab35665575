"""SIGINT and SIGTERM of the command: the work ends by itself, or else the process does, soon.

Python runs a handler only between two steps of its main thread, and that may be in C code for
minutes: a decoder, an encoder, a build of the index. So a thread hears of each signal through
``set_wakeup_fd``. The first signal asks: work that can stop is told, other work gets a
``KeyboardInterrupt``. What has not ended ``PATIENCE`` seconds later is ended by ``os._exit``, and a
second signal does so at once. That is safe: what is committed survives any end, a ``kill -9`` too.

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
# "timeout" and some terminals send a signal to the process and to its group: these are one.
_ONE_SECONDS = 0.1
_ENDING_SECONDS = 1.0


class _Mode(Enum):
    STARTING = "nothing is open yet: end at once"
    UNWINDING = "raise KeyboardInterrupt"
    STOPPING = "whoever works asks, and stops by itself"
    DONE = "the work is done and told: end at once, with its status"


class _Interrupts:
    """The signals of one process that runs the command."""

    def __init__(self, mode: _Mode) -> None:
        self.mode = mode
        self.asked = False
        self.raised = False
        self.status = INTERRUPTED
        self.message = ""  # told when work is asked to stop
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
        except (RuntimeError, MemoryError):  # no room for a thread: then as far as handlers go
            self._thread = None

    def uninstall(self) -> None:
        """Put back what was there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._writing)
        if self._thread is not None:
            self._thread.join()

    def end(self) -> NoReturn:
        """End the process here and now."""
        thread = threading.get_ident()
        if self._ending is not None and self._ending != thread:
            time.sleep(_ENDING_SECONDS)  # it is about to write the line
        elif self._ending is None and self.mode is not _Mode.DONE:
            self._ending = thread
            streams.write_now(f"{_clear()}engine: {LINE}\n{_restore()}")
        os._exit(self.status if self.mode is _Mode.DONE else INTERRUPTED)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Runs in the main thread, once that gets to it."""
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
_bars = 0  # of progress, on a terminal


def install() -> None:
    """Handle signals from now on until the process ends; ``finish`` has to end it."""
    global _current
    _current = _Interrupts(_Mode.STARTING)
    # The first one registered is the last one called: behind it, Python gives handlers up.
    atexit.register(_ignore)
    report = sys.unraisablehook

    def unless_interrupted(found: Any) -> None:
        # Raised where Python cannot pass it on, in a finalizer: the patience ends the process.
        if found.exc_type is not KeyboardInterrupt:
            report(found)

    sys.unraisablehook = unless_interrupted


def _ignore() -> None:
    """The work is done and told: nothing is left to be interrupted, and its status holds."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """A signal raises ``KeyboardInterrupt`` inside the block, once, in the main thread."""
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
    """A signal raises nothing inside the block: the work asks what is yielded, and stops by itself.

    ``message`` is told at the signal; ``patience`` says how many seconds the work may then take.
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
    """Ctrl-C asks the work to stop after its ``unit``; a second one ends the process at once.

    So does the end of ``patience``, in seconds.
    """
    return stopping(f"stopping after {unit} (Ctrl-C again to stop at once)", patience)


def raised() -> bool:
    """Whether a signal has raised ``KeyboardInterrupt``, whatever libraries have made of it since."""
    return _current is not None and _current.raised


def finish(status: int) -> NoReturn:
    """End the process with ``status``. What still runs after a signal is not waited for."""
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
    """A bar is on the terminal: a signal's line takes its place, and an end shows the cursor again."""
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
