"""The command: each function parses, makes one call on ``Store`` and prints."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType
from typing import Annotated, Any

import typer

from engine import __version__, show
from engine.api import Store
from engine.config import DEFAULT_K, default_store
from engine.errors import EngineError, UsageError
from engine.progress import Progress
from engine.sources.locate import listed

DONE, NOT_FOUND, FAILED, SOME_REJECTED, INTERRUPTED = 0, 1, 2, 3, 130

app = typer.Typer(
    name="engine",
    # Plain help, and no rich: importing it would cost every lookup a tenth of a second.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

StoreOption = Annotated[
    str,
    typer.Option("--store", metavar="DIR", help="The store.  [$ENGINE_STORE, else ./engine.store]"),
]
MemoryOption = Annotated[
    str,
    typer.Option("--memory", metavar="SIZE", help="Anonymous memory to use, at least 128M."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
FilesFromOption = Annotated[
    str,
    typer.Option("--files-from", metavar="FILE", help="Read more of them from FILE, one a line."),
]


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """An embedded, disk-backed index for images: is this very image here, and what looks like it?

    \b
    Example:
      engine ingest photos/ --store photos.store
      engine lookup query.jpg --store photos.store
    """
    if version:
        print(f"engine {__version__}")
        raise typer.Exit


@app.command()
def ingest(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Folders, images, .npy or .npz arrays, 'synthetic:bits?n=1e6&seed=0', "
            "or - for a list of them on standard input.",
        ),
    ] = None,
    store: StoreOption = "",
    encoder: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH|none",
            help="The encoder, fixed when the store is made; none adds images without vectors.",
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
    files_from: FilesFromOption = "",
    as_json: JsonOption = False,
) -> None:
    """Add images to a store, which is made if it is not there.

    What is there already is not read again, equal images are stored once, and what cannot be read
    is listed in the store's rejects.jsonl. Ctrl-C commits what is done; run it again to go on.

    \b
    Example:
      engine ingest photos/ masks.npy --store photos.store
      engine ingest 'synthetic:bits?n=20000&seed=0' --encoder none --store bits.store
    """
    given = sources or []
    path = store or default_store()
    with _interruptible() as stop:
        opened = Store.open(path, create=True, encoder=encoder or None, memory=memory)
        with opened, Progress("ingest") as progress:
            report = opened.ingest(
                *given,
                files_from=files_from or None,
                encoder=encoder or None,
                recursive=recursive,
                keep_pixels=keep_pixels,
                workers=workers or None,
                progress=progress,
                stop=stop,
            )
    if as_json:
        _print(show.line(asdict(report)))
    else:
        if not report.seen and not report.skipped:
            _warn(f"there is nothing to ingest in {', '.join(given) or files_from}")
        _print(show.ingest_text(report))
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(SOME_REJECTED if report.rejected else DONE)


@app.command()
def lookup(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE...",
            help="Image files, FILE.npy#ROW, FILE.npy (every row), 'synthetic:bits?seed=0#17', "
            "or - for an image's bytes on standard input.",
        ),
    ] = None,
    store: StoreOption = "",
    k: Annotated[int, typer.Option("-k", "--top", metavar="N", help="Similar images.")] = DEFAULT_K,
    tier: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Search identical or similar only; may be repeated."),
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(metavar="X", help="Leave out similar images below this cosine.")
    ] = None,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="--tier identical, and status 1 unless every image is found."),
    ] = False,
    memory: MemoryOption = "1G",
    files_from: FilesFromOption = "",
    as_json: JsonOption = False,
) -> None:
    """Look images up: is this very image here, and what looks like it?

    \b
    Example:
      engine lookup query.jpg 'masks.npy#17' --store photos.store
      engine lookup query.jpg --json -k 3 --store photos.store
    """
    given: Iterable[str] = images or []
    if files_from:
        given = itertools.chain(given, listed(files_from))
    elif not images:
        raise UsageError("name at least one image: a file, FILE.npy#ROW, or -")
    tiers = tier or None
    if exact:
        if tiers and tiers != ["identical"]:
            raise UsageError("--exact is --tier identical: leave the other tiers out")
        tiers = ["identical"]
    missing = failed = False
    path = store or default_store()
    with Store.open(path, read_only=True, memory=memory) as opened:
        for result in opened.lookup_many(given, k=k, tiers=tiers, min_score=min_score):
            _print(show.lookup_json(result) if as_json else show.lookup_text(result))
            failed |= result.error is not None
            missing |= not result.identical
    if failed:
        raise typer.Exit(SOME_REJECTED)
    raise typer.Exit(NOT_FOUND if exact and missing else DONE)


@app.command()
def info(store: StoreOption = "", as_json: JsonOption = False) -> None:
    """Show what is in a store, and how much disk each part takes.

    \b
    Example:
      engine info --store photos.store
    """
    with Store.open(store or default_store(), read_only=True) as opened:
        found = opened.info()
    _print(show.line(asdict(found)) if as_json else show.info_text(found))


@app.command()
def check(
    store: StoreOption = "",
    fix: Annotated[bool, typer.Option("--fix", help="Build anew what is derived.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Read everything in a store and prove it whole. Status 1 if damage remains.

    \b
    Example:
      engine check --store photos.store
    """
    with Store.open(store or default_store(), read_only=not fix) as opened:
        report = opened.check(fix=fix)
    _print(show.line(asdict(report) | {"ok": report.ok}) if as_json else show.check_text(report))
    raise typer.Exit(DONE if report.ok else NOT_FOUND)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. Every failure is one line on standard error."""
    logging.basicConfig(format="engine: %(message)s", level=logging.WARNING)
    # Pillow warns of odd metadata in files that it reads all the same.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names that are no UTF-8 must not stop a listing
            stream.reconfigure(errors="backslashreplace")
    try:
        status = app(args=arguments, prog_name="engine", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else DONE
    except EngineError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        print("engine: interrupted; what was committed is safe", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        name = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{name}")
    except Exception as error:
        # Typer's own errors (an unknown option, say) have this method; which class they are of
        # depends on its version.
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            return FAILED
        command = context.command_path if context else "engine"
        return _fail(f"{error.format_message()} (see '{command} --help')")


def _fail(message: str) -> int:
    print("engine: " + " ".join(message.split()), file=sys.stderr)
    return FAILED


def _warn(message: str) -> None:
    print(f"engine: {message}", file=sys.stderr)


def _print(text: str) -> None:
    print(text, flush=True)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks the work to stop at its next commit; a second one stops it at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        _warn("stopping after this chunk is committed (Ctrl-C again to stop at once)")

    before: Any = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
