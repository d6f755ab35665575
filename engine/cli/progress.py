"""Progress of long work on standard error: a bar on a terminal, else a plain line per minute."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from engine.cli import interrupts

_PLAIN_SECONDS = 60.0
_BAR_SECONDS = 0.1


class Progress:
    """Shows how much is done, how fast it goes and how long the rest will take."""

    def __init__(
        self, what: str, unit: str = "images", *, plain: bool = True, bar_after: float = 0.0
    ) -> None:
        """``plain``: print lines if there is no terminal. ``bar_after``: seconds before the bar."""
        self._what = what
        self._unit = unit
        self._plain = plain
        self._bar_after = bar_after
        self._entered = self._started = self._shown = time.monotonic()
        self._first: int | None = None
        self._bar: Any = None
        self._task: Any = None
        self._note = ""
        self._shown_bar = ExitStack()

    def __enter__(self) -> Self:
        if not self._bar_after:
            self._show_bar()
        return self

    def _show_bar(self) -> None:
        """Show the bar if standard error is a terminal."""
        self._bar_after = 0.0
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[counts]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            transient=True,
            # Output to a file or a pipe must not be redirected to the terminal.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._bar.add_task(self._what, total=None, counts="", rate="")
        self._shown_bar.enter_context(interrupts.bar_shown())
        self._bar.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._shown_bar:
            if self._bar is not None:
                self._bar.stop()

    def note(self, text: str) -> None:
        """Show ``text`` after the counts, in place of the rate."""
        self._note = text

    def __call__(self, done: int, total: int | None) -> None:
        """Report that ``done`` of ``total`` items are done; cheap enough to call for every item."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._started = done, now
        if self._bar_after and now - self._entered >= self._bar_after:
            self._show_bar()
        wait = _BAR_SECONDS if self._bar is not None else _PLAIN_SECONDS
        if now - self._shown < wait or (self._bar is None and not self._plain):
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._started, 1e-9)
        counts = f"{done:,}" + (f" of {total:,}" if total else "") + f" {self._unit}"
        speed = self._note or f"{rate:,.0f}/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, counts=counts, rate=speed)
            return
        left = ""
        if total and rate > 0:
            left = f", {_duration((total - done) / rate)} left"
        print(f"{self._what}: {counts}, {speed}{left}", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
