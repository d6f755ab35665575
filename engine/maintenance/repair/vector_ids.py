"""Restores the ids of vectors that are damaged or name unknown images."""

from __future__ import annotations

import contextlib

import numpy as np

from engine.errors import EncoderError, StoreDamagedError
from engine.images import hashing
from engine.maintenance.check.damage import DamagedAppend
from engine.maintenance.repair.appends import Appends
from engine.maintenance.repair.index import IndexRepair
from engine.maintenance.repair.outcome import Outcome
from engine.maintenance.repair.vector_owners import Owners
from engine.maintenance.repair.vectors import VectorMaker
from engine.records import Place
from engine.storage.bitmap import IdSet
from engine.storage.commit_row import CommitRow
from engine.storage.extents import FINGERPRINTS, Append, first_row
from engine.storage.session import Session


class VectorIdsRepair:
    """Overwrites damaged ids of vectors."""

    def __init__(
        self,
        store: Session,
        appends: Appends,
        maker: VectorMaker,
        index: IndexRepair,
        outcome: Outcome,
    ) -> None:
        self._store = store
        self._appends = appends
        self._maker = maker
        self._index = index
        self._outcome = outcome
        self._doubtful = np.empty(0, np.int64)  # ids that more than one vector has

    def mend(self, append: DamagedAppend) -> None:
        """Overwrite a damaged append of ids with the right ones, as far as they can be known."""
        # The images of a commit are consecutive; the place of its fingerprints says the first one.
        place = append.place
        row = self._appends.commit_row(append)
        prints = self._store.snapshot.state.extents.get(FINGERPRINTS.name, [])
        first = [
            first_row(prints, FINGERPRINTS, _place(one)) + 1
            for one in row.appends
            if one.family == FINGERPRINTS.name
        ]
        rows = _count(row, FINGERPRINTS.name, FINGERPRINTS.row_bytes)
        if not first or rows != _count(row, append.family.name, append.family.row_bytes):
            self._find_owners(append, row.appends[append.at].xxh64)
            return
        before = sum(
            one.length // append.family.row_bytes
            for one in row.appends
            if one.family == append.family.name
            and (one.extent, one.offset) < (place.extent, place.offset)
        )
        start = min(first) + before
        ids = np.arange(start, start + place.length // append.family.row_bytes, dtype=np.int64)
        # Only some images of a commit may have come with a vector, and stored ones too.
        checksum = row.appends[append.at].xxh64
        if self._store.snapshot.space.of_images and hashing.checksum(ids.tobytes()) != checksum:
            self._find_owners(append, checksum)
            return
        self._appends.overwrite(append, ids.tobytes())

    def forget_unknown(self) -> None:
        """Put 0 for the ids of vectors whose image was never given, or has another vector."""
        store = self._store
        family = store.snapshot.space.id_family
        seen = IdSet.none(store.snapshot.state.next_id)
        for row in store.snapshot.tables.commits.rows():
            for at, one in enumerate(row.appends):
                if one.family != family.name:
                    continue
                append = DamagedAppend(row.commit, at, family, _place(one))
                ids = np.frombuffer(bytes(self._appends.read(append)), np.int64).copy()
                before = ids.copy()
                ids[(ids < 0) | (ids >= store.snapshot.state.next_id) | seen.has(ids)] = 0
                first = np.zeros(len(ids), np.bool_)
                first[np.unique(ids, return_index=True)[1]] = True
                ids[~first] = 0
                seen.add(ids[ids > 0])
                if (ids != before).any():
                    self._index.drop_over(append)
                    self._appends.overwrite(append, ids.tobytes())
                    self._appends.accept(append)
        store.writer.count_dead_vectors()

    def _find_owners(self, append: DamagedAppend, checksum: int) -> None:
        """Restore the ids of an append whose vectors lie in the order of the index."""
        start, end = self._appends.vector_rows(append)
        owners = Owners(self._store, bytes(self._appends.read(append)), start, end)
        self._doubtful = owners.keep_sure(self._doubtful)
        # If vectors cannot be made again, they are not compared.
        with contextlib.suppress(EncoderError, StoreDamagedError):
            owners.settle(checksum, self._maker.vectors_of)
        ids = owners.ids
        lost = int((ids == 0).sum())
        if lost:
            self._maker.require_gone(owners.comparable())
        self._index.drop_over(append)
        self._appends.overwrite(append, ids.tobytes())
        self._store.writer.count_dead_vectors()
        if lost:
            what = f"the ids of {lost} of {len(ids)} vectors are lost: they belong to no image now"
            self._outcome.set_aside(append.family.folder, what)


def _place(append: Append) -> Place:
    return Place(append.extent, append.offset, append.length)


def _count(row: CommitRow, name: str, row_bytes: int) -> int:
    """How many rows of a family a commit appended."""
    return sum(one.length // row_bytes for one in row.appends if one.family == name)
