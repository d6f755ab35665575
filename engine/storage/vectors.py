"""The committed vectors of one encoder generation, mapped, addressed by one row number.

Row r lies in extent r // 2^20 + 1; rows are in the order of commit, their image ids beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.config import EXTENT_ROWS
from engine.storage import extents
from engine.storage.extents import ExtentReader


class Vectors:
    """(rows, dim) float32 and the (rows,) int64 ids beside it."""

    def __init__(self, store: Path, generation: int, dim: int, rows: int) -> None:
        self.dim = dim
        self.rows = rows
        self._vectors = ExtentReader(store, extents.vectors(generation, dim))
        self._ids = ExtentReader(store, extents.vector_ids(generation))

    def blocks(self, start: int, stop: int, most: int) -> Iterator[npt.NDArray[np.float32]]:
        """Rows ``[start, stop)`` in pieces of at most ``most``: views of the map, (n, dim)."""
        at = start
        while at < stop:
            extent, inside = divmod(at, EXTENT_ROWS)
            end = min(stop, at + most, (extent + 1) * EXTENT_ROWS)
            yield self._extent(extent)[inside : inside + end - at]
            at = end

    def gather(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The vectors of the given rows: (len(rows), dim), copied."""
        out = np.empty((len(rows), self.dim), np.float32)
        extent_of = rows // EXTENT_ROWS
        for extent in np.unique(extent_of):
            mine = extent_of == extent
            out[mine] = self._extent(int(extent))[rows[mine] - int(extent) * EXTENT_ROWS]
        return out

    def ids(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The image ids of the given rows; row -1 has id -1."""
        out = np.full(rows.shape, -1, np.int64)
        extent_of = np.where(rows >= 0, rows // EXTENT_ROWS, -1)
        for extent in np.unique(extent_of[extent_of >= 0]):
            mine = extent_of == extent
            number = int(extent)
            column = self._column(number)
            out[mine] = column[rows[mine] - number * EXTENT_ROWS]
        return out

    def have(self, images: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of (n,) images have a vector: their ids are ascending, over all extents."""
        out = np.zeros(len(images), np.bool_)
        for first in range(0, self.rows, EXTENT_ROWS):
            column = self._column(first // EXTENT_ROWS)
            at = np.minimum(np.searchsorted(column, images), len(column) - 1)
            out |= column[at] == images
        return out

    def open_all(self) -> None:
        """Map all of it now, so that it can be read whatever a writer deletes."""
        for first in range(0, self.rows, EXTENT_ROWS):
            self._extent(first // EXTENT_ROWS)
            self.ids(np.array([min(first + EXTENT_ROWS, self.rows) - 1]))

    def close(self) -> None:
        """Give the maps back."""
        self._vectors.close()
        self._ids.close()

    def _column(self, extent: int) -> npt.NDArray[Any]:
        count = min(EXTENT_ROWS, self.rows - extent * EXTENT_ROWS)
        return self._ids.rows(extent + 1, count, np.int64)[:, 0]

    def _extent(self, extent: int) -> npt.NDArray[Any]:
        count = min(EXTENT_ROWS, self.rows - extent * EXTENT_ROWS)
        return self._vectors.rows(extent + 1, count, np.float32)
