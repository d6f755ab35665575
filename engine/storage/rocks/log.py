"""Reads RocksDB's logs without RocksDB: its MANIFEST, and the write-ahead log.

Both are records in blocks of 32 KiB, each with a CRC. A damaged record is skipped, and the ones after it
are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engine.storage.durable import open_regular
from engine.storage.rocks.blocks import DELETED, PUT, RowVersion, varint
from engine.storage.rocks.crc32c import masked

_BLOCK = 32 << 10
_HEADER = 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_MAX_LOG = 4 << 30  # bytes of one log
# Set in a tag whose data can be skipped, since it begins with its length.
_IGNORABLE = 1 << 13
_NUMBERS = frozenset({2, 3, 4, 9, 10, 203, 300})  # tags followed by one number
_NEEDED = frozenset({2, 3, 4})  # the log, the next file and the last sequence number
_END = 1  # ends the fields of a new file


@dataclass(slots=True)
class Records:
    """The records of a log, read one after another on demand."""

    path: Path
    damaged: bool = False  # whether a record is damaged
    torn: bool = False  # whether the last record is incomplete, as after a crash

    def __iter__(self) -> Iterator[bytes]:
        """Yield the undamaged records, in order. Raises ``OSError``."""
        fd = open_regular(self.path)
        try:
            size = min(os.fstat(fd).st_size, _MAX_LOG)
            yield from self._records(fd, size)
        finally:
            os.close(fd)

    def _records(self, fd: int, size: int) -> Iterator[bytes]:
        parts: list[bytes] | None = None
        for kind, data in self._fragments(fd, size):
            if kind in (_FULL, _FIRST):
                self.damaged |= parts is not None
                parts = [data]
            elif parts is None:
                self.damaged = True
                continue
            else:
                parts.append(data)
            if kind in (_FULL, _LAST):
                yield b"".join(parts)
                parts = None
        self.torn |= parts is not None

    def _fragments(self, fd: int, size: int) -> Iterator[tuple[int, bytes]]:
        """Yield type and contents of each undamaged part of a record."""
        for start in range(0, size, _BLOCK):
            block = os.pread(fd, min(_BLOCK, size - start), start)
            at, last = 0, start + len(block) >= size
            while at + _HEADER <= len(block):
                length = int.from_bytes(block[at + 4 : at + 6], "little")
                kind, end = block[at + 6], at + _HEADER + length
                if not any(block[at:]):
                    # Preallocated and never written.
                    break
                if end > len(block):
                    self.torn |= last
                    self.damaged |= not last
                    break
                stored = int.from_bytes(block[at : at + 4], "little")
                if not _FULL <= kind <= _LAST or masked(block[at + 6 : end]) != stored:
                    self.damaged = True
                else:
                    yield kind, block[at + _HEADER : end]
                at = end
            else:
                self.torn |= last and any(block[at:])


@dataclass(slots=True)
class Versions:
    """The content of a MANIFEST: the live tables, and the first log with data that they lack."""

    live: dict[int, int] = field(default_factory=dict)  # number of a table → its column family
    families: dict[int, bytes] = field(default_factory=dict)  # id → name
    logs: dict[int, int] = field(default_factory=dict)  # column family → its first relevant log
    said: set[int] = field(default_factory=set)  # tags of the numbers in it
    damaged: bool = False
    torn: bool = False

    @property
    def whole(self) -> bool:
        """Return whether it is undamaged and has everything that RocksDB needs."""
        return not self.damaged and self.said >= _NEEDED


def versions(path: Path) -> Versions:
    """Read a MANIFEST. Raises ``OSError``."""
    found = Versions(families={0: b"default"})
    records = Records(path)
    for record in records:
        try:
            _edit(record, found)
        except (ValueError, IndexError):
            found.damaged = True
    found.damaged |= records.damaged
    found.torn = records.torn
    return found


def _edit(data: bytes, found: Versions) -> None:
    at, family, log = 0, 0, None
    added: list[int] = []
    deleted: list[int] = []
    name: bytes | None = None
    while at < len(data):
        tag, at = varint(data, at)
        if tag == 200:
            family, at = varint(data, at)
        elif tag == 2:
            log, at = varint(data, at)
            found.said.add(tag)
        elif tag in _NUMBERS:
            _, at = varint(data, at)
            found.said.add(tag)
        elif tag == 201:
            name, at = _slice(data, at)
        elif tag == 1 or tag & _IGNORABLE:
            _, at = _slice(data, at)
        elif tag == 202:
            found.families.pop(family, None)
        elif tag == 5:
            _, at = varint(data, at)
            _, at = _slice(data, at)
        elif tag == 6:
            _, at = varint(data, at)
            number, at = varint(data, at)
            deleted.append(number)
        elif tag in (7, 100, 102, 103):
            number, at = _new_file(data, at, tag)
            added.append(number)
        else:
            raise ValueError(f"an unknown tag {tag}")
    if name is not None:
        found.families[family] = name
    if log is not None:
        found.logs[family] = max(log, found.logs.get(family, 0))
    for number in deleted:
        found.live.pop(number, None)
    for number in added:
        found.live[number] = family


def _new_file(data: bytes, at: int, tag: int) -> tuple[int, int]:
    _, at = varint(data, at)  # level
    number, at = varint(data, at)
    if tag == 102:
        _, at = varint(data, at)  # path
    _, at = varint(data, at)  # size
    for _ in range(2):
        _, at = _slice(data, at)
    if tag == 7:
        return number, at
    for _ in range(2):
        _, at = varint(data, at)
    while tag == 103:
        field_, at = varint(data, at)
        if field_ == _END:
            break
        _, at = _slice(data, at)
    return number, at


def batch_rows(record: bytes) -> Iterator[tuple[int, RowVersion]]:
    """Yield column family and row of each change in a write-ahead log's batch. ``ValueError``."""
    if len(record) < 12:
        raise ValueError("a batch is cut short")
    sequence, at = int.from_bytes(record[:8], "little"), 12
    while at < len(record):
        tag, at = record[at], at + 1
        family = 0
        if tag == 0x0D:  # no operation
            continue
        if tag == 0x03:  # log data, which only readers of logs use
            _, at = _slice(record, at)
            continue
        if tag in (0x04, 0x05):
            family, at = varint(record, at)
        elif tag not in (DELETED, PUT):
            raise ValueError(f"an unknown change {tag}")
        key, at = _slice(record, at)
        value = b""
        if tag in (PUT, 0x05):
            value, at = _slice(record, at)
        yield family, RowVersion(key, sequence, PUT if tag in (PUT, 0x05) else DELETED, value)
        sequence += 1


def _slice(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = varint(data, at)
    if at + size > len(data):
        raise IndexError
    return data[at : at + size], at + size
