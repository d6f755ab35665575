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
    """What ``engine bench`` takes."""

    n: Annotated[
        str, typer.Option("--n", metavar="N", help="Images or vectors, such as 1e6.  [1e6]")
    ] = ""
    out: Annotated[
        str, typer.Option(metavar="DIR", help="A new folder for figures, plots and a page.")
    ] = ""
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="Sizes up to n, ten times the last each.  [4]", min=1),
    ] = None
    dataset: Annotated[
        str,
        typer.Option(
            metavar="PATH", help="A folder of pictures or a .npy of vectors.  [random bit images]"
        ),
    ] = ""
    store: Annotated[
        str, typer.Option(metavar="DIR", help="Ask a store that is there instead, read-only.")
    ] = ""
    peers: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Other methods to measure: all, or names with commas."),
    ] = "none"
    embed: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help="Vectors: all: of every image; none; sample: of bit images none, an index of made "
            "vectors is measured instead; of pictures all.  [sample]",
        ),
    ] = ""
    memory: MemoryOption = ""
    memory_limit: Annotated[
        str, typer.Option(metavar="SIZE", help="Hold its processes to this, page cache included.")
    ] = ""
    compare: Annotated[
        str, typer.Option(metavar="OLD", help="The results.json of an earlier run.")
    ] = ""
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of the images and vectors that are made.", min=0)
    ] = 0
    as_json: JsonOption = False


@takes(BenchOptions)
def bench(options: BenchOptions) -> None:
    """Measure every tier on this machine as n grows, beside what people use instead.

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
        except UsageError:  # nothing was begun
            raise
        except BaseException:  # Ctrl-C, a wrong answer, a disk that is full
            if folder is not None and suite.kept(folder):
                warn(f"what was measured until now is in {folder}")
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
    """The benchmarks: inside an installed package ``engine._bench``, in a checkout ``bench``."""
    for name in ("engine._bench", "bench"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise UsageError("the benchmarks are not installed: install image-index-engine again")
