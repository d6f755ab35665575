"""``engine bench``."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from engine import show
from engine.cli.options import JsonOption, MemoryOption, show_line
from engine.errors import UsageError
from engine.progress import Progress


def bench(
    n: Annotated[str, typer.Option("--n", metavar="N", help="Bit images, such as 1e5.")] = "1e5",
    out: Annotated[
        str, typer.Option(metavar="DIR", help="A new folder for results.csv and results.json.")
    ] = "",
    steps: Annotated[int, typer.Option(metavar="N", help="Sizes measured up to n.", min=1)] = 4,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the images.", min=0)] = 0,
    memory: MemoryOption = "1G",
    as_json: JsonOption = False,
) -> None:
    """Measure identical lookups on this machine, beside brute force, a list and a dict of hashes.

    \b
    Example:
      engine bench --n 1e5 --out results/
    """
    suite = _suite()
    count = suite.parse_count(n)
    with Progress("bench") as progress:
        report = suite.run(
            count,
            out=Path(out) if out else None,
            steps=steps,
            seed=seed,
            memory=memory,
            progress=progress,
        )
    show_line(show.line(asdict(report)) if as_json else suite.table(report))


def _suite() -> Any:
    """The benchmarks: inside an installed package ``engine._bench``, in a checkout ``bench``."""
    for name in ("engine._bench", "bench"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise UsageError("the benchmarks are not installed: install image-index-engine again")
