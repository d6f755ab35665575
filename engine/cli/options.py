"""Options and manners that the commands share."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer

from engine.cli import interrupts, streams
from engine.cli.render import printable

DONE, NOT_FOUND, FAILED, SOME_REJECTED, INTERRUPTED = 0, 1, 2, 3, interrupts.STATUS
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
        "-0", "--null", help="A null byte ends each name of a list, as find -print0 writes them."
    ),
]


def warn(message: str) -> None:
    """One line on standard error; where that cannot be written, the work goes on without."""
    with contextlib.suppress(OSError, ValueError):
        print("engine: " + printable(" ".join(message.split())), file=sys.stderr)


def show_line(text: str) -> bool:
    """A result on standard output, at once: somebody may be reading it line by line.

    False if the reader has had enough. What the work came to, its status, is not changed by that.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        streams.discard_output()
        return False
    return True


def interruptible(
    unit: str = "what is finished is committed", patience: Callable[[], float] | None = None
) -> AbstractContextManager[Callable[[], bool]]:
    """Ctrl-C asks the work to stop after its ``unit``; a second one ends the process at once.

    So does the end of ``patience``, in seconds.
    """
    return interrupts.stopping(f"stopping after {unit} (Ctrl-C again to stop at once)", patience)
