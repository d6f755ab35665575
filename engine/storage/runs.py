"""Runs: one row that maps a whole stretch of an array's rows to images."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.storage.rows import MAX_IDS, damaged_row, u64

BUCKET_BITS = 12
ONE = b"o"
_MAX_ROW = 1 << 63
_RUN = struct.Struct(">IBQ")
_RUN_BY_ID = struct.Struct(">IB")


@dataclass(frozen=True, slots=True)
class Run:
    """A run: ``count`` rows of an array from ``row`` on are the images ``id``, ``id + step``, …"""

    array: int
    row: int
    count: int
    step: int
    id: int

    @property
    def several(self) -> bool:
        """Return whether it covers several images, and so lies in their bucket."""
        return self.step != 0 and self.count > 1

    def pieces(self) -> list[Run]:
        """Return the run cut where its ids cross into another bucket."""
        if self.step == 0:
            return [self]
        out, row, id_, left = [], self.row, self.id, self.count
        while left:
            inside = min(left, (((id_ >> BUCKET_BITS) + 1) << BUCKET_BITS) - id_)
            out.append(Run(self.array, row, inside, 1, id_))
            row, id_, left = row + inside, id_ + inside, left - inside
        return out

    @property
    def by_row(self) -> tuple[bytes, bytes]:
        """Return its row in ``runs`` by array and row: key and value."""
        key = b"r" + self.array.to_bytes(4, "big") + u64(self.row)
        return key, _RUN.pack(self.count, self.step, self.id)

    @property
    def by_id(self) -> tuple[bytes, bytes]:
        """Return its row in ``runs`` by image id: key and value."""
        key = self._prefix + u64(self.id) + self.array.to_bytes(4, "big") + u64(self.row)
        return key, _RUN_BY_ID.pack(self.count, self.step)

    @property
    def _prefix(self) -> bytes:
        """Return the prefix of its key in ``runs`` by image id."""
        return bucket_prefix(self.id) if self.several else ONE

    @classmethod
    def from_row(cls, key: bytes, value: bytes) -> Run:
        """Parse a row that ``by_row`` wrote; raise ``StoreDamagedError`` if it is malformed."""
        if len(key) != len(b"r") + 4 + 8 or len(value) != _RUN.size:
            raise damaged_row("runs")
        count, step, id_ = _RUN.unpack(value)
        array, row = int.from_bytes(key[1:5], "big"), int.from_bytes(key[5:], "big")
        return cls(array, row, count, step, id_)._checked()

    @classmethod
    def from_id(cls, key: bytes, value: bytes) -> Run:
        """Parse a row that ``by_id`` wrote; raise ``StoreDamagedError`` if it is malformed."""
        if len(key) < len(ONE) + 8 + 4 + 8 or len(value) != _RUN_BY_ID.size:
            raise damaged_row("runs")
        count, step = _RUN_BY_ID.unpack(value)
        id_, array, row = key[-20:-12], key[-12:-8], key[-8:]
        run = cls(
            int.from_bytes(array, "big"),
            int.from_bytes(row, "big"),
            count,
            step,
            int.from_bytes(id_, "big"),
        )._checked()
        # Scans of a bucket rely on all of its runs lying inside it.
        if key[:-20] != run._prefix:
            raise damaged_row("runs")
        return run

    def _checked(self) -> Run:
        """Return itself if its images lie in one bucket; callers rely on that bound."""
        images = self.count if self.step else 1
        able = self.count and self.step <= 1 and self.id + images <= MAX_IDS
        if not able or self.row + self.count > _MAX_ROW:
            raise damaged_row("runs")
        if self.id >> BUCKET_BITS != self.id + images - 1 >> BUCKET_BITS:
            raise damaged_row("runs")
        return self

    def part(self, row: int, count: int) -> Run:
        """Return the part of its rows with the ``count`` from ``row`` on."""
        return Run(self.array, row, count, self.step, self.id + self.step * (row - self.row))

    def rows_of(self, id_: int) -> range:
        """Return the rows of the array that are image ``id_``."""
        if self.step == 0:
            return range(self.row, self.row + self.count) if id_ == self.id else range(0)
        at = self.row + id_ - self.id
        return range(at, at + 1) if self.id <= id_ < self.id + self.count else range(0)


class RunsOfBucket:
    """Many runs over several images of one bucket, searchable by image."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._first = np.array([run.id for run in runs], np.int64)
        self._end = self._first + np.array([run.count for run in runs], np.int64)

    def over(self, id_: int) -> list[Run]:
        """Return the runs that cover image ``id_``, in order."""
        found = np.flatnonzero((self._first <= id_) & (id_ < self._end))
        return [self._runs[at] for at in found.tolist()]


def bucket_prefix(id_: int) -> bytes:
    """Return the key prefix of all runs by id that may cover ``id_``."""
    return b"i" + u64(id_ >> BUCKET_BITS)
