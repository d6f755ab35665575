"""Imported vectors, in ``.npy`` and ``.npz`` files and in memory, streamed block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import SourceError, UsageError
from engine.images import hashing
from engine.images.canonical import scaled
from engine.sources import npy
from engine.sources.items import Vector, VectorBlock
from engine.sources.npy import NpyFile

# The limit is there because an index trains on thousands of vectors at a time.
MAX_DIM = 1 << 16
_NEEDED = f"vectors are (N, d), with d from 1 to {MAX_DIM:,}"
_ITEM_BYTES = (2, 4, 8)
_STAMPED = 1 << 20  # bytes of an array that are copied at a time


class NpyVectors:
    """One array of float32 (N, d); float16 and float64 are converted while it is read."""

    def __init__(self, file: NpyFile) -> None:
        """Check the shape; ``SourceError`` for any other array."""
        self._file = file
        self.name, self.mtime_ns, self.size = file.name, file.mtime_ns, file.size
        if not _has_shape(file.shape):
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
        """Whether the array holds floating-point numbers, which images never do."""
        return _is_float(file.dtype)

    @property
    def row_bytes(self) -> int:
        """The largest size of one row in bytes, while it is converted."""
        return (self._file.dtype.itemsize + 4) * self.dim

    def vectors(self, start: int, max_rows: int, max_bytes: int) -> Iterator[VectorBlock]:
        """Rows from ``start`` on; ``SourceError`` if the file ends too early."""
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
                    yield VectorBlock(at, float32(rows))
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
    """An array (n, d) of float32, float16 or float64 in memory, with any strides."""

    def __init__(self, rows: npt.NDArray[Any], name: bytes) -> None:
        """Check dtype and shape, and compute the stamp; ``UsageError`` for any other array."""
        if not _is_float(rows.dtype):
            raise UsageError(f"vectors have dtype {rows.dtype}: float32 is needed")
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
        # The stamp includes the shape, because the same bytes in another shape are other vectors.
        stamp.update(f"vectors {rows.shape}".encode())
        for block in self.vectors(0, self.count, _STAMPED):
            stamp.update(block.rows.reshape(-1).data)
        self.mtime_ns = stamp.value
        self.size = 4 * rows.size

    def vectors(self, start: int, max_rows: int, max_bytes: int) -> Iterator[VectorBlock]:
        """Rows from ``start`` on."""
        step = max(1, min(max_rows, max_bytes // self.row_bytes))
        for at in range(start, self.count, step):
            yield VectorBlock(at, float32(self._rows[at : at + step]))


def require_vectors(shape: tuple[int, ...], dtype: np.dtype[Any], *, fortran: bool) -> None:
    """``SourceError`` if an array holds no vectors, or columns instead of rows."""
    if not _is_float(dtype) or not _has_shape(shape):
        raise SourceError(f"has dtype {dtype} and shape {shape}: {_NEEDED}, of float32")
    if fortran:
        raise SourceError("is in Fortran order: save it with numpy.ascontiguousarray")


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" and dtype.itemsize in _ITEM_BYTES


def _has_shape(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and 1 <= shape[1] <= MAX_DIM and shape[0] >= 0


def vector_of(value: object) -> Vector:
    """A caller's vector of one image, as a new array (d,) of float32; ``UsageError`` for anything else.

    Values that are too large for float32 become infinite.
    """
    needed = f"a vector is an array (d,) of float32, with d from 1 to {MAX_DIM:,}"
    try:
        found = np.asarray(value)
    # A tensor that requires a gradient raises RuntimeError.
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{needed}: {' '.join(str(error).split())[:300]}") from None
    if not _is_float(found.dtype):
        raise UsageError(f"{needed}, not {type(value).__name__} of dtype {found.dtype}")
    if found.ndim != 1 or not 1 <= len(found) <= MAX_DIM:
        raise UsageError(f"{needed}, not of shape {found.shape}")
    return float32(found.copy())


def float32(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """(n, d) float32, C-contiguous, in native byte order; values that are too large become infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(rows, np.float32)
