"""What one commit adds: a chunk of images, of names for them, of rows of arrays; or takes away."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.records import Buffer, Pixels, Place
from engine.storage.image_rows import ImageRow
from engine.storage.runs import Run
from engine.storage.source_rows import ArchiveRow, ArrayRow, NameRow

_IMAGE_BYTES = 320  # of an image: fingerprint, row, record and hash of its file, with their keys
_NAME_BYTES = 200  # of a name: its rows but for the name
_RUN_BYTES = 80


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
    keep: Buffer | None  # what to keep of it: its canonical form, or the file it came in
    keeps_canonical: bool = False
    metadata: dict[str, Any] | None = None
    first: ImageRow | None = None  # the stored image that has the same key, and is another one


@dataclass(slots=True)
class NewRows:
    """New images that are rows of one array, by the column; their ids follow those of ``images``.

    No two have the same key, and no stored image has one of their keys: what is different from
    that, which is next to impossible, goes the way of ``NewImage``.
    """

    shape: Pixels  # what they have in common; its canonical bytes are not used
    keys: list[bytes]
    proofs: list[bytes]
    fingerprints: npt.NDArray[np.uint8]  # (n, 32)
    qualities: npt.NDArray[np.uint8]  # (n,)
    in_runs: npt.NDArray[np.bool_]  # (n,): see ImageRow
    keep: npt.NDArray[np.uint8] | None  # (n, canonical bytes), contiguous

    def __len__(self) -> int:
        """How many there are."""
        return len(self.keys)


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
class Rekept:
    """A stored image whose kept bytes lie elsewhere from now on, as ``keep``, or nowhere."""

    key: bytes  # of its row in ``images``
    row: ImageRow
    keep: Buffer | None


@dataclass(slots=True)
class Removal:
    """What goes with some images and sources: worked out by ``engine.storage.removal``."""

    images: list[int] = field(default_factory=list)  # their ids
    sources: int = 0
    vectors: int = 0  # of these images
    dead: list[Place] = field(default_factory=list)  # pixels that are no image's any more
    # Table, key and value of each row, or None where it goes; in the order in which they count.
    rows: list[tuple[str, bytes, bytes | None]] = field(default_factory=list)


@dataclass(slots=True)
class Chunk:
    """Everything of one commit."""

    images: list[NewImage] = field(default_factory=list)
    rows: NewRows | None = None
    # Images that get a source outside of runs of several: their rows said that they had none.
    out_of_runs: list[tuple[bytes, ImageRow]] = field(default_factory=list)
    rekept: list[Rekept] = field(default_factory=list)
    # Metadata by id: of images that have none yet, and what replaces it, or takes it away.
    described: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    redescribed: list[tuple[int, dict[str, Any] | None]] = field(default_factory=list)
    vectors: npt.NDArray[np.float32] | None = None  # (images, dim), or none for all of them
    imported: npt.NDArray[np.float32] | None = None  # (n, dim): vectors without images, alone
    names: list[NewName] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    arrays: list[tuple[bytes, ArrayRow]] = field(default_factory=list)
    archives: list[tuple[bytes, ArchiveRow]] = field(default_factory=list)
    rejects: list[tuple[bytes, dict[str, Any]]] = field(default_factory=list)
    removal: Removal | None = None

    def disk_bytes(self) -> int:
        """Bytes of disk that it takes, from above: what it appends, and its rows in log and table."""
        kept = sum(memoryview(one.keep).nbytes for one in self.images if one.keep is not None)
        rows = 0
        if self.rows is not None:
            kept += self.rows.keep.nbytes if self.rows.keep is not None else 0
            rows = len(self.rows)
        vectors = self.imported if self.imported is not None else self.vectors
        if vectors is not None:
            kept += vectors.nbytes + 8 * len(vectors)
        said = sum(len(json.dumps(one.metadata)) for one in self.images if one.metadata)
        said += sum(len(json.dumps(metadata)) for _, metadata in self.described)
        said += sum(len(json.dumps(metadata)) + _IMAGE_BYTES for _, metadata in self.redescribed)
        named = sum(2 * len(new.name) + _NAME_BYTES for new in self.names)
        named += sum(len(name) + len(row["reason"]) + _NAME_BYTES for name, row in self.rejects)
        each = _IMAGE_BYTES * (len(self.images) + rows) + _RUN_BYTES * len(self.runs)
        return kept + 2 * (said + named + each)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (
            self.images
            or self.rows
            or self.imported is not None
            or self.rekept
            or self.described
            or self.redescribed
            or self.names
            or self.runs
            or self.arrays
            or self.archives
            or self.rejects
            or (self.removal and self.removal.rows)
        )
