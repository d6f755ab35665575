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
from collections.abc import Iterator
from pathlib import Path

from engine.storage.rocks.block_file import BlockFile
from engine.storage.rocks.blocks import Handle, RowVersion, parse_rows
from engine.storage.rocks.table_structure import TableStructure


class TableFile:
    """One table file; ``problems`` says what of it is damaged."""

    def __init__(self, path: Path) -> None:
        """Read its structure and verify everything but the data blocks. ``OSError``."""
        self.lost = 0  # pieces that rows may have been in, once all rows were read
        self._last: RowVersion | None = None  # that was read
        self._file = BlockFile(path)
        try:
            self._structure = TableStructure(self._file)
        except BaseException:
            self.close()
            raise
        self.problems = self._structure.problems

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    @property
    def blocks(self) -> list[Handle]:
        """Where the data blocks are that an index names, in order."""
        return self._structure.blocks

    @property
    def properties(self) -> dict[bytes, bytes]:
        """What RocksDB says of the table, by name; nothing where that is damaged."""
        return self._structure.properties

    @property
    def family(self) -> bytes | None:
        """The name of the column family that it is of, if that can be told."""
        return self.properties.get(b"rocksdb.column.family.name")

    def verify(self) -> list[str]:
        """Read everything; what is damaged."""
        for handle in self.blocks:
            if self._file.block(handle) is None:
                self.problems.append(f"the block of rows at byte {handle.offset:,} is damaged")
        return self.problems

    def rows(self) -> Iterator[RowVersion]:
        """The rows of all blocks that can be read, in order; ``problems`` then says what is lost."""
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
        """The rows of a block; one that no index has ``named`` may be something else."""
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
        """Whether rows are in order, and follow what came before: else they are none."""
        before = [self._last, *rows] if self._last is not None else rows
        places = [(row.key, -row.sequence) for row in before]
        return all(a < b for a, b in itertools.pairwise(places))

    def _rows_between(self, start: int, end: int) -> Iterator[RowVersion]:
        """The rows of what lies between two bytes, whose index is damaged."""
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
