"""The items that every source yields: files, archives, arrays of rows, rejects and skipped files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from engine.errors import ImageError
from engine.records import Decoded, Kind

Rows = npt.NDArray[np.uint8]
Vector = npt.NDArray[np.float32]
HEAD_BYTES = 32  # first bytes of a file that show an image's signature


@dataclass(frozen=True, slots=True)
class FileItem:
    """One image file; nothing but its stamp has been read."""

    path: Path
    name: bytes  # the absolute path, which results show
    mtime_ns: int
    size: int
    # (d,), if the caller brings a vector for it; its stamp does not cover the vector.
    vector: Vector | None = field(default=None, compare=False)

    @property
    def memory_bytes(self) -> int:
        """Bytes that it takes in memory once it is read."""
        return self.size + (self.vector.nbytes if self.vector is not None else 0)

    def read(self, max_bytes: int) -> bytes:
        """The file's bytes; ``ImageError`` if it cannot be read or is larger than ``max_bytes``."""
        if self.size > max_bytes:
            raise over_limit(self.size, max_bytes)
        try:
            with self.path.open("rb") as file:
                # Not max_bytes + 1, because Python would allocate that much for every file.
                data = file.read(self.size + 1)
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror}", retryable=True) from None
        if len(data) > self.size:
            raise ImageError("it grew while it was read: ingest it again", retryable=True)
        return data


@dataclass(frozen=True, slots=True)
class Member:
    """One image that has already been read: from an archive, a table or memory."""

    name: bytes  # "/archive.tar#member", "/table.parquet#17", "memory:name"
    mtime_ns: int  # the stamp of its archive or table, or its own
    size: int
    data: bytes  # the bytes of its file; empty if it is already ``decoded``
    metadata: dict[str, Any] | None = None  # label and the like, JSON values
    decoded: Decoded | None = None
    note: str = ""  # why its metadata is missing
    # (d,), if the caller brings a vector for it.
    vector: Vector | None = field(default=None, compare=False)

    @property
    def memory_bytes(self) -> int:
        """Bytes that it takes in memory."""
        taken = len(self.data) if self.decoded is None else len(self.decoded.pixels.canonical)
        taken += self.vector.nbytes if self.vector is not None else 0
        # JSON takes up to twenty times its bytes as Python objects.
        return taken + (20 * len(json.dumps(self.metadata)) if self.metadata else 0)

    def read(self, max_bytes: int) -> bytes:
        """The file's bytes; ``ImageError`` if they are more than ``max_bytes``."""
        if len(self.data) > max_bytes:
            raise over_limit(len(self.data), max_bytes)
        return self.data


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Consecutive canonical rows of one array: ``rows`` is (n, 16 + pixel bytes) uint8."""

    first: int
    rows: Rows
    kind: Kind


@dataclass(frozen=True, slots=True)
class VectorBlock:
    """Consecutive rows of one array of vectors: ``rows`` is (n, d) float32, C-contiguous."""

    first: int
    rows: npt.NDArray[np.float32]


class ArrayItem(Protocol):
    """An array of images, or a synthetic set: rows that share a name."""

    name: bytes  # its name in results, before "#" and the row
    mtime_ns: int  # 0 without a file
    size: int
    count: int  # rows

    @property
    def row_bytes(self) -> int:
        """The largest size in bytes of one row while it is read."""

    @property
    def kind(self) -> Kind:
        """Bits or 8-bit, for all its rows; may read all of them."""

    @property
    def declared_kind(self) -> Kind | None:
        """Bits or 8-bit, if known without reading a row; else None."""

    def blocks(self, start: int, max_rows: int, max_bytes: int) -> Iterator[RowBlock]:
        """Rows from ``start`` on, in blocks; ``SourceError`` if the array breaks off."""


@runtime_checkable
class VectorItem(Protocol):
    """An array of imported vectors: rows without pixels that share a name."""

    name: bytes  # its name in results, before "#" and the row
    mtime_ns: int
    size: int
    count: int  # rows
    dim: int  # values per row

    @property
    def row_bytes(self) -> int:
        """The largest size in bytes of one row while it is read."""

    def vectors(self, start: int, max_rows: int, max_bytes: int) -> Iterator[VectorBlock]:
        """Rows from ``start`` on, in blocks; ``SourceError`` if the array breaks off."""


@runtime_checkable
class ArchiveItem(Protocol):
    """A container of image files, read from its beginning to its end: a tar, a zip, a table."""

    name: bytes  # its name in results, before "#" and the member
    mtime_ns: int
    size: int

    @property
    def count(self) -> int | None:
        """About how many members it has, for progress; None if only reading all of it would show it."""

    def members(self, start: int, max_bytes: int) -> Iterator[Member | Reject | Skipped]:
        """Its members from number ``start`` on, in an order that never changes.

        A member of more than ``max_bytes`` is a ``Reject`` and is not read. ``SourceError`` if the
        container breaks off; the members yielded before are good.
        """


@runtime_checkable
class VectorArchive(ArchiveItem, Protocol):
    """An archive whose members may have vectors of the caller's."""

    brings_vectors: bool  # whether its members are read with their vectors
    vector_dim: int | None  # values per vector; None if only reading the members would show it
    vectors_stamped: bool  # whether the stamp of the archive covers the vectors


@dataclass(frozen=True, slots=True)
class Reject:
    """Something that was named or claims to be an image, and cannot be read.

    It has the stamp of its file, so that it is not tried again until the file changes. The stamp is
    0 and 0 if another try may succeed. It may stand for several rows of an array, "vectors.npy#17-39".
    """

    name: bytes
    reason: str
    mtime_ns: int = 0
    size: int = 0
    rows: int = 1


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that does not claim to be an image, or something that is not a file, as ``note`` says."""

    name: bytes
    note: str = ""  # a text to print after a count of such files


Item = FileItem | Member | ArrayItem | VectorItem | ArchiveItem | Reject | Skipped


def over_limit(size: int, max_bytes: int) -> ImageError:
    """The error for a file that is too large for the memory limit."""
    return ImageError(
        f"{size:,} bytes are over the limit of {max_bytes:,}: raise memory=", retryable=True
    )


def stamp_of(status: os.stat_result) -> tuple[int, int]:
    """The stamp that shows whether a file changed: (mtime_ns, size), the time as a signed 64-bit value.

    File systems allow times before 1677 and after 2262. These do not fit and are wrapped, which is fine
    because stamps are only compared.
    """
    return (status.st_mtime_ns + (1 << 63)) % (1 << 64) - (1 << 63), status.st_size


def absolute(path: Path | str) -> bytes:
    """The name of a file in results: its absolute path as bytes, with links not followed."""
    # Not Path.resolve: a link keeps its own name.
    return os.fsencode(os.path.abspath(path))  # noqa: PTH100
