"""Reads IDX files of images, which MNIST and its relatives come as, plain or compressed with gzip.

A header of big-endian numbers (0, 0, the type of the values, the number of dimensions; then each
dimension, 4 bytes) and the values behind it, the last dimension fastest.
http://yann.lecun.com/exdb/mnist/
"""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from engine.errors import SourceError
from engine.sources import npy
from engine.sources.decompress import BUFFER_BYTES, plain
from engine.sources.items import absolute, stamp_of
from engine.sources.steady_file import changed, steady

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_NAME = re.compile(r"(?!\._).*[-._]idx\d(-ubyte)?(\.gz)?", re.IGNORECASE | re.DOTALL)
_UBYTE = 8
_TYPES = {_UBYTE: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}
_IMAGES, _LABELS = 3, 1  # dimensions
_MEMORY = 16 << 20  # bytes, for decompressing


def is_idx(name: str) -> bool:
    """Whether a file is called like one of IDX, as ``train-images-idx3-ubyte.gz`` is."""
    return _NAME.fullmatch(name) is not None


class IdxFile:
    """One IDX file of images: its stamp, its name, and what its header says of it; as ``NpyFile``."""

    fortran = False
    dtype: np.dtype[Any] = np.dtype(np.uint8)
    # The header says that there are n images, whatever their width.
    may_be_one_image = False

    def __init__(self, path: Path, kind: str | None = None) -> None:
        """Read the header. ``SourceError`` if it is not one of 8-bit images."""
        self._path = path
        self.mtime_ns, self.size = stamp_of(path.stat())
        self.name = absolute(path) + (b"" if kind is None else b"?kind=" + kind.encode())
        self.forced = kind
        with self._open() as file:
            self.shape: tuple[int, ...] = _header(file, path.name)

    @contextmanager
    def data(self, offset: int = 0) -> Iterator[IO[bytes]]:
        """Its values from byte ``offset`` on, and nothing that lies behind them.

        ``SourceError`` if the file is another one by now.
        """
        with self._open() as file:
            if _header(file, self._path.name) != self.shape:
                raise changed()
            npy.skip(file, offset)
            yield io.BufferedReader(_Values(file, math.prod(self.shape) - offset), BUFFER_BYTES)

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        with steady(self._path, (self.mtime_ns, self.size)) as file:
            yield plain(file, _MEMORY)[0]


class _Values(io.RawIOBase):
    """Up to ``left`` bytes of a file: what is behind them is never unpacked, however much it is."""

    def __init__(self, file: IO[bytes], left: int) -> None:
        self._file = file
        self._left = left

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Some bytes; 0 at the end."""
        view = memoryview(buffer).cast("B")
        data = self._file.read(min(len(view), max(self._left, 0)))
        view[: len(data)] = data
        self._left -= len(data)
        return len(data)


def _header(file: IO[bytes], name: str) -> tuple[int, ...]:
    """(n, H, W), of a file that is left at its values; ``SourceError`` for anything but images."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES:
        raise SourceError("is not an IDX file: it begins otherwise")
    type_, dimensions = magic[2:]
    if (type_, dimensions) == (_UBYTE, _LABELS):
        images = re.sub("idx1", "idx3", name.replace("labels", "images"), flags=re.IGNORECASE)
        other = f", such as {images}" if images != name else ""
        raise SourceError(f"holds labels and no images: name the file of images{other}")
    if (type_, dimensions) != (_UBYTE, _IMAGES):
        raise SourceError(
            f"holds {_TYPES[type_]} in {dimensions} dimensions: images in an IDX file are uint8 in "
            f"3, (n, H, W)"
        )
    sizes = file.read(4 * _IMAGES)
    if len(sizes) < 4 * _IMAGES:
        raise SourceError("ends inside of its header: it was cut short")
    return struct.unpack(">3I", sizes)
