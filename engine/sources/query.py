"""Reads the images that an IMAGE argument of a lookup names, one by one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engine.errors import ImageError, SourceError, UsageError
from engine.images.canonical import from_canonical
from engine.images.decode import decode
from engine.images.unread_formats import unread_format
from engine.records import Decoded
from engine.sources import files, in_memory
from engine.sources.exclusions import NOTHING, Exclusions
from engine.sources.items import (
    FileItem,
    Member,
    Reject,
    RowBlock,
    Rows,
    Skipped,
    VectorBlock,
)
from engine.sources.locate import Archive, archive_of, expanded, is_folder, is_row, is_synthetic
from engine.sources.named_arrays import arrays_of, exists, is_array, missing_array
from engine.sources.synthetic import PREFIX, SyntheticBits
from engine.sources.vectors import NpyVectors

_READ_BYTES = 1 << 20


class StoredVector(NamedTuple):
    """The vector of a stored image: its id, and the generation of the vector."""

    id: int
    generation: int


class Query:
    """One query: a name, and the bytes or pixels of an image, or a vector, or a text."""

    def __init__(
        self,
        name: str,
        data: bytes | None,
        decoded: Decoded | None,
        vector: npt.NDArray[np.float32] | None = None,
        unreadable: str = "",
        own_vector: npt.NDArray[np.float32] | None = None,
        *,
        is_text: bool = False,
        stored: StoredVector | None = None,
    ) -> None:
        """``unreadable``: why there are no pixels, where ``vector`` is that of an image.

        ``own_vector``: the imported vector (d,) of an image with pixels, for the similar tier.
        ``is_text``: the query is the text that is its name. ``stored``: whose vector it has, if a
        store made it.
        """
        self.name = name
        self.own_vector = own_vector
        self.data = data  # the file's bytes, for an image file
        self.unreadable = unreadable
        self.vector = vector  # (d,); it has no pixels
        self.is_text = is_text
        self.stored = stored
        self._decoded = decoded

    @property
    def has_pixels(self) -> bool:
        """Whether it is an image that can be decoded, or that reports why it cannot."""
        return self.vector is None and not self.is_text

    @property
    def memory_bytes(self) -> int:
        """Bytes that it takes in memory now."""
        if self.vector is not None:
            return self.vector.nbytes
        if self._decoded is not None:
            return len(self._decoded.pixels.canonical)
        return len(self.data or b"")

    def decode(self, max_bytes: int) -> Decoded:
        """Its pixels; ``ImageError`` if it is not a whole image."""
        if self._decoded is None:
            self._decoded = decode(self.data or b"", max_bytes=max_bytes)
        return self._decoded


def open_images(
    spec: str, max_bytes: int, exclude: Exclusions = NOTHING
) -> Iterator[Query | Reject]:
    """The images that an IMAGE argument names: one, or all of a folder, an array or an archive.

    ``spec`` is a file, a folder, ``-`` (bytes on standard input), ``FILE.npy``, ``FILE.npy#ROW``,
    ``FILE.npz#NAME``, ``FILE.npz#NAME#ROW``, an IDX file or a row of it, ``FILE.tar``,
    ``FILE.tar#MEMBER``, ``FILE.parquet#ROW`` or ``synthetic:bits?seed=S#ROW``; or a pattern of several,
    such as ``{000..150}.tar``. A file of more than ``max_bytes`` is not read. ``exclude``: what to skip
    in a folder.
    """
    try:
        # A pattern such as 'shards/{000..150}.tar'.
        for one in [spec] if spec == "-" or is_synthetic(spec) else expanded(spec):
            yield from _open(one, max_bytes, exclude)
    except UsageError as error:
        yield Reject(os.fsencode(spec), str(error))


def _open(spec: str, max_bytes: int, exclude: Exclusions) -> Iterator[Query | Reject]:
    try:
        if spec == "-":
            yield _from_stdin(max_bytes)
        elif not is_synthetic(spec) and is_folder(Path(spec)):
            yield from _from_folder(Path(spec), max_bytes, exclude)
        elif (archive := archive_of(spec)) is not None:
            yield from _from_archive(archive, max_bytes)
        elif exists(spec) and not is_array(path := Path(spec)):
            item = files.one(path)
            if isinstance(item, FileItem):
                yield Query(spec, item.read(max_bytes), None)
            else:
                yield Reject(os.fsencode(spec), item.reason)
        else:
            yield from _rows(spec, max_bytes)
    except (ImageError, SourceError, UsageError) as error:
        yield Reject(os.fsencode(spec), str(error))
    except OSError as error:
        yield Reject(os.fsencode(spec), f"cannot be read: {error.strerror or error}")


def _from_folder(folder: Path, max_bytes: int, exclude: Exclusions) -> Iterator[Query | Reject]:
    """Every image below a folder, and a reject for each file of an unsupported format."""
    for item in files.walk(folder, recursive=True, exclude=exclude):
        if isinstance(item, FileItem):
            try:
                yield Query(os.fsdecode(item.name), item.read(max_bytes), None)
            except ImageError as error:
                yield Reject(item.name, str(error))
        elif isinstance(item, Reject):
            yield item
        elif isinstance(item, Skipped) and unread_format(item.name) is not None:
            yield files.refuse_unread(item.name)


def _missing(spec: str) -> str:
    """What to say of a name without a file."""
    if spec.startswith(in_memory.PREFIX):
        return "was in memory when it was ingested: look up its id, #ID"
    return "no such file"


def _rows(spec: str, max_bytes: int) -> Iterator[Query]:
    base, _, row = spec.rpartition("#")
    if spec.startswith(PREFIX):
        if not is_row(row):
            raise UsageError("name a row: 'synthetic:bits?seed=0#17'")
        yield _from_row(spec, SyntheticBits(base).row(int(row)))
        return
    found = arrays_of(spec)
    # A whole file or array.
    if found is not None:
        for array in found:
            if array.row_bytes > max_bytes:
                raise SourceError(f"has rows of {array.row_bytes:,} bytes: raise memory=")
            blocks: Iterator[RowBlock] | Iterator[VectorBlock]
            if isinstance(array, NpyVectors):
                blocks = array.vectors(0, 256, 8 << 20)
            else:
                blocks = array.blocks(0, 256, 8 << 20)
            for block in blocks:
                for number, row in enumerate(block.rows, block.first):
                    yield _from_row(f"{os.fsdecode(array.name)}#{number}", row)
        return
    data = _in_archive(spec, max_bytes)
    if data is not None:
        yield Query(spec, data, None)
        return
    if not is_row(row) or not base:
        raise SourceError(missing_array(spec) or _missing(spec))
    found = arrays_of(base)
    if found is None:
        raise SourceError(missing_array(base) or _missing(spec))
    if len(found) != 1:
        inside = ", ".join(os.fsdecode(array.name).rpartition("#")[2] for array in found)
        raise SourceError(f"holds several arrays: name one of {inside}, as FILE.npz#NAME#ROW")
    if found[0].row_bytes > max_bytes:
        raise SourceError(f"has rows of {found[0].row_bytes:,} bytes: raise memory=")
    yield _from_row(spec, found[0].row(int(row)))


def _from_archive(archive: Archive, max_bytes: int) -> Iterator[Query | Reject]:
    """Every image of an archive, and a reject for each that cannot be read."""
    try:
        for item in archive.members(0, max_bytes):
            if isinstance(item, Member):
                yield Query(os.fsdecode(item.name), item.data, None)
            elif isinstance(item, Reject):
                yield item
    except SourceError as error:
        yield Reject(archive.name, str(error))


def _in_archive(spec: str, max_bytes: int) -> bytes | None:
    """The bytes of ``ARCHIVE#MEMBER``, where either may hold a ``#``; None for any other form."""
    missing: SourceError | None = None
    at = spec.find("#")
    while at != -1:
        archive = archive_of(spec[:at])
        if archive is not None:
            try:
                return archive.read(os.fsencode(spec[at + 1 :]), max_bytes)
            except SourceError as error:
                missing = missing or error
        at = spec.find("#", at + 1)
    if missing is not None:
        raise missing
    return None


def _from_row(name: str, row: Rows | npt.NDArray[np.float32]) -> Query:
    """A query for a row of an array: canonical pixels, or a vector."""
    if row.dtype == np.float32:
        return Query(name, None, None, row.astype(np.float32))
    pixels = from_canonical(row.data)
    return Query(name, None, Decoded(pixels, "array"))


def _from_stdin(max_bytes: int) -> Query:
    data = bytearray()
    while part := sys.stdin.buffer.read(_READ_BYTES):
        data += part
        if len(data) > max_bytes:
            raise ImageError(f"more than the limit of {max_bytes:,} bytes: raise memory=")
    return Query("-", bytes(data), None)
