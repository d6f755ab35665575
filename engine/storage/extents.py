"""Extents: append-only files of kept pixels, fingerprints, vectors and their ids.

Each is a 4 KiB header and then data. A *log* extent holds blobs of any length, a *row* extent rows
of one length, at most ``Limits.extent_rows`` of them. How much of an extent is committed is not in
the extent: the keys say, in the same batch that commits the rest of the chunk. Appends use
``pwrite``, never a map, because a full disk is an error from ``pwrite`` and a SIGBUS from a map.
"""

from __future__ import annotations

import os
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
    """One kind of extent: the folder its files lie in, their suffix, and bytes a row (0: a log)."""

    folder: str
    suffix: str
    row_bytes: int

    @property
    def name(self) -> str:
        """What the manifest calls it."""
        return f"{self.folder}{self.suffix}"

    @property
    def streamed(self) -> bool:
        """Whether it is written by the gigabyte and read again piece by piece, if at all."""
        return not self.row_bytes

    def inside(self, number: int) -> str:
        """What extent ``number`` is called beneath a store."""
        return f"{self.folder}/{number:08d}{self.suffix}"

    def path(self, store: Path, number: int) -> Path:
        """Where extent ``number`` lies."""
        return store / self.inside(number)


PIXELS = Family("pixels", ".blobs", 0)
FINGERPRINTS = Family("fingerprints", ".pdq", 32)


def vectors(generation: int, dim: int) -> Family:
    """The vectors of an encoder generation: float32, ``dim`` a row."""
    return Family(f"vectors/{generation}", ".f32", 4 * dim)


def vector_ids(generation: int) -> Family:
    """The image id of each row of ``vectors``: int64."""
    return Family(f"vectors/{generation}", ".ids", 8)


@dataclass(frozen=True, slots=True)
class Append:
    """What one append wrote: the commit record keeps it, so that ``check`` can read it again."""

    family: str
    extent: int
    offset: int  # in data bytes, behind the header
    length: int
    xxh64: int


def first_row(committed: Iterable[Sequence[int]], family: Family, place: Place) -> int:
    """Of all rows of a family, the one that begins at ``place``; 0 for logs, which have none.

    ``committed``: the number and the data bytes of each extent, as a state has them.
    """
    if not family.row_bytes:
        return 0
    before = sum(size for number, size in committed if number < place.extent)
    return (before + place.offset) // family.row_bytes


def create(store: Path, family: Family, number: int, uuid: bytes) -> None:
    """A new, empty extent; durable, name included, when this returns."""
    # A file of this name that the manifest does not know is what a crash left behind.
    _make_folders(store, family)
    _put_header(store, family, number, uuid, nofollow.create_file(store, family.inside(number)))


def _put_header(
    store: Path,
    family: Family,
    number: int,
    uuid: bytes,
    fd: int,
) -> None:
    """Write the header of extent ``number`` to its file, and close that."""
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
    """Move extent 0 out of the folder ``made`` into the store, as ``number``; durable."""
    fd = nofollow.open_file(made, family.inside(0), os.O_WRONLY)
    _put_header(made, family, number, uuid, fd)
    _make_folders(store, family)
    nofollow.rename(made, family.inside(0), store, family.inside(number))
    fsync_dir(store / family.folder)


def restore(store: Path, family: Family, number: int, uuid: bytes, end: int) -> None:
    """Give an extent back what it lacks of its header and its ``end`` data bytes, these as zeros.

    What there is of its data stays where it is at every moment: it may be all that is left.
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
    """Cut what an extent has behind its ``end`` data bytes, if it is there and has more."""
    name = family.inside(number)
    if (nofollow.size(store, name) or 0) > HEADER_BYTES + end:
        fd = nofollow.open_file(store, name, os.O_WRONLY)
        try:
            disk().ftruncate(fd, HEADER_BYTES + end)
        finally:
            os.close(fd)


def overwrite(store: Path, family: Family, place: Place, data: Buffer) -> None:
    """Write over damaged bytes, durably; for repairs only."""
    fd = nofollow.open_file(store, family.inside(place.extent), os.O_WRONLY)
    try:
        write_all(fd, data, HEADER_BYTES + place.offset)
        disk().fsync(fd)
    finally:
        os.close(fd)


def header_problem(store: Path, family: Family, number: int, uuid: bytes) -> str | None:
    """What is wrong with an extent's header, or None."""
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
