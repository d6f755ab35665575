"""``engine optimize``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from engine.api import Store
from engine.cli import render
from engine.cli.interrupts import interruptible
from engine.cli.options import JsonOption, MemoryOption, StoreOption, WaitOption
from engine.cli.output import show_line
from engine.cli.progress import Progress
from engine.cli.status import DONE, INTERRUPTED, SOME_REJECTED
from engine.config import default_store


def optimize(
    store: StoreOption = "",
    recall: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            help="The share of the nearest that searches are to find from now on [0.95].",
        ),
    ] = None,
    memory: MemoryOption = "",
    wait: WaitOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Build the index again, give back the disk of removed images, and bring the keys in order.

    The index is trained on what the store holds by now, and vectors are laid out in its order. How far
    searches have to look for the wanted recall is measured on a sample of them. Others may write to the
    store while this runs, until the end. Kept pixels are copied together. All of this needs some room
    on the disk; what did not fit is listed.
    What cannot be read stays where it is; the status is 3 then, and 'engine check --fix' comes next.
    Lookups go on. Ctrl-C commits what is done; run it again to go on.

    \b
    Example:
      engine optimize --store photos.store
      engine optimize --recall 0.99 --wait 60 --store photos.store
    """
    opened = Store.open(store or default_store(), memory=memory or None, wait=wait)
    with opened, interruptible() as stop, Progress("optimize") as progress:
        report = opened.optimize(recall=recall, progress=progress, stop=stop)
    show_line(render.line(asdict(report)) if as_json else render.optimize_text(report))
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(SOME_REJECTED if report.damaged else DONE)
