"""Reconciles ``records``: drops invalid rows and records of removed images."""

from __future__ import annotations

import numpy as np

from engine.images import hashing
from engine.maintenance.reconcile.changes import Changes
from engine.maintenance.reconcile.survey import BAD_ROW, Survey
from engine.storage.bitmap import IdSet
from engine.storage.record_rows import record_in, record_keys, record_without
from engine.storage.session import Session


def reconcile_records(store: Session, survey: Survey, changes: Changes) -> None:
    """Find the ids that have a record, and drop records of removed images."""
    records = store.snapshot.tables.records
    for key, value in records.scan():
        found = _images_in(key, value)
        if not found:
            changes.add(records.change(key, None))
            continue
        survey.add(np.array(found, np.int64))
        over = [id_ for id_ in found if not 0 < id_ < survey.size]
        if over:
            changes.add(records.change(key, record_without(key, value, over)))
    changes.flush()
    both = IdSet(survey.there.bits & survey.removed.bits, survey.size)
    absent = survey.size - 1 - len(survey.there)
    if not len(both):
        return
    if not survey.rescued and absent == store.snapshot.state.removed:
        # The number of ids without a record is right, so the tombstones are wrong.
        survey.removed = survey.removed.without(both)
        return
    survey.drop(both)


def _images_in(key: bytes, value: bytes) -> list[int]:
    """The ids of the images in a row of ``records``; empty if the row is invalid."""
    try:
        found = list(record_keys(key, value))
        whole = all(len(image_key) in (0, hashing.KEY_BYTES) for _, image_key in found)
        if not found or not whole or record_in(key, value, found[0][0]) is None:
            return []
    except BAD_ROW:
        return []
    return [id_ for id_, _ in found]
