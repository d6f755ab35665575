"""The methods that find an identical image: three that hold the set in memory, and the engine."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine import Store

from ..data import bit_images
from ..data.bit_images import Images
from ..data.image_sets import ImageSet, Wanted
from ..harness.errors import BenchError

ENGINE = "engine"
PIXELS = "pixel by pixel"
LIST = "list of hashes"
DICT = "dict of hashes"

NOTES = {
    ENGINE: "compared bit for bit, durable",
    PIXELS: "compared value by value",
    LIST: "hash only; gone with the process",
    DICT: "hash only; gone with the process",
}
WITH_MAKING = "with making or reading the images"
# Bytes of memory an image while a method is built. A hash is an int of 36 bytes, which takes 48 of
# the heap. A list that grows has a copy of itself beside it. So has a dict, whose table is also a
# third empty.
IMAGE_MEMORY = {PIXELS: bit_images.IMAGE_BYTES, LIST: 70, DICT: 150}

Tick = Callable[[int], None]


class Method(ABC):
    """One method over one set: built once, then queried one image at a time."""

    def __init__(self, n: int, images: ImageSet) -> None:
        self.n = n
        self.images = images

    @abstractmethod
    def build(self, tick: Tick) -> tuple[float, float]:
        """Make the images and add them, reporting progress; returns the seconds of each step."""

    @abstractmethod
    def find(self, image: Images) -> object:
        """Look up one image, (H, W, 3) uint8; true if the set has it."""

    def right(self, found: object, wanted: Wanted) -> bool:
        """Whether ``found`` is right for the image of that source, or for an image not in the set."""
        return bool(found) == (wanted is not None)

    def disk(self) -> int:
        """Bytes of disk."""
        return 0

    def parts(self) -> dict[str, int]:
        """Bytes of disk by part, if there are several parts."""
        return {}


class InMemory(Method):
    """The common base of the methods in memory: unpacked images, made and added chunk by chunk."""

    def build(self, tick: Tick) -> tuple[float, float]:
        """Seconds to make the unpacked images, and to add them."""
        making = taking = 0.0
        each = self.images.chunk
        for first in range(0, self.n, each):
            started = time.perf_counter()
            images = self.images.arrays(first, min(each, self.n - first))
            made = time.perf_counter()
            self.add(first, images)
            making += made - started
            taking += time.perf_counter() - made
            del images  # otherwise two chunks are in memory while the next one is made
            tick(min(first + each, self.n))
        return making, taking

    @abstractmethod
    def add(self, first: int, images: Images | list[Images]) -> None:
        """Add the rows from ``first`` on, each (H, W, 3) uint8."""


class PixelByPixel(InMemory):
    """All images, of one size, in one array; compares each with the query: O(n)."""

    def __init__(self, n: int, images: ImageSet) -> None:
        super().__init__(n, images)
        self._images = np.empty((n, bit_images.IMAGE_BYTES), np.uint8)

    def add(self, first: int, images: Images | list[Images]) -> None:
        """Copy them to their rows."""
        self._images[first : first + len(images)] = np.reshape(images, (len(images), -1))

    def find(self, image: Images) -> bool:
        """Compare block by block, so that the array of results stays small."""
        wanted = image.reshape(-1)
        return any(
            (self._images[first : first + bit_images.CHUNK] == wanted).all(axis=1).any()
            for first in range(0, self.n, bit_images.CHUNK)
        )


class ListOfHashes(InMemory):
    """``hash(image.tobytes())`` of each image in a list, searched from its beginning: O(n)."""

    def __init__(self, n: int, images: ImageSet) -> None:
        super().__init__(n, images)
        self._hashes: list[int] = []

    def add(self, first: int, images: Images | list[Images]) -> None:
        """Append their hashes."""
        for image in images:
            self._hashes.append(hash(image.tobytes()))

    def find(self, image: Images) -> bool:
        """Search the list."""
        return hash(image.tobytes()) in self._hashes


class DictOfHashes(InMemory):
    """``hash(image.tobytes())`` of each image as the key of a dict: O(1)."""

    def __init__(self, n: int, images: ImageSet) -> None:
        super().__init__(n, images)
        self._hashes: dict[int, bool] = {}

    def add(self, first: int, images: Images | list[Images]) -> None:
        """Set their hashes to True."""
        for image in images:
            self._hashes[hash(image.tobytes())] = True

    def find(self, image: Images) -> bool:
        """Look in the dict."""
        return hash(image.tobytes()) in self._hashes


class Engine(Method):
    """A store, filled by ``Store.ingest`` and queried by ``Store.lookup``."""

    def __init__(self, n: int, images: ImageSet, folder: Path, memory: int) -> None:
        """``folder`` is the store to create; ``memory`` is in bytes, as for ``Store.open``."""
        super().__init__(n, images)
        self._folder = folder
        self._memory = memory
        self._store: Store | None = None

    def build(self, tick: Tick) -> tuple[float, float]:
        """0 and the seconds to make, ingest and close a store, which makes or reads the images."""
        started = time.perf_counter()
        encoder = self.images.encoder
        with Store.open(self._folder, create=True, encoder=encoder, memory=self._memory) as store:
            report = store.ingest(
                *self.images.sources(self.n), progress=lambda done, total: tick(done)
            )
        built = time.perf_counter()
        if report.seen != self.n:
            raise BenchError(f"{report.seen:,} of {self.n:,} images were taken into {self._folder}")
        self.open()
        return 0.0, built - started

    def open(self) -> None:
        """Open the existing store for lookups."""
        self._store = Store.open(self._folder, read_only=True, memory=self._memory)

    def find(self, image: Images) -> tuple[tuple[int, tuple[str, ...]], ...]:
        """One lookup, from the array to the id and sources of each image found."""
        assert self._store is not None
        hits = self._store.lookup(image, tiers=["identical"]).identical
        return tuple((hit.id, hit.sources) for hit in hits)

    def right(self, found: object, wanted: Wanted) -> bool:
        """The engine must also name the right image, and find it once."""
        assert isinstance(found, tuple) and self._store is not None
        if wanted is None or len(found) != 1:
            return wanted is None and found == ()
        # A hit names ten sources at most, and a picture may have more.
        ((id_, some),) = found
        return wanted in some or wanted in self._store.sources(id_)

    def disk(self) -> int:
        """Bytes of disk as ``engine info`` counts them."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Bytes of disk by part of the store."""
        assert self._store is not None
        return dict(self._store.info().bytes)
