"""``engine lookup``."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated, Any, Self

import typer

from engine.api import Store
from engine.cli import completion, queries, render
from engine.cli.dataclass_options import takes
from engine.cli.lookup_output import Csv, Json, Output, Paths, QueryNames, TableOutput
from engine.cli.options import (
    DeviceOption,
    ExcludeOption,
    FilesFromOption,
    JsonOption,
    MemoryOption,
    NullOption,
    StoreOption,
)
from engine.cli.progress import Progress
from engine.cli.status import DONE, NOT_FOUND, SOME_REJECTED
from engine.cli.terminal import Look
from engine.cli.where_option import where_of
from engine.config import (
    DEFAULT_K,
    DEFAULT_MAX_DISTANCE,
    DEFAULT_NEAR_LIMIT,
    SOURCES_SHOWN,
    default_store,
)
from engine.errors import UsageError, shortened

_BAR_AFTER = 1.0  # seconds
_MAX_DIGITS = 19


@dataclass(frozen=True, kw_only=True)
class LookupOptions:
    """The options of ``engine lookup``."""

    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE...",
            help="Image files, folders of them, ARCHIVE.tar#MEMBER, FILE.parquet#ROW, FILE.npy#ROW "
            "(FILE.npy for all its rows, which may be vectors if the store holds imported ones), "
            "FILE.npz#NAME#ROW, IDX-FILE#ROW, 'synthetic:bits?seed=0#17', '#7' for image 7 of the "
            "store, or - for an image's bytes on standard input.",
        ),
    ] = None
    id_: Annotated[
        list[int] | None,
        typer.Option("--id", metavar="N", help="Look up image N of the store; may be repeated."),
    ] = None
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Look up what a text says, among the similar images; may be repeated. The store's "
            "encoder must take texts.",
        ),
    ] = None
    store: StoreOption = ""
    k: Annotated[
        int, typer.Option("-k", "--top", metavar="N", help="Number of similar images to return.")
    ] = DEFAULT_K
    tier: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,...",
            autocompletion=completion.tiers,
            help="Tiers to search: identical, near, similar [all]; may be repeated.",
        ),
    ] = None
    max_distance: Annotated[
        int,
        typer.Option(metavar="N", help="Maximum distance of near images, 0 to 256."),
    ] = DEFAULT_MAX_DISTANCE
    near_limit: Annotated[
        str,
        typer.Option(
            metavar="N|all", help="Number of near images to list [100; a table shows 10]."
        ),
    ] = ""
    sources: Annotated[
        str,
        typer.Option(
            metavar="N|all", help="Number of sources to list per hit [10; a table shows 1]."
        ),
    ] = ""
    min_score: Annotated[
        str,
        typer.Option(
            metavar="X|P%",
            help="Leave out similar images below this cosine, or below this share of random pairs.",
        ),
    ] = ""
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Find only images from this file, array, archive or folder; may be repeated.",
        ),
    ] = None
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE",
            help="Find only images whose metadata meets this condition; also <, <=, > and >=. May be "
            "repeated; all conditions must hold. 3 is a number, and '\"3\"' is a text.",
        ),
    ] = None
    recall: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            help="Share of the similar images to find [the store's own]; 1 compares all vectors.",
        ),
    ] = None
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="As --tier identical, with status 1 if any image is not found."
        ),
    ] = False
    device: DeviceOption = "auto"
    memory: MemoryOption = ""
    files_from: FilesFromOption = ""
    null: NullOption = False
    exclude: ExcludeOption = None
    as_json: JsonOption = False
    paths: Annotated[
        bool,
        typer.Option(
            "-q",
            "--paths",
            help="Print only the sources of the hits, one per line, each once (up to 10 per hit; see "
            "--sources).",
        ),
    ] = False
    found: Annotated[
        bool,
        typer.Option("-l", "--found", help="Print only the names of images that have hits."),
    ] = False
    not_found: Annotated[
        bool,
        typer.Option("-L", "--not-found", help="Print only the names of images without hits."),
    ] = False
    print0: Annotated[
        bool,
        typer.Option(
            "--print0", help="A null byte after each name, for xargs -0; alone, as --paths."
        ),
    ] = False
    csv: Annotated[
        bool,
        typer.Option("--csv", help="Print CSV: a header, and a row per hit with its first source."),
    ] = False


@takes(LookupOptions)
def lookup(options: LookupOptions) -> None:
    """Find the same image, near copies of it and similar images.

    A near image is "very close" up to a distance of 8 of 256, "close" up to 20, and "loosely" alike
    beyond. For bit images the distance is the same share of their pixel values. A similar image is
    "very close" from a score of 0.95, and "close" from 0.85. The percentage is that of random pairs of
    the store that are less alike. A hit is "no closer than strangers" if chance would give as much.

    \b
    Example:
      engine lookup query.jpg 'masks.npy#17' --store photos.store
      engine lookup query.jpg --json -k 3 --store photos.store
      engine lookup query.jpg --source photos/more/ --store photos.store
      engine lookup photos/ --exclude '*.bmp' --tier identical,near --csv --store photos.store
      engine lookup --text 'a red bicycle' -k 20 --store clip.store
      engine lookup --id 2 --near-limit all --sources all --store photos.store
      engine lookup query.jpg --paths --store photos.store
      engine lookup photos/ --tier identical,near --not-found --store photos.store
      engine lookup query.jpg --where label=cat --where 'year>1999' --store photos.store
    """
    named: list[queries.Query] = [*(options.images or []), *(options.id_ or [])]
    if options.null and not options.files_from:
        raise UsageError("--null is for a list: name one with --files-from")
    texts = options.text or []
    if not named and not texts and not options.files_from:
        raise UsageError(
            "name at least one image: a file, a folder, ARCHIVE.tar#MEMBER, FILE.npy#ROW, or -; or a "
            "text with --text"
        )
    settings = _settings(options)
    _check_form(options)
    missing = failed = False
    path = options.store or default_store()
    opened = Store.open(path, read_only=True, memory=options.memory or None, device=options.device)
    with opened, _Bar(named, options) as bar:
        output = _output(options, settings, encoded=not opened.has_given_vectors)
        asked = queries.pieces(named, options.files_from, null=options.null)
        of_images = (opened.lookup_many(piece, **settings) for piece in asked)
        of_texts = opened.lookup_many(texts=texts, **settings) if texts else ()
        read = True
        for form, result in itertools.chain(
            zip(itertools.repeat(output), itertools.chain.from_iterable(of_images)),
            zip(itertools.repeat(output.for_texts()), of_texts),
        ):
            read = form.write(result)
            failed |= result.error is not None
            missing |= not result.identical
            bar.step()
            if not read:
                break
        if read:
            output.end()
    if failed:
        raise typer.Exit(SOME_REJECTED)
    raise typer.Exit(NOT_FOUND if options.exact and missing else DONE)


class _Bar:
    """A progress bar for a long lookup whose results go to a file or a pipe; otherwise nothing."""

    def __init__(self, named: Sequence[queries.Query], options: LookupOptions) -> None:
        self._shown: Progress | None = None
        self._done = 0
        self._total: int | None = None
        if sys.stderr.isatty() and not sys.stdout.isatty():
            self._shown = Progress("lookup", plain=False, bar_after=_BAR_AFTER)
            images = None if options.files_from else queries.count(named, options.exclude or [])
            if images is not None:
                self._total = images + len(options.text or [])

    def __enter__(self) -> Self:
        if self._shown is not None:
            self._shown.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown is not None:
            self._shown.__exit__(kind, error, trace)

    def step(self) -> None:
        """Count one more query as done."""
        self._done += 1
        if self._shown is not None:
            self._shown(self._done, self._total)


def _settings(options: LookupOptions) -> dict[str, Any]:
    """The keyword arguments for ``lookup_many``."""
    tiers = [name.strip() for typed in options.tier or [] for name in typed.split(",")] or None
    if options.exact:
        if tiers and set(tiers) != {"identical"}:
            raise UsageError("--exact is --tier identical: leave the other tiers out")
        tiers = ["identical"]
    return {
        "k": options.k,
        "tiers": tiers,
        "min_score": _min_score(options.min_score),
        "max_distance": options.max_distance,
        "near_limit": _limit("--near-limit", options.near_limit, DEFAULT_NEAR_LIMIT),
        "max_sources": _limit("--sources", options.sources, SOURCES_SHOWN),
        "recall": options.recall,
        "source": options.source or None,
        "where": where_of(options.where) if options.where else None,
        "exclude": options.exclude or [],
    }


def _min_score(text: str) -> float | str | None:
    if not text or text.endswith("%"):
        return text or None
    try:
        return float(text)
    except ValueError:
        raise UsageError(
            f"--min-score is {shortened(text)}: write a number such as 0.8, or a percentage such as "
            f"99%"
        ) from None


def _limit(option: str, text: str, default: int) -> int | None:
    """The typed number; None for "all"."""
    if not text:
        return default
    if text == "all":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < _MAX_DIGITS):
        raise UsageError(f"{option} must be a whole number of 0 or more, or all, not {text!r}")
    return int(text)


def _check_form(options: LookupOptions) -> None:
    forms = {
        "--json": options.as_json,
        "--found": options.found,
        "--not-found": options.not_found,
        "--paths": options.paths,
        "--csv": options.csv,
    }
    chosen = [form for form, is_asked in forms.items() if is_asked]
    if options.print0 and (options.as_json or options.csv):
        chosen.append("--print0")
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other: choose one of them")


def _output(options: LookupOptions, settings: dict[str, Any], *, encoded: bool) -> Output:
    """The form in which results are written."""
    if options.as_json:
        return Json()
    if options.csv:
        return Csv()
    end = b"\0" if options.print0 else b"\n"
    if options.found or options.not_found:
        return QueryNames(found=options.found, end=end)
    if options.paths or options.print0:
        return Paths(end)
    # Tables are short unless an option asks for more.
    near = settings["near_limit"] if options.near_limit else render.NEAR_SHOWN
    sources = settings["max_sources"] if options.sources else 1
    return TableOutput(Look.of_output(), near, sources, encoded=encoded)
