"""Reads imported vectors again from their arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from engine.errors import EngineError, SourceError
from engine.ingest.checked_vectors import checked
from engine.sources.named_arrays import array_named
from engine.sources.vectors import NpyVectors
from engine.storage.session import Session
from engine.storage.vector_space import VectorSpace

_READ = 8 << 20  # bytes of an array at a time
_ROWS = 4096  # rows of an array at a time

Numbers = npt.NDArray[np.int64]
Rows = npt.NDArray[np.float32]


class SourceArrays:
    """The arrays that the vectors of a store came from, each opened once."""

    def __init__(self, store: Session, space: VectorSpace) -> None:
        """``space`` is the space of the vectors."""
        self._store = store
        self._space = space
        self._arrays: dict[int, tuple[NpyVectors, bool] | None] = {}

    def vectors_of(self, ids: Numbers) -> Iterator[tuple[Numbers, Rows, bool]]:
        """The vectors of (n,) ids, ascending, as their arrays have them now, in pieces.

        Each piece is: positions in ``ids`` (m,), their vectors (m, dim), and whether the array is
        unchanged. An id may occur more than once.
        """
        for run in self._store.snapshot.runs_over(ids):
            if run.array not in self._arrays:
                self._arrays[run.array] = self._open(run.array)
            array = self._arrays[run.array]
            first, end = np.searchsorted(ids, [run.id, run.id + run.count])
            if array is not None and first < end:
                rows = run.row + ids[first:end] - run.id
                with contextlib.suppress(SourceError):
                    for mine, vectors in self._rows_of(array[0], rows):
                        yield first + mine, vectors, array[1]

    def _open(self, number: int) -> tuple[NpyVectors, bool] | None:
        """An array, and whether it is unchanged; None if it is gone."""
        try:
            name = self._store.snapshot.array_name(number)
            found, row = array_named(name), self._store.snapshot.array(name)
        except (EngineError, OSError):
            return None
        if not isinstance(found, NpyVectors) or found.dim != self._space.dim:
            return None
        return found, row is not None and (row.mtime_ns, row.size) == (found.mtime_ns, found.size)

    def _rows_of(self, array: NpyVectors, rows: Numbers) -> Iterator[tuple[Numbers, Rows]]:
        """The valid ones of ``rows``, ascending, in pieces: positions in ``rows``, and vectors."""
        for block in array.vectors(int(rows[0]), _ROWS, _READ):
            first, end = np.searchsorted(rows, [block.first, block.first + len(block.rows)])
            found = checked(block, normalize=self._space.normalized)
            mine = rows[first:end] - block.first
            good = found.wrong[mine] == 0
            yield np.arange(first, end)[good], found.rows[mine][good]
            if end == len(rows):
                return
