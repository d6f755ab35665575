"""Reconciles the records of imported vectors with the vectors, so that each has the other."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import numpy.typing as npt

from engine.errors import StoreDamagedError
from engine.maintenance.reconcile.changes import Changes
from engine.maintenance.reconcile.survey import Survey
from engine.records import Kind, Pixels
from engine.storage.bitmap import IdSet
from engine.storage.record_rows import pack_records
from engine.storage.session import Session

_IDS = 1 << 16  # ids of vectors at a time


def reconcile_vectors(store: Session, survey: Survey, changes: Changes) -> None:
    """Make records again for vectors without one, and drop records without their vector."""
    space = store.snapshot.space
    if not space.is_imported:
        return
    with suppress(StoreDamagedError):
        named = _named(store, survey)
        _drop_without_vector(store, survey, named)
        missing = named.without(survey.there).without(survey.removed)
        shape = Pixels(Kind.VECTOR, 1, space.dim, 1, 1, b"")
        records = store.snapshot.tables.records
        for ids in missing.blocks():
            covered = np.array([records.covers(id_) for id_ in ids.tolist()], np.bool_)
            free = ids[~covered]
            if space.of_images:
                # The vector of a lost image makes no row without pixels.
                free = free[_in_vector_arrays(store, free)]
            for part in np.split(free, np.flatnonzero(np.diff(free) > 1) + 1):
                if len(part):
                    qualities = np.zeros(len(part), np.uint8)
                    for key, value in pack_records(int(part[0]), shape, [], qualities):
                        changes.add(records.change(key, value))
            survey.add(free)
            changes.flush()
            survey.changed = True


def _in_vector_arrays(store: Session, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which of (n,) ascending ids are rows of arrays of vectors: (n,)."""
    inside = np.zeros(len(ids), np.bool_)
    for run in store.snapshot.runs_over(ids):
        with suppress(StoreDamagedError):
            array = store.snapshot.array(store.snapshot.array_name(run.array))
            if array is not None and array.kind is Kind.VECTOR:
                first, end = np.searchsorted(ids, [run.id, run.id + run.count])
                inside[first:end] = True
    return inside


def _named(store: Session, survey: Survey) -> IdSet:
    """The ids that vectors have."""
    vectors = store.snapshot.open_vectors()
    named = IdSet.none(survey.size)
    try:
        for block in vectors.id_blocks(0, vectors.rows, _IDS):
            named.add(block[block > 0])
    finally:
        vectors.close()
    return named


def _drop_without_vector(store: Session, survey: Survey, named: IdSet) -> None:
    """Drop the records of lost vectors: an image without pixels is nothing but its vector."""
    lost = IdSet.none(survey.size)
    for ids in survey.there.without(named).blocks():
        lost.add(ids[~store.snapshot.may_be_images(ids)])
    if len(lost):
        survey.drop(lost)
        survey.changed = True
