"""What does a similarity lookup cost when the vectors are far larger than memory?

A store of ten million made vectors is built. The process that searches has 1 GiB for everything,
page cache included. Nothing of the store is cached when it starts, and each query is new. In turns
with it, the disk's time for one read of 4 KiB is measured. The same queries without a limit show
whether the limit costs recall.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.cli.progress import Progress
from engine.config import parse_memory
from engine.errors import UsageError

from ..data.vector_store import STORE_BYTES, VectorStore
from ..harness import disk, script
from ..harness.measurement import quantiles
from ..harness.memory_limit import limited
from ..harness.process import run_child
from ..harness.sizes import check_disk, parse_count
from ..report.tables import Target, align, targets
from .index_cold_child import FIRST

COUNT = 1_000  # queries a round
TARGET_READS = 25.0  # times the disk's latency: the median
TARGET_TAIL = 5.0  # times the median: the 99th percentile
TARGET_LOST = 0.001  # of the recall
_MAKE_MEMORY = 1 << 30  # of the build, which is not measured


@dataclass(frozen=True, slots=True)
class Cold:
    """One process that searched: seconds of each query, and reads a query."""

    seconds: list[float]
    opening_s: float  # to open the store and for the first queries, which are not counted
    recall: float
    pages: float  # of 4 KiB that the kernel read for the process, a query
    faults: float  # pages that it waited for, a query
    anonymous: int  # bytes
    peak: int  # bytes of memory, page cache included
    at_bound: int  # how often the kernel had to reclaim memory to stay within the limit


def ask(store: VectorStore, *, memory: int, wanted: float, count: int, bound: int | None) -> Cold:
    """Search with nothing cached, within ``bound`` bytes of memory; None means no limit."""
    disk.forget(store.store)
    spec: dict[str, object] = {
        "job": "ask",
        "folder": str(store.store),
        "memory_bytes": memory,
        "queries": str(store.queries),
        "truth": str(store.truth),
        "wanted": wanted,
        "count": count,
    }
    with contextlib.ExitStack() as stack:
        within = () if bound is None else stack.enter_context(limited(bound)).within
        return Cold(**run_child("questions.index_cold_child", spec, within=within).result)


def read_disk(store: VectorStore, number: int, bound: int) -> float:
    """Seconds of one read of 4 KiB alone; ``number`` seeds the places."""
    disk.forget(store.store)
    spec = {"job": "disk", "folder": str(store.store), "seed": number}
    with limited(bound) as limit:
        latency: float = run_child("questions.index_cold_child", spec, within=limit.within).result[
            "latency"
        ]
    return latency


def main() -> bool:
    """Measure and print; true if every target is met."""
    parser = script.parser(__doc__)
    parser.add_argument("--n", default="1e7", help="vectors  [1e7]")
    parser.add_argument("--limit", default="1G", help="memory, page cache included  [1G]")
    parser.add_argument("--memory", default="512M", help="the engine's part of the limit  [512M]")
    parser.add_argument("--recall", type=float, default=0.97, help="that is wanted  [0.97]")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds, whose medians are printed  [3]"
    )
    parser.add_argument("--count", default=f"{COUNT}", help=f"queries a round  [{COUNT}]")
    parser.add_argument("--seed", type=int, default=0, help="of the vectors  [0]")
    parser.add_argument("--dir", type=Path, help="where the store is made")
    parser.add_argument("--keep", action="store_true", help="keep it there for the next run")
    arguments = parser.parse_args()
    n, count = parse_count(arguments.n), parse_count(arguments.count)
    bound, memory = parse_memory(arguments.limit).total, parse_memory(arguments.memory).total
    if arguments.keep and arguments.dir is None:
        raise UsageError("--keep needs a --dir to leave the store in")
    with limited(bound) as limit:  # before a store is made in vain
        how = limit.how
    cold: list[Cold] = []
    latencies: list[float] = []
    rounds = max(1, arguments.rounds)
    with script.work_folder(arguments.dir, arguments.keep) as folder:
        store = VectorStore(n, arguments.seed, folder)
        if not store.store.exists():
            check_disk(n, folder, STORE_BYTES)
        with Progress("index_cold", "vectors") as progress:
            store.make(
                memory=_MAKE_MEMORY,
                wanted=arguments.recall,
                queries=count + FIRST,
                done=lambda done: progress(done, n),
            )
        with Progress("index_cold", "rounds") as progress:
            for number in range(rounds):
                progress(number, rounds)
                asked = ask(store, memory=memory, wanted=arguments.recall, count=count, bound=bound)
                cold.append(asked)
                latencies.append(read_disk(store, number, bound))
            free = ask(store, memory=memory, wanted=arguments.recall, count=count, bound=None)
    print(f"{n:,} vectors; within {bound / 1e6:,.0f} MB, page cache included ({how})\n")
    print(table(cold, free), end="\n\n")
    print(f"one read of 4 KiB alone: {statistics.median(latencies) * 1e6:,.0f} µs\n")
    wanted = targets_of(cold, free, latencies, arguments.recall)
    print(targets(wanted))
    return all(one.met for one in wanted)


def targets_of(
    cold: Sequence[Cold], free: Cold, latencies: Sequence[float], recall: float
) -> list[Target]:
    """The targets and measurements: medians of the rounds' ratios."""
    times = [quantiles(one.seconds) for one in cold]
    reads = [p50 / alone for (p50, _), alone in zip(times, latencies, strict=True)]
    tails = [p99 / p50 for p50, p99 in times]
    found = min(one.recall for one in cold)
    return [
        Target("p50, times a read of 4 KiB", TARGET_READS, statistics.median(reads)),
        Target("p99, times p50", TARGET_TAIL, statistics.median(tails)),
        Target("recall at 10", recall, found, True, 3),
        Target("recall that the limit costs", TARGET_LOST, free.recall - found, digits=4),
    ]


def table(cold: Sequence[Cold], free: Cold) -> str:
    """Medians over the rounds, beside those without a limit; MB are 10^6 bytes."""
    head = ("cold queries", "p50 ms", "p99 ms", "recall", "pages", "faults", "first s")
    lines: list[Sequence[str]] = [(*head, "anonymous MB", "peak MB", "at bound")]
    for what, rounds in (("within the limit", cold), ("without one", [free])):
        times = [quantiles(one.seconds) for one in rounds]
        bound = rounds is cold
        lines.append(
            (
                what,
                f"{statistics.median(p50 for p50, _ in times) * 1e3:.3f}",
                f"{statistics.median(p99 for _, p99 in times) * 1e3:.3f}",
                f"{min(one.recall for one in rounds):.4f}",
                f"{statistics.median(one.pages for one in rounds):.1f}",
                f"{statistics.median(one.faults for one in rounds):.1f}",
                f"{statistics.median(one.opening_s for one in rounds):.2f}",
                f"{max(one.anonymous for one in rounds) / 1e6:,.0f}",
                f"{max(one.peak for one in rounds) / 1e6:,.0f}" if bound else "-",
                f"{statistics.median(one.at_bound for one in rounds):,.0f}" if bound else "-",
            )
        )
    return align(lines, left=(0,))


if __name__ == "__main__":
    script.exit_with(main)
