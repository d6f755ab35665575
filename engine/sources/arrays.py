"""Arrays of images in ``.npy``, ``.npz`` and IDX files, streamed block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.errors import SourceError
from engine.images.canonical import HEADER_BYTES, may_be_one_image, rows_from_array, what_it_may_be
from engine.records import Kind
from engine.sources import npy
from engine.sources.idx import IdxFile, is_idx
from engine.sources.items import RowBlock, Rows
from engine.sources.npy import NpyFile
from engine.sources.vectors import NpyVectors

KIND_OVERRIDES = {"8bit": Kind.U8, "bits": Kind.BITS}
_SCAN_BYTES = 8 << 20


class NpyArray:
    """One array of bool or uint8, (N, H, W, 3), (N, H, W) or (N, H, W, 1), in a file or an archive.

    Arrays of bool, and of uint8 that hold only 0 and 1, are bit images. This is decided for the whole
    array, with one more pass over a uint8 array of zeros and ones.
    """

    def __init__(self, file: NpyFile | IdxFile) -> None:
        """Check dtype and shape; ``SourceError`` for any other array."""
        self._file = file
        self.name, self.mtime_ns, self.size = file.name, file.mtime_ns, file.size
        self._shape = file.shape
        _check(file)
        self.count = self._shape[0]
        self._forced = KIND_OVERRIDES[file.forced] if file.forced else None
        self._kind = Kind.BITS if file.dtype == np.bool_ and not self._forced else self._forced

    @property
    def row_bytes(self) -> int:
        """The largest size of one row in bytes: three channels, unpacked."""
        height, width = self._shape[1:3]
        return height * width * 3

    @property
    def declared_kind(self) -> Kind | None:
        """Bits or 8-bit, if known without reading a row; else None."""
        return self._kind

    @property
    def kind(self) -> Kind:
        """Bits or 8-bit for the whole array; may read all of it."""
        if self._kind is None:
            self._kind = Kind.BITS if self._all_zero_or_one() else Kind.U8
        return self._kind

    def blocks(self, start: int, max_rows: int, max_bytes: int) -> Iterator[RowBlock]:
        """Canonical rows from ``start`` on; ``SourceError`` if the file ends too early."""
        kind = self.kind
        values = math.prod(self._shape[1:])
        # During the conversion, a row is in memory as read, as three channels and in canonical form.
        cost = values * (1 if self._shape[3:] == (3,) else 4) + values + HEADER_BYTES
        step = max(1, min(max_rows, max_bytes // cost))
        with self._file.data(start * values) as file:
            at = start
            while at < self.count:
                want = min(step, self.count - at)
                data = npy.read(file, want * values)
                whole = len(data) // values
                if whole:
                    block = np.frombuffer(data, np.uint8, whole * values)
                    yield RowBlock(at, self._rows(block, kind), kind)
                if whole < want:
                    raise SourceError(
                        f"ends after row {at + whole} of {self.count}: it was cut short"
                    )
                at += want

    def row(self, number: int) -> Rows:
        """The canonical form of one row: (16 + pixel bytes,) uint8; ``SourceError`` if it is missing."""
        if not 0 <= number < self.count:
            raise SourceError(f"has rows 0 to {self.count - 1}, not {number}")
        row: Rows = next(self.blocks(number, 1, 1)).rows[0]
        return row

    def _rows(self, block: npt.NDArray[np.uint8], kind: Kind) -> Rows:
        shaped = block.reshape(-1, *self._shape[1:])
        if kind is Kind.BITS and self._forced is not None and int(shaped.max(initial=0)) > 1:
            raise SourceError("holds values above 1: ?kind=bits is for arrays of 0 and 1")
        return rows_from_array(shaped, kind)

    def _all_zero_or_one(self) -> bool:
        with self._file.data() as file:
            while data := file.read(_SCAN_BYTES):
                if int(np.frombuffer(data, np.uint8).max()) > 1:
                    return False
        return True


Array = NpyArray | NpyVectors


def open_array(path: Path, member: str | None = None, kind: str | None = None) -> Array:
    """The images or vectors of an ``.npy`` file or of a member of an ``.npz`` archive.

    ``SourceError`` for an array of neither.
    """
    return _array(NpyFile(path, member, kind))


def _array(file: NpyFile) -> Array:
    return NpyVectors(file) if NpyVectors.claims(file) else NpyArray(file)


def open_arrays(path: Path, kind: str | None = None) -> list[Array]:
    """The arrays of an ``.npy``, ``.npz`` or IDX file.

    ``SourceError`` if the file holds no arrays, or an unusable one, or images and vectors, or vectors of
    different lengths. The caller must then name one array.
    """
    if is_idx(path.name):
        return [NpyArray(IdxFile(path, kind))]
    if path.suffix.lower() == ".npy":
        return [open_array(path, None, kind)]
    found: dict[str, Array] = {}
    wrong = ""
    with npy.open_npz(path) as archive:
        members = npy.members(archive)
        for member in members:
            try:
                found[member] = _array(NpyFile(path, member, kind, archive=archive))
            except SourceError as error:
                if len(members) == 1:
                    raise
                wrong = wrong or f"its array {npy.listed([member])} {error}"
    if len({array.dim if isinstance(array, NpyVectors) else 0 for array in found.values()}) > 1:
        wrong = wrong or "holds arrays that cannot be read together"
    if wrong:
        example = npy.listed([*found, *members][:1])
        raise SourceError(
            f"{wrong}; it holds {npy.listed(members)}: name one, as '{path.name}#{example}'"
        )
    return list(found.values())


def _check(file: NpyFile | IdxFile) -> None:
    """``SourceError`` for an array that does not hold images."""
    shape = file.shape
    if file.dtype not in (np.dtype(np.uint8), np.dtype(np.bool_)):
        raise SourceError(
            f"has dtype {file.dtype}: images are uint8 or bool, vectors float32 of shape (N, d)"
        )
    good = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if not good or min(shape[1:]) < 1 or shape[0] < 0:
        raise SourceError(f"has shape {shape}: images are (N, H, W, 3) or (N, H, W)")
    if file.may_be_one_image and may_be_one_image(shape):
        raise SourceError(f"has shape {shape}, which {what_it_may_be(shape)}: save it as that")
    if file.fortran:
        raise SourceError("is in Fortran order: save it with numpy.ascontiguousarray")
