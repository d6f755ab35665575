"""The ways to answer "is this very image here?": three that hold the set in memory, and the engine."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine import Store

from . import data
from .data import Images
from .errors import BenchError

ENGINE = "engine"
PIXELS = "pixel by pixel"
LIST = "list of hashes"
DICT = "dict of hashes"

NOTES = {
    ENGINE: "compared bit for bit, durable; build makes the images anew",
    PIXELS: "compared value by value",
    LIST: "hash only; gone with the process",
    DICT: "hash only; gone with the process",
}
# What an image costs while a method is built, in bytes of memory. A hash is an int of 36 bytes, in
# 48 of the heap; a list that grows has a copy of itself beside it, and so has a dict, whose table
# is also a third empty.
IMAGE_MEMORY = {PIXELS: data.IMAGE_BYTES, LIST: 70, DICT: 150}

Tick = Callable[[int], None]


class Method(ABC):
    """One method over one set: built once, then asked one image at a time."""

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self.seed = seed

    @abstractmethod
    def build(self, tick: Tick) -> tuple[float, float]:
        """Make the images and take them in; returns the seconds of each. Tells how many are done."""

    @abstractmethod
    def find(self, image: Images) -> object:
        """Look for one image, (100, 100, 3) uint8 of 0 and 1; true if it is there."""

    def right(self, found: object, row: int | None) -> bool:
        """Whether ``found`` is the answer for row ``row`` of the set, or None for one it lacks."""
        return bool(found) == (row is not None)

    def disk(self) -> int:
        """Bytes of disk taken."""
        return 0


class InMemory(Method):
    """What the three have in common: unpacked images, made and taken in chunk by chunk."""

    def build(self, tick: Tick) -> tuple[float, float]:
        """Seconds to make the unpacked images, and to take them in."""
        making = taking = 0.0
        for first in range(0, self.n, data.CHUNK):
            started = time.perf_counter()
            images = data.unpacked(self.seed, first, min(data.CHUNK, self.n - first))
            made = time.perf_counter()
            self.add(first, images)
            making += made - started
            taking += time.perf_counter() - made
            del images  # or two chunks would be held while the next one is made
            tick(min(first + data.CHUNK, self.n))
        return making, taking

    @abstractmethod
    def add(self, first: int, images: Images) -> None:
        """Take in rows ``first`` on: (count, 100, 100, 3) uint8."""


class PixelByPixel(InMemory):
    """All images in one array, each compared with the query: O(n)."""

    def __init__(self, n: int, seed: int) -> None:
        super().__init__(n, seed)
        self._images = np.empty((n, data.IMAGE_BYTES), np.uint8)

    def add(self, first: int, images: Images) -> None:
        """Copy them to their rows."""
        self._images[first : first + len(images)] = images.reshape(len(images), -1)

    def find(self, image: Images) -> bool:
        """Compare block by block, so that the comparison's own result stays small."""
        wanted = image.reshape(-1)
        return any(
            (self._images[first : first + data.CHUNK] == wanted).all(axis=1).any()
            for first in range(0, self.n, data.CHUNK)
        )


class ListOfHashes(InMemory):
    """``hash(image.tobytes())`` of each in a list, searched from its beginning: O(n)."""

    def __init__(self, n: int, seed: int) -> None:
        super().__init__(n, seed)
        self._hashes: list[int] = []

    def add(self, first: int, images: Images) -> None:
        """Append their hashes."""
        for image in images:
            self._hashes.append(hash(image.tobytes()))

    def find(self, image: Images) -> bool:
        """Search the list."""
        return hash(image.tobytes()) in self._hashes


class DictOfHashes(InMemory):
    """``hash(image.tobytes())`` of each as the key of a dict: O(1)."""

    def __init__(self, n: int, seed: int) -> None:
        super().__init__(n, seed)
        self._hashes: dict[int, bool] = {}

    def add(self, first: int, images: Images) -> None:
        """Set their hashes to True."""
        for image in images:
            self._hashes[hash(image.tobytes())] = True

    def find(self, image: Images) -> bool:
        """Look in the dict."""
        return hash(image.tobytes()) in self._hashes


class Engine(Method):
    """A store without an encoder, filled by ``Store.ingest`` and asked by ``Store.lookup``."""

    def __init__(self, n: int, seed: int, folder: Path, memory: int) -> None:
        """``folder``: where the store will be; ``memory``: bytes, as for ``Store.open``."""
        super().__init__(n, seed)
        self._folder = folder
        self._memory = memory
        self._store: Store | None = None

    def build(self, tick: Tick) -> tuple[float, float]:
        """Seconds to make the packed images, and to make, ingest and close a store of them.

        An ingest cannot be given images that were made before, other than through a file, so it
        makes them once more.
        """
        started = time.perf_counter()
        for first in range(0, self.n, data.CHUNK):
            data.packed(self.seed, first, min(data.CHUNK, self.n - first))
        made = time.perf_counter()
        with Store.open(self._folder, create=True, encoder="none", memory=self._memory) as store:
            report = store.ingest(
                f"synthetic:bits?n={self.n}&seed={self.seed}",
                progress=lambda done, total: tick(done),
            )
        built = time.perf_counter()
        if report.added != self.n:
            raise BenchError(f"{report.added:,} of {self.n:,} images were added to {self._folder}")
        self._store = Store.open(self._folder, read_only=True, memory=self._memory)
        return made - started, built - made

    def find(self, image: Images) -> tuple[tuple[str, ...], ...]:
        """The sources of each image found: one lookup, from the array to the answer."""
        assert self._store is not None
        hits = self._store.lookup(image, tiers=["identical"]).identical
        return tuple(hit.sources for hit in hits)

    def right(self, found: object, row: int | None) -> bool:
        """The engine also says which image it is."""
        wanted = () if row is None else ((f"synthetic:bits?seed={self.seed}#{row}",),)
        return found == wanted

    def disk(self) -> int:
        """What ``engine info`` counts."""
        assert self._store is not None
        return sum(self._store.info().bytes.values())
