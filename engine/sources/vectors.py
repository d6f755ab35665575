"""Vectors that people bring, in ``.npy`` and ``.npz`` files and in memory, streamed block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import SourceError, UsageError
from engine.images import hashing
from engine.images.canonical import scaled
from engine.sources import npy
from engine.sources.items import VectorBlock
from engine.sources.npy import NpyFile

MAX_DIM = 1 << 16  # an index trains on thousands of vectors at a time, however long they are
_NEEDED = f"vectors are (N, d), with d from 1 to {MAX_DIM:,}"
_ITEM_BYTES = (2, 4, 8)
_STAMPED = 1 << 20  # bytes of an array that are copied at a time


class NpyVectors:
    """One array of shape (N, d), of float32; float16 and float64 are converted as they come."""

    def __init__(self, file: NpyFile) -> None:
        """``SourceError`` if it is no such array."""
        self._file = file
        self.name, self.mtime_ns, self.size = file.name, file.mtime_ns, file.size
        if len(file.shape) != 2 or not 1 <= file.shape[1] <= MAX_DIM or file.shape[0] < 0:
            raise SourceError(
                f"has dtype {file.dtype} and shape {file.shape}: images are uint8 or bool, {_NEEDED}"
            )
        if file.forced is not None:
            raise SourceError(f"holds vectors: leave ?kind={file.forced} out")
        if file.fortran:
            raise SourceError("is in Fortran order: save it with numpy.ascontiguousarray")
        self.count, self.dim = file.shape

    @staticmethod
    def claims(file: NpyFile) -> bool:
        """Whether it is of floating-point numbers, as images never are."""
        return file.dtype.kind == "f" and file.dtype.itemsize in _ITEM_BYTES

    @property
    def row_bytes(self) -> int:
        """The most that one row takes."""
        return (self._file.dtype.itemsize + 4) * self.dim

    def vectors(self, start: int, max_rows: int, max_bytes: int) -> Iterator[VectorBlock]:
        """Rows from ``start`` on; ``SourceError`` where the file ends too early."""
        dtype = self._file.dtype
        width = dtype.itemsize * self.dim
        step = max(1, min(max_rows, max_bytes // width))
        with self._file.data(start * width) as file:
            at = start
            while at < self.count:
                want = min(step, self.count - at)
                data = npy.read(file, want * width)
                whole = len(data) // width
                if whole:
                    rows = np.frombuffer(data, dtype, whole * self.dim).reshape(whole, self.dim)
                    yield VectorBlock(at, _float32(rows))
                if whole < want:
                    raise SourceError(
                        f"ends after row {at + whole} of {self.count}: it was cut short"
                    )
                at += want

    def row(self, number: int) -> npt.NDArray[np.float32]:
        """One row: (d,) float32; ``SourceError`` if it is missing."""
        if not 0 <= number < self.count:
            raise SourceError(f"has rows 0 to {self.count - 1}, not {number}")
        found: npt.NDArray[np.float32] = next(self.vectors(number, 1, 1)).rows[0]
        return found


class MemoryVectors:
    """An array (n, d) of float32, float16 or float64 that is in memory, however it lies there."""

    def __init__(self, rows: npt.NDArray[Any], name: bytes) -> None:
        """``UsageError`` if it is no such array."""
        if rows.dtype.kind != "f" or rows.dtype.itemsize not in _ITEM_BYTES:
            raise UsageError(f"vectors of dtype {rows.dtype}: float32 is needed")
        if rows.ndim != 2 or not 1 <= rows.shape[1] <= MAX_DIM:
            raise UsageError(
                f"an array of dtype {rows.dtype} and shape {rows.shape}: images are uint8 or bool, "
                f"{_NEEDED}{scaled(rows)}"
            )
        self.name = name
        self._rows = rows
        self.count, self.dim = rows.shape
        self.row_bytes = 4 * self.dim
        stamp = hashing.Stamp()
        # With the shape: the same bytes in another one are other vectors.
        stamp.update(f"vectors {rows.shape}".encode())
        for block in self.vectors(0, self.count, _STAMPED):
            stamp.update(block.rows.reshape(-1).data)
        self.mtime_ns = stamp.value
        self.size = 4 * rows.size

    def vectors(self, start: int, max_rows: int, max_bytes: int) -> Iterator[VectorBlock]:
        """Rows from ``start`` on."""
        step = max(1, min(max_rows, max_bytes // self.row_bytes))
        for at in range(start, self.count, step):
            yield VectorBlock(at, _float32(self._rows[at : at + step]))


def _float32(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """(n, d) float32 in the byte order of this machine, C-contiguous; what is too large is infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(rows, np.float32)
