"""Reads ``.npy`` streams, in a file or as a member of an ``.npz`` archive; pickles are never loaded.

Python's ``zipfile`` opens ``.npz`` files; ``zip_archive`` explains why it does not open other zips.
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
_MAX_HEADER = 64 << 10  # bytes; NumPy's own limit is 10,000
# The largest dimension. Python does not print numbers of thousands of digits.
_MAX = (1 << 63) - 1
_MAX_LISTED = 200  # characters of a message
# Bytes read at a time, because a wrong header must not cause an allocation of terabytes.
_READ_BYTES = 64 << 20
# The exceptions that reading a damaged archive may raise.
_DAMAGED = (
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
    """The stamp, name and header of one ``.npy`` stream.

    It is read with plain reads rather than a memory map, so that a file larger than memory does not
    fill it.
    """

    may_be_one_image = True  # whether its shape may be that of a single image

    def __init__(
        self,
        path: Path,
        member: str | None = None,
        kind: str | None = None,
        *,
        archive: zipfile.ZipFile | None = None,
    ) -> None:
        """Read the header. ``SourceError`` if the stream is not an array of plain numbers.

        ``archive``: the archive of ``member``, if it is already open.
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
                self.shape, self.dtype, self.fortran = header(stream)
        else:
            with self._open() as file:
                self.shape, self.dtype, self.fortran = header(file)

    @contextmanager
    def data(self, offset: int = 0) -> Iterator[IO[bytes]]:
        """A stream of its data from byte ``offset`` on; ``SourceError`` if the file has changed."""
        with self._open() as file:
            if header(file) != (self.shape, self.dtype, self.fortran):
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
    """Turn the exceptions of reading a damaged ``.npz`` archive into ``SourceError``."""
    try:
        yield
    # Keep UsageError, which is also a ValueError.
    except EngineError:
        raise
    except _DAMAGED as error:
        raise unreadable(error, "is damaged or not an .npz archive") from None


def _open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open a member that can be read in pieces; zipfile unpacks bzip2 and LZMA all at once."""
    method = archive.getinfo(name).compress_type
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise SourceError(
            f"is compressed with method {method} in its archive: save it with numpy.savez_compressed"
        )
    return archive.open(name)


def listed(names: list[str]) -> str:
    """The names of arrays for a message, as NumPy uses them, cut if there are many."""
    shown = ", ".join(name.removesuffix(".npy") for name in names)
    return shown if len(shown) <= _MAX_LISTED else shown[:_MAX_LISTED] + " …"


def read(file: IO[bytes], count: int) -> bytes:
    """Read ``count`` bytes, or fewer at the end of the file."""
    parts, left = [], count
    while left > 0:
        data = file.read(min(left, _READ_BYTES))
        if not data:
            break
        parts.append(data)
        left -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Read an ``.npy`` header up to the data; return shape, dtype and whether in Fortran order."""
    try:
        version = np.lib.format.read_magic(file)
        # NumPy itself would read up to 4 GiB of what claims to be a header.
        width = 2 if version == (1, 0) else 4
        length = file.read(width)
        text = file.read(min(int.from_bytes(length, "little"), _MAX_HEADER))
        # Version 3 differs from 2 only in the encoding of field names, which no array here has.
        parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
        parse = parse or np.lib.format.read_array_header_2_0
        shape, fortran, dtype = parse(io.BytesIO(length + text))
    # NumPy parses a header as a Python literal, which may raise any of these.
    except (
        ValueError,
        TypeError,
        SyntaxError,
        EOFError,
        tokenize.TokenError,
        RecursionError,
        MemoryError,
    ) as error:
        raise SourceError(
            f"is not an .npy array ({line_of(error)})", retryable=isinstance(error, MemoryError)
        ) from None
    if dtype.hasobject:
        raise SourceError(
            "holds Python objects (a pickle), which are never loaded: save plain numbers"
        )
    if max(shape, default=0) > _MAX:
        raise SourceError("is not an .npy array (a dimension of it is larger than any file)")
    # NumPy's own check also lets bool pass as int.
    return tuple(map(int, shape)), dtype, fortran


def skip(file: IO[bytes], count: int) -> None:
    """Skip ``count`` bytes, or the rest of the file if it is shorter."""
    if count and file.seekable() and isinstance(file, io.BufferedReader):
        file.seek(min(count, 1 << 62), io.SEEK_CUR)
        return
    # A compressed member must be read to be skipped.
    while count > 0:
        data = file.read(min(count, _SKIP_BYTES))
        if not data:
            return
        count -= len(data)
