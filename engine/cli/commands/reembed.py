"""``engine reembed``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from engine.api import Store
from engine.cli import render
from engine.cli.dataclass_options import takes
from engine.cli.interrupts import interruptible
from engine.cli.options import DeviceOption, JsonOption, MemoryOption, StoreOption, WaitOption
from engine.cli.output import show_line
from engine.cli.progress import Progress
from engine.cli.status import DONE, INTERRUPTED, SOME_REJECTED
from engine.config import default_store
from engine.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ReembedOptions:
    """The options of ``engine reembed``."""

    encoder: Annotated[
        str,
        typer.Option(
            metavar="NAME|DIR|MODEL", help="The encoder to change to.", show_default=False
        ),
    ] = ""
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing",
            help="Also where images lose their vectors, because their pixels are gone.",
        ),
    ] = False
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only report the images to embed, the missing ones, and the disk."
        ),
    ] = False
    discard: Annotated[
        bool, typer.Option("--discard", help="Drop the vectors of an unfinished run, and end.")
    ] = False
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Threads that read images.  [one a core]"),
    ] = None
    device: DeviceOption = "auto"
    store: StoreOption = ""
    memory: MemoryOption = ""
    wait: WaitOption = 0.0
    as_json: JsonOption = False


@takes(ReembedOptions)
def reembed(options: ReembedOptions) -> None:
    """Change the encoder of a store and compute all vectors again.

    Images are read from kept pixels, or from sources that still have them. Lookups go on with the old
    encoder, and other processes may write, until one commit switches to the new vectors. Ctrl-C or a
    crash loses nothing that is finished: run it again to go on. If images would lose their vectors,
    because their pixels are gone, it ends and names them. With --allow-missing they are then found as
    identical and near only, and the status is 3. With the encoder that the store has, only images
    without a vector are embedded.

    \b
    Example:
      engine reembed --encoder mine --dry-run --store photos.store
      engine reembed --encoder mine --store photos.store
    """
    if bool(options.encoder) == options.discard:
        raise UsageError("name the encoder to change to with --encoder, or say --discard")
    if options.discard and options.dry_run:
        raise UsageError("--discard drops vectors, and --dry-run changes nothing: leave one out")
    store = options.store or default_store()
    opened = Store.open(
        store,
        read_only=options.dry_run,
        memory=options.memory or None,
        wait=options.wait,
        device=options.device,
    )
    if options.discard:
        with opened:
            freed = opened.discard_reembed()
        show_line(
            render.line({"freed_bytes": freed}) if options.as_json else render.discarded_text(freed)
        )
        return
    with opened, interruptible() as stop, Progress("reembed") as progress:
        report = opened.reembed(
            options.encoder,
            allow_missing=options.allow_missing,
            dry_run=options.dry_run,
            workers=options.workers,
            progress=progress,
            stop=stop,
        )
    show_line(render.line(asdict(report)) if options.as_json else render.reembed_text(report))
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(SOME_REJECTED if report.unreachable else DONE)
