"""The child of ``exact_store``: one ingest, or the lookups of one store, in a process of its own."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine import Store
from engine.config import CHUNK_ROWS, MemoryBudget
from engine.images import hashing
from engine.images.canonical import HEADER_BYTES
from engine.images.packed_bits import PackedBits

from . import data, disk
from .data import Images
from .errors import BenchError, WrongAnswerError
from .methods import ENGINE
from .peers import PEERS, Peer
from .process import answer

NAME = "bench"  # of the set, in the store
BATCH = 1000  # images of a batched lookup
SINGLES = 5000  # lookups of one image that are timed, and as many misses

_SEED = 0  # of the peers' keys; the engine draws one for each store
_HASHED_ROWS = 64  # at a time: the canonical form, key and proof of these stay in the cache
_AHEAD = 1  # chunks that are hashed while one is inserted; two were no faster on two cores

Ids = npt.NDArray[np.int64]
Hashes = tuple[list[bytes], list[bytes]]


# --- taking a set in ------------------------------------------------------------------------------


def take(
    method: str, n: int, seed: int, folder: str, memory_bytes: int, keep_pixels: str
) -> dict[str, float]:
    """Make ``n`` images in memory, then take them in: seconds of each, and the bytes written.

    From opening a store that is not there to closing it; all is durable then.
    """
    started = time.perf_counter()
    images = data.packed_set(seed, n)
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
        return store.ingest(_packed(images), name=NAME, keep_pixels=keep_pixels).added


def _take_in_peer(images: Images, peer: Peer, budget: MemoryBudget) -> int:
    added = 0
    ahead = hashed_ahead(lambda at, rows: images[at : at + rows], len(images), chunk_rows(budget))
    for first, (keys, proofs) in ahead:
        added += peer.take(first + 1, keys, proofs)
    peer.close()
    return added


def chunk_rows(budget: MemoryBudget) -> int:
    """Images of one commit of the engine, and so of the peers."""
    return max(1, min(CHUNK_ROWS, budget.block // (HEADER_BYTES + data.PACKED_BYTES)))


def cache_bytes(budget: MemoryBudget) -> int:
    """What the engine gives its keys: blocks that were read, and rows that wait to be written."""
    return budget.block_cache + budget.write_buffers


def hashed_ahead(
    images: Callable[[int, int], Images], n: int, each: int
) -> Iterator[tuple[int, Hashes]]:
    """The first row of each chunk, its keys and proofs; the next is made while the last is inserted.

    ``images(first, rows)`` are packed ones, asked for in another thread.
    """

    def made(first: int) -> Hashes:
        return hashes(images(first, min(each, n - first)))

    with ThreadPoolExecutor(_AHEAD) as pool:
        waiting: deque[tuple[int, Future[Hashes]]] = deque()
        for first in range(0, n, each):
            waiting.append((first, pool.submit(made, first)))
            if len(waiting) > _AHEAD:
                at, hashed = waiting.popleft()
                yield at, hashed.result()
        for at, hashed in waiting:
            yield at, hashed.result()


def hashes(images: Images) -> Hashes:
    """The key and the proof of each packed image, (n, 3750)."""
    keys: list[bytes] = []
    proofs: list[bytes] = []
    for at in range(0, len(images), _HASHED_ROWS):
        some = list(_packed(images[at : at + _HASHED_ROWS]).canonical())
        keys += hashing.keys(some, _SEED)
        proofs += hashing.proofs(some)
    return keys, proofs


def _packed(images: Images) -> PackedBits:
    return PackedBits(images, *data.SHAPE[:2])


# --- looking images up ----------------------------------------------------------------------------


class Asked(ABC):
    """Something that says which image a packed one is: its id, or -1."""

    @abstractmethod
    def many(self, images: Images) -> Ids:
        """Of each of n images: (n, 3750) → (n,)."""

    @abstractmethod
    def one(self, image: Images) -> int:
        """Of one image: (1, 3750)."""


class AskedStore(Asked):
    """The engine; one image is a whole lookup, with its sources."""

    def __init__(self, folder: Path, memory: int) -> None:
        """Open a store for reading; ``memory``: bytes."""
        self.store = Store.open(folder, read_only=True, memory=memory)

    def many(self, images: Images) -> Ids:
        """One call of ``Store.find_identical``."""
        return self.store.find_identical(_packed(images))

    def one(self, image: Images) -> int:
        """One call of ``Store.lookup``."""
        hits = self.store.lookup(_packed(image), tiers=("identical",)).identical
        return hits[0].id if hits else -1


class AskedPeer(Asked):
    """A peer: the key, what lies under it, and the proof of what was found."""

    def __init__(self, peer: Peer) -> None:
        """Ask ``peer``."""
        self._peer = peer

    def many(self, images: Images) -> Ids:
        """All keys in one call of ``Peer.find_many``."""
        canonical = list(_packed(images).canonical())
        found = self._peer.find_many(hashing.keys(canonical, _SEED))
        there = [(i, row) for i, row in enumerate(found) if row is not None]
        ids = np.full(len(images), -1, np.int64)
        proofs = hashing.proofs([canonical[i] for i, _ in there])
        for (i, (id_, proof)), own in zip(there, proofs, strict=True):
            if proof == own:
                ids[i] = id_
        return ids

    def one(self, image: Images) -> int:
        """One call of ``Peer.find``."""
        canonical = _packed(image).only().canonical
        row = self._peer.find(hashing.key(canonical, _SEED))
        return row[0] if row is not None and row[1] == hashing.proof(canonical) else -1


def ask(
    method: str, n: int, seed: int, folder: str, memory_bytes: int, sample: int
) -> dict[str, float]:
    """Medians of µs an image, in batches and one at a time, of images that are there and not.

    The same ``sample`` images are asked for twice, and the second time counts: by then their pixels
    are in the page cache, also those of a set that is larger than memory.
    """
    asked: Asked
    if method == ENGINE:
        asked = AskedStore(Path(folder), memory_bytes)
    else:
        asked = AskedPeer(PEERS[method](Path(folder), cache_bytes(MemoryBudget(memory_bytes))))
    rows = np.random.default_rng([seed, n]).integers(0, n, sample)
    hits, ids = data.packed_rows(seed, rows), rows + 1
    misses, none = data.packed_misses(n, seed, 0, sample), np.full(sample, -1)
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


def check(found: int, wanted: int) -> None:
    """``WrongAnswerError`` unless the id found is the one wanted; -1 is none."""
    if found != wanted:
        what = f"image {wanted}" if wanted > 0 else "an image that is not there"
        raise WrongAnswerError(f"{what} was answered with {found if found > 0 else 'nothing'}")


_JOBS: dict[str, Callable[..., dict[str, float]]] = {"take": take, "ask": ask}


def work(job: str, **given: Any) -> dict[str, float]:
    """One of the two functions above, by its name."""
    return _JOBS[job](**given)


if __name__ == "__main__":
    answer(work)
