"""The ledger of a killed writer: its sources and acknowledged commits, to check its store against."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..harness.errors import WrongAnswerError

SIDE = 12  # pixels, of pictures and rows of arrays
SYNTHETIC = "synthetic:bits?seed=0"

Values = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Picture:
    """A reproducible image: of kind "bits" or "8-bit", or a row of the synthetic set."""

    kind: str
    number: int

    @property
    def query(self) -> Values | str:
        """The image as an argument of ``Store.lookup``."""
        return f"{SYNTHETIC}#{self.number}" if self.kind == "synthetic" else values(self)

    @property
    def verified(self) -> str:
        """How a lookup has to verify a hit: by pixels for bit images, whose pixels are kept."""
        return "digest" if self.kind == "8-bit" else "bytes"


BLANK = Picture("bits", 0)  # a row of every array


@functools.cache
def values(picture: Picture) -> Values:
    """The pixels of a picture, (H, W, 3); 0 and 1 for bit images."""
    high = 2 if picture.kind == "bits" else 256
    draw = np.random.default_rng([picture.number, high])
    return draw.integers(0, high, (SIDE, SIDE, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class Chunk:
    """The content of one commit: files by name, and arrays with the number of finished rows."""

    names: tuple[str, ...]
    arrays: tuple[tuple[str, int], ...]


@dataclass(slots=True)
class Ledger:
    """The sources to ingest, and the commits that children acknowledged, kept outside the store."""

    files: dict[str, Picture] = field(default_factory=dict)
    arrays: dict[str, list[Picture]] = field(default_factory=dict)
    committed: set[str] = field(default_factory=set)  # files
    rows: Counter[str] = field(default_factory=Counter)  # committed, by array
    images: dict[Picture, set[str]] = field(default_factory=dict)  # committed, with their sources
    ids: dict[Picture, int] = field(default_factory=dict)  # all that were ever seen

    def places(self, chunk: Chunk) -> list[tuple[Picture, str]]:
        """The images of a chunk with their sources; ``WrongAnswerError`` if any is already committed."""
        again = [name for name in chunk.names if name in self.committed]
        again += [name for name, rows in chunk.arrays if rows <= self.rows[name]]
        if again:
            raise WrongAnswerError(f"{again[0]} is committed, and was committed again")
        found = [(self.files[name], name) for name in chunk.names]
        for name, rows in chunk.arrays:
            for row in range(self.rows[name], rows):
                is_synthetic = name == SYNTHETIC
                picture = Picture("synthetic", row) if is_synthetic else self.arrays[name][row]
                found.append((picture, f"{name}#{row}"))
        return found

    def add(self, chunk: Chunk) -> None:
        """Record this chunk as committed."""
        for picture, source in self.places(chunk):
            self.images.setdefault(picture, set()).add(source)
        self.committed.update(chunk.names)
        self.rows.update({name: rows - self.rows[name] for name, rows in chunk.arrays})

    def counts(self, chunk: Chunk | None = None) -> tuple[int, int]:
        """How many images and sources the store must have, with those of one more chunk."""
        more = self.places(chunk) if chunk is not None else []
        new = {picture for picture, _ in more} - self.images.keys()
        sources = len(self.committed) + self.rows.total()
        return len(self.images) + len(new), sources + len(more)
