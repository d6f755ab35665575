"""Reads IDX files of images, the format of MNIST and similar sets, plain or compressed with gzip.

The header holds the bytes 0, 0, the type of the values and the number of dimensions. Each dimension
follows as 4 bytes, big-endian, and then the values, the last dimension fastest.
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
    """Whether ``name`` is that of an IDX file, such as ``train-images-idx3-ubyte.gz``."""
    return _NAME.fullmatch(name) is not None


class IdxFile:
    """The stamp, name and header of one IDX file of images, with the interface of ``NpyFile``."""

    fortran = False
    dtype: np.dtype[Any] = np.dtype(np.uint8)
    # The header gives the number of images, so the shape is never ambiguous.
    may_be_one_image = False

    def __init__(self, path: Path, kind: str | None = None) -> None:
        """Read the header. ``SourceError`` unless it is that of 8-bit images."""
        self._path = path
        self.mtime_ns, self.size = stamp_of(path.stat())
        self.name = absolute(path) + (b"" if kind is None else b"?kind=" + kind.encode())
        self.forced = kind
        with self._open() as file:
            self.shape: tuple[int, ...] = _header(file, path.name)

    @contextmanager
    def data(self, offset: int = 0) -> Iterator[IO[bytes]]:
        """A stream of the values from byte ``offset`` on, which ends with the values.

        ``SourceError`` if the file has changed.
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
    """A stream of up to ``left`` bytes of a file; the bytes after them are never decompressed."""

    def __init__(self, file: IO[bytes], left: int) -> None:
        self._file = file
        self._left = left

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read some bytes into ``buffer`` and return their number; 0 at the end."""
        view = memoryview(buffer).cast("B")
        data = self._file.read(min(len(view), max(self._left, 0)))
        view[: len(data)] = data
        self._left -= len(data)
        return len(data)


def _header(file: IO[bytes], name: str) -> tuple[int, ...]:
    """Read the header up to the values and return (n, H, W); ``SourceError`` for anything but images."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES:
        raise SourceError("is not an IDX file: it has no IDX header")
    type_, dimensions = magic[2:]
    if (type_, dimensions) == (_UBYTE, _LABELS):
        images = re.sub("idx1", "idx3", name.replace("labels", "images"), flags=re.IGNORECASE)
        other = f", such as {images}" if images != name else ""
        raise SourceError(f"holds labels, not images: name the file of images{other}")
    if (type_, dimensions) != (_UBYTE, _IMAGES):
        raise SourceError(
            f"holds {_TYPES[type_]} in {dimensions} dimensions: images in an IDX file are uint8 "
            f"(n, H, W)"
        )
    sizes = file.read(4 * _IMAGES)
    if len(sizes) < 4 * _IMAGES:
        raise SourceError("ends inside its header: it was cut short")
    return struct.unpack(">3I", sizes)
