"""Reads and overwrites the bytes of damaged appends where they lie."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.errors import StoreDamagedError
from engine.images import hashing
from engine.maintenance.check.damage import DamagedAppend
from engine.records import Buffer, Place
from engine.storage import extents
from engine.storage.commit_row import CommitRow
from engine.storage.extent_reader import ExtentReader
from engine.storage.extents import Family
from engine.storage.session import Session

_READ = 8 << 20  # bytes at a time


class Appends:
    """The appends of one store."""

    def __init__(self, store: Session) -> None:
        self._store = store

    def read(self, append: DamagedAppend) -> bytearray:
        """The bytes of an append as they are now."""
        reader = ExtentReader(self._store.path, append.family)
        try:
            return bytearray(reader.read(append.place))
        finally:
            reader.close()

    def overwrite(self, append: DamagedAppend, data: Buffer | bytearray) -> None:
        """Overwrite the bytes of an append with others of the same length."""
        extents.overwrite(self._store.path, append.family, append.place, bytes(data))

    def commit_row(self, append: DamagedAppend) -> CommitRow:
        """The row of an append's commit; ``StoreDamagedError`` if it is gone."""
        row = self._store.snapshot.tables.commits.row(append.commit)
        if row is None:
            raise StoreDamagedError(
                f"the record of what commit {append.commit} appended is lost; run 'engine check'"
            )
        return row

    def committed_checksum(self, append: DamagedAppend) -> int:
        """The xxh64 of the committed bytes."""
        return self.commit_row(append).appends[append.at].xxh64

    def accept(self, append: DamagedAppend) -> None:
        """Set the checksum of an append to that of its bytes as they are now."""
        row = self.commit_row(append)
        self._store.writer.set_checksums([(row.commit, append.at, self._checksum(append))])

    def _checksum(self, append: DamagedAppend) -> int:
        reader = ExtentReader(self._store.path, append.family)
        check = hashing.Checksum()
        place = append.place
        try:
            for start in range(0, place.length, _READ):
                size = min(_READ, place.length - start)
                check.update(reader.read(Place(place.extent, place.offset + start, size)))
        finally:
            reader.close()
        return check.value

    def disown(self, append: DamagedAppend, rows: npt.NDArray[np.bool_]) -> None:
        """Put 0 for the ids of some rows of an append of vectors, (n,): they belong to no image."""
        family = self._store.snapshot.space.id_family
        start, end = rows_at(append)
        row = self.commit_row(append)
        for at, one in enumerate(row.appends):
            if one.family != family.name or one.extent != append.place.extent:
                continue
            place = Place(one.extent, one.offset, one.length)
            theirs = DamagedAppend(row.commit, at, family, place)
            first, last = rows_at(theirs)
            low, high = max(start, first), min(end, last)
            if low >= high:
                continue
            ids = np.frombuffer(self.read(theirs), np.int64)
            ids[low - first : high - first][rows[low - start : high - start]] = 0
            self.overwrite(theirs, ids.tobytes())
            self.accept(theirs)

    def vector_rows(self, append: DamagedAppend) -> tuple[int, int]:
        """The rows of an append of vectors or ids, counted over all extents: first and end."""
        found = self._store.snapshot.open_vectors()
        try:
            first = found.first_of(append.place.extent)
        finally:
            found.close()
        assert first is not None
        start, end = rows_at(append)
        return first + start, first + end

    def vector_ids(self, append: DamagedAppend) -> npt.NDArray[np.int64]:
        """The ids of the vectors of a damaged append: (n,)."""
        found = self._store.snapshot.open_vectors()
        try:
            first = found.first_of(append.place.extent)
            assert first is not None
            return found.ids(first + np.arange(*rows_at(append), dtype=np.int64))
        finally:
            found.close()


def is_vector_ids(family: Family) -> bool:
    """Whether a family holds the ids of vectors."""
    return family.suffix == extents.vector_ids(1).suffix


def rows_at(append: DamagedAppend) -> tuple[int, int]:
    """The rows of a damaged append in its extent: first and end."""
    first = append.place.offset // append.family.row_bytes
    return first, first + append.place.length // append.family.row_bytes
