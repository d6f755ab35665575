"""The child that builds or searches one index of vectors, in a process of its own."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine import Store

from ..data.arrays import Vectors
from ..data.exact_neighbours import Rows, recall
from ..harness import disk, memory
from ..harness.errors import BenchError, WrongAnswerError
from ..harness.process import answer
from .vector_index import Index, Setting
from .vector_indexes import INDEXES

BATCH = 1_000  # queries of one call
SINGLES = 1_000  # timed single queries
WARM = 200  # queries before the first timed one
GOOD = 0.995  # recall above which a sweep ends
_SECONDS = 15.0  # after which a slow index gets no more queries
_FEWEST = 200  # queries that a slow index gets all the same


def build(
    method: str, vectors: str, folder: str, memory_bytes: int, threads: int, wanted: float
) -> dict[str, float]:
    """Build an index on disk from the vectors in a file."""
    index = INDEXES[method](Path(folder), threads, memory_bytes)
    empty = memory.anonymous()
    started, cpu = time.perf_counter(), time.process_time()
    index.build(Path(vectors), wanted)
    ended, spent = time.perf_counter(), time.process_time() - cpu
    taken = disk.taken(Path(folder))
    return {"seconds": ended - started, "cpu_s": spent, "disk": taken, "empty": empty}


def remove(folder: str, memory_bytes: int, gone: str) -> dict[str, int]:
    """Remove the rows that a file names from the engine's store."""
    rows = np.load(gone)
    with Store.open(folder, memory=memory_bytes) as store:
        store.remove(ids=(rows + 1).tolist())
    return {"removed": len(rows)}


class _OpenedIndex:
    """An open index with its queries and its memory."""

    def __init__(
        self,
        method: str,
        folder: str,
        memory_bytes: int,
        threads: int,
        queries: str,
        truth: str,
        k: int,
        gone: str | None,
    ) -> None:
        self.index: Index = INDEXES[method](Path(folder), threads, memory_bytes)
        self.queries: Vectors = np.load(queries)
        self.truth: Rows = np.load(truth)[:, :k]
        self._gone = np.load(gone) if gone is not None else np.empty(0, np.int64)
        self._k = k
        self.empty = memory.anonymous()
        started = time.perf_counter()
        self.index.open()
        self.open_s = time.perf_counter() - started
        self.opened = memory.anonymous()

    def search(self, queries: Vectors) -> Rows:
        return self.index.search(queries, self._k)

    def right(self, found: Rows) -> float:
        """The recall of the first queries: of those answered whose exact neighbours are known."""
        if np.isin(found, self._gone).any():
            raise WrongAnswerError("a row that was removed is found")
        some = min(len(found), len(self.truth))
        return recall(found[:some], self.truth[:some])

    def memory(self) -> dict[str, int]:
        """Anonymous bytes of the empty process, after opening, and now."""
        return {"empty": self.empty, "opened": self.opened, "searched": memory.anonymous()}


def sweep(settings: Sequence[Setting], **given: Any) -> dict[str, Any]:
    """Recall and queries a second of each setting, until one finds nearly all neighbours."""
    asked = _OpenedIndex(**given)
    points = []
    for setting in settings:
        asked.index.set(tuple(setting))
        asked.search(asked.queries[:WARM])
        found, seconds, _ = _batches(asked)
        right = asked.right(found)
        points.append({"setting": setting, "recall": right, "qps": len(found) / seconds})
        if right >= GOOD:
            break
    return {"points": points, "open_s": asked.open_s, **asked.memory()}


def batch(setting: Setting, **given: Any) -> dict[str, Any]:
    """Queries a second, 1,000 at once, and seconds of CPU a query."""
    asked = _OpenedIndex(**given)
    asked.index.set(tuple(setting))
    _batches(asked)  # a first pass, for all first reads
    found, seconds, cpu = _batches(asked)
    each = {"qps": len(found) / seconds, "cpu_s": cpu / len(found)}
    return {"recall": asked.right(found), **each, **asked.memory()}


def single(setting: Setting, **given: Any) -> dict[str, Any]:
    """The seconds of many single queries, after some that are not counted."""
    asked = _OpenedIndex(**given)
    asked.index.set(tuple(setting))
    queries = [asked.queries[i : i + 1] for i in range(min(SINGLES, len(asked.queries)))]
    for query in itertools.islice(itertools.cycle(reversed(queries)), WARM):
        asked.search(query)
    found, times = [], []
    cpu = time.process_time()
    for query in queries:
        started = time.perf_counter()
        rows = asked.search(query)
        times.append(time.perf_counter() - started)
        found.append(rows)
        if len(times) >= _FEWEST and sum(times) > _SECONDS:
            break
    each = {"seconds": times, "cpu_s": (time.process_time() - cpu) / len(times)}
    return {"recall": asked.right(np.concatenate(found)), **each, **asked.memory()}


def _batches(asked: _OpenedIndex) -> tuple[Rows, float, float]:
    """Search all queries, 1,000 at once, or as many as some seconds allow; wall and CPU seconds."""
    found = []
    seconds, cpu = 0.0, time.process_time()
    size = BATCH
    first = 0
    while first < len(asked.queries) and (seconds < _SECONDS or first < _FEWEST):
        some = asked.queries[first : first + size]
        started = time.perf_counter()
        found.append(asked.search(some))
        seconds += time.perf_counter() - started
        first += len(some)
    if not found:
        raise BenchError("there is no query")
    return np.concatenate(found), seconds, time.process_time() - cpu


if __name__ == "__main__":
    answer(
        {
            "build": build,
            "remove": remove,
            "sweep": sweep,
            "batch": batch,
            "single": single,
        }
    )
