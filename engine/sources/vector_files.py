"""Files of vectors that belong to images of other sources: by order, or by name.

``FILE.npy`` holds (n, d) floats; row i belongs to the i-th image. ``FILE.npz`` holds the array ``names``
(n,) of text and the array ``vectors`` (n, d), uncompressed, as ``numpy.savez`` writes them.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engine.errors import SourceError, UsageError
from engine.images import hashing
from engine.sources import npy
from engine.sources.items import Vector, stamp_of
from engine.sources.npy import NpyFile
from engine.sources.steady_file import changed, steady
from engine.sources.vectors import NpyVectors, float32, require_vectors

_BLOCK = 8 << 20  # bytes read at a time
_NAME_BYTES = 4 * 4096  # the longest name: 4,096 characters
_LOCAL_HEADER = 30  # bytes of a member's header in a zip, before its name


class OrderedVectors:
    """The vectors of a ``.npy`` file: row i belongs to the i-th image of the sources."""

    def __init__(self, path: Path) -> None:
        """Read the header; ``SourceError`` if it is not a whole array (n, d) of floats."""
        file = NpyFile(path)
        require_vectors(file.shape, file.dtype, fortran=file.fortran)
        self.path = path
        self._array = NpyVectors(file)
        self.count, self.dim = self._array.count, self._array.dim
        with file.data() as data:
            left = file.size - data.tell()
        if left < self.count * self.dim * file.dtype.itemsize:
            raise SourceError(f"is too short for {self.count:,} vectors: it was cut short")

    def rows(self) -> Iterator[Vector]:
        """Each vector, (d,); ``SourceError`` if the file has changed."""
        for block in self._array.vectors(0, 1 << 16, _BLOCK):
            for row in block.rows:
                # A view would keep its block in memory.
                yield row.copy()

    def close(self) -> None:
        """Do nothing: the file is open only while rows are read."""


class NamedVectors:
    """The vectors of an ``.npz`` file, each with the name of its image.

    Eight bytes a name are in memory; names and vectors are read when they are needed.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Read all names. ``max_bytes`` limits the memory for them.

        ``SourceError`` if an array is missing, damaged or of the wrong kind, or if a name occurs twice.
        """
        self.path = path
        self._closing = ExitStack()
        try:
            self._open(path, max_bytes)
        except BaseException:
            self._closing.pop_all().close()
            raise

    def _open(self, path: Path, max_bytes: int) -> None:
        stamp = stamp_of(path.stat())
        with npy.open_npz(path) as archive:
            members = [_member(archive, name) for name in ("names.npy", "vectors.npy")]
        self._file = self._closing.enter_context(steady(path, stamp))
        self._names, self._vectors = (_array_at(self._file, member) for member in members)
        names, vectors = self._names, self._vectors
        if names.dtype.kind != "U" or len(names.shape) != 1:
            raise SourceError(
                f"its array names has dtype {names.dtype} and shape {names.shape}: text of shape "
                f"(n,) is needed, numpy.array(list_of_names)"
            )
        if not 0 < names.dtype.itemsize <= _NAME_BYTES:
            raise SourceError(
                f"its array names has text of {names.dtype.itemsize // 4:,} characters"
            )
        require_vectors(vectors.shape, vectors.dtype, fortran=vectors.fortran)
        self.count, self.dim = vectors.shape
        if names.shape != (self.count,):
            raise SourceError(f"holds {names.shape[0]:,} names and {self.count:,} vectors")
        if 8 * self.count > max_bytes:
            raise SourceError(f"has {self.count:,} names, which are too many: raise memory=")
        for member in self._names, self._vectors:
            if member.at + member.bytes > member.end:
                raise SourceError("is damaged: an array is longer than its place")
        # The low bits of each number are a row, the others a hash of the row's name.
        self._low = np.uint64((1 << max(1, (self.count - 1).bit_length())) - 1)
        self._index = self._indexed()
        self._refuse_doubles()

    def find(self, name: bytes) -> int | None:
        """The row with a name; None if there is none."""
        high = np.uint64(hashing.checksum(name)) & ~self._low
        at = int(np.searchsorted(self._index, high))
        while at < self.count and self._index[at] & ~self._low == high:
            row = int(self._index[at] & self._low)
            if self._read_names(row, 1)[0] == name:
                return row
            at += 1
        return None

    def row(self, number: int) -> Vector:
        """The vector of a row, (d,); ``SourceError`` if the file has changed."""
        array = self._vectors
        width = array.width
        data = self._read(array.at + number * width, width)
        return float32(np.frombuffer(data, array.dtype)).copy()

    def close(self) -> None:
        """Close the file; ``SourceError`` if it has changed since it was opened."""
        self._closing.close()

    def _indexed(self) -> npt.NDArray[np.uint64]:
        index = np.empty(self.count, np.uint64)
        step = max(1, _BLOCK // self._names.width)
        for at in range(0, self.count, step):
            names = self._read_names(at, min(step, self.count - at))
            hashes = np.array([hashing.checksum(name) for name in names], np.uint64)
            rows = np.arange(at, at + len(names), dtype=np.uint64)
            index[at : at + len(names)] = hashes & ~self._low | rows
        index.sort()
        return index

    def _refuse_doubles(self) -> None:
        """``SourceError`` if a name occurs twice: such names have equal hashes."""
        high = self._index & ~self._low
        doubtful = np.flatnonzero(high[1:] == high[:-1])
        seen: dict[bytes, int] = {}
        before = -1
        for at in doubtful.tolist():
            if high[at] != before:
                seen, before = {}, high[at]
            for row in sorted(int(self._index[i] & self._low) for i in (at, at + 1)):
                name = self._read_names(row, 1)[0]
                if seen.setdefault(name, row) != row:
                    shown = os.fsdecode(name)[:200]
                    raise SourceError(f"has the name {shown!r} twice: rows {seen[name]} and {row}")

    def _read_names(self, first: int, count: int) -> list[bytes]:
        names = self._names
        data = self._read(names.at + first * names.width, count * names.width)
        little = names.dtype.newbyteorder("<") == names.dtype
        codec, width = "utf-32-le" if little else "utf-32-be", names.width
        try:
            # NumPy's own conversion fails in other ways where a number is not a character.
            texts = (
                data[at : at + width].decode(codec, "surrogatepass")
                for at in range(0, len(data), width)
            )
            return [os.fsencode(text.rstrip("\0").removeprefix("./")) for text in texts]
        # Not a character, or half of a pair.
        except ValueError:
            raise SourceError(
                f"is damaged: rows {first} to {first + count - 1} of names are not text"
            ) from None

    def _read(self, at: int, size: int) -> bytes:
        parts = []
        while size > 0:
            try:
                part = os.pread(self._file.fileno(), size, at)
            except OSError as error:
                raise SourceError(f"cannot be read: {error.strerror}", retryable=True) from None
            if not part:
                raise changed()
            parts.append(part)
            at, size = at + len(part), size - len(part)
        return b"".join(parts)


VectorFile = OrderedVectors | NamedVectors


def open_vectors(path: str | os.PathLike[str], max_bytes: int) -> VectorFile:
    """The vectors of a file; ``UsageError`` if it cannot be used.

    ``max_bytes``: see ``NamedVectors``.
    """
    file = Path(path)
    try:
        if file.suffix.lower() == ".npz":
            return NamedVectors(file, max_bytes)
        if file.suffix.lower() == ".npy":
            return OrderedVectors(file)
    except SourceError as error:
        raise UsageError(f"{file}: {error}") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a path"
        raise UsageError(f"{file}: cannot be read: {why}") from None
    raise UsageError(
        f"{file}: vectors of images are a .npy file, in the order of the images, or an .npz file "
        f"with the arrays names and vectors"
    )


class _Member(NamedTuple):
    """An uncompressed member of a zip."""

    header: int  # the offset of its local header
    size: int


class _Array(NamedTuple):
    """An array in a file."""

    at: int  # the offset of its data
    end: int  # of its member
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @property
    def width(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * (self.shape[1] if len(self.shape) > 1 else 1)

    @property
    def bytes(self) -> int:
        """Bytes of the data."""
        return self.shape[0] * self.width


def _member(archive: zipfile.ZipFile, name: str) -> _Member:
    try:
        info = archive.getinfo(name)
    except KeyError:
        held = npy.listed(archive.namelist())
        raise SourceError(
            f"needs the arrays names and vectors, and holds {held or 'nothing'}"
        ) from None
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise SourceError(
            "is compressed, so that no row can be read alone: save it with numpy.savez"
        )
    return _Member(info.header_offset, info.file_size)


def _array_at(file: IO[bytes], member: _Member) -> _Array:
    file.seek(member.header)
    head = file.read(_LOCAL_HEADER)
    if len(head) < _LOCAL_HEADER or head[:4] != b"PK\3\4":
        raise SourceError("is damaged: an array is not where the archive says")
    begin = member.header + _LOCAL_HEADER
    begin += int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    file.seek(begin)
    shape, dtype, fortran = npy.header(file)
    return _Array(file.tell(), begin + member.size, shape, dtype, fortran)
