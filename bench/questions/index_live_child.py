"""The children of ``index_live``: one that searches all the time, and the writer that it starts."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from engine import Store

from ..data import clustered_vectors
from ..data.arrays import write_array
from ..harness.errors import BenchError
from ..harness.process import answer, run_child, send

_K = 10
_WARM = 500  # queries before the first timed one


def write(
    folder: str, memory_bytes: int, seed: int, n: int, step: int, added: int, wanted: float
) -> dict[str, int]:
    """Add rows ``[n, n + added)``, a file and a commit for each ``step``; then index all again."""
    given = {"folder": folder, "seed": seed, "n": n, "step": step}
    work = Path(folder).parent
    with Store.open(folder, memory=memory_bytes) as store:
        for number, first in enumerate(range(n, n + added, step)):
            path = work / f"added-{first}.npy"
            write_array(
                path, [clustered_vectors.rows(seed, first, step)], step, clustered_vectors.DIM
            )
            report = store.ingest(str(path))
            send(done=number + 1)
            path.unlink()
            if report.added != step:
                raise BenchError(f"{report.added} of {step} vectors were added: {given}")
        store.optimize(recall=wanted)
    return {"commits": added // step}


def ask(
    folder: str,
    memory_bytes: int,
    seed: int,
    n: int,
    step: int,
    added: int,
    wanted: float,
    idle_s: float,
) -> dict[str, Any]:
    """Search with one query after the other: for a while alone, then until a writer has ended.

    After each commit of the writer the next query is a vector of that commit.
    """
    queries = clustered_vectors.queries(seed, 5_000)
    # The last vector of each commit is made beforehand: making one takes longer than a query.
    probes = [clustered_vectors.rows(seed, n + step * (i + 1) - 1, 1) for i in range(added // step)]
    committed: queue.SimpleQueue[int] = queue.SimpleQueue()
    failed: list[Exception] = []

    def run_writer() -> None:
        spec = {"folder": folder, "memory_bytes": memory_bytes, "seed": seed, "n": n}
        spec |= {"job": "write", "step": step, "added": added, "wanted": wanted}
        try:
            run_child("questions.index_live_child", spec, committed.put)
        except Exception as error:
            failed.append(error)

    writer = threading.Thread(target=run_writer)
    idle: list[float] = []
    busy: list[float] = []
    missed = 0
    asked = 0
    with Store.open(folder, read_only=True, memory=memory_bytes) as store:

        def timed(query: np.ndarray, times: list[float]) -> int:
            started = time.perf_counter()
            _, ids = store.search_vectors(query, k=_K, recall=wanted)
            times.append(time.perf_counter() - started)
            return int(ids[0, 0])

        turns = itertools.cycle(queries[i : i + 1] for i in range(len(queries)))
        for query in itertools.islice(turns, _WARM):
            timed(query, [])
        until = time.perf_counter() + idle_s
        while time.perf_counter() < until:
            timed(next(turns), idle)
        writer.start()
        while writer.is_alive() or not committed.empty():
            try:
                commit = committed.get_nowait()
            except queue.Empty:
                timed(next(turns), busy)
                continue
            found = timed(probes[commit - 1], busy)
            asked += 1
            missed += found != n + step * commit  # ids begin at 1
    writer.join()
    if failed:
        raise failed[0]
    return {"idle": idle, "busy": busy, "asked": asked, "missed": missed}


if __name__ == "__main__":
    answer({"ask": ask, "write": write})
