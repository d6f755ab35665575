"""Marks images that have a source outside of runs of several, where their rows may be out of date."""

from __future__ import annotations

from collections.abc import Iterable

from engine.maintenance.reconcile.changes import Changes
from engine.maintenance.reconcile.survey import Survey
from engine.storage.live_ids import blocks_of
from engine.storage.record_rows import record_in
from engine.storage.session import Session


class SingleSources:
    """Clears ``in_runs`` in the rows of images that have another source."""

    def __init__(self, store: Session, survey: Survey, changes: Changes) -> None:
        self._store = store
        self._survey = survey
        self._changes = changes

    def mark(self, ids: Iterable[int]) -> None:
        """Clear ``in_runs`` in the rows of these images, which have a source of their own.

        Does nothing but after a rescue, since rows can be out of date only then.
        """
        if not self._survey.rescued:
            return
        keys = {}
        for key, value, mine in blocks_of(self._store.snapshot.keys, sorted(set(ids))):
            for id_ in mine.tolist():
                record = record_in(key, value, id_)
                if record is not None and record.key:
                    keys[id_] = record.key
        rows = self._store.snapshot.images_of(list(keys.values()))
        images = self._store.snapshot.tables.images
        for (id_, key), found in zip(keys.items(), rows, strict=True):
            if found and found[0].id == id_ and found[0].in_runs:
                self._changes.add(images.put(key, found[0]._replace(in_runs=False)))
