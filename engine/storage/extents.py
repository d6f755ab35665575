"""Extents: append-only files of kept pixels, fingerprints, vectors and vector ids.

Each has a 4 KiB header, then data. A *log* extent holds blobs of any length; a *row* extent holds rows
of one length, at most ``Limits.extent_rows`` of them. The keys, not the extent, record how many of its
bytes are committed, in the batch that commits the rest of the chunk. Appends use ``pwrite`` rather than
a map, because a full disk is an error from ``pwrite`` but a SIGBUS from a map.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.images import hashing
from engine.records import Buffer, Place
from engine.storage import nofollow
from engine.storage.disk import disk
from engine.storage.durable import cannot_read, fsync_dir, is_in_the_way, write_all

HEADER_BYTES = 4096
_HEADER = struct.Struct(">8s16sIII32s")  # magic, store uuid, version, number, row bytes, family
_MAGIC = b"ENGEXT01"


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of extent: its files' folder and suffix, and the bytes per row (0: a log)."""

    folder: str
    suffix: str
    row_bytes: int

    @property
    def name(self) -> str:
        """Return its name in the manifest."""
        return f"{self.folder}{self.suffix}"

    @property
    def streamed(self) -> bool:
        """Return whether it is written by the gigabyte and read back rarely, in pieces."""
        return not self.row_bytes

    def inside(self, number: int) -> str:
        """Return the path of extent ``number`` relative to its store."""
        return f"{self.folder}/{number:08d}{self.suffix}"

    def path(self, store: Path, number: int) -> Path:
        """Return the path of extent ``number``."""
        return store / self.inside(number)


PIXELS = Family("pixels", ".blobs", 0)
FINGERPRINTS = Family("fingerprints", ".pdq", 32)


def vectors(generation: int, dim: int) -> Family:
    """Return the family of an encoder generation's vectors: float32, ``dim`` per row."""
    return Family(f"vectors/{generation}", ".f32", 4 * dim)


def vector_ids(generation: int) -> Family:
    """Return the family of the image ids of ``vectors``: one int64 per row."""
    return Family(f"vectors/{generation}", ".ids", 8)


def generation_of(name: str) -> int:
    """Return the encoder generation of a family of vectors or of their ids; 0 for another family."""
    found = re.fullmatch(r"vectors/(\d+)\.[a-z0-9]+", name)
    return int(found[1]) if found else 0


@dataclass(frozen=True, slots=True)
class Append:
    """One append. The commit record keeps it, so that ``check`` can verify the data."""

    family: str
    extent: int
    offset: int  # in data bytes, after the header
    length: int
    xxh64: int


def first_row(committed: Iterable[Sequence[int]], family: Family, place: Place) -> int:
    """Return the index of the row at ``place`` among all rows of a family; 0 for logs.

    ``committed``: the number and the data bytes of each extent, as in a state.
    """
    if not family.row_bytes:
        return 0
    before = sum(size for number, size in committed if number < place.extent)
    return (before + place.offset) // family.row_bytes


def create(store: Path, family: Family, number: int, uuid: bytes) -> None:
    """Create an empty extent. Its file and name are durable when this returns."""
    # A file of this name is a crash's leftover if the manifest does not know it.
    _make_folders(store, family)
    _put_header(store, family, number, uuid, nofollow.create_file(store, family.inside(number)))


def _put_header(
    store: Path,
    family: Family,
    number: int,
    uuid: bytes,
    fd: int,
) -> None:
    """Write the header of extent ``number`` to the open file ``fd``, and close it."""
    header = _HEADER.pack(
        _MAGIC,
        uuid,
        1,
        number,
        family.row_bytes,
        family.name.encode(),
    )
    header += struct.pack(">Q", hashing.checksum(header))
    try:
        write_all(fd, header.ljust(HEADER_BYTES, b"\0"), 0)
        disk().fsync(fd)
    finally:
        os.close(fd)
    fsync_dir(store / family.folder)


def _make_folders(store: Path, family: Family) -> None:
    parts = family.folder.split("/")
    new = [nofollow.make_folder(store, "/".join(parts[:n])) for n in range(1, len(parts) + 1)]
    if any(new):
        fsync_dir((store / family.folder).parent)
        fsync_dir(store)


def adopt(made: Path, store: Path, family: Family, number: int, uuid: bytes) -> None:
    """Move extent 0 from the folder ``made`` into the store, as ``number``; durable."""
    fd = nofollow.open_file(made, family.inside(0), os.O_WRONLY)
    _put_header(made, family, number, uuid, fd)
    _make_folders(store, family)
    nofollow.rename(made, family.inside(0), store, family.inside(number))
    fsync_dir(store / family.folder)


def restore(store: Path, family: Family, number: int, uuid: bytes, end: int) -> None:
    """Restore an extent's header and its length of ``end`` data bytes; missing bytes become zeros.

    Existing data is never moved, because it may be the only copy.
    """
    name = family.inside(number)
    if header_problem(store, family, number, uuid):
        _make_folders(store, family)
        fd = nofollow.open_file(store, name, os.O_WRONLY | os.O_CREAT)
        _put_header(store, family, number, uuid, fd)
    if (nofollow.size(store, name) or 0) < HEADER_BYTES + end:
        fd = nofollow.open_file(store, name, os.O_WRONLY)
        try:
            disk().ftruncate(fd, HEADER_BYTES + end)
            disk().fsync(fd)
        finally:
            os.close(fd)


def cut(store: Path, family: Family, number: int, end: int) -> None:
    """Truncate an extent to ``end`` data bytes, if it exists and is longer."""
    name = family.inside(number)
    if (nofollow.size(store, name) or 0) > HEADER_BYTES + end:
        fd = nofollow.open_file(store, name, os.O_WRONLY)
        try:
            disk().ftruncate(fd, HEADER_BYTES + end)
        finally:
            os.close(fd)


def overwrite(store: Path, family: Family, place: Place, data: Buffer) -> None:
    """Durably overwrite damaged bytes. Only repairs may do this."""
    fd = nofollow.open_file(store, family.inside(place.extent), os.O_WRONLY)
    try:
        write_all(fd, data, HEADER_BYTES + place.offset)
        disk().fsync(fd)
    finally:
        os.close(fd)


def header_problem(store: Path, family: Family, number: int, uuid: bytes) -> str | None:
    """Return what is wrong with an extent's header, or None."""
    try:
        head = nofollow.read_file(store, family.inside(number), HEADER_BYTES)
    except OSError as error:
        if is_in_the_way(error):
            raise cannot_read(family.path(store, number), error) from None
        return f"cannot be read: {error.strerror}"
    if len(head) < HEADER_BYTES:
        return "its header is cut short"
    body, check = head[: _HEADER.size], head[_HEADER.size : _HEADER.size + 8]
    if int.from_bytes(check, "big") != hashing.checksum(body):
        return "its header is damaged"
    magic, owner, version, own_number, row_bytes, name = _HEADER.unpack(body)
    if (magic, version, own_number, row_bytes) != (_MAGIC, 1, number, family.row_bytes):
        return "its header is another extent's"
    if owner != uuid or name.rstrip(b"\0") != family.name.encode():
        return "it belongs to another store"
    return None
