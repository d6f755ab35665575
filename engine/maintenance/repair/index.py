"""Drops segments that are damaged or over damaged vectors, and builds the index again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.index.background import Work
from engine.index.maintain import Indexing
from engine.index.search import quantizer_path
from engine.index.segment import path_of
from engine.maintenance.check.damage import DamagedAppend
from engine.maintenance.repair.appends import rows_at
from engine.storage.manifest import SegmentEntry
from engine.storage.writer import StoreFiles


class IndexRepair:
    """The index of a store under repair."""

    def __init__(self, store: StoreFiles) -> None:
        self._store = store
        self._stale = False  # whether segments were dropped

    def drop_damaged(self, paths: Sequence[Path]) -> None:
        """Drop segments whose file, or whose quantizer's, is damaged."""
        store, damaged = self._store, set(paths)
        good = {
            entry.number
            for entry in store.manifest.quantizers
            if quantizer_path(store.path, entry.number) not in damaged
        }
        self._keep(
            [
                entry
                for entry in store.manifest.segments
                if entry.quantizer in good and path_of(store.path, entry.number) not in damaged
            ]
        )

    def drop_over(self, append: DamagedAppend) -> None:
        """Drop segments over the rows of an append: they may have been built of damaged ones.

        Before the rows are mended: after that, nothing would tell that the segments are wrong.
        """
        extent = append.place.extent
        first, end = rows_at(append)
        self._keep(
            [
                entry
                for entry in self._store.manifest.segments
                if not any(e == extent and f < end and f + n > first for e, f, n in entry.ranges)
            ]
        )

    def rebuild(self) -> None:
        """Build again what was dropped."""
        if self._stale:
            Indexing(self._store, Work(self._store.memory)).update(1)

    def _keep(self, kept: list[SegmentEntry]) -> None:
        if len(kept) < len(self._store.manifest.segments):
            self._stale = True
            self._store.publish_index(kept)
