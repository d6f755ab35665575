"""``engine lookup``."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import typer

from engine.api import Store
from engine.cli import render
from engine.cli.dataclass_options import takes
from engine.cli.options import FilesFromOption, JsonOption, MemoryOption, NullOption, StoreOption
from engine.cli.output import show_line
from engine.cli.status import DONE, NOT_FOUND, SOME_REJECTED
from engine.cli.where_option import where_of
from engine.config import DEFAULT_K, DEFAULT_MAX_DISTANCE, default_store
from engine.errors import UsageError
from engine.sources.path_lists import listed


@dataclass(frozen=True, kw_only=True)
class LookupOptions:
    """What ``engine lookup`` takes."""

    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE...",
            help="Image files, ARCHIVE.tar#MEMBER, FILE.parquet#ROW, FILE.npy#ROW (or all of one: "
            "FILE.npy; of vectors too, where the store holds such), FILE.npz#NAME#ROW, "
            "'synthetic:bits?seed=0#17', or - for an image's bytes on standard input.",
        ),
    ] = None
    store: StoreOption = ""
    k: Annotated[
        int, typer.Option("-k", "--top", metavar="N", help="Number of similar images to return.")
    ] = DEFAULT_K
    tier: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Search identical, near or similar only; may be repeated."
        ),
    ] = None
    max_distance: Annotated[
        int, typer.Option(metavar="N", help="Near images: all within N of 256.")
    ] = DEFAULT_MAX_DISTANCE
    min_score: Annotated[
        float | None, typer.Option(metavar="X", help="Leave out similar images below this cosine.")
    ] = None
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Find only images of a file, an array, an archive or a folder; may be repeated.",
        ),
    ] = None
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE",
            help="Find only images whose metadata says so; also <, <=, > and >=; may be repeated, and "
            "all are to hold. 3 is a number and '\"3\"' a text.",
        ),
    ] = None
    recall: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            help="The share of the similar images to be found [what the store wants]; 1 compares all.",
        ),
    ] = None
    exact: Annotated[
        bool,
        typer.Option("--exact", help="--tier identical, and status 1 unless every image is found."),
    ] = False
    memory: MemoryOption = ""
    files_from: FilesFromOption = ""
    null: NullOption = False
    as_json: JsonOption = False


@takes(LookupOptions)
def lookup(options: LookupOptions) -> None:
    """Look images up: is this very image here, is a copy of it, and what looks like it?

    \b
    Example:
      engine lookup query.jpg 'masks.npy#17' --store photos.store
      engine lookup query.jpg --json -k 3 --store photos.store
      engine lookup query.jpg --source photos/more/ --store photos.store
      engine lookup query.jpg --where label=cat --where 'year>1999' --store photos.store
    """
    given: Iterable[str] = options.images or []
    if options.files_from:
        given = itertools.chain(given, listed(options.files_from, null=options.null))
    elif options.null:
        raise UsageError("--null is for a list: name one with --files-from")
    elif not options.images:
        raise UsageError("name at least one image: a file, ARCHIVE.tar#MEMBER, FILE.npy#ROW, or -")
    tiers = options.tier or None
    if options.exact:
        if tiers and tiers != ["identical"]:
            raise UsageError("--exact is --tier identical: leave the other tiers out")
        tiers = ["identical"]
    missing = failed = False
    path = options.store or default_store()
    with Store.open(path, read_only=True, memory=options.memory or None) as opened:
        results = opened.lookup_many(
            given,
            k=options.k,
            tiers=tiers,
            min_score=options.min_score,
            max_distance=options.max_distance,
            recall=options.recall,
            source=options.source or None,
            where=where_of(options.where) if options.where else None,
        )
        for result in results:
            read = show_line(
                render.lookup_json(result) if options.as_json else render.lookup_text(result)
            )
            failed |= result.error is not None
            missing |= not result.identical
            if not read:
                break
    if failed:
        raise typer.Exit(SOME_REJECTED)
    raise typer.Exit(NOT_FOUND if options.exact and missing else DONE)
