"""Reconciles ``arrays`` and ``rejects``: numbers and names match, and every row can be read."""

from __future__ import annotations

from dataclasses import replace

from engine.maintenance.reconcile.changes import Changes
from engine.maintenance.reconcile.survey import BAD_ROW, Survey
from engine.records import Kind
from engine.storage.session import Session
from engine.storage.source_rows import ArchiveRow, ArrayRow, reject_in
from engine.storage.tables import UNREAD


def reconcile_arrays(store: Session, survey: Survey, changes: Changes) -> None:
    """Make names and numbers match; if rows were lost, mark arrays to be read again."""
    imported = store.snapshot.space.is_imported
    arrays = store.snapshot.tables.arrays
    for key, value in arrays.scan():
        try:
            if key[:1] == arrays.NUMBER:
                if arrays.get(arrays.ARRAY + value) is None:
                    number = int.from_bytes(key[1:], "big")
                    kind = Kind.VECTOR if imported and _has_vectors(store, number) else Kind.BITS
                    marked = ArrayRow(number, UNREAD, UNREAD, 0, kind)
                    changes.add(arrays.change(arrays.ARRAY + value, marked.pack()))
            elif key[:1] == arrays.ARRAY:
                array = ArrayRow.unpack(value)
                if arrays.name_of(array.number) is None:
                    changes.add(arrays.change(arrays.number_key(array.number), key[1:]))
                if survey.changed and array.size != UNREAD:
                    marked = replace(array, mtime_ns=UNREAD, size=UNREAD)
                    changes.add(arrays.change(key, marked.pack()))
            else:
                ArchiveRow.unpack(value)
                if survey.changed:
                    changes.add(arrays.change(key, ArchiveRow(UNREAD, UNREAD).pack()))
        except BAD_ROW:
            changes.add(arrays.change(key, None))
    for key, value in store.snapshot.tables.rejects.scan():
        try:
            reject_in(value)
        except BAD_ROW:
            changes.add(store.snapshot.tables.rejects.change(key, None))
    changes.flush()


def _has_vectors(store: Session, number: int) -> bool:
    """Whether the rows of an array are vectors without pixels, or not known to be images."""
    run = next(store.snapshot.tables.runs.of_array(number), None)
    record = store.snapshot.record(run.id) if run is not None else None
    return record is None or record.kind is Kind.VECTOR
