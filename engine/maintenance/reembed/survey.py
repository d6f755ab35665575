"""Finds the images whose pixels cannot be had: nothing is kept, and the files of all sources are gone.

It reads no image and no file. An image that it counts may still be read only if a file comes back. One
that it does not count may turn out to be damaged or changed when it is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from engine.records import Kind
from engine.sources import in_memory
from engine.sources.file_presence import without_query
from engine.sources.synthetic import PREFIX
from engine.storage.bitmap import IdSet
from engine.storage.image_rows import ImageRow
from engine.storage.record_rows import RecordRow
from engine.storage.snapshot import Snapshot
from engine.storage.table import in_batches

_BATCH = 1024
_MAX_FILES = 4096  # files whose presence is remembered

Numbers = npt.NDArray[np.int64]


class PixelSurvey:
    """Looks for the pixels of some images of one snapshot."""

    def __init__(self, snapshot: Snapshot, go_on: Callable[[], None]) -> None:
        """``go_on`` is called often; an exception from it ends the search."""
        self._snapshot = snapshot
        self._go_on = go_on
        self._files: dict[bytes, bool] = {}

    def unreachable(self, wanted: IdSet) -> IdSet:
        """Return those of the ``wanted`` images that have no pixels anywhere."""
        left = wanted.without(IdSet.none(0))
        self._without_kept(left)
        if len(left):
            self._without_names(left)
        if len(left):
            self._without_rows(left)
        return left

    def example(self, id_: int) -> str:
        """Return an image's number and one of its sources, for a message."""
        names, _ = self._snapshot.sources_of(id_, 1)
        return f"#{id_}" + (f" {os.fsdecode(names[0])}" if names else "")

    def _without_kept(self, left: IdSet) -> None:
        for ids in id_batches(left):
            self._go_on()
            there = [id_ for id_, _, row in kept_images(self._snapshot, ids) if row.place]
            left.discard(np.array(there, np.int64))

    def _without_names(self, left: IdSet) -> None:
        for batch in in_batches(self._snapshot.tables.names.items(), _BATCH):
            self._go_on()
            there = [row.id for name, row in batch if row.id in left and self._is_there(name)]
            left.discard(np.array(there, np.int64))

    def _without_rows(self, left: IdSet) -> None:
        for name, array in self._snapshot.tables.arrays.arrays():
            self._go_on()
            if array.kind is Kind.VECTOR or not self._is_there(name):
                continue
            for run in self._snapshot.tables.runs.of_array(array.number):
                left.discard(np.arange(run.id, run.id + (run.count if run.step else 1)))

    def _is_there(self, name: bytes) -> bool:
        """Whether the file of a source is there; a synthetic set always is."""
        if name.startswith(PREFIX.encode()):
            return True
        if name.startswith(in_memory.PREFIX.encode()):
            return False
        if os.path.lexists(name):
            return True
        at = name.find(b"#")
        while at >= 0:
            if self._file_is_there(name[:at]):
                return True
            at = name.find(b"#", at + 1)
        return os.path.lexists(without_query(name))

    def _file_is_there(self, name: bytes) -> bool:
        found = self._files.get(name)
        if found is None:
            if len(self._files) >= _MAX_FILES:
                self._files.clear()
            found = os.path.isfile(name) or os.path.isfile(without_query(name))  # noqa: PTH113 - bytes
            self._files[name] = found
        return found


def id_batches(ids: IdSet, size: int = _BATCH) -> Iterator[Numbers]:
    """Yield the ids of a set, ascending, up to ``size`` at a time; the set may lose ids meanwhile."""
    for block in ids.blocks():
        for at in range(0, len(block), size):
            yield block[at : at + size]


def kept_images(snapshot: Snapshot, ids: Numbers) -> Iterator[tuple[int, RecordRow, ImageRow]]:
    """Yield id, record and row of those of (n,) ascending ids that are images."""
    records = [(id_, snapshot.record(id_)) for id_ in ids.tolist()]
    known = [(id_, one) for id_, one in records if one is not None and one.key]
    rows = snapshot.images_of([one.key for _, one in known])
    for (id_, record), candidates in zip(known, rows, strict=True):
        for row in candidates:
            if row.id == id_:
                yield id_, record, row
