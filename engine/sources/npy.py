"""Reads ``.npy`` streams, in a file or as a member of an ``.npz`` archive; pickles are never loaded.

An ``.npz`` is opened with Python's ``zipfile``; ``zip_archive`` says why other zips are not.
"""

from __future__ import annotations

import io
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from engine.errors import EngineError, SourceError
from engine.sources.decompress import line_of
from engine.sources.items import absolute, stamp_of
from engine.sources.steady_file import changed, steady, unreadable

_SKIP_BYTES = 1 << 20
_MAX_HEADER = 64 << 10  # bytes: NumPy itself takes 10,000
_MAX = (1 << 63) - 1  # of a dimension; Python prints no numbers of thousands of digits
_MAX_LISTED = 200  # characters of a message
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
    OSError,
    MemoryError,
)


class NpyFile:
    """One ``.npy`` stream: the stamp of its file, its name, and what its header says of it.

    Read with plain reads and not through a map, so that a file larger than memory leaves nothing
    behind in it.
    """

    may_be_one_image = True  # an array whose shape could be that of one

    def __init__(
        self,
        path: Path,
        member: str | None = None,
        kind: str | None = None,
        *,
        archive: zipfile.ZipFile | None = None,
    ) -> None:
        """Read the header. ``SourceError`` if it is no array of plain numbers in C order.

        ``archive``: the file of the ``member``, where it is open already.
        """
        self._path = path
        self._member = member
        self.mtime_ns, self.size = stamp_of(path.stat())
        shown = absolute(path)
        if kind is not None:
            shown += b"?kind=" + kind.encode()
        if member is not None:
            shown += b"#" + member.removesuffix(".npy").encode()
        self.name = shown
        self.forced = kind
        if archive is not None and member is not None:
            with _reading_zip(), _open_member(archive, member) as stream:
                self.shape, self.dtype, self.fortran = _header(stream)
        else:
            with self._open() as file:
                self.shape, self.dtype, self.fortran = _header(file)

    @contextmanager
    def data(self, offset: int = 0) -> Iterator[IO[bytes]]:
        """Its data from byte ``offset`` on; ``SourceError`` if the file is another one by now."""
        with self._open() as file:
            if _header(file) != (self.shape, self.dtype, self.fortran):
                raise changed()
            skip(file, offset)
            yield file

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        with steady(self._path, (self.mtime_ns, self.size)) as file:
            if self._member is None:
                yield file
                return
            with (
                _reading_zip(),
                zipfile.ZipFile(file) as archive,
                _open_member(archive, self._member) as member,
            ):
                yield member


@contextmanager
def open_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """An ``.npz`` archive; ``SourceError`` if it is damaged or cannot be read."""
    with (
        _reading_zip(),
        steady(path, stamp_of(path.stat())) as file,
        zipfile.ZipFile(file) as archive,
    ):
        yield archive


def members(archive: zipfile.ZipFile) -> list[str]:
    """The ``.npy`` members of an ``.npz`` archive, by name; ``SourceError`` if it has none."""
    found = [name for name in archive.namelist() if name.endswith(".npy")]
    if not found:
        raise SourceError("holds no arrays")
    return sorted(found)


@contextmanager
def _reading_zip() -> Iterator[None]:
    """``SourceError`` for what reading an ``.npz`` archive raises."""
    try:
        yield
    except EngineError:  # a UsageError is a ValueError, too
        raise
    except _DAMAGED as error:
        raise unreadable(error, "is damaged or not an .npz archive") from None


def _open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """A member, whose data comes out bit by bit: of bzip2 and LZMA, zipfile unpacks all at once."""
    method = archive.getinfo(name).compress_type
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise SourceError(
            f"is packed with method {method} in its archive: save it with numpy.savez_compressed"
        )
    return archive.open(name)


def listed(names: list[str]) -> str:
    """The names of arrays in a message, as they are given to NumPy; of many the first ones."""
    shown = ", ".join(name.removesuffix(".npy") for name in names)
    return shown if len(shown) <= _MAX_LISTED else shown[:_MAX_LISTED] + " …"


def read(file: IO[bytes], count: int) -> bytes:
    """Up to ``count`` bytes: fewer only at the end."""
    parts, left = [], count
    while left > 0:
        data = file.read(min(left, _READ_BYTES))
        if not data:
            break
        parts.append(data)
        left -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape, dtype and whether in Fortran order: of an ``.npy`` stream, which is left at its data."""
    try:
        version = np.lib.format.read_magic(file)
        # Read here and not by NumPy, which would read up to 4 GiB of what claims to be a header.
        width = 2 if version == (1, 0) else 4
        length = file.read(width)
        header = file.read(min(int.from_bytes(length, "little"), _MAX_HEADER))
        # Version 3 differs from 2 in the encoding of field names only, which no array here has.
        parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
        parse = parse or np.lib.format.read_array_header_2_0
        shape, fortran, dtype = parse(io.BytesIO(length + header))
    except (
        ValueError,
        TypeError,
        SyntaxError,
        EOFError,
        tokenize.TokenError,
        RecursionError,
        MemoryError,
    ) as error:  # what NumPy's reading of a header as a Python literal may raise
        raise SourceError(
            f"is not an .npy array ({line_of(error)})", retryable=isinstance(error, MemoryError)
        ) from None
    if dtype.hasobject:
        raise SourceError(
            "holds Python objects (a pickle), which are never loaded: save plain numbers"
        )
    if max(shape, default=0) > _MAX:
        raise SourceError("is not an .npy array (a dimension of it is larger than any file)")
    # bool is an int to NumPy's own check, and a shape of () is whole.
    return tuple(map(int, shape)), dtype, fortran


def skip(file: IO[bytes], count: int) -> None:
    """Leave out ``count`` bytes, or what there is of them."""
    if count and file.seekable() and isinstance(file, io.BufferedReader):
        file.seek(min(count, 1 << 62), io.SEEK_CUR)
        return
    while count > 0:  # a compressed member is read through
        data = file.read(min(count, _SKIP_BYTES))
        if not data:
            return
        count -= len(data)
