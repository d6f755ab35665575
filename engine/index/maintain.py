"""Keeps the similarity index of a store up to date: builds and merges segments, measures recall.

    new vectors → coded with the store's quantizer → a segment → merged with smaller ones
    four times as many vectors as the quantizer was trained on → trained and all coded again
    twice as many as recall was measured on, other vectors, or a new quantizer → recall measured again

So n vectors lie in O(log n) segments, each vector is coded O(log n) times, and merging codes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from dataclasses import replace

from engine.errors import StoreDamagedError
from engine.index import build
from engine.index.background import BackgroundWork
from engine.index.calibrate import measure
from engine.index.open import OpenIndex
from engine.index.operating_point import DEFAULT_RECALL, MEASURED_K, choose
from engine.index.quantizer import VALUES, Quantizer, code_bytes, code_layout
from engine.index.search import VectorIndex
from engine.index.segment_layout import BLOCK, LABEL_BYTES, require_layout_of_faiss
from engine.index.train import lists_for, train_quantizer
from engine.storage import ballast, swaps
from engine.storage.durable import remove
from engine.storage.index_files import file_problem, quantizer_path, segment_path
from engine.storage.manifest import Manifest, Measured, QuantizerEntry, SegmentEntry
from engine.storage.session import Session

_MEASURED_AGAIN = 2  # times as many vectors, from which on recall is measured again
_ROUNDED = (
    1e-3  # tolerance of closeness, for vectors that are all at their centroids, as duplicates are
)
_NOTICED = 0.01  # loss of recall from which on a warning is logged
_SHOWN_K = MEASURED_K[0]  # the k whose recall users see
_log = logging.getLogger("engine.index")


class IndexUpdater:
    """Keeps the index of one store up to date; this process is the store's writer."""

    def __init__(self, store: Session, work: BackgroundWork) -> None:
        self._store = store
        self._work = work
        self._index = OpenIndex(store)

    def update(self, least: int) -> None:
        """Index the vectors that are not in a segment, if there are at least ``least`` of them.

        Raises ``OSError``, ``MemoryError`` or ``StoppedError``; the index is then no worse than before.
        """
        store = self._store
        live = store.snapshot.state.live_segments(store.snapshot.manifest)
        if store.snapshot.vector_rows - sum(segment.rows for segment in live) < least:
            # Most commits end here, without opening the index, which takes some milliseconds.
            return
        if not _has_room(store):
            what = "the disk is nearly full: make room and run 'engine optimize'"
            raise OSError(errno.ENOSPC, what)
        with contextlib.closing(self._index):
            self._work.at_low_priority(self._update)

    def _update(self, work: BackgroundWork) -> None:
        index = self._index.current
        assert index is not None
        # Otherwise live and whole segments would be replaced.
        require_layout_of_faiss()
        entry = index.quantizer_entry
        moved = False
        if (
            entry is None
            or index.quantizer is None
            or index.vectors.rows >= self._store.limits.retrain_growth * entry.trained_on
        ):
            self._build(index, work)
        else:
            moved = self._add(index, entry, index.quantizer, work)
        self._measure(None, work, moved=moved)

    def _build(self, index: VectorIndex, work: BackgroundWork) -> None:
        """Train a quantizer, and code all vectors."""
        store, vectors = self._store, index.vectors
        space = store.snapshot.space
        number = store.snapshot.next_index_number()
        rows = vectors.rows
        entry, quantizer = train_quantizer(
            store.path, number, space.generation, vectors, rows, work
        )
        try:
            made, _ = build.build_segment(
                store.path, number + 1, entry, quantizer, vectors, [(0, rows)], work
            )
        except BaseException:
            remove(quantizer_path(store.path, number), store.path)
            raise
        swaps.publish_index(store.writer, [made], [entry])

    def _add(
        self,
        index: VectorIndex,
        entry: QuantizerEntry,
        quantizer: Quantizer,
        work: BackgroundWork,
    ) -> bool:
        """Code the rows that are in no segment; returns whether they are unlike the trained ones."""
        store = self._store
        number = store.snapshot.next_index_number()
        made, closeness = build.build_segment(
            store.path, number, entry, quantizer, index.vectors, index.bare, work
        )
        live = [segment.entry for segment in index.segments]
        swaps.publish_index(store.writer, [*live, made])
        self._merge(entry, quantizer, [*live, made], work)
        return is_moved(closeness, entry, store.limits.moved_ratio)

    def _merge(
        self,
        entry: QuantizerEntry,
        quantizer: Quantizer,
        live: list[SegmentEntry],
        work: BackgroundWork,
    ) -> None:
        """Merge the smallest segments while the next one is no larger than these together."""
        store = self._store
        by_size = sorted(live, key=lambda segment: segment.rows)
        together, rows = by_size[:1], by_size[0].rows
        while len(together) < len(by_size) and by_size[len(together)].rows <= rows:
            rows += by_size[len(together)].rows
            together.append(by_size[len(together)])
        if len(together) > 1:
            # A merge would give damaged lists a right checksum.
            for one in together:
                path = segment_path(store.path, one.number)
                if what := file_problem(path, one.bytes, one.xxh64, work.check_stop):
                    raise StoreDamagedError(f"{path}: {what}; run 'engine check --fix'")
            made = build.merge_segments(
                store.path,
                store.snapshot.next_index_number(),
                entry,
                quantizer,
                together,
                work,
            )
            swaps.publish_index(store.writer, [*(one for one in live if one not in together), made])

    def measure(self, target: float | None, *, again: bool = False) -> Measured | None:
        """Measure recall, unless it was measured on vectors like these; returns what is known of it.

        With ``again``, it is measured in any case, since the vectors have changed. ``target`` is the
        recall that searches want, None for the store's.
        """
        with contextlib.closing(self._index):
            index = self._index.current
            if index is None or index.quantizer_entry is None:
                return self._measure(target, self._work)  # nothing to measure
            return self._work.at_low_priority(lambda work: self._measure(target, work, moved=again))

    def _measure(
        self, target: float | None, work: BackgroundWork, *, moved: bool = False
    ) -> Measured | None:
        store = self._store
        index, before = self._index.current, store.snapshot.manifest.measured
        if store.snapshot.manifest.segments:
            # Otherwise the measured recall would be dropped.
            require_layout_of_faiss()
        wanted = target or (before.target if before else DEFAULT_RECALL)
        entry = index.quantizer_entry if index is not None else None
        if index is None or entry is None or not index.segments:
            found = Measured(wanted)
        elif (
            before is None
            or before.quantizer != entry.number
            or not 1 / _MEASURED_AGAIN < index.vectors.rows / before.rows < _MEASURED_AGAIN
            or moved
        ):
            found = measure(
                index,
                store.snapshot.alive(),
                wanted,
                work.check_stop,
                sample=store.limits.recall_sample,
                rerank_depths=store.limits.rerank_depths,
            )
            if before is not None and before.quantizer == entry.number:
                _warn_of_drift(before, found, entry)
        else:
            found = replace(before, target=wanted)
        if found != before and (before is not None or target is not None or found.rows):
            swaps.publish_index(store.writer, store.snapshot.manifest.segments, measured=found)
        return found


def _has_room(store: Session) -> bool:
    """Whether building the whole index again leaves enough of the disk for a removal."""
    rows, space = store.snapshot.vector_rows, store.snapshot.space
    if not space.exists:
        return True
    width, parts = code_layout(space.dim)
    lists = lists_for(rows, space.dim, store.memory)
    # Pieces lie on the disk beside the merged segment; the last block of each list may be nearly empty.
    codes = 2 * (rows + BLOCK * lists) * (code_bytes(parts) + LABEL_BYTES)
    centroids = 4 * width * (lists + VALUES)
    return ballast.free(store.path) >= codes + centroids + ballast.LEFT


def is_moved(closeness: float, entry: QuantizerEntry, ratio: float) -> bool:
    """Whether vectors lie more than ``ratio`` times as far from their centroids as the trained ones."""
    return 1 - closeness > ratio * max(1 - entry.closeness, 0.0) + _ROUNDED


def _warn_of_drift(before: Measured, now: Measured, entry: QuantizerEntry) -> None:
    """Warn if searches with the old settings find less than they did."""
    was = choose(before, entry, _SHOWN_K, None)
    if was is None:
        return
    points = dict(now.points).get(_SHOWN_K, ())
    # The best recall now at settings no wider than before.
    found = [
        p.recall for p in points if p.nprobe <= was.nprobe and p.rerank_depth <= was.rerank_depth
    ]
    recall = max(found, default=0.0)
    if recall < was.recall - _NOTICED:
        _log.warning(
            "recall had drifted from %.3f to about %.3f, since the new vectors differ from those that "
            "the index was trained on: searches look further from now on, and 'engine optimize' "
            "trains it again",
            was.recall,
            recall,
        )


def recall_of(named: Manifest) -> dict[str, object] | None:
    """The measured recall as JSON, for searches for ten images at the store's target."""
    measured = named.measured
    if measured is None:
        return None
    live = max((entry.quantizer for entry in named.segments), default=measured.quantizer)
    # The index was just built, or building it was interrupted.
    if measured.quantizer != live:
        measured = Measured(measured.target)
    points = dict(measured.points).get(_SHOWN_K, ())
    point = next((point for point in points if point.recall_lower_bound >= measured.target), None)
    return {
        "target": measured.target,
        # Whether a search compares all vectors.
        "exact": point is None and measured.quantizer == live,
        "k": _SHOWN_K,
        "measured": round(point.recall, 4) if point else None,
        "at_least": round(point.recall_lower_bound, 4) if point else None,
        "sample": measured.sample,
        "vectors": measured.rows,
        "nprobe": point.nprobe if point else None,
        "depth": point.rerank_depth if point else None,
        "reach": point.probe_radius if point else None,
    }
