"""Do lookups go on while another process adds vectors? And are these found at once?

One process searches all the time with single queries. At first it is alone. Then a second process
ingests vectors, a commit for each 5,000, and in the end indexes all of them again. After each commit the
next query is one of its vectors, which has to be the first answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.cli.progress import Progress
from engine.config import parse_memory
from engine.errors import UsageError

from ..data.vector_store import STORE_BYTES, VectorStore
from ..harness import script
from ..harness.measurement import quantiles
from ..harness.process import run_child
from ..harness.sizes import check_disk, parse_count
from ..report.tables import Target, align, targets

STEP = 5_000  # vectors of a commit
TARGET_TAIL = 5.0  # times p99 while idle


@dataclass(frozen=True, slots=True)
class Live:
    """Seconds of each lookup, alone and beside the writer, and the number of missed new vectors."""

    idle: list[float]
    busy: list[float]
    asked: int
    missed: int


def measure(
    folder: Path, n: int, added: int, *, memory: int, wanted: float, idle_s: float, seed: int
) -> Live:
    """Make a store of ``n`` vectors in ``folder``, and search it while ``added`` are added."""
    if added < STEP:
        raise UsageError(f"--added is at least {STEP:,}, a commit, not {added:,}")
    store = VectorStore(n, seed, folder)
    with Progress("index_live", "vectors") as progress:
        store.make(memory=memory, wanted=wanted, done=lambda done: progress(done, n))
    spec = {
        "job": "ask",
        "folder": str(store.store),
        "memory_bytes": memory,
        "seed": seed,
        "n": n,
        "step": STEP,
        "added": added // STEP * STEP,
        "wanted": wanted,
        "idle_s": idle_s,
    }
    return Live(**run_child("questions.index_live_child", spec).result)


def main() -> bool:
    """Measure and print; true if every target is met."""
    parser = script.parser(__doc__)
    parser.add_argument("--n", default="5e5", help="vectors to begin with  [5e5]")
    parser.add_argument("--added", default="1e5", help="vectors that are added  [1e5]")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds alone  [10]")
    parser.add_argument("--memory", default="1G", help="of each process  [1G]")
    parser.add_argument("--recall", type=float, default=0.97, help="that is wanted  [0.97]")
    parser.add_argument("--seed", type=int, default=0, help="of the vectors  [0]")
    parser.add_argument(
        "--dir", type=Path, help="folder for the store, which is removed at the end"
    )
    arguments = parser.parse_args()
    n, added = parse_count(arguments.n), parse_count(arguments.added)
    check_disk(n + added, arguments.dir, STORE_BYTES)
    with script.work_folder(arguments.dir) as work:
        live = measure(
            work,
            n,
            added,
            memory=parse_memory(arguments.memory).total,
            wanted=arguments.recall,
            idle_s=arguments.idle,
            seed=arguments.seed,
        )
    print(table(live, n, added), end="\n\n")
    wanted = targets_of(live)
    print(targets(wanted))
    return all(one.met for one in wanted)


def targets_of(live: Live) -> list[Target]:
    """The targets and their measurements."""
    tail = quantiles(live.busy)[1] / quantiles(live.idle)[1]
    return [
        Target("p99 beside the writer, times p99 alone", TARGET_TAIL, tail, digits=2),
        Target(f"missed, of {live.asked:,} vectors just added", 0, live.missed, digits=0),
    ]


def table(live: Live, n: int, added: int) -> str:
    """The lookups as aligned columns: ms."""
    lines = [("lookups, one at a time", "asked", "p50 ms", "p99 ms", "longest ms")]
    for what, seconds in (("alone", live.idle), ("beside the writer", live.busy)):
        p50, p99 = quantiles(seconds)
        cells = (f"{p50 * 1e3:.3f}", f"{p99 * 1e3:.3f}", f"{max(seconds) * 1e3:.1f}")
        lines.append((what, f"{len(seconds):,}", *cells))
    return f"{n:,} vectors, {added:,} added\n{align(lines, left=(0,))}"


if __name__ == "__main__":
    script.exit_with(main)
