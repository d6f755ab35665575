"""A table file of RocksDB's with numbers in it that cannot be is damaged; nothing else is raised."""

import struct
from pathlib import Path

import pytest
import xxhash

from engine.storage.rocks import table_structure
from engine.storage.rocks.block_file import XXH3, BlockFile
from engine.storage.rocks.blocks import varint_of
from engine.storage.rocks.sst import TableFile

_PRIME = 0x6B9083D9


def block(*entries: tuple[bytes, bytes], sized: bool = True) -> bytes:
    """A block with a whole key in each entry, and its trailer; entries of an index are not ``sized``."""
    body, restarts = b"", []
    for key, value in entries:
        restarts.append(len(body))
        body += varint_of(0) + varint_of(len(key))
        body += (varint_of(len(value)) if sized else b"") + key + value
    body += struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))
    told = xxhash.xxh3_64_intdigest(body) & 0xFFFFFFFF  # of a block without compression
    return body + b"\0" + struct.pack("<I", told)


def place(offset: int, size: int) -> bytes:
    return varint_of(offset) + varint_of(size)


def table(path: Path, properties: dict[bytes, bytes], part: bytes) -> Path:
    """A table whose properties are these, and whose index of two levels names one ``part``."""
    parts = [
        block(*sorted(properties.items())),
        block((b"key", part), sized=False),
    ]
    ends = [len(parts[0]), len(parts[0]) + len(parts[1])]
    parts.append(block((b"rocksdb.properties", place(0, ends[0] - 5))))
    meta, index = place(ends[1], len(parts[2]) - 5), place(ends[0], len(parts[1]) - 5)
    footer = (bytes((XXH3,)) + meta + index).ljust(41, b"\0")
    footer += struct.pack("<IQ", table_structure.FORMAT_VERSION, 0x88E241B785F4CFF7)
    path.write_bytes(b"".join(parts) + footer)
    return path


@pytest.mark.parametrize("size", [b"", b"\xff", b"\xff" * 12])
def test_a_length_of_the_data_that_is_no_number_is_damage(tmp_path: Path, size: bytes) -> None:
    found = TableFile(table(tmp_path / "1.sst", {b"rocksdb.data.size": size}, place(0, 4)))
    try:
        assert "its properties are damaged" in found.problems
        assert list(found.rows()) == []
    finally:
        found.close()


@pytest.mark.parametrize("offset", [1 << 62, 1 << 63, (1 << 64) - 1])
def test_a_place_that_no_file_has_is_damage(tmp_path: Path, offset: int) -> None:
    path = table(tmp_path / "1.sst", {b"rocksdb.data.size": b"\0"}, place(offset, 4))
    found = TableFile(path)
    try:
        assert any("index" in problem for problem in found.problems)
        assert list(found.rows()) == []
    finally:
        found.close()
    file = BlockFile(path)
    assert file.read(offset, 4) == b""
    file.close()
