"""Parquet footers: read within a bound of memory, and where they say that columns are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from engine.errors import SourceError
from engine.sources.parquet_thrift import (
    BINARY,
    BYTE,
    DOUBLE,
    FALSE,
    I16,
    I32,
    I64,
    LIST,
    SET,
    STRUCT,
    TRUE,
    varint,
    zigzag,
)

_MAGIC = b"PAR1"
# Of 1,000 row groups × 10 columns it is 2 MB, and takes 14 MB to read: bounds that hold whatever the
# memory=, as a footer is read whole before anything else is known.
MAX_FOOTER = 8 << 20  # bytes
_MAX_UNPACKED = 64 << 20  # bytes that it takes once it is read
_LARGEST_GROWTH = 256  # times: what is shorter need not be gone through
_MAX_DEPTH = 16

# Bytes that pyarrow takes for what may be as little as one byte of a footer, as measured.
_OUTER = 1536  # for an element of the outermost lists: a column, a row group
_INNER = 768  # for one of the lists in these: a column of a row group
_INNERMOST = 96  # for one of the lists further inside
_TEXT = 40  # and its own bytes


def read_footer(file: IO[bytes], size: int) -> bytes:
    """The footer of a file of ``size`` bytes; ``SourceError`` if it takes too much memory or is none."""
    head = file.read(4)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    if head != _MAGIC or tail[4:] != _MAGIC:
        raise SourceError("is not a Parquet file, or was cut short")
    length = int.from_bytes(tail[:4], "little")
    if length > size - 12:
        raise SourceError(f"is damaged: a footer of {length:,} bytes")
    if length > MAX_FOOTER:
        raise SourceError(f"has a footer of {length:,} bytes: {MAX_FOOTER:,} are the limit")
    file.seek(size - 8 - length)
    data = file.read(length)
    if length * _LARGEST_GROWTH > _MAX_UNPACKED:
        check_footer(data, _MAX_UNPACKED)
    file.seek(0)
    return data


def check_footer(data: bytes, max_bytes: int) -> None:
    """``SourceError`` for a footer that takes more than ``max_bytes`` once it is read, or is none.

    It takes up to 250 times its length, which pyarrow would find out by reading it.
    """
    try:
        _Footer(data, max_bytes).go_through()
    except IndexError:
        raise SourceError("is damaged: a footer that breaks off") from None


@dataclass(frozen=True, slots=True)
class ColumnChunk:
    """Where one column of a row group is in the file."""

    path: str
    at: int  # of its first page
    size: int  # bytes, packed


def row_groups(footer: bytes) -> Iterator[tuple[int, list[ColumnChunk]]]:
    """The number of rows of each row group, and its columns in the order of the schema.

    ``SourceError`` where the footer breaks off.
    """
    try:
        yield from _Groups(footer, 1 << 62).groups()
    except IndexError:
        raise SourceError("is damaged: a footer that breaks off") from None


class _Footer:
    """Adds up what a footer takes in memory."""

    def __init__(self, data: bytes, max_bytes: int) -> None:
        self._data = data
        self._max_bytes = max_bytes
        self._at = 0
        self._taken = 0

    def go_through(self) -> None:
        """Read all of it; ``IndexError`` if it breaks off."""
        self._struct(0, 0)

    def _struct(self, depth: int, lists: int) -> None:
        if depth > _MAX_DEPTH:
            raise SourceError("is damaged: not a valid Parquet footer")
        data = self._data
        while head := data[self._at]:
            self._at += 1
            if not head >> 4:
                self._number()
            if head & 15 not in (TRUE, FALSE):
                self._value(head & 15, depth, lists)
        self._at += 1

    def _value(self, kind: int, depth: int, lists: int) -> None:
        if kind in (I16, I32, I64):
            self._number()
        elif kind == BINARY:
            length, at = varint(self._data, self._at)
            self._at = at + length
            self._take(_TEXT + length)
        elif kind == STRUCT:
            self._struct(depth + 1, lists)
        elif kind in (LIST, SET):
            self._list(depth, lists)
        elif kind in (TRUE, FALSE, BYTE):  # in a list
            self._at += 1
        elif kind == DOUBLE:
            self._at += 8
        else:
            raise SourceError("is damaged: not a valid Parquet footer")

    def _list_head(self) -> tuple[int, int]:
        """How many elements a list has, and of which kind."""
        head = self._data[self._at]
        self._at += 1
        count, kind = head >> 4, head & 15
        if count == 15:
            count, self._at = varint(self._data, self._at)
        if count > len(self._data) - self._at:  # each takes a byte at least
            raise IndexError
        return count, kind

    def _list(self, depth: int, lists: int) -> None:
        count, kind = self._list_head()
        if kind == STRUCT:
            self._take(count * (_OUTER, _INNER, _INNERMOST)[min(lists, 2)])
        else:
            self._take(count * 8)
        for _ in range(count):
            self._value(kind, depth + 1, lists + 1)

    def _number(self) -> None:
        data, at = self._data, self._at
        while data[at] & 0x80:
            at += 1
        self._at = at + 1

    def _take(self, count: int) -> None:
        self._taken += count
        if self._taken > self._max_bytes:
            raise SourceError(
                f"has a footer that takes more than {self._max_bytes:,} bytes: write it in fewer or "
                f"larger row groups"
            )


class _Groups(_Footer):
    """Picks out of a footer what is needed to find the pages (parquet.thrift)."""

    def groups(self) -> Iterator[tuple[int, list[ColumnChunk]]]:
        """The row groups, one at a time; ``IndexError`` if it breaks off."""
        for number, kind in self._fields():
            if (number, kind) == (4, LIST):
                for _ in self._structs():
                    yield self._group()
            else:
                self._pass_by(kind)

    def _group(self) -> tuple[int, list[ColumnChunk]]:
        rows, chunks = 0, list[ColumnChunk]()
        for number, kind in self._fields():
            if (number, kind) == (1, LIST):
                chunks = [self._column() for _ in self._structs()]
            elif (number, kind) == (3, I64):
                rows, self._at = zigzag(self._data, self._at)
            else:
                self._pass_by(kind)
        return rows, chunks

    def _column(self) -> ColumnChunk:
        found = ColumnChunk("", 0, 0)
        for number, kind in self._fields():
            if (number, kind) == (3, STRUCT):
                found = self._chunk()
            else:
                self._pass_by(kind)
        return found

    def _chunk(self) -> ColumnChunk:
        path, numbers = "", {7: 0, 9: 0, 11: 0}  # its size, its first page, its dictionary
        for number, kind in self._fields():
            if (number, kind) == (3, LIST):
                path = self._path()
            elif number in numbers and kind == I64:
                numbers[number], self._at = zigzag(self._data, self._at)
            else:
                self._pass_by(kind)
        size, first, dictionary = numbers.values()
        if min(first, size, dictionary) < 0:
            raise SourceError("is damaged: not a valid Parquet footer")
        return ColumnChunk(path, min(first, dictionary) if dictionary else first, size)

    def _path(self) -> str:
        count, kind = self._list_head()
        parts = []
        for _ in range(count):
            if kind != BINARY:
                raise SourceError("is damaged: not a valid Parquet footer")
            length, at = varint(self._data, self._at)
            if at + length > len(self._data):
                raise IndexError
            parts.append(self._data[at : at + length].decode(errors="replace"))
            self._at = at + length
        return ".".join(parts)

    def _fields(self) -> Iterator[tuple[int, int]]:
        """The number and the kind of each field of a struct; whoever asks reads its value."""
        number = 0
        while head := self._data[self._at]:
            self._at += 1
            if head >> 4:
                number += head >> 4
            else:
                number, self._at = zigzag(self._data, self._at)
            yield number, head & 15
        self._at += 1

    def _structs(self) -> range:
        """For each struct of a list, which whoever asks reads."""
        count, kind = self._list_head()
        if kind != STRUCT and count:
            raise SourceError("is damaged: not a valid Parquet footer")
        return range(count)

    def _pass_by(self, kind: int) -> None:
        if kind not in (TRUE, FALSE):
            self._value(kind, 0, 0)
