"""Commits prepared rows of an array: known? → encode → chunk → commit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from engine.images import canonical, hashing
from engine.ingest.chunk_builder import ChunkBuilder
from engine.ingest.commit import Commits
from engine.ingest.counts import Tally
from engine.ingest.encode import Encoding, Vector
from engine.ingest.prepare import Picture
from engine.ingest.prepare_rows import PreparedRows
from engine.storage.changeset import Chunk, NewImage, NewRows
from engine.storage.record_rows import ARRAY
from engine.storage.runs import Run
from engine.storage.session import Session
from engine.storage.source_rows import ArrayRow

_log = logging.getLogger("engine.ingest")


class RowCommits:
    """Commits blocks of rows."""

    def __init__(self, store: Session, encoding: Encoding, commits: Commits, tally: Tally) -> None:
        self._store = store
        self._encoding = encoding
        self._commits = commits
        self._tally = tally

    def commit(
        self, name: bytes, array: ArrayRow, rows: PreparedRows, count: int
    ) -> tuple[ArrayRow, int]:
        """Commit a block; if it does not fit the disk, commit one half and then the other.

        ``count`` is the array's number of rows. Returns the new row of the array, and its first
        uncommitted row, which lies in this block if the run is to stop.
        """

        def halves() -> tuple[ArrayRow, int]:
            half = len(rows.keys) // 2
            second = rows.part(half, len(rows.keys))
            row, end = self.commit(name, array, rows.part(0, half), count)
            if end < second.block.first:
                return row, end
            return self.commit(name, row, second, count)

        return self._commits.or_halves(
            lambda: self._try(name, array, rows, count),
            halves if len(rows.keys) > 1 else None,
        )

    def _try(
        self, name: bytes, array: ArrayRow, rows: PreparedRows, count: int
    ) -> tuple[ArrayRow, int]:
        builder = ChunkBuilder(self._store.snapshot)
        ids = self._add_rows(builder, rows)
        if ids is None:
            ids = self._add_one_by_one(builder, rows)
        end = rows.block.first + len(ids)
        if not len(ids):
            return array, end
        _log.debug("a block: rows %d-%d of an array", rows.block.first, end - 1)
        there = max(array.rows, end)
        array = replace(array, rows=there, complete=there >= count)
        runs = [
            piece for run in runs_of(array.number, rows.block.first, ids) for piece in run.pieces()
        ]
        self._note_runs(builder, rows.keys, ids, runs)
        builder.chunk.runs = runs
        builder.chunk.arrays = [(name, array)]
        self._commits.commit(builder)
        self._tally.advance(len(ids))
        return array, end

    def _add_rows(
        self,
        builder: ChunkBuilder,
        rows: PreparedRows,
        vectors: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.int64] | None:
        """Add the new rows as columns; returns the id of each row (n,), or None if images share a key.

        If the run stops, the ids end before the first new row that is not encoded. ``vectors``
        (n, dim) are those of the new images, if they are made already.
        """
        known = self._store.snapshot.image_columns(rows.keys)
        proofs = np.frombuffer(b"".join(rows.proofs), np.uint8).reshape(-1, hashing.PROOF_BYTES)
        if known.shared.any() or (known.proofs != proofs[known.found]).any():
            return None
        ids = np.zeros(len(rows.keys), np.int64)
        ids[known.found] = known.ids
        new = np.flatnonzero(~known.found)
        keys = [rows.keys[i] for i in new] if len(new) < len(ids) else rows.keys
        order = np.arange(len(new))
        chosen = new  # the first row of each new image
        if len(set(keys)) < len(keys):
            at: dict[bytes, int] = {}
            order = np.array([at.setdefault(key, len(at)) for key in keys])
            if len({rows.proofs[i] for i in new}) != len(at):
                return None
            chosen = new[np.unique(order, return_index=True)[1]]
            keys = list(at)
        if self._encoding.enabled and vectors is None:
            vectors = self._vectors(rows, chosen)
            if len(vectors) < len(chosen):
                end = int(chosen[len(vectors)])
                return self._add_rows(builder, rows.part(0, end), vectors) if end else ids[:0]
        ids[new] = builder.first_id + order
        self._tally.counts.added += len(chosen)
        self._tally.counts.duplicates += len(ids) - len(chosen)
        if len(chosen):
            builder.add_rows(_new_rows(rows, keys, chosen), vectors)
        return ids

    def _vectors(
        self, rows: PreparedRows, chosen: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """The vectors (n, dim) of the ``chosen`` rows (n,); fewer if the run stops."""
        vectors: list[npt.NDArray[np.float32]] = []
        most = self._store.memory.encode_batch
        for first in range(0, len(chosen), most):
            batch = [self._picture(rows, i) for i in chosen[first : first + most]]
            vectors.append(self._encoding.encode(batch))
            if len(vectors[-1]) < len(batch):
                break
        return np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32)

    def _picture(self, rows: PreparedRows, i: int) -> Picture:
        preprocessing = self._encoding.preprocessing
        assert preprocessing is not None
        return preprocessing.of(canonical.from_canonical(memoryview(rows.block.rows[i])))

    def _add_one_by_one(self, builder: ChunkBuilder, rows: PreparedRows) -> npt.NDArray[np.int64]:
        """Add rows one by one, as some share a key; returns the id of each, fewer if the run stops."""
        images = [_new_image(rows, i) for i in range(len(rows.block.rows))]
        ids: list[int] = []
        for image, known in zip(images, builder.find(images), strict=True):
            id_ = known or builder.added(image.proof)
            if id_ is None:
                vector: Vector | None = None
                if self._encoding.enabled:
                    encoded = self._encoding.encode([self._picture(rows, len(ids))])
                    if not len(encoded):
                        break
                    vector = encoded[0]
                id_ = builder.add(image, vector)
                self._tally.counts.added += 1
            else:
                self._tally.counts.duplicates += 1
            ids.append(id_)
        return np.array(ids, np.int64)

    def _note_runs(
        self,
        builder: ChunkBuilder,
        keys: list[bytes],
        ids: npt.NDArray[np.int64],
        runs: Sequence[Run],
    ) -> None:
        """Set ``in_runs`` for new images, and clear it for known ones with a run of their own."""
        alone = np.array([run.id for run in runs if not run.several], np.int64)
        if not len(alone):
            return
        chunk: Chunk = builder.chunk
        first = builder.first_id
        if chunk.rows is not None:
            chunk.rows.in_runs = ~np.isin(first + np.arange(len(chunk.rows)), alone)
        known = np.flatnonzero((ids < first) & np.isin(ids, alone))
        touched = list({keys[i]: None for i in known})
        for key, found in zip(touched, self._store.snapshot.images_of(touched), strict=True):
            # An image that shares its key never has ``in_runs``.
            chunk.out_of_runs += [(key, row) for row in found[:1] if row.in_runs]


def _new_rows(rows: PreparedRows, keys: list[bytes], chosen: npt.NDArray[np.int64]) -> NewRows:
    """The ``chosen`` rows, whose keys are ``keys``, as new images."""
    every = len(chosen) == len(rows.keys)
    block = rows.block.rows
    return NewRows(
        rows.shape,
        keys,
        rows.proofs if every else [rows.proofs[i] for i in chosen],
        rows.fingerprints[chosen],
        rows.qualities[chosen],
        np.ones(len(chosen), np.bool_),
        None if not rows.keeps else block if every else block[chosen],
    )


def _new_image(rows: PreparedRows, i: int) -> NewImage:
    """One row as a new image."""
    return NewImage(
        rows.shape,
        rows.keys[i],
        rows.proofs[i],
        ARRAY,
        "",
        0,
        b"",
        rows.fingerprints[i].tobytes(),
        int(rows.qualities[i]),
        memoryview(rows.block.rows[i]) if rows.keeps else None,
        keeps_canonical=True,
    )


def runs_of(array: int, first_row: int, ids: npt.NDArray[np.int64]) -> list[Run]:
    """The shortest list of runs for a block of rows.

    ``ids`` (n,) are the ids of rows ``first_row`` to ``first_row + n - 1``.
    """
    runs: list[Run] = []
    steps = np.diff(ids)
    # A run may end where the step between ids changes; it is constant in between.
    edges = [*(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(steps)] if len(steps) else []
    at = 0
    for edge in edges:
        step = int(steps[edge - 1])
        if at >= edge:
            continue
        if step in (0, 1):
            runs.append(Run(array, first_row + at, edge - at + 1, step, int(ids[at])))
            at = edge + 1
        else:
            while at < edge:
                runs.append(Run(array, first_row + at, 1, 1, int(ids[at])))
                at += 1
    if at < len(ids):
        runs.append(Run(array, first_row + at, 1, 1, int(ids[at])))
    return runs
