"""Reconciles ``images`` with ``records``: a missing row is made again, or else its image is lost."""

from __future__ import annotations

import numpy as np

from engine.maintenance.reconcile import recover_images
from engine.maintenance.reconcile.changes import Changes
from engine.maintenance.reconcile.recover_images import Unkeyed
from engine.maintenance.reconcile.survey import BAD_ROW, Survey
from engine.storage.bitmap import IdSet
from engine.storage.changeset import Chunk, Rekept
from engine.storage.extents import PIXELS
from engine.storage.image_rows import ImageRow
from engine.storage.session import Session
from engine.storage.table import in_batches

_WINDOW = 1 << 16  # images without a key that are searched for at a time


class ImagesReconciler:
    """Reconciles the rows of ``images``."""

    def __init__(self, store: Session, survey: Survey, changes: Changes) -> None:
        self._store = store
        self._images = store.snapshot.tables.images
        self._records = store.snapshot.tables.records
        self._survey = survey
        self._changes = changes

    def rows(self) -> None:
        """Keep rows of existing images, under the right keys; drop the others."""
        images, changes = self._images, self._changes
        limits = {
            pair[0]: pair[1] for pair in self._store.snapshot.state.extents.get(PIXELS.name, [])
        }
        first: tuple[bytes, ImageRow] | None = None  # the last row under a bare key
        for key, value in images.scan():
            bare, id_ = images.parts(key)
            row = _row(value)
            if row is None or not images.is_key(key) or not self._is_image(bare, row):
                changes.add(images.change(key, None))
                self._survey.changed = True
                continue
            before = row
            if row.place is not None:
                end = row.place.offset + row.place.length
                if end > limits.get(row.place.extent, 0):
                    row = row._replace(place=None)
            if id_ is None:
                first = key, row
            # The first image of this key is lost.
            elif first is None or first[0] != bare:
                row = row._replace(shared=False)
                changes.add(images.change(key, None))
                changes.add(images.put(bare, row))
                first = bare, row
                continue
            elif not first[1].shared:
                first = bare, first[1]._replace(shared=True)
                changes.add(images.put(*first))
            if row != before:
                changes.add(images.change(key, row.pack()))
        changes.flush()

    def _is_image(self, key: bytes, row: ImageRow) -> bool:
        """Whether an image is there; makes its record again if need be."""
        id_, survey = row.id, self._survey
        if survey.has(id_):
            return True
        if not 0 < id_ < survey.size or survey.was_removed(id_) or self._records.covers(id_):
            return False
        record = recover_images.record_of(self._store, id_, key, row)
        if record is None:
            return False
        self._changes.add(self._records.put(id_, record))
        survey.add(np.array([id_], np.int64))
        survey.restored += 1
        survey.changed = True
        return True

    def unkeyed(self) -> None:
        """Make the missing rows of ``images`` again; an image whose row cannot be made is lost."""
        window: list[Unkeyed] = []
        with_key = ((id_, key) for id_, key in self._records.image_keys() if key)
        for batch in in_batches(with_key):
            rows = self._store.snapshot.images_of([key for _, key in batch])
            for (id_, key), found in zip(batch, rows, strict=True):
                if id_ not in [row.id for row in found]:
                    record = self._store.snapshot.record(id_)
                    if record is not None and record.key == key:
                        window.append(Unkeyed(id_, record))
            if len(window) >= _WINDOW:
                self._find(window)
                window = []
        self._find(window)

    def _find(self, window: list[Unkeyed]) -> None:
        if not window:
            return
        survey, changes, images = self._survey, self._changes, self._images
        survey.changed = True
        keys = {one.id: one.record.key for one in window}
        for id_, row, keep in recover_images.rows_of(self._store, window):
            key = keys.pop(id_)
            changes.flush()
            before = self._store.snapshot.image_of(key)
            if before:
                changes.add(images.put(key, before[0]._replace(shared=True)))
                key = images.further_key(key, id_)
            changes.add(images.change(key, row.pack()))
            if keep is not None:
                changes.flush()
                self._store.writer.commit(Chunk(rekept=[Rekept(key, row, keep)]))
            survey.restored += 1
        lost = IdSet.of(np.array(sorted(keys), np.int64), survey.size)
        survey.drop(lost)

    def strays(self) -> None:
        """Drop rows whose image has another key in its record, if there are more rows than keys."""
        images = self._images
        if images.count() == sum(1 for _, key in self._records.image_keys() if key):
            return
        for batch in in_batches(images.scan()):
            for key, value in batch:
                record = self._store.snapshot.record(ImageRow.unpack(value).id)
                if record is None or record.key != images.parts(key)[0]:
                    self._changes.add(images.change(key, None))
                    self._survey.changed = True
        self._changes.flush()


def _row(value: bytes) -> ImageRow | None:
    try:
        return ImageRow.unpack(value)
    except BAD_ROW:
        return None
