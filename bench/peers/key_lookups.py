"""Lookups of packed bit images by their keys, in the engine or in a table, each answer checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine import PackedBits, Store
from engine.config import CHUNK_ROWS, MemoryBudget
from engine.images import hashing
from engine.images.canonical import HEADER_BYTES

from ..data import bit_images
from ..data.bit_images import Images
from ..harness.errors import WrongAnswerError
from .key_tables import Peer

_SEED = 0  # of the peers' keys; the engine draws one for each store
_HASHED_ROWS = 64  # at a time: their canonical forms, keys and proofs stay in the cache
_AHEAD = 1  # chunks hashed while one is inserted; two were no faster on two cores

Ids = npt.NDArray[np.int64]
Hashes = tuple[list[bytes], list[bytes]]


def chunk_rows(budget: MemoryBudget) -> int:
    """The number of images in one commit of the engine, and so of the peers."""
    return max(1, min(CHUNK_ROWS, budget.block // (HEADER_BYTES + bit_images.PACKED_BYTES)))


def cache_bytes(budget: MemoryBudget) -> int:
    """The engine's memory for keys: RocksDB's block cache and its write buffers, in bytes."""
    return budget.block_cache + budget.write_buffers


def hashed_ahead(
    images: Callable[[int, int], Images], n: int, each: int
) -> Iterator[tuple[int, Hashes]]:
    """The first row, keys and proofs of each chunk; the next is made while the last is inserted.

    ``images(first, rows)`` returns packed images; another thread calls it.
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
        some = list(packed_bits(images[at : at + _HASHED_ROWS]).canonical())
        keys += hashing.keys(some, _SEED)
        proofs += hashing.proofs(some)
    return keys, proofs


def packed_bits(images: Images) -> PackedBits:
    """The canonical forms of packed images, (n, 3750)."""
    return PackedBits(images, *bit_images.SHAPE[:2])


class Lookup(ABC):
    """Finds packed images: the id of each, or -1."""

    @abstractmethod
    def many(self, images: Images) -> Ids:
        """The ids of n images: (n, 3750) → (n,)."""

    @abstractmethod
    def one(self, image: Images) -> int:
        """The id of one image, (1, 3750)."""


class StoreLookup(Lookup):
    """The engine; one image is a whole lookup, with its sources."""

    def __init__(self, folder: Path, memory: int) -> None:
        """Open a store for reading; ``memory``: bytes."""
        self.store = Store.open(folder, read_only=True, memory=memory)

    def many(self, images: Images) -> Ids:
        """One call of ``Store.find_identical``."""
        return self.store.find_identical(packed_bits(images))

    def one(self, image: Images) -> int:
        """One call of ``Store.lookup``."""
        hits = self.store.lookup(packed_bits(image), tiers=("identical",)).identical
        return hits[0].id if hits else -1


class PeerLookup(Lookup):
    """A peer: computes the key, looks it up, and compares the proof."""

    def __init__(self, peer: Peer) -> None:
        """Look images up in ``peer``."""
        self._peer = peer

    def many(self, images: Images) -> Ids:
        """All keys in one call of ``Peer.find_many``."""
        canonical = list(packed_bits(images).canonical())
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
        canonical = packed_bits(image).only().canonical
        row = self._peer.find(hashing.key(canonical, _SEED))
        return row[0] if row is not None and row[1] == hashing.proof(canonical) else -1


def check(found: int, wanted: int) -> None:
    """``WrongAnswerError`` unless the ids are equal; -1 means not found."""
    if found != wanted:
        what = f"image {wanted}" if wanted > 0 else "an image that is not there"
        raise WrongAnswerError(f"{what} was answered with {found if found > 0 else 'nothing'}")
