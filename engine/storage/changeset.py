"""The contents of one commit: a chunk of images, names and array rows to add, or a removal."""

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

# Disk bytes of one image: fingerprint, row, record and file hash, with their keys.
_IMAGE_BYTES = 320
# Disk bytes of one name's rows, without the name itself.
_NAME_BYTES = 200
_RUN_BYTES = 80


@dataclass(slots=True)
class NewImage:
    """An image that a chunk adds. Its id is the store's ``next_id`` plus its position in the chunk."""

    pixels: Pixels
    key: bytes
    proof: bytes
    container: str
    decoder: str
    file_bytes: int
    file_hash: bytes
    fingerprint: bytes
    quality: int
    # The bytes to keep: the canonical form, or the original file.
    keep: Buffer | None
    keeps_canonical: bool = False
    metadata: dict[str, Any] | None = None
    # The stored image with the same key but different pixels, if there is one.
    first: ImageRow | None = None


@dataclass(slots=True)
class NewRows:
    """New images that are rows of one array, by column; their ids follow those of ``images``.

    No two have the same key, and no stored image has one of their keys. A row that breaks this, which
    is nearly impossible, becomes a ``NewImage`` instead.
    """

    # The shape that all rows share; its canonical bytes are not used.
    shape: Pixels
    keys: list[bytes]
    proofs: list[bytes]
    fingerprints: npt.NDArray[np.uint8]  # (n, 32)
    qualities: npt.NDArray[np.uint8]  # (n,)
    in_runs: npt.NDArray[np.bool_]  # (n,): see ImageRow
    keep: npt.NDArray[np.uint8] | None  # (n, canonical bytes), contiguous

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class NewVectors:
    """Vectors of images that a chunk adds, or of stored images that have none."""

    ids: npt.NDArray[np.int64]  # (n,)
    rows: npt.NDArray[np.float32]  # (n, dim)


@dataclass(slots=True)
class NewName:
    """A file name that now stands for image ``id``; ``before`` is its previous row, if any."""

    name: bytes
    id: int
    mtime_ns: int
    size: int
    file_hash: bytes
    before: NameRow | None = None


@dataclass(slots=True)
class Rekept:
    """A stored image whose kept bytes become ``keep``, at a new place; None drops them."""

    key: bytes  # of its row in the table ``images``
    row: ImageRow
    keep: Buffer | None


@dataclass(slots=True)
class Removal:
    """The rows and pixels that a removal drops, as ``engine.storage.removal`` works them out."""

    images: list[int] = field(default_factory=list)  # their ids
    sources: int = 0
    # The number of vectors of these images.
    vectors: int = 0
    # Kept pixels that no image uses any more.
    dead: list[Place] = field(default_factory=list)
    # Table, key and value of each row to write, in order; the value is None for a row to delete.
    rows: list[tuple[str, bytes, bytes | None]] = field(default_factory=list)


@dataclass(slots=True)
class Chunk:
    """Everything that one commit writes."""

    images: list[NewImage] = field(default_factory=list)
    rows: NewRows | None = None
    # Images that now have a source outside runs of several; their rows said they had none.
    out_of_runs: list[tuple[bytes, ImageRow]] = field(default_factory=list)
    rekept: list[Rekept] = field(default_factory=list)
    # Metadata by id: first for images without metadata, then replacements (None deletes it).
    described: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    redescribed: list[tuple[int, dict[str, Any] | None]] = field(default_factory=list)
    # (images, dim), or None if the chunk has no vectors.
    vectors: npt.NDArray[np.float32] | None = None
    # (n, dim): imported vectors, which have no images. A chunk with these has no images.
    imported: npt.NDArray[np.float32] | None = None
    # Imported ones, or those of stored images that have none yet. None if there are none.
    image_vectors: NewVectors | None = None
    names: list[NewName] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    arrays: list[tuple[bytes, ArrayRow]] = field(default_factory=list)
    archives: list[tuple[bytes, ArchiveRow]] = field(default_factory=list)
    rejects: list[tuple[bytes, dict[str, Any]]] = field(default_factory=list)
    removal: Removal | None = None

    def disk_bytes(self) -> int:
        """Return an upper bound of its disk bytes: appends, and rows in log and table."""
        kept = sum(memoryview(one.keep).nbytes for one in self.images if one.keep is not None)
        rows = 0
        if self.rows is not None:
            kept += self.rows.keep.nbytes if self.rows.keep is not None else 0
            rows = len(self.rows)
        vectors = self.imported if self.imported is not None else self.vectors
        if vectors is not None:
            kept += vectors.nbytes + 8 * len(vectors)
        if self.image_vectors is not None:
            kept += self.image_vectors.rows.nbytes + self.image_vectors.ids.nbytes
        said = sum(len(json.dumps(one.metadata)) for one in self.images if one.metadata)
        said += sum(len(json.dumps(metadata)) for _, metadata in self.described)
        said += sum(len(json.dumps(metadata)) + _IMAGE_BYTES for _, metadata in self.redescribed)
        named = sum(2 * len(new.name) + _NAME_BYTES for new in self.names)
        named += sum(len(name) + len(row["reason"]) + _NAME_BYTES for name, row in self.rejects)
        each = _IMAGE_BYTES * (len(self.images) + rows) + _RUN_BYTES * len(self.runs)
        return kept + 2 * (said + named + each)

    @property
    def empty(self) -> bool:
        """Return whether there is nothing to commit."""
        return not (
            self.images
            or self.rows
            or self.imported is not None
            or self.image_vectors is not None
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
