"""Drops segments that are damaged or over damaged vectors, and builds the index again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.index.background import BackgroundWork
from engine.index.maintain import IndexUpdater
from engine.maintenance.check.damage import DamagedAppend
from engine.maintenance.repair.appends import rows_at
from engine.storage import swaps
from engine.storage.index_files import quantizer_path, segment_path
from engine.storage.manifest import SegmentEntry
from engine.storage.session import Session


class IndexRepair:
    """The index of a store under repair."""

    def __init__(self, store: Session) -> None:
        self._store = store
        self._stale = False  # whether segments were dropped

    def drop_damaged(self, paths: Sequence[Path]) -> None:
        """Drop segments whose file, or whose quantizer's file, is damaged."""
        store, damaged = self._store, set(paths)
        good = {
            entry.number
            for entry in store.snapshot.manifest.quantizers
            if quantizer_path(store.path, entry.number) not in damaged
        }
        self._keep(
            [
                entry
                for entry in store.snapshot.manifest.segments
                if entry.quantizer in good and segment_path(store.path, entry.number) not in damaged
            ]
        )

    def drop_over(self, append: DamagedAppend) -> None:
        """Drop segments over the rows of an append: they may have been built from damaged rows.

        Call it before the rows are mended: after that, nothing shows that the segments are wrong.
        """
        extent = append.place.extent
        first, end = rows_at(append)
        self._keep(
            [
                entry
                for entry in self._store.snapshot.manifest.segments
                if not any(e == extent and f < end and f + n > first for e, f, n in entry.ranges)
            ]
        )

    def rebuild(self) -> None:
        """Build the dropped segments again."""
        if self._stale:
            IndexUpdater(self._store, BackgroundWork(self._store.memory)).update(1)

    def _keep(self, kept: list[SegmentEntry]) -> None:
        if len(kept) < len(self._store.snapshot.manifest.segments):
            self._stale = True
            swaps.publish_index(self._store.writer, kept)
