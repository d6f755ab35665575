"""Writes changed rows of the keys in batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterable

from engine.storage.table import RowChange
from engine.storage.writer import StoreFiles

_BATCH = 1000  # rows of one commit


class Changes:
    """Rows to put or to delete, committed when enough have come together."""

    def __init__(self, store: StoreFiles) -> None:
        self._store = store
        self._rows: list[RowChange] = []

    def add(self, change: RowChange) -> None:
        """Take in a row; commits a full batch."""
        self._rows.append(change)
        if len(self._rows) >= _BATCH:
            self.flush()

    def add_all(self, changes: Iterable[RowChange]) -> None:
        """Take in some rows."""
        for change in changes:
            self.add(change)

    def flush(self) -> None:
        """Commit what has come together: what is read next sees it."""
        if self._rows:
            self._store.put_rows(self._rows)
            self._rows = []
