"""Reads Parquet footers within a memory limit, and finds the columns in them."""

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
# The footer of 1,000 row groups × 10 columns has 2 MB, and takes 14 MB in memory. The limits do not
# depend on memory=, because a footer is read whole before anything else is known.
MAX_FOOTER = 8 << 20  # bytes
_MAX_UNPACKED = 64 << 20  # bytes in memory
_LARGEST_GROWTH = 256  # times; a footer that stays below the limit at this growth is not checked
_MAX_DEPTH = 16

# Measured bytes that pyarrow takes for an element that may be a single byte of the footer.
_OUTER = 1536  # an element of an outermost list: a column, a row group
_INNER = 768  # an element of a list inside these: a column of a row group
_INNERMOST = 96  # an element of a list further inside
_TEXT = 40  # a text, besides its own bytes


def read_footer(file: IO[bytes], size: int) -> bytes:
    """The footer of a file of ``size`` bytes; ``SourceError`` if it is invalid or takes much memory."""
    head = file.read(4)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    if head != _MAGIC or tail[4:] != _MAGIC:
        raise SourceError("is not a Parquet file, or was cut short")
    length = int.from_bytes(tail[:4], "little")
    if length > size - 12:
        raise SourceError(f"is damaged: a footer of {length:,} bytes")
    if length > MAX_FOOTER:
        raise SourceError(f"has a footer of {length:,} bytes: the limit is {MAX_FOOTER:,}")
    file.seek(size - 8 - length)
    data = file.read(length)
    if length * _LARGEST_GROWTH > _MAX_UNPACKED:
        check_footer(data, _MAX_UNPACKED)
    file.seek(0)
    return data


def check_footer(data: bytes, max_bytes: int) -> None:
    """``SourceError`` for an invalid footer, or one that takes more than ``max_bytes`` in memory.

    A footer may take up to 250 times its length, which pyarrow would only find out by reading it.
    """
    try:
        _Footer(data, max_bytes).go_through()
    except IndexError:
        raise SourceError("is damaged: a footer that breaks off") from None


@dataclass(frozen=True, slots=True)
class ColumnChunk:
    """The place of one column of a row group in the file."""

    path: str
    at: int  # offset of its first page
    size: int  # compressed bytes


def row_groups(footer: bytes) -> Iterator[tuple[int, list[ColumnChunk]]]:
    """The number of rows and the columns of each row group, in the order of the schema.

    ``SourceError`` if the footer breaks off.
    """
    try:
        yield from _Groups(footer, 1 << 62).groups()
    except IndexError:
        raise SourceError("is damaged: a footer that breaks off") from None


class _Footer:
    """Adds up the memory that a footer takes."""

    def __init__(self, data: bytes, max_bytes: int) -> None:
        self._data = data
        self._max_bytes = max_bytes
        self._at = 0
        self._taken = 0

    def go_through(self) -> None:
        """Read the whole footer; ``IndexError`` if it breaks off."""
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
        # Booleans in a list take a byte.
        elif kind in (TRUE, FALSE, BYTE):
            self._at += 1
        elif kind == DOUBLE:
            self._at += 8
        else:
            raise SourceError("is damaged: not a valid Parquet footer")

    def _list_head(self) -> tuple[int, int]:
        """The number and the kind of a list's elements."""
        head = self._data[self._at]
        self._at += 1
        count, kind = head >> 4, head & 15
        if count == 15:
            count, self._at = varint(self._data, self._at)
        # Each element takes at least one byte.
        if count > len(self._data) - self._at:
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
                f"has a footer that takes more than {self._max_bytes:,} bytes of memory: write the "
                f"file in fewer, larger row groups"
            )


class _Groups(_Footer):
    """Reads the fields of a footer that locate the pages (parquet.thrift)."""

    def groups(self) -> Iterator[tuple[int, list[ColumnChunk]]]:
        """The row groups, one at a time; ``IndexError`` if the footer breaks off."""
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
        # Fields 7, 9 and 11: the size, the first page and the dictionary page.
        path, numbers = "", {7: 0, 9: 0, 11: 0}
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
        """The number and the kind of each field of a struct; the caller must read its value."""
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
        """A range over the structs of a list; the caller must read each."""
        count, kind = self._list_head()
        if kind != STRUCT and count:
            raise SourceError("is damaged: not a valid Parquet footer")
        return range(count)

    def _pass_by(self, kind: int) -> None:
        if kind not in (TRUE, FALSE):
            self._value(kind, 0, 0)
