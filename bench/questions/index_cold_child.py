"""The child of ``index_cold``: searches a store of vectors with nothing cached, or times the disk."""

from __future__ import annotations

import os
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from engine import Store

from ..data.exact_neighbours import recall
from ..harness import disk, memory
from ..harness.errors import BenchError
from ..harness.memory_limit import pressure
from ..harness.process import answer

PAGE = 4096  # bytes
FIRST = 20  # queries before the timed ones: they read the quantizers
_READS = 2_000  # of the disk, for the latency


def ask(
    folder: str, memory_bytes: int, queries: str, truth: str, wanted: float, count: int
) -> dict[str, Any]:
    """Search with ``count`` new single queries: times, recall, reads.

    The first queries are those with known neighbours. The last ones warm up, before the clock runs.
    """
    asked, known = np.load(queries), np.load(truth)
    count = min(count, len(asked) - FIRST)
    started = time.perf_counter()
    with Store.open(folder, read_only=True, memory=memory_bytes) as store:
        for query in asked[-FIRST:]:
            store.search_vectors(query[None], k=known.shape[1], recall=wanted)
        opening = time.perf_counter() - started
        before, faults = disk.fetched(), _faults()
        times, found = [], []
        for query in asked[:count]:
            one = query[None]
            started = time.perf_counter()
            _, ids = store.search_vectors(one, k=known.shape[1], recall=wanted)
            times.append(time.perf_counter() - started)
            found.append(ids[0] - 1)
        after, faulted = disk.fetched(), _faults()
        anonymous = memory.anonymous()
    peak, at_bound = pressure()
    some = min(count, len(known))
    return {
        "seconds": times,
        "opening_s": opening,
        "recall": recall(np.array(found[:some]), known[:some]),
        "pages": (after - before) / PAGE / count,
        "faults": (faulted - faults) / count,
        "anonymous": anonymous,
        "peak": peak,
        "at_bound": at_bound,
    }


def read_disk(folder: str, seed: int) -> dict[str, float]:
    """The median of seconds of one read of 4 KiB alone, at a random place of a store's larger files.

    The caller has dropped the caches.
    """
    paths = sorted(path for path in Path(folder).rglob("*") if path.stat().st_size > 1 << 20)
    pages = np.array([path.stat().st_size // PAGE for path in paths])
    if not len(pages):
        raise BenchError(f"{folder} has no file to read from")
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    for fd in fds:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    draw = np.random.default_rng(seed)
    which = draw.choice(len(fds), _READS, p=pages / pages.sum())
    offsets = draw.integers(0, pages[which]) * PAGE
    times = []
    for number, at in zip(which.tolist(), offsets.tolist(), strict=True):
        started = time.perf_counter()
        os.pread(fds[number], PAGE, at)
        times.append(time.perf_counter() - started)
    return {"latency": statistics.median(times)}


def _faults() -> int:
    """Pages that this process has waited for so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


if __name__ == "__main__":
    answer({"ask": ask, "disk": read_disk})
