"""``engine remove``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from engine.api import Store
from engine.cli import render
from engine.cli.dataclass_options import takes
from engine.cli.interrupts import interruptible
from engine.cli.options import JsonOption, StoreOption, WaitOption
from engine.cli.output import show_line, warn_each
from engine.cli.progress import Progress
from engine.cli.status import DONE, INTERRUPTED, SOME_REJECTED
from engine.config import default_store
from engine.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class RemoveOptions:
    """What ``engine remove`` takes."""

    id_: Annotated[
        list[int] | None, typer.Option("--id", metavar="N", help="An image, with all its sources.")
    ] = None
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A file, an array or one row of it (b.npy#17), an archive or one member, or all "
            "that is below a folder.",
        ),
    ] = None
    missing: Annotated[
        bool,
        typer.Option("--missing", help="Sources whose files are gone, and images without any."),
    ] = False
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", help="With --missing: also where most of a folder, or all of it, is gone."
        ),
    ] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would go; nothing is written.")
    ] = False
    store: StoreOption = ""
    wait: WaitOption = 0.0
    as_json: JsonOption = False


@takes(RemoveOptions)
def remove(options: RemoveOptions) -> None:
    """Remove images from a store: by number, by where they came from, or because that is gone.

    An image goes with the last of its sources. What is not in the store is listed, and the status is
    3. Ctrl-C commits what is done; run it again to go on. 'engine optimize' then gives disk space back.
    Where more than half of what a folder held is missing, its disk may be away: --missing then
    removes nothing without --yes.

    \b
    Example:
      engine remove --id 2 --id 3 --wait 60 --store photos.store
      engine remove --source photos/more/ --store photos.store
      engine remove --missing --dry-run --store photos.store
      engine remove --missing --store photos.store
    """
    if not options.id_ and not options.source and not options.missing:
        raise UsageError("name what to remove: --id N, --source NAME, or --missing")
    if options.yes and not options.missing:
        raise UsageError("--yes goes with --missing: leave it out, or add --missing")
    if options.dry_run and options.wait:
        raise UsageError("--dry-run takes no lock: leave --wait out")
    store = options.store or default_store()
    opened = Store.open(store, read_only=options.dry_run, wait=options.wait)
    with opened, interruptible() as stop, Progress("remove", "images and sources") as progress:
        report = opened.remove(
            ids=options.id_ or [],
            sources=options.source or [],
            missing=options.missing,
            yes=options.yes,
            dry_run=options.dry_run,
            progress=progress,
            stop=stop,
        )
    if options.as_json:
        show_line(render.line(asdict(report)))
    else:
        show_line(render.remove_text(report))
    lines = [f"{name} is not in the store" for name in report.not_found]
    lines += [f"kept: {reason}; name what is to go with --source" for reason in report.kept]
    warn_each(lines)
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(SOME_REJECTED if lines else DONE)
