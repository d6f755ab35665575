"""Arrays of images in ``.npy`` and ``.npz`` files, streamed block by block; pickles are never loaded."""

from __future__ import annotations

import io
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from engine.errors import SourceError
from engine.pixels import HEADER_BYTES, rows_from_array
from engine.records import Kind
from engine.sources.base import RowBlock, Rows, absolute

KIND_OVERRIDES = {"8bit": Kind.U8, "bits": Kind.BITS}
_SCAN_BYTES = 8 << 20
_SKIP_BYTES = 1 << 20
_READ_BYTES = 64 << 20  # at a time: a header that lies must not make us ask for terabytes
_DAMAGED = (  # what reading a damaged archive may raise
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    KeyError,
    EOFError,
    ValueError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
)


class NpyArray:
    """One array of shape (N, H, W, 3) or (N, H, W), of bool or uint8, in a file or in an archive.

    Read with plain reads and not through a map, so that a file larger than memory leaves nothing
    behind in it. bool, and uint8 that holds nothing but 0 and 1, are bit images; that is decided
    for the whole array, which takes one more pass over a uint8 array of zeros and ones.
    """

    def __init__(self, path: Path, member: str | None = None, kind: str | None = None) -> None:
        """Read the header. ``SourceError`` if it is no such array."""
        self._path = path
        self._member = member
        status = path.stat()
        self.mtime_ns, self.size = status.st_mtime_ns, status.st_size
        shown = absolute(path)
        if kind is not None:
            shown += b"?kind=" + kind.encode()
        if member is not None:
            shown += b"#" + member.removesuffix(".npy").encode()
        self.name = shown
        with self._open() as file:
            self._shape, self._dtype = _header(file)
        self.count = self._shape[0]
        self._forced = KIND_OVERRIDES[kind] if kind else None
        self._kind: Kind | None = self._forced

    @property
    def row_bytes(self) -> int:
        """The most that one row takes, in three channels and unpacked."""
        height, width = self._shape[1:3]
        return height * width * 3

    @property
    def kind(self) -> Kind:
        """Bits or 8-bit, for the whole array; may read all of it."""
        if self._kind is None:
            self._kind = Kind.BITS if self._all_zero_or_one() else Kind.U8
        return self._kind

    def blocks(self, start: int, most_rows: int, most_bytes: int) -> Iterator[RowBlock]:
        """Canonical rows from ``start`` on; ``SourceError`` where the file ends too early."""
        kind = self.kind
        values = math.prod(self._shape[1:])
        # Read, unpacked to three channels, and canonical: what a row costs while it is converted.
        cost = values * (1 if len(self._shape) == 4 else 4) + values + HEADER_BYTES
        step = max(1, min(most_rows, most_bytes // cost))
        with self._open() as file:
            _header(file)
            _skip(file, start * values)
            at = start
            while at < self.count:
                want = min(step, self.count - at)
                data = _read(file, want * values)
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
        if self._dtype == np.bool_:
            return True
        with self._open() as file:
            _header(file)
            while data := file.read(_SCAN_BYTES):
                if int(np.frombuffer(data, np.uint8).max()) > 1:
                    return False
        return True

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        try:
            if self._member is None:
                with self._path.open("rb") as file:
                    yield file
            else:
                with zipfile.ZipFile(self._path) as archive, archive.open(self._member) as member:
                    yield member
        except _DAMAGED as error:
            raise SourceError(f"is damaged or not an .npz archive ({error})") from None
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror or error}") from None


def open_arrays(path: Path, kind: str | None = None) -> list[NpyArray]:
    """The arrays of an ``.npy`` or ``.npz`` file; ``SourceError`` if it holds none."""
    if path.suffix.lower() == ".npy":
        return [NpyArray(path, None, kind)]
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
    except (*_DAMAGED, OSError) as error:
        raise SourceError(f"is damaged or not an .npz archive ({error})") from None
    if not members:
        raise SourceError("holds no arrays")
    return [NpyArray(path, member, kind) for member in sorted(members)]


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an ``.npy`` stream, which is left at its data."""
    try:
        version = np.lib.format.read_magic(file)
        # Version 3 differs from 2 in the encoding of field names only, which images have none of.
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
        read = read or np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (
        ValueError,
        TypeError,
        SyntaxError,
        EOFError,
        tokenize.TokenError,
        RecursionError,
        MemoryError,
    ) as error:  # what NumPy's reading of a header as a Python literal may raise
        raise SourceError(f"is not an .npy array ({' '.join(str(error).split())})") from None
    if dtype.hasobject:
        raise SourceError(
            "holds Python objects (a pickle), which are never loaded: save plain uint8"
        )
    if dtype not in (np.dtype(np.uint8), np.dtype(np.bool_)):
        raise SourceError(f"has dtype {dtype}: images are uint8 or bool")
    good = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
    if not good or min(shape[1:]) < 1 or shape[0] < 0:
        raise SourceError(f"has shape {shape}: images are (N, H, W, 3) or (N, H, W)")
    if fortran:
        raise SourceError("is in Fortran order: save it with numpy.ascontiguousarray")
    return tuple(map(int, shape)), dtype  # bool is an int to NumPy's own check


def _skip(file: IO[bytes], count: int) -> None:
    if count and file.seekable() and isinstance(file, io.BufferedReader):
        file.seek(min(count, 1 << 62), io.SEEK_CUR)
        return
    while count > 0:  # a compressed member is read through
        data = file.read(min(count, _SKIP_BYTES))
        if not data:
            return
        count -= len(data)


def _read(file: IO[bytes], count: int) -> bytes:
    """Up to ``count`` bytes: fewer only at the end."""
    parts, left = [], count
    while left > 0:
        data = file.read(min(left, _READ_BYTES))
        if not data:
            break
        parts.append(data)
        left -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)
