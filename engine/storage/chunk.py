"""What one commit adds: a chunk of images, of names for them, of rows of arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.records import Buffer, Pixels
from engine.storage.rows import ArrayRow, ImageRow, NameRow, Run


@dataclass(slots=True)
class NewImage:
    """An image that a chunk adds. Its id is the store's ``next_id`` plus its place in the chunk."""

    pixels: Pixels
    key: bytes
    proof: bytes
    container: str
    decoder: str
    file_bytes: int
    file_hash: bytes
    fingerprint: bytes
    quality: int
    keep: Buffer | None  # what to keep of it: canonical bytes of a bit image, else the file
    first: ImageRow | None = None  # the stored image that has the same key, and is another one


@dataclass(slots=True)
class NewName:
    """A file that is, from now on, image ``id``; ``before`` is what its name stood for."""

    name: bytes
    id: int
    mtime_ns: int
    size: int
    file_hash: bytes
    before: NameRow | None = None


@dataclass(slots=True)
class Chunk:
    """Everything of one commit."""

    images: list[NewImage] = field(default_factory=list)
    vectors: npt.NDArray[np.float32] | None = None  # (images, dim), or none for all of them
    names: list[NewName] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    arrays: list[tuple[bytes, ArrayRow]] = field(default_factory=list)
    rejects: list[tuple[bytes, dict[str, Any]]] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (self.images or self.names or self.runs or self.arrays or self.rejects)
