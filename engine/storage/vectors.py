"""The committed vectors of one encoder generation, mapped, addressed by a single row number.

Rows are numbered through the extents in order; each row has its image's id beside it. An ingest appends
in commit order. ``optimize`` reorders rows by the index's lists, into one extent of any length. So a row
number is valid for one commit; a lasting reference to a row is an extent and a row in it.
"""

from __future__ import annotations

import mmap
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.storage import extents
from engine.storage.bitmap import IdSet
from engine.storage.extent_reader import ExtentReader
from engine.storage.extents import HEADER_BYTES

_PAGE = mmap.PAGESIZE
_THREAD = getattr(resource, "RUSAGE_THREAD", None)  # only on Linux
# After so many searches that read nothing from disk, pages are no longer requested ahead.
_WARM_AGAIN = 4
_BLOCK_BYTES = 8 << 20  # of vectors that are processed together
_BLOCK_ROWS = 1 << 14  # at most, of these
_IDS = 1 << 16  # scanned at a time
_GATHERED = 1 << 12  # rows requested at a time

Numbers = npt.NDArray[np.int64]


class Vectors:
    """(rows, dim) float32 vectors, and the (rows,) int64 ids of their images.

    All methods are safe to call from several threads at once.
    """

    def __init__(
        self,
        store: Path,
        generation: int,
        dim: int,
        parts: Sequence[tuple[int, int]],
        behind: Callable[[], bool] = lambda: False,
    ) -> None:
        """``parts`` are the committed extents in order: the number and the rows of each.

        ``behind`` returns whether the store has newer commits; then a file may legitimately be gone.
        """
        self.dim = dim
        self.parts = tuple((number, rows) for number, rows in parts if rows)
        self._numbers = [number for number, _ in self.parts]
        self._firsts = np.cumsum([0, *(rows for _, rows in self.parts)])
        self.rows = int(self._firsts[-1])
        family = extents.vectors(generation, dim)
        self._streamed = ExtentReader(store, family, behind)
        # It has a map of its own, because read-ahead would fill the memory with unused neighbours.
        self._scattered = ExtentReader(store, family, behind, scattered=True)
        self._ids = ExtentReader(store, extents.vector_ids(generation), behind)
        self._warm = 0
        self.at_once = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // (4 * dim)))  # rows of a block

    def blocks(self, start: int, stop: int, most: int) -> Iterator[npt.NDArray[np.float32]]:
        """Yield rows ``[start, stop)`` in pieces of at most ``most``: views of the map, (n, dim)."""
        at = start
        while at < stop:
            part, inside = self._where(at)
            end = min(stop, at + most, int(self._firsts[part + 1]))
            yield self._part(part, self._streamed)[inside : inside + end - at]
            at = end

    def let_go(self) -> None:
        """Drop mapped pages from this process: a scan does not need its vectors again."""
        self._streamed.let_go()
        self._scattered.let_go()

    def gather(self, rows: Numbers) -> npt.NDArray[np.float32]:
        """Return a copy of the vectors of these rows: (len(rows), dim)."""
        out = np.empty((len(rows), self.dim), np.float32)
        for part, mine, inside in self._by_part(rows):
            mapped, into = self._part(part, self._scattered), out[mine]
            for at in range(0, len(inside), _GATHERED):
                some = inside[at : at + _GATHERED]
                self._ask_for(part, some)
                np.take(mapped, some, axis=0, out=into[at : at + _GATHERED])
            out[mine] = into
        return out

    def ids(self, rows: Numbers) -> Numbers:
        """Return the image ids of these rows, of any shape; row -1 has id -1."""
        if len(self.parts) == 1 and rows.size and rows.min() >= 0:
            return self._column(0)[rows]
        out = np.full(rows.shape, -1, np.int64)
        for part, mine, inside in self._by_part(rows):
            out[mine] = self._column(part)[inside]
        return out

    def id_blocks(self, start: int, stop: int, most: int) -> Iterator[Numbers]:
        """Yield the ids of rows ``[start, stop)`` in pieces of up to ``most``: mapped views, (n,)."""
        at = start
        while at < stop:
            part, inside = self._where(at)
            end = min(stop, at + most, int(self._firsts[part + 1]))
            yield self._column(part)[inside : inside + end - at]
            at = end

    def have(self, images: Numbers, next_id: int) -> npt.NDArray[np.bool_]:
        """Return which of (n,) images have a vector; reads all ids. ``next_id``: as for ``rows_of``."""
        return self.rows_of(images, next_id) >= 0

    def rows_of(self, images: Numbers, next_id: int) -> Numbers:
        """Return the row of each of (n,) images' vectors, -1 if it has none; reads all ids.

        ``next_id`` is the first id that no image has. It determines the memory used, not ``images``.
        """
        if not len(images):
            return np.empty(0, np.int64)
        wanted, at = IdSet.of(images, next_id), 0
        found: list[tuple[Numbers, Numbers]] = [(np.full(1, -1), np.full(1, -1))]
        for block in self.id_blocks(0, self.rows, _IDS):
            rows = np.flatnonzero(wanted.has(block))
            found.append((block[rows], rows + at))
            at += len(block)
        ids, rows = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.argsort(ids, kind="stable")
        ids, rows = ids[order], rows[order]
        nearest = np.minimum(np.searchsorted(ids, images), len(ids) - 1)
        return np.where(ids[nearest] == images, rows[nearest], -1)

    def first_of(self, number: int) -> int | None:
        """Return the first row of extent ``number``, or None if it is not one of these."""
        if number not in self._numbers:
            return None
        return int(self._firsts[self._numbers.index(number)])

    def ranges(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield rows ``[start, stop)`` by extent: number, first row in it, number of rows."""
        at = start
        while at < stop:
            part, inside = self._where(at)
            end = min(stop, int(self._firsts[part + 1]))
            yield self.parts[part][0], inside, end - at
            at = end

    def mapped_rows(self, rows: Numbers) -> Iterator[tuple[npt.NDArray[np.float32], Numbers]]:
        """Yield where the vectors of ``rows``, (nq, m), are mapped, one extent after another.

        Each item is the vectors of an extent, (n, dim), and ``rows`` as contiguous row numbers in it; -1
        stands for rows of other extents. Pages that are not in memory are requested all together, so
        that the disk has a queue to work on instead of one page at a time.
        """
        before = _reads()
        for part in range(len(self.parts)):
            first, end = self._firsts[part], self._firsts[part + 1]
            mapped = self._part(part, self._scattered)
            if len(self.parts) == 1:
                inside = rows
            else:
                mine = (rows >= first) & (rows < end)
                if not mine.any():
                    continue
                inside = np.where(mine, rows - first, -1)
            inside = np.ascontiguousarray(inside)
            self._ask_for(part, inside)
            yield mapped, inside
        self._warm = self._warm + 1 if _reads() == before else 0

    def _ask_for(self, part: int, rows: Numbers) -> None:
        """Have the pages of some rows, which may include -1, read all together.

        Skipped while searches find all pages in memory, because the request would take longer than they.
        """
        if self.warm:
            return
        row_bytes = 4 * self.dim
        starts = np.unique(rows)
        starts = starts[np.searchsorted(starts, 0) :] * row_bytes + HEADER_BYTES
        if not len(starts):
            return
        first, last = starts // _PAGE, (starts + row_bytes - 1) // _PAGE
        # Rows on the same page or on neighbouring pages become one request.
        begins = np.flatnonzero(np.append(True, first[1:] > last[:-1] + 1))
        ends = np.append(begins[1:], len(first)) - 1
        self._scattered.ask_for(
            self.parts[part][0],
            zip((first[begins] * _PAGE).tolist(), ((last[ends] + 1) * _PAGE).tolist(), strict=True),
        )

    @property
    def warm(self) -> bool:
        """Return whether the last searches found all their pages in memory."""
        return self._warm >= _WARM_AGAIN

    def open_all(self) -> None:
        """Map all files now, so that they can be read even if a writer deletes them."""
        for part in range(len(self.parts)):
            self._part(part, self._streamed)
            self._part(part, self._scattered)
            # An empty request opens the file.
            self._scattered.ask_for(self.parts[part][0], ())
            self._column(part)

    def close(self) -> None:
        """Close the files and maps."""
        self._streamed.close()
        self._scattered.close()
        self._ids.close()

    def _where(self, row: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._firsts, row, "right")) - 1
        return part, row - int(self._firsts[part])

    def _by_part(self, rows: Numbers) -> Iterator[tuple[int, Any, Numbers]]:
        """Yield each part with some of ``rows``: its number, which of them, and where they are in it."""
        if len(self.parts) == 1 and (not rows.size or rows.min() >= 0):
            yield 0, slice(None), rows
            return
        of = np.searchsorted(self._firsts, rows, "right") - 1
        for part in np.unique(of[rows >= 0]).tolist():
            mine = of == part
            yield part, mine, rows[mine] - self._firsts[part]

    def _column(self, part: int) -> npt.NDArray[Any]:
        number, rows = self.parts[part]
        return self._ids.rows(number, rows, np.int64)[:, 0]

    def _part(self, part: int, reader: ExtentReader) -> npt.NDArray[Any]:
        number, rows = self.parts[part]
        return reader.rows(number, rows, np.float32)


def _reads() -> tuple[int, int]:
    """Return this thread's blocks read from disk, and its major page faults."""
    if _THREAD is None:
        return 0, 0
    used = resource.getrusage(_THREAD)
    return used.ru_inblock, used.ru_majflt
