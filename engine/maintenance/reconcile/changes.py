"""Writes changed rows of the keys in batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterable

from engine.storage.session import Session
from engine.storage.table import RowChange

_BATCH = 1000  # rows of one commit


class Changes:
    """Rows to put or to delete, committed a batch at a time."""

    def __init__(self, store: Session) -> None:
        self._store = store
        self._rows: list[RowChange] = []

    def add(self, change: RowChange) -> None:
        """Add a row; commits a full batch."""
        self._rows.append(change)
        if len(self._rows) >= _BATCH:
            self.flush()

    def add_all(self, changes: Iterable[RowChange]) -> None:
        """Add several rows."""
        for change in changes:
            self.add(change)

    def flush(self) -> None:
        """Commit the rows added so far, so that later reads see them."""
        if self._rows:
            self._store.writer.put_rows(self._rows)
            self._rows = []
