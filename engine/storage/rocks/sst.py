"""Reads RocksDB's table files without RocksDB: verifies every block, and yields the readable rows.

RocksDB verifies a block when it reads it. It cannot open a table at all if the footer, the properties or
the top index are damaged. This module handles each block by itself: it names damaged ones and reads the
rest. Rows come with their sequence numbers, deletions included, so that the newest version can be found
among several tables.

A table is a series of blocks: data, then partitions of its filter and of its index, then the blocks that
name them, and a footer of 53 bytes. Each block is followed by 5 bytes: its compression and a checksum.
If the index is damaged, blocks are found by their checksums.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from engine.storage.rocks.block_file import BlockFile
from engine.storage.rocks.blocks import Handle, RowVersion, parse_rows
from engine.storage.rocks.table_structure import TableStructure


class TableFile:
    """One table file; ``problems`` names its damaged parts."""

    def __init__(self, path: Path) -> None:
        """Read its structure and verify everything but the data blocks. Raises ``OSError``."""
        # Damaged pieces that may have had rows; complete once all rows were read.
        self.lost = 0
        # The row that was read last.
        self._last: RowVersion | None = None
        self._file = BlockFile(path)
        try:
            self._structure = TableStructure(self._file)
        except BaseException:
            self.close()
            raise
        self.problems = self._structure.problems

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def blocks(self) -> list[Handle]:
        """Return the places of the data blocks that an index names, in order."""
        return self._structure.blocks

    @property
    def properties(self) -> dict[bytes, bytes]:
        """Return RocksDB's properties of the table, by name; empty if they are damaged."""
        return self._structure.properties

    @property
    def family(self) -> bytes | None:
        """Return the name of the table's column family, or None if that is lost."""
        return self.properties.get(b"rocksdb.column.family.name")

    def verify(self) -> list[str]:
        """Read everything; return what is damaged."""
        for handle in self.blocks:
            if self._file.block(handle) is None:
                self.problems.append(f"the block of rows at byte {handle.offset:,} is damaged")
        return self.problems

    def rows(self) -> Iterator[RowVersion]:
        """Yield the rows of all readable blocks, in order; ``problems`` then names the lost ones."""
        self._last = None
        gaps = iter([*self._structure.unknown, (self._file.size, self._file.size)])
        gap = next(gaps)
        for handle in [*self.blocks, Handle(self._file.size, 0)]:
            while gap[0] < handle.offset:
                yield from self._rows_between(*gap)
                gap = next(gaps)
            if handle.offset < self._file.size:
                yield from self._rows_of(handle)

    def _rows_of(self, handle: Handle, *, named: bool = True) -> Iterator[RowVersion]:
        """Yield the rows of a block; a block that is not ``named`` by an index may not have rows."""
        data = self._file.block(handle)
        rows = parse_rows(data) if data is not None else None
        if rows and self._are_next(rows):
            self._last = rows[-1]
            yield from rows
        elif rows is None and (named or data is None):
            self._lose(f"the block of rows at byte {handle.offset:,} is lost")

    def _lose(self, what: str) -> None:
        self.problems.append(what)
        self.lost += 1

    def _are_next(self, rows: list[RowVersion]) -> bool:
        """Return whether rows are sorted and follow the last row; otherwise they are not rows."""
        before = [self._last, *rows] if self._last is not None else rows
        places = [(row.key, -row.sequence) for row in before]
        return all(a < b for a, b in itertools.pairwise(places))

    def _rows_between(self, start: int, end: int) -> Iterator[RowVersion]:
        """Yield the rows between two bytes whose index is damaged."""
        while start < end and (found := self._file.search(start, end)) is not None:
            yield from self._rows_of(found, named=False)
            start = found.end
        later = []
        while start < end and (found := self._file.search_back(start, end)) is not None:
            later.append(found)
            end = found.offset
        if start < end:
            self._lose(f"bytes {start:,} to {end:,} are lost")
        for handle in reversed(later):
            yield from self._rows_of(handle, named=False)
