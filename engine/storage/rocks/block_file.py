"""Reads single blocks of a RocksDB table file, by their place or by their checksum."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import xxhash

from engine.storage.durable import open_regular
from engine.storage.rocks import lz4
from engine.storage.rocks.blocks import TRAILER, Handle, varint
from engine.storage.rocks.crc32c import masked

CRC32C, XXH3 = 1, 4
MAX_SEARCHED = 64 << 10  # bytes of a block that is found by its checksum
_PRIME = 0x6B9083D9
_NO_COMPRESSION, _LZ4 = 0, 4
_MAX_BLOCK = 1 << 30  # bytes; a row may be large
_U32 = struct.Struct("<I")


class BlockFile:
    """An open table file, seen as its blocks."""

    def __init__(self, path: Path) -> None:
        """Open ``path``. Raises ``OSError``."""
        self.checksum = XXH3  # the kind of the blocks' checksums
        self._fd = open_regular(path)
        self.size = os.fstat(self._fd).st_size

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the file; fewer, or none, if they cannot be read."""
        try:
            return os.pread(self._fd, size, offset)
        # A bad sector, or an impossible place.
        except (OSError, OverflowError):
            return b""

    def block(self, handle: Handle, *, plain: bool = True) -> bytes | None:
        """Return a block's contents, None if its checksum is wrong; ``plain``: decompressed."""
        if handle.size > min(_MAX_BLOCK, self.size):
            return None
        data = self.read(handle.offset, handle.size + TRAILER)
        if len(data) != handle.size + TRAILER or not self._is_whole(data):
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
        size = len(data) - TRAILER
        stored: int = _U32.unpack_from(data, size + 1)[0]
        if self.checksum == CRC32C:
            return masked(bytes(data[: size + 1])) == stored
        return _xxh3(data[:size], data[size]) == stored

    def search(self, start: int, end: int) -> Handle | None:
        """Find the block that begins at ``start``, by its checksum."""
        view = memoryview(self.read(start, min(end - start, MAX_SEARCHED)))
        for size in range(4, len(view) - TRAILER + 1):
            if _xxh3(view[:size], view[size]) == _U32.unpack_from(view, size + 1)[0]:
                return Handle(start, size)
        return None

    def search_back(self, start: int, end: int) -> Handle | None:
        """Find the block whose trailer ends at ``end``, by its checksum."""
        first = max(start, end - MAX_SEARCHED)
        view = memoryview(self.read(first, end - first))
        if len(view) <= TRAILER or len(view) != end - first:
            return None
        size = len(view) - TRAILER
        kind, stored = view[size], _U32.unpack_from(view, size + 1)[0]
        for begin in range(size - 4, -1, -1):
            if _xxh3(view[begin:size], kind) == stored:
                return Handle(first + begin, size - begin)
        return None


def _xxh3(data: bytes | memoryview, last: int) -> int:
    return (xxhash.xxh3_64_intdigest(data) & 0xFFFFFFFF) ^ (last * _PRIME & 0xFFFFFFFF)
