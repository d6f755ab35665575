"""Rewrites the vectors of a store in the order of its index, without those of removed images.

    prove the vectors whole → train, if need be → code the rows that are in no segment
    → list by list: codes, vectors, ids → publish

All but the last step writes to a staging folder, without the writer's lock. The last step takes the
lock, copies the vectors that were appended in the meantime, and switches to the new files in one
commit. While it runs, the disk has to hold a second copy of the vectors.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.errors import StoreLockedError
from engine.images import hashing
from engine.index import build
from engine.index.background import BackgroundWork
from engine.index.maintain import is_moved
from engine.index.open import OpenIndex
from engine.index.quantizer import mean_closeness
from engine.index.reordered import Piece, ReorderedWriter
from engine.index.search import VectorIndex
from engine.index.segment import Segment
from engine.index.segment_layout import LABEL_BYTES, require_layout_of_faiss
from engine.index.train import sample_of, train_quantizer
from engine.records import Place
from engine.storage import nofollow, staging, swaps
from engine.storage.bitmap import IdSet
from engine.storage.disk import disk
from engine.storage.extent_reader import ExtentReader
from engine.storage.index_files import ReorderedExtent, quantizer_path, segment_path
from engine.storage.manifest import QuantizerEntry
from engine.storage.session import Session

_WORTH = 0.1  # the share of vectors, removed or out of order, from which a rewrite is worth it
_APART = 1000  # numbers left free for the segments of a concurrent writer
_SAMPLE = 4096  # vectors compared with those that the quantizer was trained on
_SLACK = 16 << 20  # bytes: headers, the keys' own files
_WAIT_SECONDS = 0.2
_log = logging.getLogger("engine.maintenance")


@dataclass(frozen=True, slots=True)
class ReorderResult:
    """How many vectors were rewritten (``rows``), or why none were (``skipped``)."""

    rows: int = 0
    skipped: str | None = None


class Reorder:
    """One reordering of one store, which becomes its writer in the end."""

    def __init__(self, store: Session, work: BackgroundWork) -> None:
        self._store = store
        self._work = work

    def run(self) -> ReorderResult:
        """Rewrite the vectors if that is worth it and the disk has room.

        Raises ``StoppedError``, ``StoreError``, ``OSError`` or ``MemoryError``; the vectors then stay as
        they were.
        """
        # Another process may have rewritten them since the store was opened.
        self._store.follow()
        with contextlib.closing(OpenIndex(self._store)) as opened:
            index = opened.current
            if index is None or not index.vectors.rows:
                return ReorderResult()
            # Otherwise live and whole segments would be dropped.
            require_layout_of_faiss()
            return self._reorder(index)

    def _reorder(self, index: VectorIndex) -> ReorderResult:
        store = self._store
        train = self._is_to_be_trained(index)
        if not train and not self._is_worth_it(index):
            return ReorderResult()
        need, free = self._need(index), _free(store)
        if free < need:
            return _left_for_want_of_room(need, free)
        damaged = self._damaged({})
        if damaged:
            return _left_damaged(damaged)
        with staging.locked(store.path, "index") as made:
            quantizer, new = self._work.at_low_priority(
                lambda work: self._build(made, index, train, work)
            )
            self._lock()
            return self._publish(made, index, quantizer, new)

    def _damaged(self, known: Mapping[int, int]) -> str | None:
        """A file of vectors or ids with a wrong checksum, or None.

        Damaged vectors must not be copied: the copy would get a right checksum. ``known`` is how many
        rows at the start of each extent need no check.
        """
        store = self._store
        readers = {
            family.name: ExtentReader(store.path, family, store.is_behind)
            for family in store.snapshot.space.families
        }
        try:
            for row in store.snapshot.tables.commits.rows():
                for one in row.appends:
                    reader = readers.get(one.family)
                    if reader is None:
                        continue
                    if one.offset >= known.get(one.extent, 0) * reader.family.row_bytes:
                        data = reader.read(Place(one.extent, one.offset, one.length))
                        if hashing.checksum(data) != one.xxh64:
                            return reader.family.inside(one.extent)
                        self._work.check_stop()
            return None
        finally:
            for reader in readers.values():
                reader.close()

    def _is_to_be_trained(self, index: VectorIndex) -> bool:
        rows, entry = self._live(index), index.quantizer_entry
        if rows < self._store.limits.exact_rows:
            return False
        if entry is None or index.quantizer is None:
            return True
        growth = self._store.limits.retrain_growth
        if not growth**-0.5 < rows / entry.trained_on < growth**0.5:
            return True
        sample = sample_of(index.vectors, _SAMPLE, entry.number)[1]
        closeness, _ = mean_closeness(index.quantizer.encode(sample)[2])
        return is_moved(closeness, entry, self._store.limits.moved_ratio)

    def _is_worth_it(self, index: VectorIndex) -> bool:
        rows = index.vectors.rows
        ordered = sum(one.entry.rows for one in index.segments if one.entry.ordered)
        dead = self._store.snapshot.state.dead_vectors
        if self._live(index) < self._store.limits.exact_rows:
            return dead >= _WORTH * rows
        return rows - ordered + dead >= _WORTH * rows

    def _live(self, index: VectorIndex) -> int:
        return index.vectors.rows - self._store.snapshot.state.dead_vectors

    def _need(self, index: VectorIndex) -> int:
        """Bytes of disk needed: the vectors once, and their codes twice while segments are merged."""
        each = index.vectors.dim // 2 + LABEL_BYTES
        return (
            self._live(index) * (4 * index.vectors.dim + 8) + 2 * index.vectors.rows * each + _SLACK
        )

    def _build(
        self, made: Path, index: VectorIndex, train: bool, work: BackgroundWork
    ) -> tuple[QuantizerEntry | None, ReorderedExtent]:
        store, vectors = self._store, index.vectors
        space = store.snapshot.space
        number = store.snapshot.next_index_number() + _APART
        entry, quantizer = index.quantizer_entry, index.quantizer
        # A row that a damaged segment does not name would be lost with the old extents.
        # And damaged codes would be copied, and get a right checksum.
        held = [
            segment
            for segment in index.segments
            if segment.names_every_row() and not segment.problem(work.check_stop)
        ]
        spans = index.bare
        for segment in index.segments:
            if segment not in held:
                spans += index.spans_in(segment.entry)
        if train:
            rows = self._live(index)
            entry, quantizer = train_quantizer(made, number, space.generation, vectors, rows, work)
            spans, held = [(0, vectors.rows)], []
        pieces: list[Piece] = []
        if entry is not None and quantizer is not None:
            pieces = [(segment, index.rows_in(segment.entry)) for segment in held]
            if spans:
                folder = made / "coded"
                nofollow.make_folder(made, folder.name)
                coded, _ = build.build_segment(
                    folder, number + 1, entry, quantizer, vectors, spans, work
                )
                opened = Segment(segment_path(folder, coded.number), coded, quantizer)
                pieces.append((opened, index.rows_in(coded)))
        families = space.vector_family, space.id_family
        gone = store.snapshot.dead_ids() if store.snapshot.state.dead_vectors else IdSet.none(0)
        uuid = bytes.fromhex(store.snapshot.manifest.uuid)
        laying = ReorderedWriter(made, vectors, pieces, gone, families, uuid, work)
        return entry, laying.write(number + 1, entry, quantizer)

    def _lock(self) -> None:
        """Become the writer; wait while another process is."""
        warned = False
        while True:
            try:
                self._store.become_writer(to_remove=True, wait=0.0)
                return
            except StoreLockedError:
                if not warned:
                    _log.warning("waiting for the process that writes to %s", self._store.path)
                warned = True
                self._work.check_stop()
                time.sleep(_WAIT_SECONDS)

    def _publish(
        self, made: Path, index: VectorIndex, quantizer: QuantizerEntry | None, new: ReorderedExtent
    ) -> ReorderResult:
        store = self._store
        there = dict(store.snapshot.state.vector_parts(store.snapshot.space))
        numbers = {one.number for one in store.snapshot.manifest.segments}
        clash = new.segment is not None and new.segment.number in numbers
        same = all(there.get(number, 0) >= rows for number, rows in index.vectors.parts)
        # The segment's quantizer must be new or still live: another process may have replaced it.
        known = quantizer is None or _has(made, quantizer)
        known = known or quantizer in store.snapshot.manifest.quantizers
        if clash or not same or not known:
            return ReorderResult(
                skipped="the vectors were not laid out again: another process did so at the same time"
            )
        late = {n: rows for n, rows in index.vectors.parts if there[n] > rows}
        carried = sum(there[number] - rows for number, rows in late.items())
        need, free = carried * (4 * index.vectors.dim + 8) + _SLACK, _free(store)
        if carried and free < need:
            return _left_for_want_of_room(need, free)
        if late and (damaged := self._damaged({n: late.get(n, rows) for n, rows in there.items()})):
            return _left_damaged(damaged)
        swaps.replace_vectors(store.writer, made, index.vectors.parts, new, quantizer)
        return ReorderResult(new.rows)


def _has(made: Path, quantizer: QuantizerEntry) -> bool:
    path = quantizer_path(Path(), quantizer.number)
    return nofollow.status(made, path.as_posix()) is not None


def _free(store: Session) -> int:
    return disk().free(store.path)


def _left_for_want_of_room(need: int, free: int) -> ReorderResult:
    return ReorderResult(
        skipped=f"the vectors were not laid out again: that needs {need:,} bytes on the disk, "
        f"and {free:,} are free"
    )


def _left_damaged(path: str) -> ReorderResult:
    return ReorderResult(
        skipped=f"the vectors were not laid out again: {path} is damaged; run 'engine check --fix'"
    )
