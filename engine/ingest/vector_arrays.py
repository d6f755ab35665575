"""Imported vectors: which ones a store takes, and which rows of an array have changed.

Vectors are not compared with other rows: each row of an array has its own id. But if an array has
changed and is read again, a row with the same vector keeps its id, and the images of the other rows are
removed. So touching a file costs a read of it, but no ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from engine.errors import UsageError
from engine.ingest.checked_vectors import CheckedBlock, stretches
from engine.storage.changeset import Chunk, Removal
from engine.storage.removal import RemovalRequest, plan_removal
from engine.storage.runs import Run
from engine.storage.session import Session
from engine.storage.snapshot import Snapshot

_OF_ROWS = re.compile(rb"[0-9]+(-[0-9]+)?")

Mask = npt.NDArray[np.bool_]


def check_admission(store: Snapshot, dim: int, *, normalize: bool) -> None:
    """``UsageError`` if the store does not take imported vectors of ``dim`` numbers."""
    check_space(store, normalize=normalize)
    if store.vector_rows and store.space.dim != dim:
        raise UsageError(
            f"vectors of {dim} dimensions do not go with those of {store.space.dim} dimensions that "
            f"{store.path} holds: make another store for them"
        )


def check_space(store: Snapshot, *, normalize: bool) -> None:
    """``UsageError`` if the store does not take imported vectors of any dimension."""
    space = store.space
    if not store.vector_rows:
        return
    if space.has_encoder:
        raise UsageError(
            f"{store.path} holds vectors of the encoder {space.name}, and others cannot be compared "
            f"with them: make another store for vectors of your own"
        )
    if normalize and not space.normalized:
        raise UsageError(
            f"{store.path} holds vectors that were not normalized: leave normalize=True out, or make "
            f"another store"
        )


class VectorArray:
    """One array of vectors that is read into a store."""

    def __init__(self, store: Session, name: bytes, number: int) -> None:
        """``number`` is the number of the array ``name`` in the keys."""
        self._store = store
        self._name = name
        self._number = number
        self._batch = store.limits.removal_batch

    def forget(self, first: int) -> None:
        """Remove the rows of a changed array from ``first`` on, and all its rejects."""
        self._remove((run, [part]) for run, part in self._runs(first, None))
        name = self._name + b"#"
        rejects = self._store.snapshot.tables.rejects
        keys = rejects.names(name)
        stale = (key for key in keys if _OF_ROWS.fullmatch(key[len(name) :]))
        while some := list(islice(stale, self._batch)):
            rows: list[tuple[str, bytes, bytes | None]] = [
                rejects.change(key, None) for key in some
            ]
            self._store.writer.commit(Chunk(removal=Removal(rows=rows)))

    def take(self, block: CheckedBlock) -> tuple[Chunk, int]:
        """The chunk of a block's new rows, and how many of its rows are unchanged.

        The old images of changed rows are removed before this returns.
        """
        good = block.wrong == 0
        same = np.zeros(len(good), np.bool_)
        runs = list(self._runs(block.first, block.first + len(good)))
        if runs:
            same = self._same(block, runs) & good
            self._remove((run, _cut(part, block.first, ~same)) for run, part in runs)
        new = good & ~same
        chunk = Chunk()
        if new.any():
            chunk.imported = block.rows if new.all() else block.rows[new]
            id_ = self._store.snapshot.state.next_id
            for at, end in stretches(new):
                if new[at]:
                    chunk.runs += Run(self._number, block.first + at, end - at, 1, id_).pieces()
                    id_ += end - at
        return chunk, int(same.sum())

    def _runs(self, first: int, end: int | None) -> Iterator[tuple[Run, Run]]:
        """The committed runs over rows from ``first`` to ``end``, and the part of each inside."""
        table = self._store.snapshot.tables.runs
        before = table.over_row(self._number, first)
        for run in table.of_array(self._number, before.row if before is not None else 0):
            begin, stop = max(run.row, first), run.row + run.count
            stop = stop if end is None else min(stop, end)
            if end is not None and run.row >= end:
                return
            if begin < stop:
                yield run, run.part(begin, stop - begin)

    def _same(self, block: CheckedBlock, runs: Sequence[tuple[Run, Run]]) -> Mask:
        """Whether each row of a block has the vector that it had before: (n,)."""
        store, space = self._store, self._store.snapshot.space
        ids = np.zeros(len(block.rows), np.int64)
        for _, part in runs:
            at = part.row - block.first
            ids[at : at + part.count] = np.arange(part.id, part.id + part.count)
        same = np.zeros(len(ids), np.bool_)
        if not space.is_imported or space.dim != block.rows.shape[1]:
            return same
        vectors = store.snapshot.open_vectors()
        try:
            # This reads the ids of all vectors, so it is called once a block.
            rows = vectors.rows_of(ids, store.snapshot.state.next_id)
            # A new row of the array has no id yet, and vectors damaged earlier may have none.
            rows[(ids == 0) | store.snapshot.removed_ids().has(ids)] = -1
            known = np.flatnonzero(rows >= 0)
            step = max(1, store.limits.checked_numbers // space.dim)
            for at in range(0, len(known), step):
                some = known[at : at + step]
                same[some] = (vectors.gather(rows[some]) == block.rows[some]).all(axis=1)
        finally:
            vectors.close()
        return same

    def _remove(self, cuts: Iterator[tuple[Run, list[Run]]]) -> None:
        """Remove parts of runs and their images, in commits of bounded size."""
        request = RemovalRequest()
        for run, parts in cuts:
            for part in parts:
                request.add_rows(run, part)
            if len(request) >= self._batch:
                self._flush(request)
                request = RemovalRequest()
        self._flush(request)

    def _flush(self, request: RemovalRequest) -> None:
        if len(request):
            found, _ = plan_removal(self._store.snapshot, request, self._batch)
            self._store.writer.commit(Chunk(removal=found))


def _cut(part: Run, first: int, wanted: Mask) -> list[Run]:
    """The pieces of a part of a run whose rows are ``wanted`` (n,), a mask that starts at ``first``."""
    at = part.row - first
    mine = wanted[at : at + part.count]
    return [part.part(part.row + a, b - a) for a, b in stretches(mine) if mine[a]]
