"""``engine remove`` and ``optimize``: each parses, makes one call and prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from engine.api import Store
from engine.cli import render
from engine.cli.options import (
    DONE,
    INTERRUPTED,
    SOME_REJECTED,
    JsonOption,
    MemoryOption,
    StoreOption,
    interruptible,
    show_line,
    warn,
)
from engine.cli.progress import Progress
from engine.config import default_store
from engine.errors import MissingError, UsageError
from engine.maintenance.missing_sources import ADVICE

_MAX_LISTED = 50


def remove(
    id_: Annotated[
        list[int] | None, typer.Option("--id", metavar="N", help="An image, with all its sources.")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A file, an array or one row of it (b.npy#17), an archive or one member, or all "
            "that is below a folder.",
        ),
    ] = None,
    missing: Annotated[
        bool,
        typer.Option("--missing", help="Sources whose files are gone, and images without any."),
    ] = False,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", help="With --missing: also where most of a folder, or all of it, is gone."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would go; nothing is written.")
    ] = False,
    store: StoreOption = "",
    as_json: JsonOption = False,
) -> None:
    """Remove images from a store: by number, by where they came from, or because that is gone.

    An image goes with the last of its sources. What is not in the store is listed, and the status is
    3. Ctrl-C commits what is done; run it again to go on. 'engine optimize' then gives disk space back.
    Where more than half of what a folder held is missing, its disk may be away: --missing then
    removes nothing without --yes.

    \b
    Example:
      engine remove --id 2 --id 3 --store photos.store
      engine remove --source photos/more/ --store photos.store
      engine remove --missing --dry-run --store photos.store
      engine remove --missing --store photos.store
    """
    if not id_ and not source and not missing:
        raise UsageError("name what to remove: --id N, --source NAME, or --missing")
    opened = Store.open(store or default_store(), read_only=dry_run)
    with opened, interruptible() as stop, Progress("remove", "images and sources") as progress:
        try:
            report = opened.remove(
                ids=id_ or [],
                sources=source or [],
                missing=missing,
                yes=yes,
                dry_run=dry_run,
                progress=progress,
                stop=stop,
            )
        except MissingError as error:
            advice = ADVICE.format(yes="--yes", dry_run="--dry-run")
            raise MissingError(error.found, advice) from None
    if as_json:
        show_line(render.line(asdict(report)))
    else:
        show_line(render.remove_text(report))
    lines = [f"{name} is not in the store" for name in report.not_found]
    lines += [f"kept: {reason}; name what is to go with --source" for reason in report.kept]
    for line in lines[:_MAX_LISTED]:
        warn(line)
    if len(lines) > _MAX_LISTED:
        warn(f"and {len(lines) - _MAX_LISTED} more (--json lists them)")
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(SOME_REJECTED if lines else DONE)


def optimize(
    store: StoreOption = "",
    recall: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            help="The share of the nearest that searches are to find from now on [0.95].",
        ),
    ] = None,
    memory: MemoryOption = "1G",
    as_json: JsonOption = False,
) -> None:
    """Build the index anew, give back the disk of removed images, and bring the keys in order.

    The index is trained on what the store holds by now, vectors are laid out in its order, and how far
    searches have to look for the recall that is wanted is measured on a sample of them. Others may
    write to the store meanwhile, until the end. Kept pixels are copied together. All of this needs
    some room while it works; what does not fit is told.
    What cannot be read stays where it is; the status is 3 then, and 'engine check --fix' comes next.
    Lookups go on meanwhile. Ctrl-C commits what is done; run it again to go on.

    \b
    Example:
      engine optimize --store photos.store
      engine optimize --recall 0.99 --store photos.store
    """
    opened = Store.open(store or default_store(), memory=memory)
    with opened, interruptible() as stop, Progress("optimize") as progress:
        report = opened.optimize(recall=recall, progress=progress, stop=stop)
    show_line(render.line(asdict(report)) if as_json else render.optimize_text(report))
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(SOME_REJECTED if report.damaged else DONE)
