"""Does a killed writer lose anything? Kills one with SIGKILL again and again, and checks the store.

A child ingests files and rows of arrays in small chunks, and acknowledges each commit through a pipe. It
is killed at seeded random moments. The store is then opened for reading: it has to hold everything that
the child acknowledged, and all or nothing of the chunk in flight. Then it is opened for writing, which
recovers it. Now check has to find nothing, and every acknowledged image has to be found, verified, with
all its sources. The next child goes on with the same sources, and may not add anything twice.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path

from engine.cli.progress import Progress
from engine.config import parse_memory
from engine.errors import UsageError

from ..harness import script
from ..harness.errors import WrongAnswerError
from ..report.tables import align
from .kills_run import BETWEEN, COMMITTING, INDEXING, NO_ENCODER, OPENING, Kills, Report
from .tiny_encoder import TINY


def main() -> bool:
    """Kill and print; true if nothing was lost."""
    parser = script.parser(__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of a child that writes  [100]")
    parser.add_argument("--seed", type=int, default=0, help="of the sources and moments  [0]")
    parser.add_argument("--memory", default="128M", help="the memory of the store  [128M]")
    parser.add_argument(
        "--encoder", help="tiny, none, a name or a folder  [tiny where onnx is installed, or none]"
    )
    parser.add_argument(
        "--dir", type=Path, help="folder for the store, which is removed at the end"
    )
    arguments = parser.parse_args()
    if arguments.kills < 1:
        raise UsageError(f"kills must be 1 or more, not {arguments.kills}")
    budget = parse_memory(arguments.memory).total
    encoder = arguments.encoder or (TINY if importlib.util.find_spec("onnx") else NO_ENCODER)
    if arguments.dir is not None:
        arguments.dir.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="engine-bench-", dir=arguments.dir)).absolute()
    keep = False
    try:
        kills = Kills(work, seed=arguments.seed, memory=budget, encoder=encoder)
        with Progress("kills", unit="kills") as progress:
            kills.run(arguments.kills, progress)
    except WrongAnswerError as error:
        keep = True
        print(f"kill {kills.report.hits.total()}: {error}; see {work}: MISSED")
        return False
    finally:
        if not keep:
            shutil.rmtree(work, ignore_errors=True)
    print(table(kills.report))
    print("after each kill nothing was lost, and nothing added twice: met")
    return True


def table(report: Report) -> str:
    """The moments of the kills, and the content of the store, as aligned columns."""
    lines = [("kills", "that hit")]
    lines += [(f"{report.hits[at]:,}", at) for at in (COMMITTING, BETWEEN, INDEXING, OPENING)]
    end = (
        f"{report.kills:,} kills of a child that wrote and {report.hits[OPENING]:,} of one that was "
        f"opening, in {report.seconds:,.0f} s",
        f"{report.in_flight:,} chunks were in flight; {report.landed:,} of them were there, whole",
        f"{report.commits:,} commits were acknowledged; in the end there were {report.images:,} images "
        f"with {report.sources:,} sources and {report.vectors:,} vectors,",
        f"in {report.extents:,} extents, {report.tables:,} tables of keys and {report.segments:,} "
        f"segments of the index",
    )
    return "\n".join((align(lines, left=(1,)), *end))


if __name__ == "__main__":
    script.exit_with(main)
