"""Builds and searches indexes of vectors in children, in turns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.cli.progress import Progress
from engine.errors import UsageError

from ..data import exact_neighbours
from ..data.arrays import blocks, open_array
from ..harness.errors import BenchError
from ..harness.process import run_child
from ..peers.engine_index import ENGINE
from ..peers.hnswlib_index import HNSWLIB
from ..peers.vector_index import Setting
from ..peers.vector_indexes import INDEXES
from .index_measured import Measured

REMOVED = "engine, 1 % removed"
THREADS = 2  # of a build, and of batches
_SHARE = 0.01  # of the images that are removed
_SPARE = 10  # extra true neighbours, because some of them are removed


class Bench:
    """Runs children over one set of vectors; logs each result, a line each."""

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
        """Build an index from scratch."""
        self.drop(name)
        spec = {"vectors": str(self._vectors), "threads": THREADS, "wanted": wanted}
        return self._child(name, "build", spec | {"method": name})

    def make_removed(self) -> None:
        """Make a copy of the engine's store without some images."""
        shutil.copytree(self._work / ENGINE, self._work / REMOVED)
        self._child(REMOVED, "remove", {"gone": str(self._work / "gone.npy")})

    def sweep(self, name: str, settings: Sequence[Setting]) -> list[dict[str, Any]]:
        """Recall and queries a second by setting."""
        found = self._child(name, "sweep", self._asked(name, THREADS) | {"settings": settings})
        points: list[dict[str, Any]] = found["points"]
        return points

    def batch(self, name: str, setting: Setting) -> dict[str, Any]:
        """Time batches, with two threads."""
        return self._child(name, "batch", self._asked(name, THREADS) | {"setting": setting})

    def single(self, name: str, setting: Setting) -> dict[str, Any]:
        """Time single queries, with one thread."""
        return self._child(name, "single", self._asked(name, 1) | {"setting": setting})

    def drop(self, name: str) -> None:
        """Remove an index, if it exists."""
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
    """The first ``k`` true neighbours of each query that were not removed."""
    left = np.full((len(wanted), k), -1, np.int64)
    for row, rows in zip(left, wanted, strict=True):
        some = rows[~np.isin(rows, gone)][:k]
        row[: len(some)] = some
    return left


def measure(
    bench: Bench, peers: Sequence[str], *, wanted: float, rounds: int, builds: int
) -> dict[str, Measured]:
    """Measure the other peers one after the other, then the engine and hnswlib in turns."""
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
    """Build an index, and find the first, cheapest setting with enough recall."""
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
    """The names, rotated so that each round begins with another one."""
    turn = number % len(names)
    return [*names[turn:], *names[:turn]]
