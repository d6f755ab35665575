"""The child of ``exact_store``: one ingest, or the lookups of one store, in a process of its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine import Store
from engine.config import MemoryBudget

from ..data import bit_images
from ..data.bit_images import Images
from ..harness import disk
from ..harness.errors import BenchError
from ..harness.process import answer
from ..peers.key_lookups import (
    Ids,
    Lookup,
    PeerLookup,
    StoreLookup,
    cache_bytes,
    check,
    chunk_rows,
    hashed_ahead,
    packed_bits,
)
from ..peers.key_tables import PEERS, Peer
from ..peers.methods import ENGINE

NAME = "bench"  # of the set, in the store
BATCH = 1000  # images of a batched lookup
SINGLES = 5000  # lookups of one image that are timed, and as many misses


# --- ingest ---------------------------------------------------------------------------------------


def take(
    method: str, n: int, seed: int, folder: str, memory_bytes: int, keep_pixels: str
) -> dict[str, float]:
    """Make ``n`` images in memory, then ingest them: seconds of each step, and the bytes written.

    The time runs from opening a store that does not exist to closing it, when all is durable.
    """
    started = time.perf_counter()
    images = bit_images.packed_set(seed, n)
    made = time.perf_counter()
    budget = MemoryBudget(memory_bytes)
    before = disk.written()
    began, cpu = time.perf_counter(), time.process_time()
    if method == ENGINE:
        added = _take_in_store(images, Path(folder), memory_bytes, keep_pixels)
    else:
        added = _take_in_peer(images, PEERS[method](Path(folder), cache_bytes(budget)), budget)
    ended, spent = time.perf_counter(), time.process_time() - cpu
    if added != n:
        raise BenchError(f"{added:,} of {n:,} images were added to {folder}")
    return {
        "generate_s": made - started,
        "seconds": ended - began,
        "cpu_s": spent,
        "written": disk.written() - before,
        "disk": disk.taken(Path(folder)),
    }


def _take_in_store(images: Images, folder: Path, memory: int, keep_pixels: str) -> int:
    with Store.open(folder, create=True, encoder="none", memory=memory) as store:
        return store.ingest(packed_bits(images), name=NAME, keep_pixels=keep_pixels).added


def _take_in_peer(images: Images, peer: Peer, budget: MemoryBudget) -> int:
    added = 0
    ahead = hashed_ahead(lambda at, rows: images[at : at + rows], len(images), chunk_rows(budget))
    for first, (keys, proofs) in ahead:
        added += peer.take(first + 1, keys, proofs)
    peer.close()
    return added


# --- lookups --------------------------------------------------------------------------------------


def ask(
    method: str, n: int, seed: int, folder: str, memory_bytes: int, sample: int
) -> dict[str, float]:
    """Medians of µs an image, in batches and one at a time, for hits and misses.

    The same ``sample`` images are looked up twice, and the second time counts. By then their pixels are
    in the page cache, even if the set is larger than memory.
    """
    asked: Lookup
    if method == ENGINE:
        asked = StoreLookup(Path(folder), memory_bytes)
    else:
        asked = PeerLookup(PEERS[method](Path(folder), cache_bytes(MemoryBudget(memory_bytes))))
    rows = np.random.default_rng([seed, n]).integers(0, n, sample)
    hits, ids = bit_images.packed_rows(seed, rows), rows + 1
    misses, none = bit_images.packed_misses(n, seed, 0, sample), np.full(sample, -1)
    for _ in range(2):
        hit = _ask_batches(asked.many, hits, ids)
        miss = _ask_batches(asked.many, misses, none)
    few = slice(0, SINGLES)
    for _ in range(2):
        hit_one = _ask_singly(asked.one, hits[few], ids[few])
        miss_one = _ask_singly(asked.one, misses[few], none[few])
    return {"hit": hit, "miss": miss, "hit_one": hit_one, "miss_one": miss_one}


def _ask_batches(many: Callable[[Images], Ids], images: Images, ids: Ids) -> float:
    times = []
    for first in range(0, len(images), BATCH):
        some, wanted = images[first : first + BATCH], ids[first : first + BATCH]
        started = time.perf_counter()
        found = many(some)
        times.append((time.perf_counter() - started) / len(some))
        wrong = np.flatnonzero(found != wanted)
        if len(wrong):
            check(int(found[wrong[0]]), int(wanted[wrong[0]]))
    return statistics.median(times) * 1e6


def _ask_singly(one: Callable[[Images], int], images: Images, ids: Ids) -> float:
    times = []
    for i, wanted in enumerate(ids.tolist()):
        image = images[i : i + 1]
        started = time.perf_counter_ns()
        found = one(image)
        times.append(time.perf_counter_ns() - started)
        check(found, wanted)
    return statistics.median(times) / 1e3


if __name__ == "__main__":
    answer({"take": take, "ask": ask})
