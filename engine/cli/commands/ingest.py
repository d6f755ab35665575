"""``engine ingest``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, NoReturn

import typer

from engine.api import Store
from engine.api.ingest_sources import check_sources
from engine.cli import logs, render
from engine.cli.dataclass_options import takes
from engine.cli.interrupts import interruptible
from engine.cli.options import (
    DeviceOption,
    EncoderOption,
    ExcludeOption,
    FilesFromOption,
    JsonOption,
    MemoryOption,
    NullOption,
    StoreOption,
    WaitOption,
)
from engine.cli.output import show_line, warn
from engine.cli.progress import Progress
from engine.cli.status import DONE, INTERRUPTED, SOME_REJECTED
from engine.config import check_keep_pixels, default_store
from engine.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """The options of ``engine ingest``."""

    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Folders, images, tar or zip archives, 'shards/{000..150}.tar', .parquet tables, "
            ".npy or .npz arrays (of images, or of float32 vectors (n, d)), FILE.npz#NAME, "
            "IDX files like train-images-idx3-ubyte.gz, 'synthetic:bits?n=1e6&seed=0', or - to read "
            "a list of sources from standard input.",
        ),
    ] = None
    store: StoreOption = ""
    encoder: EncoderOption = ""
    device: DeviceOption = "auto"
    memory: MemoryOption = ""
    wait: WaitOption = 0.0
    workers: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Number of decoding threads; 0 means one per core."),
    ] = 0
    recursive: Annotated[bool, typer.Option(help="Enter folders inside folders.")] = True
    keep_pixels: Annotated[
        str,
        typer.Option(
            metavar="auto|yes|no",
            help="Keep the pixels of bit images up to 64 KiB (auto), of all images (yes) or of none "
            "(no).",
        ),
    ] = "auto"
    vectors: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Your own vectors for the images, float32: a .npy of (n, d), row i for the i-th image, "
            "or an .npz of the arrays names and vectors.",
        ),
    ] = ""
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize",
            help="Divide imported vectors and queries by their length, so that scores are cosines.",
        ),
    ] = False
    files_from: FilesFromOption = ""
    null: NullOption = False
    exclude: ExcludeOption = None
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only report what would be read and how much disk it would take."
        ),
    ] = False
    as_json: JsonOption = False


@takes(IngestOptions)
def ingest(options: IngestOptions) -> None:
    """Add images to a store, which is created if missing.

    Unchanged files are not read again, and equal images are stored once. Unreadable images are
    listed in the store's rejects.jsonl. Ctrl-C commits the finished images; run it again to go on.
    The rows of a float32 array (n, d) are imported as vectors, and --vectors brings vectors for
    images. A store holds either imported vectors or those of an encoder.

    \b
    Example:
      engine ingest photos/ masks.npy --store photos.store
      engine ingest photos/ --wait 60 --store photos.store
      engine ingest photos/ --exclude 'more/*.webp' --exclude '*.bmp' --store photos.store
      engine ingest new/ --vectors new.npz --store own.store
      engine ingest 'synthetic:bits?n=20000&seed=0' --encoder none --store bits.store
    """
    named = options.sources or []
    if options.null and not options.files_from and "-" not in named:
        raise UsageError("--null is for a list: name one with --files-from, or as -")
    excluded = options.exclude or []
    # Refuse wrong sources before a store is created for them.
    check_sources(
        named,
        files_from=options.files_from or None,
        recursive=options.recursive,
        null=options.null,
        exclude=excluded,
        vectors=options.vectors or None,
        encoder=options.encoder or None,
        memory=options.memory or None,
    )
    check_keep_pixels(options.keep_pixels)
    path = options.store or default_store()
    if options.dry_run and options.wait:
        raise UsageError("--dry-run takes no lock: leave --wait out")
    if options.dry_run:
        _report_plan(options, path, named)
    with interruptible() as stop:
        opened = Store.open(
            path,
            create=True,
            # The vectors that images come with would replace an encoder.
            encoder=options.encoder or ("none" if options.vectors else None),
            memory=options.memory or None,
            wait=options.wait,
            device=options.device,
        )
        with opened, Progress("ingest") as progress:
            report = opened.ingest(
                *named,
                files_from=options.files_from or None,
                encoder=options.encoder or None,
                recursive=options.recursive,
                keep_pixels=options.keep_pixels,
                workers=options.workers or None,
                normalize=options.normalize,
                null=options.null,
                exclude=excluded,
                vectors=options.vectors or None,
                progress=progress,
                stop=stop,
            )
            has_encoder = opened.has_encoder or opened.has_given_vectors
    if report.added and not (options.encoder or options.vectors or has_encoder):
        warn(
            "no vectors were made, because this store was created with --encoder none: add "
            "--encoder simclr to make vectors of the images that you ingest from now on"
        )
    if options.as_json:
        show_line(render.line(asdict(report)))
    else:
        if not report.seen and not report.skipped and not report.interrupted:
            warn(f"there is nothing to ingest in {', '.join(named) or options.files_from}")
        show_line(render.ingest_text(report, memory=logs.is_verbose()))
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(SOME_REJECTED if report.rejected else DONE)


def _report_plan(options: IngestOptions, path: str, named: list[str]) -> NoReturn:
    with Progress("dry run", "files") as progress:
        plan = Store.plan(
            path,
            *named,
            files_from=options.files_from or None,
            encoder=options.encoder or None,
            recursive=options.recursive,
            keep_pixels=options.keep_pixels,
            normalize=options.normalize,
            null=options.null,
            exclude=options.exclude or [],
            vectors=options.vectors or None,
            memory=options.memory or None,
            progress=progress,
        )
    show_line(render.line(asdict(plan)) if options.as_json else render.plan_text(plan))
    raise typer.Exit(SOME_REJECTED if plan.rejected else DONE)
