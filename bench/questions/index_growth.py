"""What does the similarity index cost as the set grows? Stores of made vectors, each ten times the last.

Each store is built in pieces of a million vectors, each ingested by a process of its own, and then
laid out by one ``optimize``. It is searched warm, with one query at a time and 1,000 at once.
Recall is measured against exact neighbours. A query in the largest set may take at most 4 times as
long as in the smallest.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.cli.progress import Progress
from engine.config import parse_memory

from ..data.vector_store import STORE_BYTES, Built, K, VectorStore
from ..harness import script
from ..harness.measurement import quantiles
from ..harness.process import run_child
from ..harness.sizes import check_disk, parse_count
from ..peers.engine_index import ENGINE
from ..report.growth import exponent
from ..report.tables import Target, align, targets

TARGET_RATIO = 4.0
_QUERIES = 5_000  # in all; the recall is of the first 500


@dataclass(frozen=True, slots=True)
class Grown:
    """One size: its build, and medians over the rounds of its searches."""

    built: Built
    recall: float
    p50: float  # seconds
    p99: float
    qps: float
    anonymous: float  # bytes above the empty process, opened and searched

    @property
    def disk(self) -> int:
        """Bytes of disk."""
        return sum(self.built.parts.values())


def measure(store: VectorStore, *, memory: int, wanted: float, rounds: int) -> Grown:
    """Build a store, and search it."""
    built = store.make(memory=memory, wanted=wanted, queries=_QUERIES)
    spec: dict[str, object] = {
        "method": ENGINE,
        "folder": str(store.store),
        "memory_bytes": memory,
        "queries": str(store.queries),
        "truth": str(store.truth),
        "k": K,
        "gone": None,
        "setting": [wanted],
    }
    batches, singles = [], []
    for _ in range(rounds):
        batches.append(run_child("peers.index_child", spec | {"job": "batch", "threads": 2}).result)
        singles.append(
            run_child("peers.index_child", spec | {"job": "single", "threads": 1}).result
        )
    times = [quantiles(one["seconds"]) for one in singles]
    return Grown(
        built,
        statistics.median(one["recall"] for one in batches),
        statistics.median(p50 for p50, _ in times),
        statistics.median(p99 for _, p99 in times),
        statistics.median(one["qps"] for one in batches),
        statistics.median(one["searched"] - one["empty"] for one in batches),
    )


def main() -> bool:
    """Measure and print; true if every target is met."""
    parser = script.parser(__doc__)
    parser.add_argument("--n", default="1e5,1e6,1e7", help="numbers of vectors  [1e5,1e6,1e7]")
    parser.add_argument("--memory", default="1G", help="the memory of the store  [1G]")
    parser.add_argument("--recall", type=float, default=0.97, help="that is wanted  [0.97]")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds, whose medians are printed  [3]"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the vectors  [0]")
    parser.add_argument(
        "--dir", type=Path, help="folder for the stores, which are removed at the end"
    )
    parser.add_argument("--csv", type=Path, help="a file for the figures")
    arguments = parser.parse_args()
    sizes = [parse_count(text) for text in arguments.n.split(",")]
    memory = parse_memory(arguments.memory).total
    check_disk(max(sizes), arguments.dir, STORE_BYTES)
    grown = []
    with Progress("index_growth", "sizes") as progress:
        for number, n in enumerate(sizes):
            progress.note(f"{n:,}")
            progress(number, len(sizes))
            with script.work_folder(arguments.dir) as work:
                store = VectorStore(n, arguments.seed, work)
                rounds = max(1, arguments.rounds)
                grown.append(measure(store, memory=memory, wanted=arguments.recall, rounds=rounds))
    print(table(grown), end="\n\n")
    print(parts_table(grown), end="\n\n")
    if arguments.csv is not None:
        _write(arguments.csv, grown)
    wanted = targets_of(grown, arguments.recall, memory)
    print(targets(wanted))
    return all(one.met for one in wanted)


def targets_of(grown: Sequence[Grown], recall: float, memory: int) -> list[Target]:
    """The targets and their measurements."""
    first, last = grown[0], grown[-1]
    worst = min(one.recall for one in grown)
    peak = max(one.built.peak for one in grown)
    return [
        Target(
            "p50 at the largest / at the smallest", TARGET_RATIO, last.p50 / first.p50, digits=2
        ),
        Target("recall at 10, the worst", recall, worst, True, 3),
        Target("peak of a build", memory / 1e6, peak / 1e6, unit=" MB"),
    ]


_HEAD = ("n", "build s", "µs/vector", "peak MB", "recall", "p50 ms", "p99 ms", "queries/s")


def table(grown: Sequence[Grown]) -> str:
    """A line for each size; peak and RAM are anonymous memory above the empty process, MB are 10^6."""
    lines: list[Sequence[str]] = [(*_HEAD, "RAM B/vector", "disk B/vector")]
    for one in grown:
        n = one.built.n
        lines.append(
            (
                f"{n:,}",
                f"{one.built.seconds:,.1f}",
                f"{one.built.seconds / n * 1e6:.1f}",
                f"{one.built.peak / 1e6:,.0f}",
                f"{one.recall:.4f}",
                f"{one.p50 * 1e3:.3f}",
                f"{one.p99 * 1e3:.3f}",
                f"{one.qps:,.0f}",
                f"{one.anonymous / n:,.1f}",
                f"{one.disk / n:,.0f}",
            )
        )
    fitted = exponent({one.built.n: one.p50 for one in grown})
    note = "" if fitted is None else f"\np50 grows as n^{fitted:.2f}"
    return align(lines) + note


def parts_table(grown: Sequence[Grown]) -> str:
    """Bytes of disk a vector, by part of the store."""
    parts = list(dict.fromkeys(part for one in grown for part in one.built.parts))
    lines: list[Sequence[str]] = [("disk, bytes a vector", *parts)]
    for one in grown:
        cells = [f"{one.built.parts.get(part, 0) / one.built.n:,.1f}" for part in parts]
        lines.append((f"{one.built.n:,}", *cells))
    return align(lines)


def _write(path: Path, grown: Sequence[Grown]) -> None:
    names = ("n", "ingest_s", "optimize_s", "peak_bytes", "recall_at_10", "p50_s", "p99_s")
    parts = list(dict.fromkeys(part for one in grown for part in one.built.parts))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        ends = (f"disk_{part}_bytes" for part in parts)
        writer.writerow((*names, "queries_per_second", "anonymous_bytes", *ends))
        for one in grown:
            built = one.built
            sizes = (built.parts.get(part, 0) for part in parts)
            times = (built.ingest_s, built.optimize_s, built.peak, one.recall, one.p50, one.p99)
            writer.writerow((built.n, *times, one.qps, one.anonymous, *sizes))


if __name__ == "__main__":
    script.exit_with(main)
