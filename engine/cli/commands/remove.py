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
    """The options of ``engine remove``."""

    named: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SOURCE...]", help="Sources to remove, as with --source."),
    ] = None
    id_: Annotated[
        list[int] | None,
        typer.Option("--id", metavar="N", help="Image N with all its sources; may be repeated."),
    ] = None
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A file, an array or one row (b.npy#17), an archive or one member, or everything "
            "below a folder; may be repeated.",
        ),
    ] = None
    missing: Annotated[
        bool,
        typer.Option(
            "--missing", help="Sources whose files are gone, and the images left without a source."
        ),
    ] = False
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", help="With --missing: also where more than half of a folder is gone."
        ),
    ] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only report what would be removed.")
    ] = False
    store: StoreOption = ""
    wait: WaitOption = 0.0
    as_json: JsonOption = False


@takes(RemoveOptions)
def remove(options: RemoveOptions) -> None:
    """Remove images by number, by source, or if a source is gone.

    An image is removed with the last of its sources. Names that are not in the store are listed, and
    the status is 3. Ctrl-C commits the finished removals; run it again to go on. 'engine optimize'
    then gives the disk space back. If more than half of a folder is missing, its disk may not be
    mounted: --missing then removes nothing without --yes.

    \b
    Example:
      engine remove --id 2 --id 3 --wait 60 --store photos.store
      engine remove photos/more/ --store photos.store
      engine remove --missing --dry-run --store photos.store
      engine remove --missing --store photos.store
    """
    sources = [*(options.named or []), *(options.source or [])]
    if not options.id_ and not sources and not options.missing:
        raise UsageError("name what to remove: a source, --id N, or --missing")
    if options.yes and not options.missing:
        raise UsageError("--yes goes with --missing: leave it out, or add --missing")
    if options.dry_run and options.wait:
        raise UsageError("--dry-run takes no lock: leave --wait out")
    store = options.store or default_store()
    opened = Store.open(store, read_only=options.dry_run, wait=options.wait)
    with opened, interruptible() as stop, Progress("remove", "images and sources") as progress:
        report = opened.remove(
            ids=options.id_ or [],
            sources=sources,
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
    lines += [f"kept: {reason}; name a source to remove it all the same" for reason in report.kept]
    warn_each(lines)
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(SOME_REJECTED if lines else DONE)
