"""The images of a run of ``engine bench``: random bit images, or the files of a folder.

A set gives the sources to ingest its first n images, and makes any of them again. It also makes the
queries: images of the set, images that it lacks, and copies. Only the list of a folder's files grows
with n.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine import PackedBits
from engine.errors import ImageError, UsageError
from engine.images.decode import decode
from engine.images.file_types import SUFFIXES
from engine.images.rgb_picture import to_rgb8
from engine.records import Kind

from . import bit_images, distortions
from .bit_images import Images

FLIPPED = 0.05  # of the bits of a bit image's copy
_MAX_PIXELS = 1 << 25  # of a query picture: larger ones would take most of the time

Wanted = str | None  # the source of the image to find; None: the set does not have it
Query = Any  # what Store.lookup takes: an array, a file's bytes, PackedBits


class ImageSet(ABC):
    """Images in a fixed order; a set of n is the first n of them."""

    name: str
    encoder: str  # for an ingest
    white: int  # the factor from the largest value of an array to 255
    chunk: int  # arrays held at a time

    @abstractmethod
    def sources(self, n: int) -> list[str]:
        """The sources to pass to ``Store.ingest`` for the first ``n`` images."""

    @abstractmethod
    def arrays(self, first: int, count: int) -> Images | list[Images]:
        """Images ``[first, first + count)`` as (H, W, 3) uint8, as a notebook would hold them."""

    @abstractmethod
    def named(self, first: int, count: int) -> Iterator[tuple[str, Images]]:
        """The same with their sources."""

    @abstractmethod
    def hits(self, n: int, count: int) -> Iterator[tuple[Wanted, Images]]:
        """``count`` images of a set of ``n``, drawn, as arrays."""

    @abstractmethod
    def misses(self, n: int, count: int) -> Iterator[tuple[Wanted, Images]]:
        """``count`` images that a set of ``n`` lacks, many of them nearly equal to one of its images."""

    @abstractmethod
    def copies(self, n: int, count: int) -> Iterator[tuple[Wanted, Query]]:
        """``count`` copies, each near an image of the set but not identical to it."""

    def views(self, n: int, count: int) -> Iterator[Images]:
        """The middle 80 % of each side of ``count`` images of a set of ``n``, for an encoder."""
        for _, image in self.hits(n, count):
            top, left = image.shape[0] // 10, image.shape[1] // 10
            kept = image[top : image.shape[0] - top, left : image.shape[1] - left]
            yield kept * self.white


class BitSet(ImageSet):
    """Random bit images of 100×100 RGB; row r depends on the seed and r only."""

    white = 255
    chunk = bit_images.CHUNK

    def __init__(self, seed: int, encoder: str = "none") -> None:
        self.name, self.encoder = "random bit images, 100×100 RGB", encoder
        self._seed = seed

    def sources(self, n: int) -> list[str]:
        """One synthetic source, made during the ingest."""
        return [f"synthetic:bits?n={n}&seed={self._seed}"]

    def arrays(self, first: int, count: int) -> Images:
        """(count, 100, 100, 3) of 0 and 1."""
        return bit_images.unpacked(self._seed, first, count)

    def named(self, first: int, count: int) -> Iterator[tuple[str, Images]]:
        """As ``arrays``."""
        for row, image in enumerate(self.arrays(first, count), first):
            yield self._source(row), image

    def hits(self, n: int, count: int) -> Iterator[tuple[Wanted, Images]]:
        """Rows drawn from the whole set."""
        for row, image in bit_images.hits(n, self._seed, count):
            yield self._source(row), image

    def misses(self, n: int, count: int) -> Iterator[tuple[Wanted, Images]]:
        """Half are new, half have one bit flipped."""
        yield from bit_images.misses(n, self._seed, count)

    def copies(self, n: int, count: int) -> Iterator[tuple[Wanted, Query]]:
        """5 % of the bits are flipped."""
        draw = np.random.default_rng([self._seed, n, 4])
        for row in draw.integers(0, n, count).tolist():
            flips = np.packbits(draw.random((1, bit_images.IMAGE_BYTES)) < FLIPPED, axis=1)
            packed = bit_images.packed(self._seed, row, 1) ^ flips
            yield self._source(row), PackedBits(packed, *bit_images.SHAPE[:2])

    def _source(self, row: int) -> str:
        return f"synthetic:bits?seed={self._seed}#{row}"


def _is_file(path: Path) -> bool:
    """Whether a path is a regular file: not a pipe, which would block, nor a dangling link."""
    try:
        return path.is_file()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False


class FileSet(ImageSet):
    """The image files of a folder, in an order that the seed draws."""

    white = 1
    chunk = 8  # some 300 MB of camera pictures

    def __init__(self, folder: str, seed: int, encoder: str = "simclr") -> None:
        self.name, self.encoder = f"the pictures in {folder}", encoder
        self._seed = seed
        every = sorted(
            str(Path(place) / name)
            for place, _, names in os.walk(Path(folder).absolute())
            for name in names
            if Path(name).suffix.lower() in SUFFIXES and _is_file(Path(place) / name)
        )
        if not every:
            raise UsageError(f"there is no image file in {folder}: name a folder of pictures")
        self.files = [every[i] for i in np.random.default_rng(seed).permutation(len(every))]

    def sources(self, n: int) -> list[str]:
        """The files."""
        return self.files[:n]

    def arrays(self, first: int, count: int) -> list[Images]:
        """The readable ones, as RGB."""
        return [image for _, image in self.named(first, count)]

    def named(self, first: int, count: int) -> Iterator[tuple[str, Images]]:
        """As ``arrays``."""
        for file in self.files[first : first + count]:
            image = _decoded(Path(file))
            if image is not None:
                yield file, image

    def hits(self, n: int, count: int) -> Iterator[tuple[Wanted, Images]]:
        """Decoded here, so that a lookup gets the same arrays as the other methods."""
        yield from self._drawn(n, count, 5)

    def misses(self, n: int, count: int) -> Iterator[tuple[Wanted, Images]]:
        """One channel value of one pixel is changed."""
        for _, image in self._drawn(n, count, 6):
            changed = image.copy()
            changed[0, 0, 0] ^= 1
            yield None, changed

    def copies(self, n: int, count: int) -> Iterator[tuple[Wanted, Query]]:
        """Compressed as JPEG of quality 50."""
        draw = np.random.default_rng(self._seed)
        for file, image in self._drawn(n, count, 7):
            yield file, distortions.jpeg(Image.fromarray(image), draw)

    def _drawn(self, n: int, count: int, stream: int) -> Iterator[tuple[str, Images]]:
        order = np.random.default_rng([self._seed, n, stream]).permutation(n)
        found = 0
        for i in order.tolist():
            image = _decoded(Path(self.files[i]))
            if image is None:
                continue
            yield self.files[i], image
            found += 1
            if found == count:
                return


def make(spec: dict[str, Any]) -> ImageSet:
    """The set that ``spec`` describes for a child: its folder, if any, and its seed."""
    if spec.get("folder"):
        return FileSet(spec["folder"], spec["seed"], spec["encoder"])
    return BitSet(spec["seed"], spec.get("encoder", "none"))


def _decoded(file: Path) -> Images | None:
    """An opaque picture of 8 bits a channel as (H, W, 3); None for any other or unreadable file.

    Also None if the picture has only the values 0 and 1: its array would be a bit image.
    """
    try:
        pixels = decode(file.read_bytes(), max_pixels=_MAX_PIXELS).pixels
    except (ImageError, OSError):
        return None
    plain = pixels.kind is Kind.U8 and pixels.channels == 3 and pixels.frames == 1
    picture = to_rgb8(pixels) if plain else None
    return picture if picture is not None and picture.max() > 1 else None
