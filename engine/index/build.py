"""Builds what searches go by: trains quantizers, writes segments, lays vectors out in list order.

Nothing here is live: files are written, durably, below ``root``, which is a store or a folder beside
its files, and whoever owns the store names them in its manifest. Memory is bounded: vectors are
trained on by sample, coded by the block, and codes are sorted by the piece; a segment of many pieces is
written piece by piece and then merged, list by list.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.config import MemoryBudget
from engine.errors import StoreDamagedError
from engine.images import hashing
from engine.index import segment as segment_file
from engine.index.background import Work
from engine.index.inner_product import Numbers
from engine.index.quantizer import MIN_SAMPLE, SAMPLE_PER_LIST, Quantizer
from engine.index.search import quantizer_path
from engine.index.segment import LABEL_BYTES, Codes, Labels, Lists, Segment
from engine.storage import extents, nofollow
from engine.storage.bitmap import IdSet
from engine.storage.durable import remove, write_all
from engine.storage.extents import HEADER_BYTES, Append
from engine.storage.manifest import QuantizerEntry, SegmentEntry
from engine.storage.vectors import Vectors

_ROWS = 1 << 14  # of which only the ids are looked at, or at least in a piece
_PIECE = 1 << 20  # rows that are sorted at a time, at most
_MIN_TRAINED = 256  # vectors, however little memory there is
_CLOSE = 4096  # vectors that tell how close centroids are
_SPARSE = 8  # times as many rows as are drawn, of which few are drawn twice
_ORDERED_BYTES = 16 << 20  # of vectors that are gathered and written at a time

Range = tuple[int, int, int]  # extent, first row in it, rows
Piece = tuple[Segment, Callable[[Labels], Numbers]]  # and the rows that its labels stand for


@dataclass(frozen=True, slots=True)
class Ordered:
    """A new extent of vectors that lie in the order of a segment's lists."""

    rows: int
    segment: SegmentEntry | None  # over extent 0, until it has its number; none if no row is left
    appends: tuple[tuple[Append, Append], ...]  # of vectors and of ids, as a commit records them


def lists_for(rows: int, dim: int, memory: MemoryBudget) -> int:
    """How many lists so many rows should have, until they are four times as many."""
    most = max(memory.training // (4 * dim), _MIN_TRAINED)
    return max(1, min(int(2 * (2 * rows) ** 0.5), most // SAMPLE_PER_LIST, rows // 16))


def train(
    root: Path, number: int, generation: int, vectors: Vectors, rows: int, work: Work
) -> tuple[QuantizerEntry, Quantizer]:
    """Train a quantizer on a sample of all vectors, for ``rows`` of them, and write it.

    Where it cannot be written, or is not wanted any more, nothing is left of it.
    """
    nlist = lists_for(rows, vectors.dim, work.memory)
    sample = sample_of(vectors, SAMPLE_PER_LIST * nlist, number)[1]
    good = np.isfinite(sample).all(axis=1)
    if not good.all():  # damaged: told by ``check``
        sample = sample[good]
    if len(sample) < nlist:
        raise StoreDamagedError(
            "too many vectors are damaged to build an index: run 'engine check'"
        )
    if len(sample) < MIN_SAMPLE:
        sample = np.resize(sample, (MIN_SAMPLE, vectors.dim))
    quantizer = Quantizer.train(sample, nlist, number)
    some = sample[:: max(1, len(sample) // _CLOSE)]
    closeness = float(quantizer.encode(some)[2].mean())
    path = quantizer_path(root, number)
    segment_file.make_folder(root)
    work.done(0)
    size, xxh64 = quantizer.save(path, number)
    return QuantizerEntry(number, generation, nlist, rows, closeness, size, xxh64), quantizer


def sample_of(vectors: Vectors, most: int, seed: int) -> tuple[Numbers, npt.NDArray[np.float32]]:
    """Rows drawn at random, ascending, and their vectors: (n,), (n, dim), n at most ``most``."""
    size = min(vectors.rows, most)
    # Sorted, so that the files are walked forwards; seeded, so that it can be repeated.
    draw = np.random.default_rng(seed)
    if size * _SPARSE > vectors.rows:
        rows = np.sort(draw.choice(vectors.rows, size, replace=False)).astype(np.int64)
    else:  # a few less, and no permutation of all rows in memory
        rows = np.unique(draw.integers(0, vectors.rows, size))
    sample = vectors.gather(rows)
    vectors.let_go()
    return rows, sample


def segment(
    root: Path,
    number: int,
    entry: QuantizerEntry,
    quantizer: Quantizer,
    vectors: Vectors,
    spans: Sequence[tuple[int, int]],
    work: Work,
) -> tuple[SegmentEntry, float]:
    """Write segment ``number`` over ``spans`` of rows, (start, end); and how close its centroids are.

    Numbers from the next one on are used for pieces, of which nothing is left.
    """
    budget = work.memory.training // (2 * (quantizer.code_bytes + LABEL_BYTES))
    piece_rows = max(_ROWS, min(_PIECE, budget))
    whole = [
        (at, min(at + piece_rows, end))
        for start, end in spans
        for at in range(start, end, piece_rows)
    ]
    closeness, total = 0.0, 0
    made: list[SegmentEntry] = []
    try:
        for at, (start, end) in enumerate(whole):
            lists, close = _lists(quantizer, vectors, start, end, work)
            closeness += close
            total += end - start
            ranges = _ranges(vectors, [(start, end)])
            own = number if len(whole) == 1 else number + 1 + at
            made.append(_write(root, own, entry, quantizer, ranges, [(lists, 0)]))
        if len(whole) == 1:
            return made[0], closeness / total
        return merge(root, number, entry, quantizer, made), closeness / total
    finally:
        for piece in made:
            if piece.number != number:
                remove(segment_file.path_of(root, piece.number), root)


def merge(
    root: Path,
    number: int,
    entry: QuantizerEntry,
    quantizer: Quantizer,
    parts: Sequence[SegmentEntry],
    source: Path | None = None,
) -> SegmentEntry:
    """Write segment ``number``, which has the rows of ``parts``, these lying in ``source``."""
    pieces, label = [], 0
    for part in parts:
        opened = Segment(segment_file.path_of(source or root, part.number), part, quantizer)
        pieces.append((opened, label))
        label += part.rows
    ranges = [found for part in parts for found in part.ranges]
    return _write(root, number, entry, quantizer, ranges, pieces)


def opened(root: Path, entry: SegmentEntry, quantizer: Quantizer) -> Segment:
    """A segment that was written."""
    return Segment(segment_file.path_of(root, entry.number), entry, quantizer)


class Laying:
    """Writes vectors anew in the order of the lists of an index, and the segment over them.

    To ``segments.write`` it is lists, whose vectors are written as it asks for them. The files are
    extent 0 of ``families``, of vectors and of ids, below ``root``.
    """

    def __init__(
        self,
        root: Path,
        vectors: Vectors,
        pieces: Sequence[Piece],
        gone: IdSet,
        families: tuple[extents.Family, extents.Family],
        uuid: bytes,
        work: Work,
    ) -> None:
        """``pieces`` hold all rows, or there are none. Vectors of images in ``gone`` are left out."""
        self._root = root
        self._vectors = vectors
        self._pieces = pieces
        self._gone = gone
        self._families = families
        self._uuid = uuid
        self._work = work
        self._waiting: list[Numbers] = []
        self._count = 0  # rows that wait
        self._label = 0
        self._end = [0, 0]  # data bytes written
        self._appends: list[tuple[Append, Append]] = []
        self._fds: list[int] = []
        self.sizes = np.zeros(0, np.int64)

    def write(
        self, number: int, entry: QuantizerEntry | None, quantizer: Quantizer | None
    ) -> Ordered:
        """Write all of it, the segment as ``number``; without a quantizer, rows in their order."""
        try:
            for family in self._families:
                extents.create(self._root, family, 0, self._uuid)
                name = family.inside(0)
                self._fds.append(nofollow.open_file(self._root, name, os.O_WRONLY))
            if entry is None or quantizer is None:
                self._all()
                return Ordered(self._finish(), None, tuple(self._appends))
            self.sizes = np.sum([piece.sizes for piece, _ in self._pieces], axis=0)
            if len(self._gone):
                there = (
                    sum(len(rows) for _, rows in self._there(n)) for n in range(quantizer.nlist)
                )
                self.sizes = np.fromiter(there, np.int64, quantizer.nlist)
            path = segment_file.path_of(self._root, number)
            nlist, code_bytes = quantizer.nlist, quantizer.code_bytes
            size, xxh64 = segment_file.write(path, entry.number, nlist, code_bytes, [(self, 0)])
            rows = self._finish()
            if not rows:
                remove(path, self._root)
                return Ordered(0, None, ())
            ranges = ((0, 0, rows),)
            made = SegmentEntry(number, entry.generation, entry.number, ranges, True, size, xxh64)
            return Ordered(rows, made, tuple(self._appends))
        finally:
            for fd in self._fds:
                os.close(fd)

    def _all(self) -> None:
        for at in range(0, self._vectors.rows, _ROWS):
            rows = np.arange(at, min(at + _ROWS, self._vectors.rows), dtype=np.int64)
            self._waiting = [rows[~self._gone.has(self._vectors.ids(rows))]]
            self._flush()

    def of(self, number: int) -> tuple[Codes, Labels]:
        """One list, whose labels go on where those of the one before ended."""
        found = list(self._there(number))
        rows = [rows for _, rows in found]
        count = sum(map(len, rows))
        labels = np.arange(self._label, self._label + count, dtype=np.int64)
        self._label += count
        self._waiting += rows
        self._count += count
        if self._count * 4 * self._vectors.dim >= _ORDERED_BYTES:
            self._flush()
        return np.concatenate([codes for codes, _ in found]), labels

    def _there(self, number: int) -> Iterator[tuple[Codes, Numbers]]:
        for piece, rows_of in self._pieces:
            codes, labels = piece.of(number)
            rows = rows_of(labels)
            if len(self._gone):
                there = ~self._gone.has(self._vectors.ids(rows))
                codes, rows = codes[there], rows[there]
            yield codes, rows

    def _flush(self) -> None:
        """Write what waits, some at a time: a list may be any part of all rows."""
        step = max(1, _ORDERED_BYTES // (4 * self._vectors.dim))
        rows = np.concatenate(self._waiting) if self._waiting else np.empty(0, np.int64)
        for at in range(0, len(rows), step):
            some = rows[at : at + step]
            self._append(self._vectors.gather(some), self._vectors.ids(some))
            self._vectors.let_go()
            self._work.done(len(some))
        self._waiting, self._count = [], 0

    def _append(self, block: npt.NDArray[np.float32], ids: Numbers) -> None:
        made = []
        columns: tuple[npt.NDArray[Any], ...] = (block, ids)
        for i, data in enumerate(columns):
            view = data.reshape(-1).view(np.uint8).data
            write_all(self._fds[i], view, HEADER_BYTES + self._end[i])
            check = hashing.checksum(view)
            made.append(Append(self._families[i].name, 0, self._end[i], len(view), check))
            self._end[i] += len(view)
        self._appends.append((made[0], made[1]))

    def _finish(self) -> int:
        """Write the rest and make all of it durable; how many rows there are."""
        self._flush()
        for fd in self._fds:
            os.fsync(fd)
        return self._end[1] // 8


def _lists(
    quantizer: Quantizer, vectors: Vectors, start: int, end: int, work: Work
) -> tuple[Lists, float]:
    lists = np.empty(end - start, np.int64)
    codes = np.empty((end - start, quantizer.code_bytes), np.uint8)
    at, closeness = 0, 0.0
    for block in vectors.blocks(start, end, vectors.at_once):
        stop = at + len(block)
        lists[at:stop], codes[at:stop], close = quantizer.encode(block)
        closeness += float(close.sum(dtype=np.float64))
        at = stop
        vectors.let_go()
        work.done(len(block))
    return Lists(lists, codes, quantizer.nlist), closeness


def _ranges(vectors: Vectors, spans: Sequence[tuple[int, int]]) -> list[Range]:
    """Spans of rows by the extents that they lie in."""
    return [found for start, end in spans for found in vectors.ranges(start, end)]


def _write(
    root: Path,
    number: int,
    entry: QuantizerEntry,
    quantizer: Quantizer,
    ranges: Sequence[Range],
    pieces: Sequence[tuple[Lists | Segment, int]],
) -> SegmentEntry:
    path = segment_file.path_of(root, number)
    size, xxh64 = segment_file.write(
        path, entry.number, quantizer.nlist, quantizer.code_bytes, pieces
    )
    return SegmentEntry(number, entry.generation, entry.number, _joined(ranges), False, size, xxh64)


def _joined(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """Ranges with those put together that go on where the one before ended."""
    out: list[Range] = []
    for extent, first, rows in ranges:
        if out and out[-1][0] == extent and sum(out[-1][1:]) == first:
            out[-1] = (extent, out[-1][1], out[-1][2] + rows)
        else:
            out.append((extent, first, rows))
    return tuple(out)
