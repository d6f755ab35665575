"""``engine ingest``, ``lookup``, ``info`` and ``check``: each parses, makes one call and prints."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Annotated

import typer

from engine.api import Store
from engine.cli import render
from engine.cli.options import (
    DONE,
    INTERRUPTED,
    NOT_FOUND,
    SOME_REJECTED,
    FilesFromOption,
    JsonOption,
    MemoryOption,
    NullOption,
    StoreOption,
    interruptible,
    show_line,
    warn,
)
from engine.cli.progress import Progress
from engine.config import DEFAULT_K, DEFAULT_MAX_DISTANCE, check_keep_pixels, default_store
from engine.errors import StoreDamagedError, UsageError
from engine.maintenance.check.run import unreadable
from engine.sources.path_lists import listed
from engine.sources.source_stream import Sources


def ingest(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Folders, images, tar or zip archives, 'shards/{000..150}.tar', .parquet tables, "
            ".npy or .npz arrays (of images; or vectors, float32 (n, d)), FILE.npz#NAME, "
            "'synthetic:bits?n=1e6&seed=0', or - for a list of them on standard input.",
        ),
    ] = None,
    store: StoreOption = "",
    encoder: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH|none",
            help="The encoder [simclr], fixed with the first vectors; none adds images without.",
        ),
    ] = "",
    memory: MemoryOption = "1G",
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Threads that decode; 0: one a core.")
    ] = 0,
    recursive: Annotated[bool, typer.Option(help="Enter the folders inside folders.")] = True,
    keep_pixels: Annotated[
        str,
        typer.Option(
            metavar="auto|yes|no",
            help="Keep pixels: of bit images up to 64 KiB, of all images, of none.",
        ),
    ] = "auto",
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize",
            help="Divide given vectors by their length, and queries: scores are cosines.",
        ),
    ] = False,
    files_from: FilesFromOption = "",
    null: NullOption = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what would be read and how much disk it takes."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Add images to a store, which is made if it is not there.

    What is there already is not read again, equal images are stored once, and what cannot be read
    is listed in the store's rejects.jsonl. Ctrl-C commits what is done; run it again to go on.
    Rows of float32 arrays (n, d) are vectors of your own: a store holds such, or an encoder's.

    \b
    Example:
      engine ingest photos/ masks.npy --store photos.store
      engine ingest 'synthetic:bits?n=20000&seed=0' --encoder none --store bits.store
    """
    given = sources or []
    if null and not files_from and "-" not in given:
        raise UsageError("--null is for a list: name one with --files-from, or as -")
    # Before a store is made for what is not there.
    Sources(given, files_from=files_from or None, null=null)
    check_keep_pixels(keep_pixels)
    path = store or default_store()
    if dry_run:
        with Progress("dry run", "files") as progress:
            plan = Store.plan(
                path,
                *given,
                files_from=files_from or None,
                encoder=encoder or None,
                recursive=recursive,
                keep_pixels=keep_pixels,
                null=null,
                progress=progress,
            )
        show_line(render.line(asdict(plan)) if as_json else render.plan_text(plan))
        raise typer.Exit(SOME_REJECTED if plan.rejected else DONE)
    with interruptible() as stop:
        opened = Store.open(path, create=True, encoder=encoder or None, memory=memory)
        with opened, Progress("ingest") as progress:
            report = opened.ingest(
                *given,
                files_from=files_from or None,
                encoder=encoder or None,
                recursive=recursive,
                keep_pixels=keep_pixels,
                workers=workers or None,
                normalize=normalize,
                null=null,
                progress=progress,
                stop=stop,
            )
            has_encoder = opened.has_encoder or opened.has_given_vectors
    if report.added and not encoder and not has_encoder:
        warn(
            "no vectors were made: this store began with --encoder none; with --encoder simclr, "
            "images that are added from then on get some"
        )
    if as_json:
        show_line(render.line(asdict(report)))
    else:
        if not report.seen and not report.skipped and not report.interrupted:
            warn(f"there is nothing to ingest in {', '.join(given) or files_from}")
        show_line(render.ingest_text(report))
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(SOME_REJECTED if report.rejected else DONE)


def lookup(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE...",
            help="Image files, ARCHIVE.tar#MEMBER, FILE.parquet#ROW, FILE.npy#ROW (or all of one: "
            "FILE.npy; of vectors too, where the store holds such), FILE.npz#NAME#ROW, "
            "'synthetic:bits?seed=0#17', or - for an image's bytes on standard input.",
        ),
    ] = None,
    store: StoreOption = "",
    k: Annotated[int, typer.Option("-k", "--top", metavar="N", help="Similar images.")] = DEFAULT_K,
    tier: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Search identical, near or similar only; may be repeated."
        ),
    ] = None,
    max_distance: Annotated[
        int, typer.Option(metavar="N", help="Near images: all within N of 256.")
    ] = DEFAULT_MAX_DISTANCE,
    min_score: Annotated[
        float | None, typer.Option(metavar="X", help="Leave out similar images below this cosine.")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Find only images of a file, an array, an archive or a folder; may be repeated.",
        ),
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            help="The share of the similar images to be found [what the store wants]; 1 compares all.",
        ),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="--tier identical, and status 1 unless every image is found."),
    ] = False,
    memory: MemoryOption = "1G",
    files_from: FilesFromOption = "",
    null: NullOption = False,
    as_json: JsonOption = False,
) -> None:
    """Look images up: is this very image here, is a copy of it, and what looks like it?

    \b
    Example:
      engine lookup query.jpg 'masks.npy#17' --store photos.store
      engine lookup query.jpg --json -k 3 --store photos.store
      engine lookup query.jpg --source photos/more/ --store photos.store
    """
    given: Iterable[str] = images or []
    if files_from:
        given = itertools.chain(given, listed(files_from, null=null))
    elif null:
        raise UsageError("--null is for a list: name one with --files-from")
    elif not images:
        raise UsageError("name at least one image: a file, ARCHIVE.tar#MEMBER, FILE.npy#ROW, or -")
    tiers = tier or None
    if exact:
        if tiers and tiers != ["identical"]:
            raise UsageError("--exact is --tier identical: leave the other tiers out")
        tiers = ["identical"]
    missing = failed = False
    path = store or default_store()
    with Store.open(path, read_only=True, memory=memory) as opened:
        results = opened.lookup_many(
            given,
            k=k,
            tiers=tiers,
            min_score=min_score,
            max_distance=max_distance,
            recall=recall,
            source=source or None,
        )
        for result in results:
            read = show_line(render.lookup_json(result) if as_json else render.lookup_text(result))
            failed |= result.error is not None
            missing |= not result.identical
            if not read:
                break
    if failed:
        raise typer.Exit(SOME_REJECTED)
    raise typer.Exit(NOT_FOUND if exact and missing else DONE)


def info(store: StoreOption = "", as_json: JsonOption = False) -> None:
    """Show what is in a store, and how much disk each part takes.

    \b
    Example:
      engine info --store photos.store
    """
    with Store.open(store or default_store(), read_only=True) as opened:
        found = opened.info()
    show_line(render.line(asdict(found)) if as_json else render.info_text(found))


def check(
    store: StoreOption = "",
    fix: Annotated[
        bool, typer.Option("--fix", help="Make anew what is derived; set aside what is lost.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read everything in a store and prove it whole. Status 1 if damage remains.

    \b
    Example:
      engine check --store photos.store
    """
    path = store or default_store()
    try:
        salvaged = Store.salvage(path) if fix else []
        with Store.open(path, read_only=not fix) as opened:
            report = opened.check(fix=fix)
        report = replace(report, problems=(*salvaged, *report.problems))
    except StoreDamagedError as error:
        report = unreadable(error)
    show_line(
        render.line(asdict(report) | {"ok": report.ok}) if as_json else render.check_text(report)
    )
    raise typer.Exit(DONE if report.ok else NOT_FOUND)
