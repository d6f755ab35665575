"""What a reconciliation has found so far: existing, removed and lost images, and lost sources."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from engine.maintenance.reconcile.changes import Changes
from engine.records import Problem
from engine.storage import tombstones
from engine.storage.bitmap import IdSet
from engine.storage.commit_evidence import MARK
from engine.storage.live_ids import blocks_of
from engine.storage.record_rows import record_without
from engine.storage.rows import RowError
from engine.storage.session import Session

_NAMED = 20  # ids or sources in one line
# What reading an invalid row may raise.
BAD_ROW = (
    RowError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    OverflowError,
    AttributeError,
    struct.error,
)


class Survey:
    """The images of a store whose rows are being reconciled."""

    def __init__(self, store: Session, changes: Changes) -> None:
        self._store = store
        self._changes = changes
        self.size = store.snapshot.state.next_id  # the first id that was not given
        self.there = IdSet.none(self.size)  # images with a record
        self.removed, bad = tombstones.read(store.snapshot.keys, self.size)
        mark = store.snapshot.tables.meta.get(MARK)
        self.rescued = mark is not None  # whether the keys were built again from readable rows
        # Whether rows were missing, or did not agree with others.
        self.changed = bad > 0
        with suppress(*BAD_ROW):
            self.changed |= mark is not None and bool(json.loads(mark)["lost"])
        self.restored = 0  # images with a lost row that was made again
        self._lost_names: list[bytes] = []
        self._lost_name_count = 0

    def every(self) -> IdSet:
        """All ids that were given."""
        found = IdSet.none(self.size)
        found.add_span(1, self.size - 1)
        return found

    def has(self, id_: int) -> bool:
        """Whether an image is there."""
        return self._in(self.there, id_)

    def was_removed(self, id_: int) -> bool:
        """Whether an image was removed."""
        return self._in(self.removed, id_)

    def has_any(self, first: int, count: int) -> bool:
        """Whether any of ``count`` ids from ``first`` on is of an image that is there."""
        return bool(self.there.has(np.arange(first, first + count, dtype=np.int64)).any())

    def add(self, ids: npt.NDArray[np.int64]) -> None:
        """Add images that have a record, or get one."""
        self.there.add(ids)

    def drop(self, lost: IdSet) -> None:
        """Delete the records of lost images, and take them out of ``there``."""
        for ids in lost.blocks():
            self.drop_records(ids.tolist())
        self._changes.flush()
        self.there = self.there.without(lost)

    def drop_records(self, ids: Sequence[int]) -> None:
        """Delete the records of images, ascending."""
        records = self._store.snapshot.tables.records
        for key, value, mine in blocks_of(self._store.snapshot.keys, ids):
            self._changes.add(records.change(key, record_without(key, value, mine.tolist())))

    def lose_source(self, name: bytes) -> None:
        """Note a source of an image that is lost."""
        if name not in self._lost_names:
            self._lost_name_count += 1
            if len(self._lost_names) < _NAMED:
                self._lost_names.append(name)

    def problems(self) -> list[Problem]:
        """Problems that name the lost images and their known sources."""
        out = []
        every = self.every()
        lost = every.without(self.there).without(self.removed)
        if len(lost) and (
            self.rescued or len(every) - len(self.there) != self._store.snapshot.state.removed
        ):
            shown = ", ".join(map(str, next(lost.blocks())[:_NAMED].tolist()))
            more = f" and {len(lost) - _NAMED:,} more" if len(lost) > _NAMED else ""
            what = f"{len(lost):,} images are lost ({shown}{more})"
            if self._lost_name_count:
                names = ", ".join(os.fsdecode(name) for name in self._lost_names)
                others = self._lost_name_count - len(self._lost_names)
                names += f" and {others:,} more" if others else ""
                what += f"; they were seen in {names}"
            again = f"{what}; ingest the same sources again"
            out.append(Problem("keys", again, fixed=True))
        if self.restored:
            what = f"lost rows of {self.restored:,} images were made again from the images"
            out.append(Problem("keys", what, fixed=True))
        return out

    def _in(self, ids: IdSet, id_: int) -> bool:
        return 0 < id_ < self.size and bool(ids.bits[id_ >> 3] >> (id_ & 7) & 1)
