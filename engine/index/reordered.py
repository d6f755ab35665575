"""Writes vectors again in the order of the lists of an index, with the segment over them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.images import hashing
from engine.index.background import BackgroundWork
from engine.index.inner_product import Numbers
from engine.index.quantizer import Quantizer
from engine.index.segment import Segment
from engine.index.segment_layout import Codes, Labels
from engine.index.segment_writer import write_segment
from engine.storage import extents, nofollow
from engine.storage.bitmap import IdSet
from engine.storage.disk import disk
from engine.storage.durable import remove, write_all
from engine.storage.extents import HEADER_BYTES, Append
from engine.storage.index_files import ReorderedExtent, segment_path
from engine.storage.manifest import QuantizerEntry, SegmentEntry
from engine.storage.vectors import Vectors

_ID_ROWS = 1 << 14  # rows whose ids are read at a time
_BATCH_BYTES = 16 << 20  # bytes of vectors gathered and written at a time

Piece = tuple[Segment, Callable[[Labels], Numbers]]  # a segment, and a function of labels to rows


class ReorderedWriter:
    """Writes vectors again in the order of the lists of an index, with the segment over them.

    It is the ``CodedLists`` that ``write_segment`` reads; reading a list writes its vectors. The files
    are extent 0 of ``families``, of vectors and of ids, below ``root``.
    """

    def __init__(
        self,
        root: Path,
        vectors: Vectors,
        pieces: Sequence[Piece],
        gone: IdSet,
        families: tuple[extents.Family, extents.Family],
        uuid: bytes,
        work: BackgroundWork,
        *,
        batch_bytes: int = _BATCH_BYTES,
    ) -> None:
        """``pieces`` have all rows, or are empty. Vectors of images in ``gone`` are left out.

        ``batch_bytes`` is how many bytes of vectors are gathered and written at a time.
        """
        self._root = root
        self._vectors = vectors
        self._pieces = pieces
        self._gone = gone
        self._families = families
        self._uuid = uuid
        self._work = work
        self._batch_bytes = batch_bytes
        self._waiting: list[Numbers] = []
        self._count = 0  # rows in ``_waiting``
        self._label = 0
        self._end = [0, 0]  # data bytes written
        self._appends: list[tuple[Append, Append]] = []
        self._fds: list[int] = []
        self.sizes = np.zeros(0, np.int64)

    def write(
        self, number: int, entry: QuantizerEntry | None, quantizer: Quantizer | None
    ) -> ReorderedExtent:
        """Write the vectors and segment ``number``; without a quantizer, vectors in their old order."""
        try:
            for family in self._families:
                extents.create(self._root, family, 0, self._uuid)
                name = family.inside(0)
                self._fds.append(nofollow.open_file(self._root, name, os.O_WRONLY))
            if entry is None or quantizer is None:
                self._all()
                return ReorderedExtent(self._finish(), None, tuple(self._appends))
            self.sizes = np.sum([piece.sizes for piece, _ in self._pieces], axis=0)
            if len(self._gone):
                there = (
                    sum(len(rows) for _, rows in self._there(n)) for n in range(quantizer.nlist)
                )
                self.sizes = np.fromiter(there, np.int64, quantizer.nlist)
            path = segment_path(self._root, number)
            nlist, code_bytes = quantizer.nlist, quantizer.code_bytes
            size, xxh64 = write_segment(path, entry.number, nlist, code_bytes, [(self, 0)])
            rows = self._finish()
            if not rows:
                remove(path, self._root)
                return ReorderedExtent(0, None, ())
            ranges = ((0, 0, rows),)
            made = SegmentEntry(number, entry.generation, entry.number, ranges, True, size, xxh64)
            return ReorderedExtent(rows, made, tuple(self._appends))
        finally:
            for fd in self._fds:
                os.close(fd)

    def _all(self) -> None:
        for at in range(0, self._vectors.rows, _ID_ROWS):
            rows = np.arange(at, min(at + _ID_ROWS, self._vectors.rows), dtype=np.int64)
            self._waiting = [rows[~self._gone.has(self._vectors.ids(rows))]]
            self._flush()

    def take(self, number: int) -> tuple[Codes, Labels]:
        """The codes and labels of one list; writes its vectors now or with those of later lists.

        Its labels follow those of the list before.
        """
        found = list(self._there(number))
        rows = [rows for _, rows in found]
        count = sum(map(len, rows))
        labels = np.arange(self._label, self._label + count, dtype=np.int64)
        self._label += count
        self._waiting += rows
        self._count += count
        if self._count * 4 * self._vectors.dim >= self._batch_bytes:
            self._flush()
        return np.concatenate([codes for codes, _ in found]), labels

    def _there(self, number: int) -> Iterator[tuple[Codes, Numbers]]:
        for piece, rows_of in self._pieces:
            codes, labels = piece.take(number)
            rows = rows_of(labels)
            if len(self._gone):
                there = ~self._gone.has(self._vectors.ids(rows))
                codes, rows = codes[there], rows[there]
            yield codes, rows

    def _flush(self) -> None:
        """Write the waiting rows, in batches, since one list may have any share of all rows."""
        step = max(1, self._batch_bytes // (4 * self._vectors.dim))
        rows = np.concatenate(self._waiting) if self._waiting else np.empty(0, np.int64)
        for at in range(0, len(rows), step):
            some = rows[at : at + step]
            self._append(self._vectors.gather(some), self._vectors.ids(some))
            self._vectors.let_go()
            self._work.report(len(some))
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
        """Write the rest and make all files durable; returns the number of rows."""
        self._flush()
        for fd in self._fds:
            disk().fsync(fd)
        return self._end[1] // 8
