"""What every source yields, whatever it is: files, blocks of rows, or something it had to refuse."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from engine.errors import ImageError
from engine.records import Decoded, Kind

Rows = npt.NDArray[np.uint8]
HEAD_BYTES = 32  # that show whether a file is signed as an image


@dataclass(frozen=True, slots=True)
class FileItem:
    """One image file; nothing but its stamp has been read."""

    path: Path
    name: bytes  # the absolute path: how results call it
    mtime_ns: int
    size: int

    def read(self, max_bytes: int) -> bytes:
        """The file's bytes; ``ImageError`` if it cannot be read or is larger than ``max_bytes``."""
        if self.size > max_bytes:
            raise over_limit(self.size, max_bytes)
        try:
            with self.path.open("rb") as file:
                # Not ``max_bytes + 1``: as much would be set aside for every file.
                data = file.read(self.size + 1)
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror}", retryable=True) from None
        if len(data) > self.size:
            raise ImageError("it grew while it was read: ingest it again", retryable=True)
        return data


@dataclass(frozen=True, slots=True)
class Member:
    """One image that has been read already: out of an archive or a table, or given in memory."""

    name: bytes  # "/archive.tar#member", "/table.parquet#17", "memory:name"
    mtime_ns: int  # the stamp of what it came out of, or of itself
    size: int
    data: bytes  # its file; nothing where it is ``decoded`` already
    metadata: dict[str, Any] | None = None  # label and the like, JSON values
    decoded: Decoded | None = None
    note: str = ""  # why it is without its metadata

    @property
    def memory_bytes(self) -> int:
        """What it takes in memory."""
        taken = len(self.data) if self.decoded is None else len(self.decoded.pixels.canonical)
        # As objects, JSON takes up to twenty times its bytes.
        return taken + (20 * len(json.dumps(self.metadata)) if self.metadata else 0)

    def read(self, max_bytes: int) -> bytes:
        """The file's bytes; ``ImageError`` if they are more than ``max_bytes``."""
        if len(self.data) > max_bytes:
            raise over_limit(len(self.data), max_bytes)
        return self.data


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Consecutive rows of one array, already canonical: ``rows`` is (n, 16 + pixel bytes) uint8."""

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

    name: bytes  # how results call it, before "#" and the row
    mtime_ns: int  # 0 where there is no file
    size: int
    count: int  # rows

    @property
    def row_bytes(self) -> int:
        """The most that one row takes while it is read."""

    @property
    def kind(self) -> Kind:
        """Bits or 8-bit, for all its rows; may read all of them."""

    @property
    def declared_kind(self) -> Kind | None:
        """The same, where it is known without reading a row; else None."""

    def blocks(self, start: int, max_rows: int, max_bytes: int) -> Iterator[RowBlock]:
        """Rows from ``start`` on, in blocks; ``SourceError`` where the array breaks off."""


@runtime_checkable
class VectorItem(Protocol):
    """An array of vectors that somebody brings: rows without pixels that share a name."""

    name: bytes  # how results call it, before "#" and the row
    mtime_ns: int
    size: int
    count: int  # rows
    dim: int  # numbers in each

    @property
    def row_bytes(self) -> int:
        """The most that one row takes while it is read."""

    def vectors(self, start: int, max_rows: int, max_bytes: int) -> Iterator[VectorBlock]:
        """Rows from ``start`` on, in blocks; ``SourceError`` where the array breaks off."""


@runtime_checkable
class ArchiveItem(Protocol):
    """A container of image files, read from its beginning to its end: a tar, a zip, a table."""

    name: bytes  # how results call it, before "#" and the member
    mtime_ns: int
    size: int

    @property
    def count(self) -> int | None:
        """Members, about, where that is known without reading all of it: for showing progress."""

    def members(self, start: int, max_bytes: int) -> Iterator[Member | Reject | Skipped]:
        """Its members from number ``start`` on, in their order, which never changes.

        One of more than ``max_bytes`` is a ``Reject`` and is not read. ``SourceError`` where the
        container breaks off: what was yielded before is good.
        """


@dataclass(frozen=True, slots=True)
class Reject:
    """Something that was named or claims to be images, and cannot be read.

    With the stamp of its file it is not tried again until that changes; 0 and 0 where another try
    may go better. It may stand for several rows of an array, "vectors.npy#17-39".
    """

    name: bytes
    reason: str
    mtime_ns: int = 0
    size: int = 0
    rows: int = 1


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that does not claim to be an image, or what is no file; ``note`` then says what it is."""

    name: bytes
    note: str = ""  # to stand behind a number of them


Item = FileItem | Member | ArrayItem | VectorItem | ArchiveItem | Reject | Skipped


def over_limit(size: int, max_bytes: int) -> ImageError:
    """A file is too large for the memory that there is."""
    return ImageError(
        f"{size:,} bytes are over the limit of {max_bytes:,}: raise memory=", retryable=True
    )


def stamp_of(status: os.stat_result) -> tuple[int, int]:
    """What tells that a file is as it was: (mtime_ns, size), the time as 64 bits with a sign.

    A time before 1677 or after 2262, which file systems allow, does not fit and is wrapped: it is
    compared only, and never shown.
    """
    return (status.st_mtime_ns + (1 << 63)) % (1 << 64) - (1 << 63), status.st_size


def absolute(path: Path | str) -> bytes:
    """The name of a file in results: its absolute path, links not followed, as bytes."""
    # Not Path.resolve: a link keeps its own name.
    return os.fsencode(os.path.abspath(path))  # noqa: PTH100
