"""Writes the vectors of a staged space chunk by chunk, and finds the whole ones again after a crash.

A chunk is written and synced first, then its entry in the log of chunks. An entry has a checksum of its
own and those of the chunk's vectors and ids. So a torn entry, and all after it, never happened.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.config import Limits
from engine.errors import StoreDamagedError
from engine.images import hashing
from engine.records import Place
from engine.storage import ballast, extents, file_names, nofollow
from engine.storage.bitmap import IdSet
from engine.storage.disk import disk
from engine.storage.durable import fsync_dir, write_all
from engine.storage.extent_reader import ExtentReader
from engine.storage.extent_writer import ExtentWriter
from engine.storage.extents import Append, Family
from engine.storage.staged_space import CHUNKS, FOLDER, StagedSpace

_ENTRY = struct.Struct(">IQIQQ")  # extent, first row, rows, xxh64 of the vectors and of the ids
_ENTRY_BYTES = _ENTRY.size + 8
_READ = _ENTRY_BYTES << 10  # bytes of the log read at a time
_CHUNK_BYTES = 16 << 20  # bytes of vectors that are read at a time
_APPEND_BYTES = 16 << 20  # bytes of vectors that a commit records as one append, about
_AGAIN = "run 'engine reembed' again, which makes what is missing"

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Chunk:
    extent: int
    first: int
    rows: int
    vectors: int  # xxh64
    ids: int  # xxh64

    def place(self, family: Family) -> Place:
        return Place(self.extent, self.first * family.row_bytes, self.rows * family.row_bytes)


class StagedVectors:
    """The vectors of a staged space, for the one process that adds to them."""

    def __init__(self, store: Path, staged: StagedSpace, uuid: bytes, limits: Limits) -> None:
        """``uuid`` is the store's."""
        self.staged = staged
        self._store = store
        self._uuid = uuid
        self._families = staged.space.vector_family, staged.space.id_family
        self._max_rows = max(1, _CHUNK_BYTES // self._families[0].row_bytes)
        # So that no entry is taken for one of another encoder, however it got here.
        self._salt = uuid + staged.salt
        self._writers = [ExtentWriter(store, family, 0, 0, limits) for family in self._families]
        self._log: int | None = None
        self._chunks = 0
        # Rows of each extent, by its number.
        self._rows: dict[int, int] = {}

    @property
    def rows(self) -> int:
        """Return the number of vectors."""
        return sum(self._rows.values())

    @property
    def chunks(self) -> int:
        """Return the number of chunks."""
        return self._chunks

    @property
    def parts(self) -> list[tuple[int, int]]:
        """Return the number and the rows of each extent."""
        return sorted(self._rows.items())

    def resume(self, step: Callable[[], None] = lambda: None) -> None:
        """Find the whole chunks of an earlier run; cut off all after the first that is not whole.

        It reads all vectors. ``step`` is called after each chunk; an exception from it ends the reading.
        """
        readers = [ExtentReader(self._store, family) for family in self._families]
        try:
            for chunk in self._entries():
                if not self._follows(chunk) or not _is_whole(chunk, readers):
                    break
                self._chunks += 1
                self._rows[chunk.extent] = chunk.first + chunk.rows
                step()
        finally:
            for reader in readers:
                reader.close()
        self._cut()

    def ids(self, size: int) -> IdSet:
        """Return the images, of ids below ``size``, that have a staged vector."""
        found = IdSet.none(size)
        reader = ExtentReader(self._store, self._families[1])
        try:
            for extent, rows in self.parts:
                if rows:
                    column = reader.rows(extent, rows, np.int64)[:, 0]
                    for at in range(0, rows, 1 << 16):
                        found.add(column[at : at + (1 << 16)])
        finally:
            reader.close()
        return found

    def named_rows(self) -> int:
        """Return how many vectors the log names; it needs no ``resume``."""
        return sum(chunk.rows for chunk in self._entries())

    def named_ids(self, size: int) -> IdSet:
        """Return the images, of ids below ``size``, that an earlier run has a vector of.

        It reads the ids and not the vectors, and needs no ``resume``.
        """
        found = IdSet.none(size)
        reader = ExtentReader(self._store, self._families[1])
        try:
            for chunk in self._entries():
                data = reader.read(chunk.place(reader.family))
                if hashing.checksum(data) != chunk.ids:
                    break
                found.add(np.frombuffer(data, np.int64))
        except StoreDamagedError:
            # What follows will be made again.
            pass
        finally:
            reader.close()
        return found

    def append(self, ids: Numbers, block: npt.NDArray[np.float32]) -> None:
        """Durably add the vectors (n, dim) of images (n,). ``OSError`` if the disk is full.

        After an error, this object adds no more.
        """
        row_bytes = sum(family.row_bytes for family in self._families)
        if ballast.free(self._store) < len(ids) * row_bytes + ballast.LEFT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        vectors = self._writers[0]
        columns: tuple[npt.NDArray[Any], ...] = (block.astype(np.float32, copy=False), ids)
        at = 0
        while at < len(ids):
            if vectors.full:
                self._begin_extent()
            rows = min(len(ids) - at, vectors.room // vectors.family.row_bytes, self._max_rows)
            done = []
            for writer, column in zip(self._writers, columns, strict=True):
                part = np.ascontiguousarray(column[at : at + rows])
                writer.put(part.reshape(-1).view(np.uint8).data)
                done.append(writer.flush())
            assert done[0] is not None and done[1] is not None
            self._note(_Chunk(vectors.number, *self._span(rows), done[0].xxh64, done[1].xxh64))
            at += rows

    def prove(
        self, start: int = 0, step: Callable[[], None] = lambda: None
    ) -> list[tuple[Append, Append]]:
        """Read chunks from number ``start`` on again; return them as appends of a commit.

        ``StoreDamagedError`` if one is not as it was written.
        """
        found: list[tuple[Append, Append]] = []
        number = -1
        checks: tuple[hashing.Checksum, hashing.Checksum] | None = None
        begun: _Chunk | None = None
        rows = 0
        readers = [ExtentReader(self._store, family) for family in self._families]
        most = max(1, _APPEND_BYTES // self._families[0].row_bytes)
        try:
            for number, chunk in enumerate(self._entries()):
                if number < start or number >= self._chunks:
                    continue
                if begun is None or chunk.extent != begun.extent or rows >= most:
                    if begun is not None and checks is not None:
                        found.append(self._appended(begun, rows, checks))
                    begun, rows = chunk, 0
                    checks = hashing.Checksum(), hashing.Checksum()
                assert checks is not None
                for reader, check, xxh64 in zip(
                    readers, checks, (chunk.vectors, chunk.ids), strict=True
                ):
                    data = reader.read(chunk.place(reader.family))
                    if hashing.checksum(data) != xxh64:
                        path = reader.family.path(self._store, chunk.extent)
                        raise StoreDamagedError(f"{path} is damaged: {_AGAIN}")
                    check.update(data)
                rows += chunk.rows
                step()
        finally:
            for reader in readers:
                reader.close()
        if number + 1 < self._chunks:
            raise StoreDamagedError(f"{self._store / CHUNKS} is damaged or gone: {_AGAIN}")
        if begun is not None and checks is not None:
            found.append(self._appended(begun, rows, checks))
        return found

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers:
            writer.close()
        if self._log is not None:
            os.close(self._log)
            self._log = None

    # --- extents ----------------------------------------------------------------------------------

    def _span(self, rows: int) -> tuple[int, int]:
        """Return the first row, and the rows, of a chunk that was just written."""
        return self._writers[0].end // self._families[0].row_bytes - rows, rows

    def _appended(
        self, first: _Chunk, rows: int, checks: tuple[hashing.Checksum, hashing.Checksum]
    ) -> tuple[Append, Append]:
        made = [
            Append(
                family.name,
                first.extent,
                first.first * family.row_bytes,
                rows * family.row_bytes,
                check.value,
            )
            for family, check in zip(self._families, checks, strict=True)
        ]
        return made[0], made[1]

    def _begin_extent(self) -> None:
        number = file_names.next_number(self._rows, file_names.MAX_EXTENT)
        for writer in self._writers:
            extents.create(self._store, writer.family, number, self._uuid)
            writer.begin(number)
        self._rows[number] = 0

    def _follows(self, chunk: _Chunk) -> bool:
        """Return whether a chunk begins where the one before it ends."""
        last = max(self._rows, default=0)
        if chunk.extent == last:
            return chunk.first == self._rows[last]
        return chunk.extent == last + 1 and chunk.first == 0

    def _cut(self) -> None:
        """Cut the log and the extents to the whole chunks, and go on from there."""
        if nofollow.status(self._store, CHUNKS) is None:
            self._log = nofollow.create_file(self._store, CHUNKS)
            fsync_dir(self._store / FOLDER)
        else:
            self._log = nofollow.open_file(self._store, CHUNKS, os.O_RDWR)
            disk().ftruncate(self._log, self._chunks * _ENTRY_BYTES)
            disk().fsync(self._log)
        folder = self._families[0].folder
        ours = file_names.OF_FOLDER[file_names.VECTORS]
        there = nofollow.files(self._store, folder, ours)
        named = {family.inside(number) for family in self._families for number in self._rows}
        for name in there:
            if f"{folder}/{name}" not in named:
                nofollow.remove(self._store, f"{folder}/{name}")
        last = max(self._rows, default=0)
        if not last:
            # Even a store without images switches to an extent of the new encoder.
            self._begin_extent()
            return
        for writer, family in zip(self._writers, self._families, strict=True):
            for number, rows in self._rows.items():
                extents.cut(self._store, family, number, rows * family.row_bytes)
            writer.number, writer.end = last, self._rows[last] * family.row_bytes

    # --- the log ----------------------------------------------------------------------------------

    def _note(self, chunk: _Chunk) -> None:
        """Durably write the entry of a chunk that is durable."""
        assert self._log is not None
        body = _ENTRY.pack(chunk.extent, chunk.first, chunk.rows, chunk.vectors, chunk.ids)
        entry = body + hashing.checksum(self._salt + body).to_bytes(8, "big")
        write_all(self._log, entry, self._chunks * _ENTRY_BYTES)
        disk().fdatasync(self._log)
        self._chunks += 1
        self._rows[chunk.extent] = chunk.first + chunk.rows

    def _entries(self) -> Iterator[_Chunk]:
        """Yield the chunks that the log names, up to its first entry that is not whole or too large."""
        try:
            fd = nofollow.open_file(self._store, CHUNKS)
        except FileNotFoundError:
            return
        with os.fdopen(fd, "rb") as file:
            while block := file.read(_READ):
                for at in range(0, len(block) - _ENTRY_BYTES + 1, _ENTRY_BYTES):
                    body = block[at : at + _ENTRY.size]
                    check = block[at + _ENTRY.size : at + _ENTRY_BYTES]
                    if hashing.checksum(self._salt + body).to_bytes(8, "big") != check:
                        return
                    chunk = _Chunk(*_ENTRY.unpack(body))
                    if not 1 <= chunk.rows <= self._max_rows:
                        return
                    yield chunk


def _is_whole(chunk: _Chunk, readers: list[ExtentReader]) -> bool:
    """Return whether the vectors and ids of a chunk are as they were written."""
    for reader, xxh64 in zip(readers, (chunk.vectors, chunk.ids), strict=True):
        try:
            data = reader.read(chunk.place(reader.family))
        except StoreDamagedError:
            return False
        if hashing.checksum(data) != xxh64:
            return False
    return True


def staged_rows(store: Path, staged: StagedSpace, uuid: bytes) -> int:
    """Return how many vectors the log of a staged space names, without reading them."""
    return StagedVectors(store, staged, uuid, Limits()).named_rows()
