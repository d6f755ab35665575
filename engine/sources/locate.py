"""Says what a SOURCE or an IMAGE is; a path that exists wins over ``#``, ``?`` and ``{}`` in it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.errors import EngineError, ImageError, SourceError, UsageError
from engine.images.canonical import SUFFIXES, decode, from_canonical
from engine.records import Decoded
from engine.sources import files, shards
from engine.sources.archives import TarArchive, begins_as_tar, is_named_tar
from engine.sources.items import (
    FileItem,
    Item,
    Member,
    Problem,
    RowBlock,
    Rows,
    VectorBlock,
    absolute,
)
from engine.sources.member_names import MAX_NAME
from engine.sources.named_arrays import (
    ARRAY_SUFFIXES,
    array_file,
    arrays_of,
    exists,
    is_array,
    missing_array,
)
from engine.sources.path_lists import MAX_LINE, check_list, listed, shown
from engine.sources.synthetic import PREFIX, SyntheticBits
from engine.sources.tables import PARQUET_SUFFIXES, ParquetTable
from engine.sources.vectors import NpyVectors
from engine.sources.zip import ZipArchive

Archive = TarArchive | ZipArchive | ParquetTable

_MAX_SHOWN = 200  # characters of a source, in a message
_READ_BYTES = 1 << 20
_MAX_FOLDERS = 1024  # that are remembered


class Sources:
    """Several SOURCEs as one stream of items."""

    def __init__(
        self,
        specs: Sequence[str],
        *,
        files_from: str | os.PathLike[str] | None = None,
        recursive: bool = True,
        null: bool = False,
    ) -> None:
        """``files_from`` is a file with one more source a line; "-" is standard input.

        ``null``: in lists a null byte is behind each source, as ``find -print0`` writes them.

        ``UsageError`` for a source that is not there, before anything is read. Nothing is taken out of a
        pipe before the sources are gone through.
        """
        if not specs and files_from is None:
            raise UsageError("name at least one source: a folder, an image, an archive, or -")
        if null and files_from is None and "-" not in specs:
            raise UsageError("null bytes end the names of a list: name one with files_from=, or -")
        if files_from is not None and files_from != "-":
            check_list(files_from, null=null)
        self._specs = list(specs)
        self._files_from = files_from
        self._recursive = recursive
        self._null = null
        self.folders: dict[bytes, None] = {}  # the first of those that were named, as they are met
        for spec in specs:
            if spec != "-":
                _check(spec)
                self._note_folder(spec)

    def count(self) -> int | None:
        """How many items there are, rows of arrays included; None if only reading all would tell."""
        if self._files_from is not None or "-" in self._specs:
            return None
        total = 0
        for spec in self._specs:
            for one in _expanded(spec):
                count = self._count(one)
                if count is None:
                    return None
                total += count
        return total

    def _note_folder(self, spec: str) -> bool:
        """Whether a source is a folder, which is remembered as one."""
        if _is_synthetic(spec) or not _is_folder(Path(spec)):
            return False
        if len(self.folders) < _MAX_FOLDERS:
            self.folders[absolute(spec)] = None
        return True

    def _count(self, spec: str) -> int | None:
        path = Path(spec)
        if _is_synthetic(spec):
            return SyntheticBits(spec).count
        if _is_folder(path):
            return files.count(path, recursive=self._recursive)
        try:
            found = arrays_of(spec)
            if found is not None:
                return sum(array.count for array in found)
            archive = _archive_of(spec)
            return archive.count if archive is not None else 1
        except (EngineError, OSError):
            return 1

    def __iter__(self) -> Iterator[Item]:
        for spec in self._specs:
            if spec == "-":
                yield from self._listed(listed("-", null=self._null))
            else:
                yield from self._items(spec)
        if self._files_from is not None:
            yield from self._listed(listed(self._files_from, null=self._null))

    def _listed(self, lines: Iterable[str]) -> Iterator[Item]:
        for spec in lines:
            if len(os.fsencode(spec)) > MAX_LINE or "\0" in spec:
                why = "it holds a null byte: is the list one for null=True?" if "\0" in spec else ""
                yield Problem(os.fsencode(spec[:_MAX_SHOWN]), f"not a path{why and ': ' + why}")
            elif spec == "-":
                yield Problem(b"-", "standard input cannot list itself")
            else:
                try:
                    yield from self._items(spec)
                except UsageError as error:
                    yield _problem(os.fsencode(spec), str(error))

    def _items(self, spec: str) -> Iterator[Item]:
        for one in _expanded(spec):
            try:
                yield from self._one(one)
            except UsageError as error:  # of a shard, or what was right before: the rest goes on
                yield _problem(absolute(one), str(error))

    def _one(self, spec: str) -> Iterator[Item]:
        if _is_synthetic(spec):
            yield SyntheticBits(spec)
            return
        path = Path(spec)
        if self._note_folder(spec):
            yield from files.walk(path, recursive=self._recursive)
            return
        archive = None
        try:
            found = arrays_of(spec)
            if found is None:
                archive = _archive_of(spec)
        except SourceError as error:
            yield _problem(absolute(spec), str(error))
            return
        except OSError as error:
            yield _problem(absolute(spec), f"cannot be read: {error.strerror}")
            return
        if found is not None:
            yield from found
        elif archive is not None:
            yield archive
        else:
            item = files.one(path)
            if isinstance(item, Problem):
                yield _problem(item.name, missing_array(spec) or item.reason)
            else:
                yield item


def _problem(name: bytes, reason: str) -> Problem:
    """Of a source, which may be any line of a list: what is too long for a path is cut."""
    return Problem(name[:MAX_NAME], shown(reason, 5 * _MAX_SHOWN))


class Query:
    """One image to look up: its name, and its bytes or its canonical row; or a vector."""

    def __init__(
        self,
        name: str,
        data: bytes | None,
        decoded: Decoded | None,
        vector: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self.name = name
        self.data = data  # the file's bytes, for an image file
        self.vector = vector  # (d,), of which there are no pixels
        self._decoded = decoded

    def decode(self, max_bytes: int) -> Decoded:
        """Its pixels; ``ImageError`` if it is not a whole image."""
        if self._decoded is None:
            self._decoded = decode(self.data or b"", max_bytes=max_bytes)
        return self._decoded


def open_images(spec: str, most: int) -> Iterator[Query | Problem]:
    """The images that an IMAGE argument names: one, or all of an array, an archive or a table.

    ``spec`` is a file, ``-`` (bytes on standard input), ``FILE.npy``, ``FILE.npy#ROW``,
    ``FILE.npz#NAME``, ``FILE.npz#NAME#ROW``, ``FILE.tar``,
    ``FILE.tar#MEMBER``, ``FILE.parquet#ROW`` or ``synthetic:bits?seed=S#ROW``; ``most`` is the largest
    file read, in bytes.
    """
    try:
        if spec == "-":
            yield _from_stdin(most)
        elif (archive := _archive_of(spec)) is not None:
            yield from _from_archive(archive, most)
        elif exists(spec) and not is_array(path := Path(spec)):
            item = files.one(path)
            if isinstance(item, FileItem):
                yield Query(spec, item.read(most), None)
            else:
                yield Problem(os.fsencode(spec), item.reason)
        else:
            yield from _rows(spec, most)
    except (ImageError, SourceError, UsageError) as error:
        yield Problem(os.fsencode(spec), str(error))
    except OSError as error:
        yield Problem(os.fsencode(spec), f"cannot be read: {error.strerror or error}")


def _rows(spec: str, most: int) -> Iterator[Query]:
    base, _, row = spec.rpartition("#")
    if spec.startswith(PREFIX):
        if not _is_row(row):
            raise UsageError("name a row: 'synthetic:bits?seed=0#17'")
        yield _from_row(spec, SyntheticBits(base).row(int(row)))
        return
    found = arrays_of(spec)
    if found is not None:  # the whole array
        for array in found:
            if array.row_bytes > most:
                raise SourceError(f"has rows of {array.row_bytes:,} bytes: raise memory=")
            blocks: Iterator[RowBlock] | Iterator[VectorBlock]
            if isinstance(array, NpyVectors):
                blocks = array.vectors(0, 256, 8 << 20)
            else:
                blocks = array.blocks(0, 256, 8 << 20)
            for block in blocks:
                for number, row in enumerate(block.rows, block.first):
                    yield _from_row(f"{os.fsdecode(array.name)}#{number}", row)
        return
    data = _in_archive(spec, most)
    if data is not None:
        yield Query(spec, data, None)
        return
    if not _is_row(row) or not base:
        raise SourceError(missing_array(spec) or "no such file")
    found = arrays_of(base)
    if found is None:
        raise SourceError(missing_array(base) or "no such file")
    if len(found) != 1:
        inside = ", ".join(os.fsdecode(array.name).rpartition("#")[2] for array in found)
        raise SourceError(f"holds several arrays: name one of {inside}, as FILE.npz#NAME#ROW")
    if found[0].row_bytes > most:
        raise SourceError(f"has rows of {found[0].row_bytes:,} bytes: raise memory=")
    yield _from_row(spec, found[0].row(int(row)))


def _from_archive(archive: Archive, most: int) -> Iterator[Query | Problem]:
    """Every image of an archive, and why one cannot be read."""
    try:
        for item in archive.members(0, most):
            if isinstance(item, Member):
                yield Query(os.fsdecode(item.name), item.data, None)
            elif isinstance(item, Problem):
                yield item
    except SourceError as error:
        yield Problem(archive.name, str(error))


def _in_archive(spec: str, most: int) -> bytes | None:
    """The bytes of ``ARCHIVE#MEMBER``, where either may hold a ``#``; None if that is not its form."""
    missing: SourceError | None = None
    at = spec.find("#")
    while at != -1:
        archive = _archive_of(spec[:at])
        if archive is not None:
            try:
                return archive.read(os.fsencode(spec[at + 1 :]), most)
            except SourceError as error:
                missing = missing or error
        at = spec.find("#", at + 1)
    if missing is not None:
        raise missing
    return None


def _from_row(name: str, row: Rows | npt.NDArray[np.float32]) -> Query:
    """A row of an array: canonical pixels, or a vector."""
    if row.dtype == np.float32:
        return Query(name, None, None, row.astype(np.float32))
    pixels = from_canonical(row.data)
    return Query(name, None, Decoded(pixels, "array"))


def _from_stdin(most: int) -> Query:
    data = bytearray()
    while part := sys.stdin.buffer.read(_READ_BYTES):
        data += part
        if len(data) > most:
            raise ImageError(f"more than the limit of {most:,} bytes for this memory=")
    return Query("-", bytes(data), None)


def _check(spec: str) -> None:
    """``UsageError`` if there is no such SOURCE, or it makes no sense."""
    if _is_synthetic(spec):
        SyntheticBits(spec)
        return
    if not exists(spec) and not any(_is_there(one) for one in _expanded(spec)):
        raise UsageError(f"{shown(spec)}: {missing_array(spec) or 'no such file or folder'}")
    with contextlib.suppress(SourceError, OSError):  # damaged: told when its turn comes
        _archive_of(spec)


def _is_there(spec: str) -> bool:
    """Whether there is a file or folder of this name, or one of a name with ``?`` behind it."""
    if exists(spec):
        return True
    array = array_file(spec)
    if array is not None:
        return exists(array[0])
    try:
        return arrays_of(spec) is not None or _archive_of(spec) is not None
    except (SourceError, OSError):
        return True


def _expanded(spec: str) -> Iterator[str]:
    """The names that a pattern stands for, or the one that it is."""
    names = None if exists(spec) else shards.expand(spec)
    return iter([spec]) if names is None else names


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, a null byte
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _is_synthetic(spec: str) -> bool:
    return spec.startswith(PREFIX) and not exists(spec)


def _is_row(text: str) -> bool:
    return text.isdecimal() and len(text) <= 18  # int() refuses thousands of digits


def _archive_of(spec: str) -> Archive | None:
    """The archive or table that ``FILE`` or ``FILE?…`` is; None if it is none."""
    path, query = Path(spec), ""
    at = spec.find("?")
    if at != -1 and exists(spec):
        at = -1
    while at != -1 and not exists(spec[:at]):
        at = spec.find("?", at + 1)
    if at != -1:
        path, query = Path(spec[:at]), spec[at + 1 :]
    if "#" in query:  # a member's; in the name of a column it is written %23
        return None
    if not _is_file(path) or path.suffix.lower() in (*ARRAY_SUFFIXES, *SUFFIXES):
        return None
    if path.name.lower().endswith(PARQUET_SUFFIXES):
        return ParquetTable(path, query)
    if path.name.lower().endswith(".zip"):
        return ZipArchive(path, query)
    if is_named_tar(path) or begins_as_tar(path):
        return TarArchive(path, query)
    with path.open("rb") as file:
        head = file.read(4)
    if head in (b"PK\3\4", b"PK\5\6"):
        return ZipArchive(path, query)
    if head == b"PAR1":
        return ParquetTable(path, query)
    return None
