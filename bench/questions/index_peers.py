"""Which index of vectors answers how fast, at which recall, and at what cost? The engine and others.

Each takes the same vectors in, is asked for the neighbours of the same queries at one setting after
the other, and is measured at the cheapest that finds the wanted share of the true neighbours. Each
does it in processes of its own, so that its memory can be told. The engine and hnswlib are measured
in turns. Without --vectors, clustered vectors are made.
"""

from __future__ import annotations

import csv
import json
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.cli.progress import Progress
from engine.config import parse_memory
from engine.errors import UsageError

from ..data import clustered_vectors, exact_neighbours
from ..data.arrays import blocks, open_array, write_array
from ..harness import script
from ..harness.errors import BenchError
from ..harness.machine import machine, versions
from ..harness.process import run_child
from ..harness.sizes import check_disk, parse_count
from ..peers.vector_indexes import ENGINE, HNSWLIB, INDEXES, LANCEDB, PEERS, ZVEC_DISKANN, Setting
from ..report.tables import Target, align, targets
from .cold_exact import quantiles

REMOVED = "engine, 1 % removed"
THREADS = 2  # of a build, and of batches
QUERIES = 5_000  # made ones
_SHARE = 0.01  # of the images that are removed
_DISK = 3_000  # bytes a vector: the engine twice, hnswlib, and one other index
_SPARE = 10  # true neighbours more than are asked for: some of them are removed

TARGETS = {
    "batch": ("queries/s, times hnswlib's", 1.0, True),
    "p50": ("p50, times hnswlib's", 1.5, False),
    "lancedb": ("p50 of LanceDB, times the engine's", 15.0, True),
    "diskann": ("p50 of zvec DiskANN, times the engine's", 20.0, True),
    "build": ("build, times hnswlib's", 0.25, False),
    "memory": ("anonymous bytes a vector", 48.0, False),
    "removed": ("p50 with 1 % removed, times without", 1.5, False),
}


@dataclass(slots=True)
class Measured:
    """One index: medians are over ``builds``, ``batches`` and ``singles``, one of each a round."""

    name: str
    n: int
    points: list[dict[str, Any]] = field(default_factory=list)  # of the sweep
    setting: Setting | None = None  # the cheapest that finds enough; None: there was none
    builds: list[dict[str, Any]] = field(default_factory=list)
    batches: list[dict[str, Any]] = field(default_factory=list)
    singles: list[dict[str, Any]] = field(default_factory=list)

    def build_s(self) -> float | None:
        """Seconds of a build."""
        return _median([one["seconds"] for one in self.builds])

    def disk(self) -> float | None:
        """Bytes of disk a vector."""
        return _median([one["disk"] / self.n for one in self.builds])

    def anonymous(self, when: str = "searched") -> float | None:
        """Bytes of anonymous memory a vector, above the empty process; ``when``: opened or searched."""
        return _median([(one[when] - one["empty"]) / self.n for one in self.batches])

    def recall(self) -> float | None:
        """Of the batches."""
        return _median([one["recall"] for one in self.batches])

    def qps(self) -> float | None:
        """Queries a second, in batches."""
        return _median([one["qps"] for one in self.batches])

    def cpu_us(self, of: str) -> float | None:
        """µs of CPU a query, of all threads: what a busy machine changes least; batches or singles."""
        return _median([one["cpu_s"] * 1e6 for one in getattr(self, of)])

    def p50(self) -> float | None:
        """Milliseconds of a single query."""
        return _median([quantiles(one["seconds"])[0] * 1e3 for one in self.singles])

    def p99(self) -> float | None:
        """The same, that 99 % take no longer than."""
        return _median([quantiles(one["seconds"])[1] * 1e3 for one in self.singles])


class Bench:
    """Children over one set of vectors; everything that they say is kept, a line each."""

    def __init__(
        self, vectors: Path, queries: Path, work: Path, log: Path, *, memory: int, k: int, seed: int
    ) -> None:
        """Compute the exact neighbours; ``work`` is a folder for indexes."""
        self._vectors, self._queries, self._work, self._log = vectors, queries, work, log
        self._memory, self._k = memory, k
        rows, asked = open_array(vectors), open_array(queries)
        if asked.shape[1] != rows.shape[1]:
            raise UsageError(
                f"{queries} has {asked.shape[1]} dimensions and {vectors} has {rows.shape[1]}"
            )
        self.n = len(rows)
        wanted = exact_neighbours.exact(blocks(rows), np.asarray(asked), k + _SPARE)
        np.save(work / "truth.npy", wanted)
        gone = np.random.default_rng([seed, self.n]).permutation(self.n)
        gone = np.sort(gone[: max(1, int(self.n * _SHARE))])
        np.save(work / "gone.npy", gone)
        np.save(work / "truth-left.npy", _left(wanted, gone, k))

    def build(self, name: str, wanted: float) -> dict[str, Any]:
        """Build it anew."""
        self.drop(name)
        spec = {"vectors": str(self._vectors), "threads": THREADS, "wanted": wanted}
        return self._child(name, "build", spec | {"method": name})

    def make_removed(self) -> None:
        """A copy of the engine's store that lacks some images."""
        shutil.copytree(self._work / ENGINE, self._work / REMOVED)
        self._child(REMOVED, "remove", {"gone": str(self._work / "gone.npy")})

    def sweep(self, name: str, settings: Sequence[Setting]) -> list[dict[str, Any]]:
        """Recall and queries a second by setting."""
        found = self._child(name, "sweep", self._asked(name, THREADS) | {"settings": settings})
        points: list[dict[str, Any]] = found["points"]
        return points

    def batch(self, name: str, setting: Setting) -> dict[str, Any]:
        """Batches, with two threads."""
        return self._child(name, "batch", self._asked(name, THREADS) | {"setting": setting})

    def single(self, name: str, setting: Setting) -> dict[str, Any]:
        """Single queries, with one thread."""
        return self._child(name, "single", self._asked(name, 1) | {"setting": setting})

    def drop(self, name: str) -> None:
        """Remove its index, if there is one."""
        shutil.rmtree(self._work / name, ignore_errors=True)

    def _asked(self, name: str, threads: int) -> dict[str, object]:
        left = name == REMOVED
        return {
            "method": ENGINE if left else name,
            "threads": threads,
            "queries": str(self._queries),
            "truth": str(self._work / ("truth-left.npy" if left else "truth.npy")),
            "gone": str(self._work / "gone.npy") if left else None,
            "k": self._k,
        }

    def _child(self, name: str, job: str, spec: Mapping[str, object]) -> dict[str, Any]:
        place = {"folder": str(self._work / name), "memory_bytes": self._memory}
        try:
            finished = run_child("peers.index_child", {"job": job} | place | dict(spec))
        except BenchError as error:
            raise type(error)(f"{name}: {error}") from None
        found = finished.result | {"anonymous_peak": finished.anonymous_peak}
        with self._log.open("a", encoding="utf-8") as file:
            given = {key: spec[key] for key in ("setting", "threads") if key in spec}
            file.write(json.dumps({"index": name, "job": job} | given | found) + "\n")
        return found


def _left(
    wanted: exact_neighbours.Rows, gone: exact_neighbours.Rows, k: int
) -> exact_neighbours.Rows:
    """The first ``k`` true neighbours of each query that are not gone."""
    left = np.full((len(wanted), k), -1, np.int64)
    for row, rows in zip(left, wanted, strict=True):
        some = rows[~np.isin(rows, gone)][:k]
        row[: len(some)] = some
    return left


def measure(
    bench: Bench, peers: Sequence[str], *, wanted: float, rounds: int, builds: int
) -> dict[str, Measured]:
    """Everything: the other peers one after the other, then the engine and hnswlib in turns."""
    in_turns = [ENGINE, *(name for name in peers if name == HNSWLIB)]
    others = [name for name in peers if name != HNSWLIB]
    found = {name: Measured(name, bench.n) for name in (*in_turns, REMOVED, *others)}
    total = len(others) * 4 + len(in_turns) * (builds + 1) + rounds * 2 * (len(in_turns) + 1) + 1
    done = iter(range(total))
    with Progress("index", "children") as progress:

        def tick(what: str) -> None:
            progress.note(what)
            progress(next(done), total)

        for name in others:
            _prepare(bench, found[name], wanted, 1, tick)
            _round(bench, found[name], tick)
            bench.drop(name)
        for number in range(builds):
            for name in _turned(in_turns, number):
                tick(f"{name}, build")
                found[name].builds.append(bench.build(name, wanted))
        for name in in_turns:
            _prepare(bench, found[name], wanted, 0, tick)
        tick("remove")
        bench.make_removed()
        found[REMOVED].setting = found[ENGINE].setting
        for number in range(rounds):
            for name in _turned([*in_turns, REMOVED], number):
                _round(bench, found[name], tick)
    return found


def _prepare(bench: Bench, index: Measured, wanted: float, builds: int, tick: Any) -> None:
    """Build it, and find the cheapest setting that finds enough, which is the first."""
    for _ in range(builds):
        tick(f"{index.name}, build")
        index.builds.append(bench.build(index.name, wanted))
    tick(f"{index.name}, sweep")
    sweep = _sweep_of(index.name)
    index.points = bench.sweep(index.name, sweep)
    enough = (tuple(one["setting"]) for one in index.points if one["recall"] >= wanted)
    index.setting = next(enough, None)


def _sweep_of(name: str) -> Sequence[Setting]:
    sweep: Sequence[Setting] = INDEXES[name].sweep
    return sweep


def _round(bench: Bench, index: Measured, tick: Any) -> None:
    setting = index.setting
    for what in ("batches", "single queries"):
        tick(f"{index.name}, {what}")
        if setting is None:
            continue
        if what == "batches":
            index.batches.append(bench.batch(index.name, setting))
        else:
            index.singles.append(bench.single(index.name, setting))


def _turned(names: Sequence[str], number: int) -> list[str]:
    """The same names, beginning with another one each round."""
    turn = number % len(names)
    return [*names[turn:], *names[:turn]]


def main() -> bool:
    """Measure and print; true if every target is met."""
    parser = script.parser(__doc__)
    parser.add_argument("--vectors", type=Path, help=".npy of float32 (n, d), unit length")
    parser.add_argument("--queries", type=Path, help=".npy of the same kind, beside --vectors")
    parser.add_argument("--n", default="1e6", help="vectors that are made without these  [1e6]")
    every = ",".join(PEERS)
    parser.add_argument("--peers", default=every, help=f"which; none: the engine  [{every}]")
    parser.add_argument("--recall", type=float, default=0.97, help="at 10 that is wanted  [0.97]")
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are taken  [3]")
    parser.add_argument("--builds", type=int, default=1, help="of the engine and hnswlib  [1]")
    parser.add_argument("--memory", default="1G", help="the engine's bound  [1G]")
    parser.add_argument("--seed", type=int, default=0, help="of what is made or drawn  [0]")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the results")
    parser.add_argument("--dir", type=Path, help="where indexes are made, and removed again")
    given = parser.parse_args()
    peers = _peers(given.peers)
    if (given.vectors is None) != (given.queries is None):
        raise UsageError("--vectors and --queries go together")
    if not 0 < given.recall < 1:
        raise UsageError(f"recall is above 0 and below 1, not {given.recall}")
    _make_empty(given.out)
    if given.dir is not None:
        given.dir.mkdir(parents=True, exist_ok=True)
    n = parse_count(given.n) if given.vectors is None else len(open_array(given.vectors))
    check_disk(n, given.dir or Path(tempfile.gettempdir()), _DISK)
    with tempfile.TemporaryDirectory(prefix="engine-bench-", dir=given.dir) as folder:
        work = Path(folder).absolute()
        vectors, queries = given.vectors, given.queries
        if vectors is None:
            vectors, queries = work / "vectors.npy", work / "queries.npy"
            write_array(
                vectors, clustered_vectors.blocks(given.seed, 0, n), n, clustered_vectors.DIM
            )
            write_array(
                queries,
                [clustered_vectors.queries(given.seed, QUERIES)],
                QUERIES,
                clustered_vectors.DIM,
            )
        bench = Bench(
            vectors.absolute(),
            queries.absolute(),
            work,
            given.out / "results.jsonl",
            memory=parse_memory(given.memory).total,
            k=10,
            seed=given.seed,
        )
        found = measure(
            bench,
            peers,
            wanted=given.recall,
            rounds=max(1, given.rounds),
            builds=max(1, given.builds),
        )
    _write(given.out, found)
    print(table(found, given.recall), end="\n\n")
    wanted = wanted_of(found, given.recall)
    print(targets(wanted))
    return all(one.met for one in wanted)


def _peers(text: str) -> list[str]:
    names = [] if text in ("", "none") else text.split(",")
    wrong = [name for name in names if name not in PEERS]
    if wrong:
        raise UsageError(f"there is no peer called {wrong[0]!r}: {', '.join(PEERS)}")
    for name in names:
        INDEXES[name].check()
    return names


def _make_empty(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UsageError(f"{out} is not empty: name a new folder, so that no result is lost")
    except OSError as error:
        raise UsageError(f"{out} cannot be used: {error.strerror}") from None


def wanted_of(found: Mapping[str, Measured], recall: float) -> list[Target]:
    """The targets, with what was measured; those for which a peer is missing are left out."""
    engine = found[ENGINE]
    peer = found.get(HNSWLIB, Measured(HNSWLIB, engine.n))
    best = max((one["recall"] for one in engine.points), default=0.0)
    reached = engine.recall()
    wanted = [Target("recall at 10", recall, best if reached is None else reached, True, 3)]
    figures: dict[str, float | None] = {
        "batch": _times(_of(engine.batches, "qps"), _of(peer.batches, "qps")),
        "p50": _times(_p50s(engine), _p50s(peer)),
        "lancedb": _ratio(found.get(LANCEDB), engine),
        "diskann": _ratio(found.get(ZVEC_DISKANN), engine),
        "build": _times(_of(engine.builds, "seconds"), _of(peer.builds, "seconds")),
        "memory": engine.anonymous(),
        "removed": _times(_p50s(found[REMOVED]), _p50s(engine)),
    }
    for key, measured in figures.items():
        what, limit, at_least = TARGETS[key]
        if measured is not None:
            wanted.append(Target(what, limit, measured, at_least, 2))
    return wanted


def _of(some: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [one[name] for one in some]


def _p50s(index: Measured) -> list[float]:
    return [quantiles(one["seconds"])[0] for one in index.singles]


def _times(mine: Sequence[float], other: Sequence[float]) -> float | None:
    """How many times as much, round by round: what disturbs a round disturbs both."""
    if not mine or not other:
        return None
    return statistics.median(a / b for a, b in zip(mine, other, strict=True))


def _ratio(other: Measured | None, engine: Measured) -> float | None:
    """How many times as long a single query of another index takes."""
    theirs, ours = other and other.p50(), engine.p50()
    return theirs / ours if theirs and ours else None


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


_MEMORY = ("build s", "CPU s", "RAM B", "opened B", "disk B")
_TIMES = ("recall", "queries/s", "CPU µs", "p50 ms", "p99 ms", "CPU µs")


def table(found: Mapping[str, Measured], recall: float) -> str:
    """One line an index, medians; bytes are a vector's, RAM is anonymous memory after searching.

    CPU seconds are of all threads, of a build, of a query in a batch, and of a single one.
    """
    lines: list[Sequence[str]] = [("index", "setting", *_MEMORY, *_TIMES)]
    for index in found.values():
        setting = "-" if index.setting is None else " ".join(f"{one:g}" for one in index.setting)
        lines.append(
            (
                index.name,
                setting,
                _cell(index.build_s(), 1),
                _cell(_median(_of(index.builds, "cpu_s")), 1),
                _cell(index.anonymous(), 1),
                _cell(index.anonymous("opened"), 1),
                _cell(index.disk(), 0),
                _cell(index.recall(), 4),
                _cell(index.qps(), 0),
                _cell(index.cpu_us("batches"), 1),
                _cell(index.p50(), 3),
                _cell(index.p99(), 3),
                _cell(index.cpu_us("singles"), 1),
            )
        )
    n = found[ENGINE].n
    head = f"{n:,} vectors, at the cheapest setting with a recall at 10 of {recall:g} or more"
    return f"{head}\n{align(lines, left=(0,))}"


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _write(out: Path, found: Mapping[str, Measured]) -> None:
    """``curves.csv``: every setting of every sweep; ``results.json``: the machine and the medians."""
    with (out / "curves.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("index", "setting", "recall_at_10", "queries_per_second"))
        for index in found.values():
            for one in index.points:
                setting = " ".join(f"{value:g}" for value in one["setting"])
                writer.writerow((index.name, setting, one["recall"], one["qps"]))
    medians = {
        index.name: {
            "setting": index.setting,
            "build_s": index.build_s(),
            "anonymous_bytes": index.anonymous(),
            "disk_bytes": index.disk(),
            "recall_at_10": index.recall(),
            "queries_per_second": index.qps(),
            "p50_ms": index.p50(),
            "p99_ms": index.p99(),
            "batch_cpu_us": index.cpu_us("batches"),
            "single_cpu_us": index.cpu_us("singles"),
        }
        for index in found.values()
    }
    body = {"machine": machine(), "versions": versions(), "indexes": medians}
    (out / "results.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    script.exit_with(main)
