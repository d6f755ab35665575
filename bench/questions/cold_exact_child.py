"""The children of ``cold_exact``: make a store, query it cold, and measure its disk."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from engine import Store
from engine.images.canonical import HEADER_BYTES

from ..data import bit_images
from ..harness import disk
from ..harness.disk import Disk
from ..harness.errors import BenchError
from ..harness.memory_limit import pressure
from ..harness.process import answer, send
from ..peers.key_lookups import StoreLookup, check
from .exact_store_child import BATCH

ROW_BYTES = HEADER_BYTES + bit_images.PACKED_BYTES  # of the kept pixels of an image
_THREADS = (8, 16, 32, 64)  # that read at a time: one of these is the fastest
_AHEAD = (100, 1000)  # reads announced to the kernel before the first wait
_SINGLE_READS = 2000  # for the latency


def make(n: int, seed: int, folder: str, memory_bytes: int, keep_pixels: str) -> dict[str, int]:
    """Make a store of ``n`` images; a complete one is left as it is."""
    with Store.open(folder, create=True, encoder="none", memory=memory_bytes) as store:
        store.ingest(
            f"synthetic:bits?n={n}&seed={seed}",
            keep_pixels=keep_pixels,
            progress=lambda done, total: send(done=done),
        )
        images = len(store)
    if images != n:
        raise BenchError(f"{folder} holds {images:,} images and not {n:,}: remove it")
    return {"images": images}


def ask(
    n: int, seed: int, folder: str, memory_bytes: int, count: int, there: bool, batched: bool
) -> dict[str, Any]:
    """Look up ``count`` images of the set, or as many misses: times and reads.

    The images are made in between, 1,000 at a time: all together would take half of the limit.
    """
    counted = Disk(Path(folder))
    opening = counted.reads()
    asked = StoreLookup(Path(folder), memory_bytes)
    before, own = counted.reads(), disk.fetched()
    draw = np.random.default_rng([seed, n, there, batched])
    times: list[float] = []
    for first in range(0, count, BATCH):
        size = min(BATCH, count - first)
        if there:
            rows = draw.integers(0, n, size)
            images, ids = bit_images.packed_rows(seed, rows), rows + 1
        else:
            images, ids = bit_images.packed_misses(n, seed, first, size), np.full(size, -1)
        if batched:
            started = time.perf_counter()
            found = asked.many(images)
            times.append(time.perf_counter() - started)
            for one, wanted in zip(found.tolist(), ids.tolist(), strict=True):
                check(one, wanted)
        else:
            for i, wanted in enumerate(ids.tolist()):
                image = images[i : i + 1]
                started = time.perf_counter()
                one = asked.one(image)
                times.append(time.perf_counter() - started)
                check(one, wanted)
    after = counted.reads()
    peak, at_bound = pressure()
    return {
        "count": count,
        "seconds": times,
        "opening_reads": before[0] - opening[0],
        "reads": after[0] - before[0],
        "disk_bytes": after[1] - before[1],
        "own_bytes": disk.fetched() - own,
        "peak": peak,
        "at_bound": at_bound,
    }


def read_disk(seed: int, folder: str, count: int) -> dict[str, Any]:
    """Reads of one image's kept pixels at random places: their rate, and the latency of one.

    There are ``count`` reads in each of several ways. The caller has dropped the caches.
    """
    paths = sorted(Path(folder).glob("pixels/*"))
    sizes = np.array([max(0, path.stat().st_size - ROW_BYTES) for path in paths])
    if not sizes.sum():
        raise BenchError(f"{folder} keeps no pixels to read")
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    for fd in fds:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead, as in the engine
    draw = np.random.default_rng(seed)

    def places(number: int) -> list[tuple[int, int]]:
        """Random places, spread evenly over all files, as (file descriptor, offset)."""
        which = draw.choice(len(fds), number, p=sizes / sizes.sum())
        offsets = draw.integers(0, sizes[which]).tolist()
        return [(fds[i], at) for i, at in zip(which, offsets, strict=True)]

    latencies = []
    for fd, at in places(min(count, _SINGLE_READS)):
        started = time.perf_counter()
        os.pread(fd, ROW_BYTES, at)
        latencies.append(time.perf_counter() - started)
    rates = {f"{threads} threads": _by_threads(places(count), threads) for threads in _THREADS}
    rates |= {f"{told:,} told ahead": _told_ahead(places(count), told) for told in _AHEAD}
    return {"latency": statistics.median(latencies), "rates": rates}


def _by_threads(places: Sequence[tuple[int, int]], threads: int) -> float:
    def read(some: Sequence[tuple[int, int]]) -> None:
        for fd, at in some:
            os.pread(fd, ROW_BYTES, at)

    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        list(pool.map(read, [places[i::threads] for i in range(threads)]))
        return len(places) / (time.perf_counter() - started)


def _told_ahead(places: Sequence[tuple[int, int]], told: int) -> float:
    started = time.perf_counter()
    for first in range(0, len(places), told):
        some = places[first : first + told]
        for fd, at in some:
            os.posix_fadvise(fd, at, ROW_BYTES, os.POSIX_FADV_WILLNEED)
        for fd, at in some:
            os.pread(fd, ROW_BYTES, at)
    return len(places) / (time.perf_counter() - started)


if __name__ == "__main__":
    answer({"make": make, "ask": ask, "disk": read_disk})
