"""Reads the structure of a RocksDB table file: footer, properties, filters and indexes.

It names damaged parts. If the index is damaged, it reports the byte ranges whose blocks no index names.
"""

from __future__ import annotations

import struct

from engine.storage.rocks.block_file import CRC32C, MAX_SEARCHED, XXH3, BlockFile
from engine.storage.rocks.blocks import (
    Handle,
    parse_block,
    parse_handle,
    parse_index,
    varint,
    varint_of,
)

FORMAT_VERSION = 5  # as engine.storage.rocks.options sets it
_FOOTER = 53
_MAGIC = 0x88E241B785F4CFF7
_TWO_LEVELS = 2
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_PROPERTIES = b"rocksdb.properties"
_FILTERS = (b"partitionedfilter.",)


class TableStructure:
    """The places of a table file's blocks. Everything but the data blocks is verified."""

    def __init__(self, file: BlockFile) -> None:
        self._file = file
        # Damaged parts, in words.
        self.problems: list[str] = []
        # Data blocks, in order.
        self.blocks: list[Handle] = []
        # Byte ranges of data in which no index names the blocks.
        self.unknown: list[tuple[int, int]] = []
        self.properties: dict[bytes, bytes] = {}
        self._read_all()

    def _read_all(self) -> None:
        meta, index = self._footer()
        known: list[Handle] = []
        if meta is None:
            meta = self._file.search_back(
                max(0, self._file.size - _FOOTER - MAX_SEARCHED), self._file.size - _FOOTER
            )
        named = self._entries(meta, "the list of its parts", known) if meta is not None else []
        data_end = self._meta_blocks(named, known)
        self._index(index, data_end, known)
        if not self.problems:
            self._require_gapless(sorted([*self.blocks, *known]))

    def _footer(self) -> tuple[Handle | None, Handle | None]:
        """Return the places of the list of parts and of the index, or None if the footer is damaged."""
        footer = (
            self._file.read(self._file.size - _FOOTER, _FOOTER)
            if self._file.size >= _FOOTER
            else b""
        )
        try:
            if len(footer) < _FOOTER:
                raise ValueError
            at, numbers = 1, []
            for _ in range(4):
                number, at = varint(footer, at)
                numbers.append(number)
            checksum = footer[0]
            again = bytes((checksum,)) + b"".join(map(varint_of, numbers))
            again = again.ljust(41, b"\0") + _U32.pack(FORMAT_VERSION) + _U64.pack(_MAGIC)
            meta, index = Handle(*numbers[:2]), Handle(*numbers[2:])
            if again != footer or checksum not in (CRC32C, XXH3):
                raise ValueError
            if max(meta.end, index.end) > self._file.size - _FOOTER:
                raise ValueError
        except (ValueError, IndexError):
            self.problems.append("its footer is damaged")
            return None, None
        self._file.checksum = checksum
        return meta, index

    def _meta_blocks(self, named: list[tuple[bytes, Handle]], known: list[Handle]) -> int | None:
        """Read properties and filters; return where the data ends, or None if that is unknown."""
        for name, handle in named:
            if name.startswith(_FILTERS):
                for _, part in self._entries(handle, "the index of its filter", known, delta=True):
                    known.append(part)
                    if self._file.block(part, plain=False) is None:
                        self.problems.append(f"its filter at byte {part.offset:,} is damaged")
                continue
            known.append(handle)
            data = self._file.block(handle)
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
        try:
            return min(varint(size, 0)[0], self._file.size)
        except (ValueError, IndexError):
            self.problems.append("its properties are damaged")
            return None

    def _index(self, index: Handle | None, data_end: int | None, known: list[Handle]) -> None:
        """Find the data blocks, and the byte ranges that the damaged index does not describe."""
        parts: list[Handle] | None = None
        if index is not None:
            top = self._file.block(index)
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
            data = self._file.block(handle)
            entries = parse_index(data) if data is not None else None
            if entries is None:
                self.problems.append(f"its index at byte {handle.offset:,} is damaged")
            else:
                self.blocks += [found for _, found in entries]
        good = []
        for handle in self.blocks:
            if handle.offset < at or handle.end > self._file.size:
                self.problems.append("its index names impossible blocks")
                continue
            if handle.offset > at:
                self.unknown.append((at, handle.offset))
            at = handle.end
            good.append(handle)
        self.blocks = good
        if self.problems:
            # Without properties, bytes after the data are searched too, but not taken for rows.
            end = data_end if data_end is not None else self._first_of(known)
            if at < end:
                self.unknown.append((at, end))

    def _first_of(self, known: list[Handle]) -> int:
        return min([handle.offset for handle in known], default=self._file.size - _FOOTER)

    def _levels(self) -> int:
        kind = self.properties.get(b"rocksdb.block.based.table.index.type", _U32.pack(_TWO_LEVELS))
        return int.from_bytes(kind, "little")

    def _entries(
        self, handle: Handle, what: str, known: list[Handle], *, delta: bool = False
    ) -> list[tuple[bytes, Handle]]:
        """Return the names and places in a block."""
        known.append(handle)
        data = self._file.block(handle)
        found: list[tuple[bytes, Handle]] | None = None
        if data is not None and delta:
            found = parse_index(data)
        elif data is not None:
            try:
                found = [(key, parse_handle(value)) for key, value in parse_block(data) or ()]
            except (ValueError, IndexError):
                found = None
        if found is None:
            self.problems.append(f"{what} is damaged")
            return []
        return [pair for pair in found if pair[1].end <= self._file.size]

    def _require_gapless(self, handles: list[Handle]) -> None:
        at = 0
        for handle in handles:
            if handle.offset != at:
                break
            at = handle.end
        if at != self._file.size - _FOOTER:
            self.problems.append(f"the bytes at {at:,} belong to no part of it")
