"""Reads RocksDB's table files without RocksDB: verifies every block, and gives the rows of whole ones.

RocksDB verifies a block when it reads it, and cannot open a table at all whose footer, properties or
top index are damaged. Here each block stands for itself: what is damaged is named, the rest is read.
Rows come with their sequence numbers, deletions too, so that the newest of several tables can be told.

A table is blocks one behind another: data, then partitions of its filter and of its index, then what
names them, and a footer of 53 bytes. Each block has 5 bytes behind it: its compression and a checksum.
Where the index is damaged, blocks are found by their checksums.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash

from engine.storage.durable import open_regular
from engine.storage.rocks import lz4
from engine.storage.rocks.crc32c import masked

FORMAT_VERSION = 5  # what engine.storage.rocks.database asks RocksDB for
DELETED, PUT = 0, 1
_FOOTER = 53
_TRAILER = 5
_MAGIC = 0x88E241B785F4CFF7
_CRC32C, _XXH3 = 1, 4
_PRIME = 0x6B9083D9
_NO_COMPRESSION, _LZ4 = 0, 4
_TWO_LEVELS = 2
_MAX_BLOCK = 1 << 30  # bytes; a row may be large
_MAX_SEARCHED = 64 << 10  # bytes of a block that is looked for by its checksum
_MAX_META = 1 << 20
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_PROPERTIES = b"rocksdb.properties"
_FILTERS = (b"partitionedfilter.",)


class Handle(NamedTuple):
    """Where a block lies; its trailer follows."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """Where the next block begins."""
        return self.offset + self.size + _TRAILER


class Row(NamedTuple):
    """One version of a row."""

    key: bytes
    sequence: int
    kind: int  # ``PUT`` or ``DELETED``
    value: bytes


class TableFile:
    """One table file; ``problems`` says what of it is damaged."""

    def __init__(self, path: Path) -> None:
        """Read its structure and verify everything but the data blocks. ``OSError``."""
        self.problems: list[str] = []
        self.lost = 0  # pieces that rows may have been in, once all rows were read
        self.blocks: list[Handle] = []  # of data, in order
        self.unknown: list[tuple[int, int]] = []  # bytes of data that no index names blocks in
        self.properties: dict[bytes, bytes] = {}
        self._checksum = _XXH3
        self._last: Row | None = None  # that was read
        self._fd = open_regular(path)
        try:
            self.size = os.fstat(self._fd).st_size
            self._read_structure()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the file back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def family(self) -> bytes | None:
        """The name of the column family that it is of, if that can be told."""
        return self.properties.get(b"rocksdb.column.family.name")

    def verify(self) -> list[str]:
        """Read everything; what is damaged."""
        for handle in self.blocks:
            if self._block(handle) is None:
                self.problems.append(f"the block of rows at byte {handle.offset:,} is damaged")
        return self.problems

    def rows(self) -> Iterator[Row]:
        """The rows of all blocks that can be read, in order; ``problems`` then says what is lost."""
        self._last = None
        gaps = iter([*self.unknown, (self.size, self.size)])
        gap = next(gaps)
        for handle in [*self.blocks, Handle(self.size, 0)]:
            while gap[0] < handle.offset:
                yield from self._rows_between(*gap)
                gap = next(gaps)
            if handle.offset < self.size:
                yield from self._rows_of(handle)

    def _rows_of(self, handle: Handle, *, named: bool = True) -> Iterator[Row]:
        """The rows of a block; one that no index has ``named`` may be something else."""
        data = self._block(handle)
        rows = parse_rows(data) if data is not None else None
        if rows and self._are_next(rows):
            self._last = rows[-1]
            yield from rows
        elif rows is None and (named or data is None):
            self._lose(f"the block of rows at byte {handle.offset:,} is lost")

    def _lose(self, what: str) -> None:
        self.problems.append(what)
        self.lost += 1

    def _are_next(self, rows: list[Row]) -> bool:
        """Whether rows are in order, and follow what came before: else they are none."""
        before = [self._last, *rows] if self._last is not None else rows
        places = [(row.key, -row.sequence) for row in before]
        return all(a < b for a, b in itertools.pairwise(places))

    def _rows_between(self, start: int, end: int) -> Iterator[Row]:
        """The rows of what lies between two bytes, whose index is damaged."""
        while start < end and (found := self._search(start, end)) is not None:
            yield from self._rows_of(found, named=False)
            start = found.end
        later = []
        while start < end and (found := self._search_back(start, end)) is not None:
            later.append(found)
            end = found.offset
        if start < end:
            self._lose(f"bytes {start:,} to {end:,} are lost")
        for handle in reversed(later):
            yield from self._rows_of(handle, named=False)

    # --- structure --------------------------------------------------------------------------------

    def _read_structure(self) -> None:
        meta, index = self._footer()
        known: list[Handle] = []
        if meta is None:
            meta = self._search_back(
                max(0, self.size - _FOOTER - _MAX_SEARCHED), self.size - _FOOTER
            )
        named = self._entries(meta, "the list of its parts", known) if meta is not None else []
        data_end = self._meta_blocks(named, known)
        self._index(index, data_end, known)
        if not self.problems:
            self._require_gapless(sorted([*self.blocks, *known]))

    def _footer(self) -> tuple[Handle | None, Handle | None]:
        """The places of the list of parts and of the index, if the footer is whole."""
        footer = self._read(self.size - _FOOTER, _FOOTER) if self.size >= _FOOTER else b""
        try:
            if len(footer) < _FOOTER:
                raise ValueError
            at, numbers = 1, []
            for _ in range(4):
                number, at = varint(footer, at)
                numbers.append(number)
            checksum = footer[0]
            again = bytes((checksum,)) + b"".join(map(_varint_of, numbers))
            again = again.ljust(41, b"\0") + _U32.pack(FORMAT_VERSION) + _U64.pack(_MAGIC)
            meta, index = Handle(*numbers[:2]), Handle(*numbers[2:])
            if again != footer or checksum not in (_CRC32C, _XXH3):
                raise ValueError
            if max(meta.end, index.end) > self.size - _FOOTER:
                raise ValueError
        except (ValueError, IndexError):
            self.problems.append("its footer is damaged")
            return None, None
        self._checksum = checksum
        return meta, index

    def _meta_blocks(self, named: list[tuple[bytes, Handle]], known: list[Handle]) -> int | None:
        """Read properties and filters; where the data ends, if that is known."""
        for name, handle in named:
            if name.startswith(_FILTERS):
                for _, part in self._entries(handle, "the index of its filter", known, delta=True):
                    known.append(part)
                    if self._block(part, plain=False) is None:
                        self.problems.append(f"its filter at byte {part.offset:,} is damaged")
                continue
            known.append(handle)
            data = self._block(handle)
            if data is None:
                what = name.decode("ascii", "replace")
                self.problems.append(f"its part {what!r} is damaged")
            elif name == _PROPERTIES:
                self.properties = dict(parse_block(data) or ())
        size = self.properties.get(b"rocksdb.data.size")
        if size is None:
            if not self.problems:
                self.problems.append("it has no properties")
            return None
        return min(varint(size, 0)[0], self.size)

    def _index(self, index: Handle | None, data_end: int | None, known: list[Handle]) -> None:
        """Find the data blocks, and the bytes in which the index does not say where they are."""
        parts: list[Handle] | None = None
        if index is not None:
            top = self._block(index)
            known.append(index)
            entries = parse_index(top) if top is not None else None
            if entries is None:
                self.problems.append("its index is damaged")
            elif self._levels() == _TWO_LEVELS:
                parts = [handle for _, handle in entries]
            else:
                self.blocks = [handle for _, handle in entries]
        at = 0
        for handle in parts or ():
            known.append(handle)
            data = self._block(handle)
            entries = parse_index(data) if data is not None else None
            if entries is None:
                self.problems.append(f"its index at byte {handle.offset:,} is damaged")
            else:
                self.blocks += [found for _, found in entries]
        good = []
        for handle in self.blocks:
            if handle.offset < at or handle.end > self.size:
                self.problems.append("its index names blocks that cannot be")
                continue
            if handle.offset > at:
                self.unknown.append((at, handle.offset))
            at = handle.end
            good.append(handle)
        self.blocks = good
        if self.problems:
            # Without properties, what is behind the data is tried too: it is not taken for rows.
            end = data_end if data_end is not None else self._first_of(known)
            if at < end:
                self.unknown.append((at, end))

    def _first_of(self, known: list[Handle]) -> int:
        return min([handle.offset for handle in known], default=self.size - _FOOTER)

    def _levels(self) -> int:
        kind = self.properties.get(b"rocksdb.block.based.table.index.type", _U32.pack(_TWO_LEVELS))
        return int.from_bytes(kind, "little")

    def _entries(
        self, handle: Handle, what: str, known: list[Handle], *, delta: bool = False
    ) -> list[tuple[bytes, Handle]]:
        """What a block names, and where it is."""
        known.append(handle)
        data = self._block(handle)
        found: list[tuple[bytes, Handle]] | None = None
        if data is not None and delta:
            found = parse_index(data)
        elif data is not None:
            try:
                found = [(key, _handle(value)) for key, value in parse_block(data) or ()]
            except (ValueError, IndexError):
                found = None
        if found is None:
            self.problems.append(f"{what} is damaged")
            return []
        return [pair for pair in found if pair[1].end <= self.size]

    def _require_gapless(self, handles: list[Handle]) -> None:
        at = 0
        for handle in handles:
            if handle.offset != at:
                break
            at = handle.end
        if at != self.size - _FOOTER:
            self.problems.append(f"what lies at byte {at:,} is of no part of it")

    # --- blocks -----------------------------------------------------------------------------------

    def _read(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._fd, size, offset)
        except OSError:  # a sector that cannot be read is damaged
            return b""

    def _block(self, handle: Handle, *, plain: bool = True) -> bytes | None:
        """A block's contents if its checksum is right; ``plain``: decompressed."""
        if handle.size > min(_MAX_BLOCK, self.size):
            return None
        data = self._read(handle.offset, handle.size + _TRAILER)
        if len(data) != handle.size + _TRAILER or not self._is_whole(data):
            return None
        kind, body = data[handle.size], data[: handle.size]
        if not plain or kind == _NO_COMPRESSION:
            return body
        try:
            if kind != _LZ4:
                return None
            size, at = varint(body, 0)
            return lz4.decompress(body[at:], size) if size <= _MAX_BLOCK else None
        except (ValueError, IndexError):
            return None

    def _is_whole(self, data: bytes | memoryview) -> bool:
        size = len(data) - _TRAILER
        told: int = _U32.unpack_from(data, size + 1)[0]
        if self._checksum == _CRC32C:
            return masked(bytes(data[: size + 1])) == told
        return _xxh3(data[:size], data[size]) == told

    def _search(self, start: int, end: int) -> Handle | None:
        """The block that begins at ``start``, by its checksum."""
        view = memoryview(self._read(start, min(end - start, _MAX_SEARCHED)))
        for size in range(4, len(view) - _TRAILER + 1):
            if _xxh3(view[:size], view[size]) == _U32.unpack_from(view, size + 1)[0]:
                return Handle(start, size)
        return None

    def _search_back(self, start: int, end: int) -> Handle | None:
        """The block whose trailer ends at ``end``, by its checksum."""
        first = max(start, end - _MAX_SEARCHED)
        view = memoryview(self._read(first, end - first))
        if len(view) <= _TRAILER or len(view) != end - first:
            return None
        size = len(view) - _TRAILER
        kind, told = view[size], _U32.unpack_from(view, size + 1)[0]
        for begin in range(size - 4, -1, -1):
            if _xxh3(view[begin:size], kind) == told:
                return Handle(first + begin, size - begin)
        return None


def _xxh3(data: bytes | memoryview, last: int) -> int:
    return (xxhash.xxh3_64_intdigest(data) & 0xFFFFFFFF) ^ (last * _PRIME & 0xFFFFFFFF)


def parse_rows(data: bytes) -> list[Row] | None:
    """The rows of a data block; None if it is no such block."""
    entries = parse_block(data)
    if entries is None:
        return None
    rows = []
    for key, value in entries:
        if len(key) < 8:
            return None
        packed = int.from_bytes(key[-8:], "little")
        if packed & 0xFF > PUT:
            return None
        rows.append(Row(key[:-8], packed >> 8, packed & 0xFF, value))
    return rows


def parse_block(data: bytes) -> list[tuple[bytes, bytes]] | None:
    """Keys and values of a block; None if it is none."""
    try:
        entries, _ = _entry_bytes(data)
        out, at, key = [], 0, b""
        while at < entries:
            shared, at = varint(data, at)
            rest, at = varint(data, at)
            size, at = varint(data, at)
            if shared > len(key) or at + rest + size > entries:
                return None
            key = key[:shared] + data[at : at + rest]
            at += rest
            out.append((key, data[at : at + size]))
            at += size
    except (ValueError, IndexError):
        return None
    return out


def parse_index(data: bytes) -> list[tuple[bytes, Handle]] | None:
    """Keys and handles of an index block, whose values have no length and may be differences."""
    try:
        entries, restarts = _entry_bytes(data)
        full = set(restarts)
        out: list[tuple[bytes, Handle]] = []
        at, key, handle = 0, b"", Handle(0, 0)
        while at < entries:
            whole = at in full
            shared, at = varint(data, at)
            rest, at = varint(data, at)
            if shared > len(key) or at + rest > entries:
                return None
            key = key[:shared] + data[at : at + rest]
            at += rest
            if whole:
                offset, at = varint(data, at)
                size, at = varint(data, at)
                handle = Handle(offset, size)
            else:
                coded, at = varint(data, at)
                handle = Handle(handle.end, handle.size + ((coded >> 1) ^ -(coded & 1)))
            if handle.size < 0 or at > entries:
                return None
            out.append((key, handle))
    except (ValueError, IndexError):
        return None
    return out


def _entry_bytes(data: bytes) -> tuple[int, list[int]]:
    """Where the entries of a block end, and where its restarts are."""
    if len(data) < 4:
        raise ValueError
    count = _U32.unpack_from(data, len(data) - 4)[0] & 0x7FFFFFFF
    end = len(data) - 4 - 4 * count
    if end < 0 or count > len(data):
        raise ValueError
    return end, list(struct.unpack_from(f"<{count}I", data, end))


def _handle(data: bytes) -> Handle:
    offset, at = varint(data, 0)
    return Handle(offset, varint(data, at)[0])


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at ``at``, 7 bits a byte, and where it ends; ``IndexError``, ``ValueError``."""
    result = shift = 0
    while True:
        byte = data[at]
        at += 1
        result |= (byte & 127) << shift
        if byte < 128:
            return result, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def _varint_of(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
