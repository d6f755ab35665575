"""Options and manners that the commands share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer

from engine.show import printable

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)

DONE, NOT_FOUND, FAILED, SOME_REJECTED, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit statuses: the contract that scripts rely on."""

StoreOption = Annotated[
    str,
    typer.Option("--store", metavar="DIR", help="The store.  [$ENGINE_STORE, else ./engine.store]"),
]
MemoryOption = Annotated[
    str,
    typer.Option("--memory", metavar="SIZE", help="Anonymous memory to use, at least 128M."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
FilesFromOption = Annotated[
    str,
    typer.Option("--files-from", metavar="FILE", help="Read more of them from FILE, one a line."),
]
NullOption = Annotated[
    bool,
    typer.Option(
        "-0", "--null", help="In lists a null byte ends each name, as find -print0 has it."
    ),
]


def warn(message: str) -> None:
    """One line on standard error."""
    print("engine: " + printable(" ".join(message.split())), file=sys.stderr)


def show_line(text: str) -> None:
    """A result on standard output, at once: somebody may be reading it line by line."""
    print(text, flush=True)


@contextmanager
def interruptible(unit: str = "this chunk is committed") -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks the work to stop after its ``unit``; a second one stops it at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        warn(f"stopping after {unit} (Ctrl-C again to stop at once)")

    with _handled_by(ask):
        yield lambda: asked


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Work that is whole or not there: the first signal ends it, and it tidies up, undisturbed."""

    def end(number: int, frame: FrameType | None) -> None:
        for each in _INTERRUPTS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    with _handled_by(end):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    # SIGTERM too: it is how containers and services are ended.
    before: Any = [(number, signal.signal(number, handler)) for number in _INTERRUPTS]
    try:
        yield
    finally:
        for number, old in before:
            signal.signal(number, old)
