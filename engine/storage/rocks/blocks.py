"""Parses the blocks of RocksDB's table files: rows, keys with values, and indexes."""

from __future__ import annotations

import struct
from typing import NamedTuple

DELETED, PUT = 0, 1
TRAILER = 5  # bytes after a block: its compression and a checksum
_U32 = struct.Struct("<I")


class Handle(NamedTuple):
    """The place of a block, without its trailer."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """Return where the next block begins."""
        return self.offset + self.size + TRAILER


class RowVersion(NamedTuple):
    """One version of a row."""

    key: bytes
    sequence: int
    kind: int  # ``PUT`` or ``DELETED``
    value: bytes


def parse_rows(data: bytes) -> list[RowVersion] | None:
    """Parse a data block; return None if it is malformed."""
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
        rows.append(RowVersion(key[:-8], packed >> 8, packed & 0xFF, value))
    return rows


def parse_block(data: bytes) -> list[tuple[bytes, bytes]] | None:
    """Parse a block into keys and values; return None if it is malformed."""
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
    """Parse an index block; its values have no length and may be differences. None if malformed."""
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
    """Return where the entries of a block end, and the offsets of its restarts."""
    if len(data) < 4:
        raise ValueError
    count = _U32.unpack_from(data, len(data) - 4)[0] & 0x7FFFFFFF
    end = len(data) - 4 - 4 * count
    if end < 0 or count > len(data):
        raise ValueError
    return end, list(struct.unpack_from(f"<{count}I", data, end))


def parse_handle(data: bytes) -> Handle:
    """Parse a handle. Raises ``IndexError``, ``ValueError``."""
    offset, at = varint(data, 0)
    return Handle(offset, varint(data, at)[0])


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at ``at``, 7 bits a byte, and its end; ``IndexError``, ``ValueError``."""
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


def varint_of(number: int) -> bytes:
    """Return the bytes of a number, 7 bits each, as ``varint`` reads them."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
