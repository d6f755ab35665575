"""The child of ``engine bench`` that fills and queries FAISS's flat index, or a table of keys."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engine import PackedBits
from engine.config import MemoryBudget

from ..data import bit_images
from ..data.arrays import Vectors
from ..data.exact_neighbours import recall
from ..harness import disk, memory
from ..harness.errors import BenchError
from ..harness.process import answer, send
from ..peers.key_lookups import PeerLookup, cache_bytes, check, chunk_rows, hashed_ahead
from ..peers.key_tables import PEERS

BATCH = 1_000  # images of a batch
_SECONDS = 10.0  # after which slow work is cut short
_FEWEST = 20


def flat(n: int, seed: int, array: str, queries: str, truth: str, k: int) -> dict[str, Any]:
    """FAISS's ``IndexFlatL2`` over the same vectors, added as they are made."""
    import faiss

    from ..data.vector_store import VectorStore

    asked: Vectors = np.load(queries)
    known = np.load(truth)[:, :k]
    rows = VectorStore(n, seed, Path(), Path(array) if array else None)
    index = faiss.IndexFlatL2(asked.shape[1])
    empty = memory.anonymous()
    faiss.omp_set_num_threads(1)  # for one query, as with the others
    send(start=True)
    built = 0.0
    for block in rows.blocks(0, n):
        started = time.perf_counter()
        index.add(np.ascontiguousarray(block))
        built += time.perf_counter() - started
    times, found = [], []
    for query in asked:
        started = time.perf_counter()
        _, nearest = index.search(query[None], k)
        times.append(time.perf_counter() - started)
        found.append(nearest[0])
        if len(times) >= _FEWEST and sum(times) > _SECONDS:
            break
    some = min(len(found), len(known))
    right = recall(np.array(found[:some]), known[:some])
    after = memory.anonymous()
    return {
        "seconds": times,
        "build": built,
        "recall": right,
        "empty": empty,
        "after": after,
    }


def take(method: str, n: int, seed: int, folder: str, memory_bytes: int) -> dict[str, float]:
    """Add keys and proofs of a set to a peer, with as many rows a commit as the engine has.

    The time runs from creating the peer to closing it. The next images are made and hashed at the same
    time.
    """
    budget = MemoryBudget(memory_bytes)
    empty = memory.anonymous()
    send(start=True)
    started = time.perf_counter()
    peer = PEERS[method](Path(folder), cache_bytes(budget))
    added = 0

    def packed(first: int, rows: int) -> bit_images.Images:
        return np.concatenate(list(_packed(seed, first, rows)))

    for first, (keys, proofs) in hashed_ahead(packed, n, chunk_rows(budget)):
        added += peer.take(first + 1, keys, proofs)
        send(done=first + len(keys))
    peer.close()
    spent = time.perf_counter() - started
    if added != n:
        raise BenchError(f"{added:,} of {n:,} images were added to {method}")
    return {"seconds": spent, "disk": disk.taken(Path(folder)), "empty": empty}


def _packed(seed: int, first: int, count: int) -> Iterator[bit_images.Images]:
    for at in range(first, first + count, BATCH):
        yield bit_images.packed(seed, at, min(BATCH, first + count - at))


def ask(
    method: str, n: int, count: int, seed: int, folder: str, memory_bytes: int
) -> dict[str, list[float]]:
    """Seconds of each lookup in a peer, from the unpacked array to the verified answer; second pass."""
    peer = PEERS[method](Path(folder), cache_bytes(MemoryBudget(memory_bytes)))
    asked = PeerLookup(peer)
    found: dict[str, list[float]] = {}
    for _ in range(2):
        for what, some in (
            ("hit", bit_images.hits(n, seed, count)),
            ("miss", bit_images.misses(n, seed, count)),
        ):
            times = []
            for row, image in some:
                started = time.perf_counter()
                one = asked.one(PackedBits.pack(image[None]).packed)
                times.append(time.perf_counter() - started)
                check(one, -1 if row is None else row + 1)
            found[what] = times
    return found


if __name__ == "__main__":
    answer(
        {
            "flat": flat,
            "take": take,
            "ask": ask,
        }
    )
