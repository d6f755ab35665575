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
METADATA_LIMIT = 16 << 10  # bytes as JSON: it is read with every record
# Fields of metadata that say of which class an image is; the first that is there counts.
LABELS = ("label", "cls", "class", "category")
HEAD_BYTES = 32  # that show whether a file is signed as an image
# What an archive may hold that is not read, as it stands behind a number of them.
HARD_LINKS = "hard links in tars: their pixels are those of the member that each leads to"
LINKS = "symbolic links in archives: they are not followed"
DEVICES = "devices and pipes in archives"
PIECES = "pieces of files in a tar of several volumes: put them together with tar -M"
FOLDERS_WITH_DATA = "folders in zips that have contents of their own"
NO_ARCHIVE = "tars with something behind their end that is no tar"
WITHOUT_METADATA = "images taken without their metadata, which cannot be read or kept"
_DEEPEST = 32  # levels of objects and lists in metadata: readers go down them one by one


@dataclass(frozen=True, slots=True)
class FileItem:
    """One image file; nothing but its stamp has been read."""

    path: Path
    name: bytes  # the absolute path: how results call it
    mtime_ns: int
    size: int

    def read(self, most: int) -> bytes:
        """The file's bytes; ``ImageError`` if it cannot be read or is larger than ``most``."""
        if self.size > most:
            raise over_limit(self.size, most)
        try:
            with self.path.open("rb") as file:
                # Not most + 1: as much would be set aside for every file.
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
    def held(self) -> int:
        """Bytes that it holds in memory."""
        held = len(self.data) if self.decoded is None else len(self.decoded.pixels.canonical)
        # As objects, JSON takes up to twenty times its bytes.
        return held + (20 * len(json.dumps(self.metadata)) if self.metadata else 0)

    def read(self, most: int) -> bytes:
        """The file's bytes; ``ImageError`` if they are more than ``most``."""
        if len(self.data) > most:
            raise over_limit(len(self.data), most)
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
        """Bits or 8-bit, for all its rows."""

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

    def members(self, start: int, most: int) -> Iterator[Member | Problem | Skipped]:
        """Its members from number ``start`` on, in their order, which never changes.

        One of more than ``most`` bytes is a ``Problem`` and is not read. ``SourceError`` where the
        container breaks off: what was yielded before is good.
        """


@dataclass(frozen=True, slots=True)
class Problem:
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


Item = FileItem | Member | ArrayItem | VectorItem | ArchiveItem | Problem | Skipped


def over_limit(size: int, most: int) -> ImageError:
    """A file is too large for this ``memory``."""
    return ImageError(
        f"{size:,} bytes are over the limit of {most:,} for this memory=", retryable=True
    )


def checked_metadata(value: object) -> dict[str, Any] | None:
    """What is said of an image, as it is kept: a JSON object, at most 16 KiB; None if it is empty.

    Raises ``ImageError`` for anything else, for numbers that are not finite and text that is not
    Unicode.
    """
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ImageError("its metadata is no JSON object with text for keys")
    try:
        text = json.dumps(value, allow_nan=False)
        json.dumps(value, ensure_ascii=False).encode()  # no half of a character, as JSON may hold
        if len(text) > METADATA_LIMIT:
            raise ImageError(
                f"its metadata of {len(text):,} bytes is over the limit of {METADATA_LIMIT:,}"
            )
        found: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ImageError(f"its metadata is no JSON object: {error}") from None
    level: list[Any] = [found]
    for _ in range(_DEEPEST):
        inside = [part.values() if isinstance(part, dict) else part for part in level]
        level = [part for parts in inside for part in parts if isinstance(part, dict | list)]
    if level:
        raise ImageError(f"its metadata has more than {_DEEPEST} levels")
    return found or None


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
