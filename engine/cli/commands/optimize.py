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
            help="Share of the nearest vectors that searches find from now on [0.95].",
        ),
    ] = None,
    memory: MemoryOption = "",
    wait: WaitOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Rebuild the index, and give back the disk of removed images.

    It trains the index on the vectors that the store holds now, and lays them out in the index's
    order. On a sample of them it measures how far a search must look to reach the recall. It compacts
    the kept pixels and the keys. All of this needs free disk; the report lists what did not fit.
    Lookups continue, and other processes may write until shortly before the end.
    Data that cannot be read stays where it is. The status is then 3: run 'engine check --fix' next.
    Ctrl-C commits the finished steps; run it again to go on.

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
