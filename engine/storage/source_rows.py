"""Rows of files, arrays, archives and rejects: the state of each source when it was last read."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

from engine.records import Kind
from engine.storage.json_values import MAX_64, loads, members, number, truth
from engine.storage.rows import MAX_IDS, damaged_row

_MAX_ARRAY = (1 << 32) - 1
_MAX_STAMP = 1 << 80  # nanoseconds: some file systems have dates beyond 64 bits
_OF_ARCHIVES = ("done", "images", "rejected", "skipped")
_NAME = struct.Struct(">QqQ")


def file_id(value: bytes) -> int:
    """Return the image that a row of ``files`` names; ``StoreDamagedError`` if it is malformed."""
    # An image's row has 6 bytes for an id.
    if len(value) != 8 or value[:2] != b"\0\0":
        raise damaged_row("files")
    return int.from_bytes(value, "big")


@dataclass(frozen=True, slots=True)
class NameRow:
    """A row of ``names``: the image that a file was when last read, and the file's stamp then."""

    id: int
    mtime_ns: int
    size: int

    def pack(self) -> bytes:
        """Return the row's value."""
        return _NAME.pack(self.id, self.mtime_ns, self.size)

    @classmethod
    def unpack(cls, value: bytes) -> NameRow:
        """Parse a value that ``pack`` wrote; raise ``StoreDamagedError`` if it is malformed."""
        try:
            row = cls(*_NAME.unpack(value))
        except struct.error:
            raise damaged_row("names") from None
        if row.id >= MAX_IDS:
            raise damaged_row("names")
        return row


@dataclass(frozen=True, slots=True)
class ArrayRow:
    """An array source: how far it is committed, and its file's stamp (0 for synthetic sets)."""

    number: int
    mtime_ns: int
    size: int
    rows: int
    kind: Kind
    complete: bool = True  # whether all of its rows are committed
    rejected: int = 0  # how many of these rows are invalid vectors

    def pack(self) -> bytes:
        """Return the row's value."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        # Engines from before imported vectors can then read rows of other arrays.
        if not self.rejected:
            del fields["rejected"]
        return json.dumps(fields | {"kind": int(self.kind)}).encode()

    @classmethod
    def unpack(cls, value: bytes) -> ArrayRow:
        """Parse a value that ``pack`` wrote; raise ``StoreDamagedError`` if it is malformed."""
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
    """An archive or table: how far it is committed, and its file's stamp."""

    mtime_ns: int
    size: int
    done: int = 0  # members from the first on, of any kind
    images: int = 0  # the kinds of these members
    rejected: int = 0
    skipped: int = 0
    complete: bool = False  # whether it was read to its end

    def pack(self) -> bytes:
        """Return the row's value."""
        return json.dumps({n: getattr(self, n) for n in self.__dataclass_fields__}).encode()

    @classmethod
    def unpack(cls, value: bytes) -> ArchiveRow:
        """Parse a value that ``pack`` wrote; raise ``StoreDamagedError`` if it is malformed."""
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
    """Parse the record of a source that could not be read; ``StoreDamagedError`` if it is malformed."""
    try:
        fields = members(loads(value))
        number(fields["mtime_ns"], -_MAX_STAMP, _MAX_STAMP)
        number(fields["size"], -1, MAX_64)
        if type(fields["reason"]) is not str:
            raise ValueError("a reason is text")
    except (ValueError, KeyError):
        raise damaged_row("rejects") from None
    return fields
