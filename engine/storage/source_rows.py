"""Rows of files, arrays, archives and rejects: what a source was when it was last read."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

from engine.records import Kind
from engine.storage.json_values import MAX_64, loads, members, number, truth
from engine.storage.rows import MAX_IDS, damaged_row

_MAX_ARRAY = (1 << 32) - 1
_MAX_STAMP = 1 << 80  # nanoseconds: file systems have years that 64 bits do not
_OF_ARCHIVES = ("done", "images", "rejected", "skipped")
_NAME = struct.Struct(">QqQ")


def file_id(value: bytes) -> int:
    """The image that a row of ``files`` names; ``StoreDamagedError`` if it is something else."""
    if len(value) != 8 or value[:2] != b"\0\0":  # rows of images have 6 bytes for an id
        raise damaged_row("files")
    return int.from_bytes(value, "big")


@dataclass(frozen=True, slots=True)
class NameRow:
    """One row of ``names``: which image a file was when it was last read, and its stamp then."""

    id: int
    mtime_ns: int
    size: int

    def pack(self) -> bytes:
        """The row's value."""
        return _NAME.pack(self.id, self.mtime_ns, self.size)

    @classmethod
    def unpack(cls, value: bytes) -> NameRow:
        """The row that ``pack`` wrote; ``StoreDamagedError`` if it is something else."""
        try:
            row = cls(*_NAME.unpack(value))
        except struct.error:
            raise damaged_row("names") from None
        if row.id >= MAX_IDS:
            raise damaged_row("names")
        return row


@dataclass(frozen=True, slots=True)
class ArrayRow:
    """One array source: how far it is committed, and its file's stamp (0 for synthetic sets)."""

    number: int
    mtime_ns: int
    size: int
    rows: int
    kind: Kind
    complete: bool = True  # all rows that it has are committed
    rejected: int = 0  # of these, vectors that are none

    def pack(self) -> bytes:
        """The row's value."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if not self.rejected:  # engines that know of no vectors read the others' rows
            del fields["rejected"]
        return json.dumps(fields | {"kind": int(self.kind)}).encode()

    @classmethod
    def unpack(cls, value: bytes) -> ArrayRow:
        """The row that ``pack`` wrote; ``StoreDamagedError`` if it is something else."""
        try:
            fields = members(loads(value))
            return cls(
                number=number(fields["number"], 0, _MAX_ARRAY),
                mtime_ns=number(fields["mtime_ns"], -_MAX_STAMP, _MAX_STAMP),
                size=number(fields["size"], -1, MAX_64),
                rows=number(fields["rows"], 0, MAX_64),
                kind=Kind(number(fields["kind"])),
                complete=truth(fields.get("complete", True)),
                rejected=number(fields.get("rejected", 0), 0, MAX_64),
            )
        except (ValueError, KeyError):
            raise damaged_row("arrays") from None


@dataclass(frozen=True, slots=True)
class ArchiveRow:
    """One archive or table: how far it is committed, and its file's stamp."""

    mtime_ns: int
    size: int
    done: int = 0  # members from the first on, of whatever kind
    images: int = 0  # of these, what they were
    rejected: int = 0
    skipped: int = 0
    complete: bool = False  # read to its end

    def pack(self) -> bytes:
        """The row's value."""
        return json.dumps({n: getattr(self, n) for n in self.__dataclass_fields__}).encode()

    @classmethod
    def unpack(cls, value: bytes) -> ArchiveRow:
        """The row that ``pack`` wrote; ``StoreDamagedError`` if it is something else."""
        try:
            fields = members(loads(value))
            return cls(
                mtime_ns=number(fields["mtime_ns"], -_MAX_STAMP, _MAX_STAMP),
                size=number(fields["size"], -1, MAX_64),
                complete=truth(fields.get("complete", False)),
                **{name: number(fields.get(name, 0), 0, MAX_64) for name in _OF_ARCHIVES},
            )
        except (ValueError, KeyError):
            raise damaged_row("arrays") from None


def reject_in(value: bytes) -> dict[str, Any]:
    """What was recorded of a source that could not be read; ``StoreDamagedError`` if it is nothing."""
    try:
        fields = members(loads(value))
        number(fields["mtime_ns"], -_MAX_STAMP, _MAX_STAMP)
        number(fields["size"], -1, MAX_64)
        if type(fields["reason"]) is not str:
            raise ValueError("a reason is text")
    except (ValueError, KeyError):
        raise damaged_row("rejects") from None
    return fields
