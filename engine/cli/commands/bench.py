"""``engine bench``."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.cli import render
from engine.cli.dataclass_options import takes
from engine.cli.options import JsonOption, MemoryOption
from engine.cli.output import show_line, warn
from engine.cli.progress import Progress
from engine.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """The options of ``engine bench``."""

    n: Annotated[
        str,
        typer.Option("--n", metavar="N", help="Number of images or vectors, such as 1e6.  [1e6]"),
    ] = ""
    out: Annotated[
        str,
        typer.Option(metavar="DIR", help="A new folder for the figures, the plots and a web page."),
    ] = ""
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Number of sizes to measure: n, n/10, n/100 and so on.  [4]", min=1
        ),
    ] = None
    dataset: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="A folder of pictures, or a .npy file of vectors.  [random bit images]",
        ),
    ] = ""
    store: Annotated[
        str, typer.Option(metavar="DIR", help="Query an existing store instead, read-only.")
    ] = ""
    peers: Annotated[
        str,
        typer.Option(
            metavar="NAMES", help="Other methods to measure: all, or names separated by commas."
        ),
    ] = "none"
    embed: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help="Images to make vectors of: all, none or sample. sample means all pictures but no "
            "bit images; for bit images it measures an index of synthetic vectors.  [sample]",
        ),
    ] = ""
    memory: MemoryOption = ""
    memory_limit: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Memory limit of its processes, page cache included."),
    ] = ""
    compare: Annotated[
        str, typer.Option(metavar="OLD", help="Compare with the results.json of an earlier run.")
    ] = ""
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of the synthetic images and vectors.", min=0)
    ] = 0
    as_json: JsonOption = False


@takes(BenchOptions)
def bench(options: BenchOptions) -> None:
    """Measure each tier on this machine as n grows.

    --peers measures other methods on the same data.

    \b
    Example:
      engine bench --n 1e6 --out results/
      engine bench --n 1e6 --out again/ --compare results/results.json
      engine bench --n 1e5 --peers sqlite,hnswlib --memory-limit 512M
    """
    suite = _suite()
    before = suite.load(Path(options.compare)) if options.compare else None
    folder = Path(options.out) if options.out else None
    plan = suite.plan(
        suite.parse_count(options.n) if options.n else None,
        folder=suite.place(folder),
        steps=options.steps,
        seed=options.seed,
        memory=options.memory or None,
        limit=options.memory_limit,
        embed=options.embed,
        peers=options.peers,
        dataset=options.dataset,
        store=options.store,
    )
    with Progress("bench", "s") as progress:
        try:
            results, left_out = suite.run(plan, out=folder, progress=progress, note=progress.note)
        # Nothing was measured yet.
        except UsageError:
            raise
        # Ctrl-C, a wrong answer or a full disk.
        except BaseException:
            if folder is not None and suite.kept(folder):
                warn(f"the results measured so far are in {folder}")
            raise
    for line in left_out:
        warn(line)
    changes = suite.compare(before, results) if before is not None else []
    if options.as_json:
        body = suite.summary_of(results)
        if before is not None:
            body["compared"] = suite.changes_of(before, results, changes)
        show_line(render.line(body))
        return
    show_line(suite.table(results))
    if before is not None:
        show_line("\n" + suite.changes_table(before, results, changes))


def _suite() -> Any:
    """The module of benchmarks: ``engine._bench`` when installed, ``bench`` in a checkout."""
    for name in ("engine._bench", "bench"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise UsageError("the benchmarks are not installed: install image-index-engine again")
