"""Reads tar archives header by header in constant memory: v7, ustar, GNU and pax (POSIX 1003.1-2001).

Python's tarfile is not used. It reads names and extended headers of any size into memory, and a
compressed archive of a few megabytes can hold gigabytes of them. It also keeps every member in memory,
and takes more than twice as long per member.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from engine.errors import SourceError
from engine.sources.skip_notes import DEVICES, HARD_LINKS, LINKS, PIECES

BLOCK = 512
_MAX_HEADER = 1 << 20  # bytes of a long name or of a pax header
_MAX_SIZE = 1 << 62
_SKIP_BYTES = 1 << 20
_MAX_ZEROS = 64 << 20  # zero bytes between archives that are skipped at most
_WITHOUT_DATA = frozenset(b"123456")  # links, devices, folders and pipes, whose size is ignored
_LONG_NAME, _LONG_LINK, _PAX, _PAX_SOLARIS, _PAX_GLOBAL, _SPARSE = b"LKxXgS"
_HARD_LINK = ord("1")
# Folders, and also volume labels and folder listings, which hold nothing to read.
_FOLDERS = frozenset(b"5VD")
_NOTES = {
    _HARD_LINK: HARD_LINKS,
    ord("2"): LINKS,
    **dict.fromkeys(b"346", DEVICES),
    ord("M"): PIECES,
}
_ZEROS = bytes(BLOCK)
_DIGITS = re.compile(rb"[0-9]{1,18}")


@dataclass(slots=True)
class TarEntry:
    """One member of an archive that is not a folder: a file, or what ``note`` says."""

    name: bytes  # as in the archive; only a name, never a place on disk
    size: int  # bytes
    sparse: bool = False  # whether the stored bytes are not the file itself
    note: str = ""  # what it is, if it is not a file
    link: bytes = b""  # the member that a hard link points to
    begins: bool = False  # whether it is the first member of a further archive in the file


@dataclass(slots=True)
class _Extended:
    """Values that extended headers set for the next member."""

    name: bytes | None = None
    link: bytes | None = None
    size: int | None = None
    sparse: bool = False


class TarReader:
    """Reads an archive once. ``SourceError`` if it is not a tar archive, or breaks off."""

    def __init__(self, file: IO[bytes], *, seekable: bool) -> None:
        """``seekable``: bytes that are not needed may be skipped by seeking."""
        self._file = file
        self._seekable = seekable
        self._left = 0  # unread bytes of the entry
        self._padding = 0
        self._seen = 0  # members of any kind
        self.remains = False  # whether data that is not a tar archive follows

    def __iter__(self) -> Iterator[TarEntry]:
        """Yield the members but folders, in order; ``read`` returns the bytes of the last one.

        Concatenated archives are read as one, as GNU tar does with ``--ignore-zeros``.
        """
        extended = _Extended()
        begins = False
        while True:
            self._skip()
            block = self._file.read(BLOCK)
            if block == _ZEROS:
                block = self._next_archive()
                if not block:
                    return
                extended, begins = _Extended(), True
            if len(block) < BLOCK:
                raise self._cut()
            kind = block[156]
            size = self._size(block)
            if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_SOLARIS):
                data = self._header(size)
                if kind == _LONG_NAME:
                    extended.name = data.partition(b"\0")[0]
                elif kind == _LONG_LINK:
                    extended.link = data.partition(b"\0")[0]
                else:
                    self._read_pax(data, extended)
                continue
            # A global header holds nothing that is needed of a member.
            if kind == _PAX_GLOBAL:
                self._expect(size)
                continue
            name, known = extended.name, extended
            link = known.link
            if link is None:
                link = block[157:257].partition(b"\0")[0]
            if name is None:
                name = _name(block)
            if known.size is not None:
                size = known.size
            extended = _Extended()
            if kind in _WITHOUT_DATA:
                size = 0
            elif kind == _SPARSE:
                self._skip_map(block)
            self._seen += 1
            self._expect(size)
            folder = kind in (0, ord("0")) and name.endswith(b"/")
            if kind not in _FOLDERS and not folder:
                sparse = known.sparse or kind == _SPARSE
                yield TarEntry(name, size, sparse, _NOTES.get(kind, ""), link, begins)
                begins = False

    def read(self, max_bytes: int) -> bytes:
        """Read up to ``max_bytes`` more bytes of the last file; fewer only at its end."""
        want = min(max_bytes, self._left)
        data = self._file.read(want)
        self._left -= len(data)
        if len(data) < want:
            raise self._cut(self._seen - 1)
        return data

    def _size(self, block: bytes) -> int:
        """The size in a header; ``SourceError`` if the block is not a header."""
        try:
            size = _number(block[124:136]) if _is_header(block) else -1
        except ValueError:
            size = -1
        if 0 <= size <= _MAX_SIZE:
            return size
        if self._seen:
            raise SourceError(f"is damaged after member {self._seen}: a header is missing")
        raise SourceError("is not a tar archive")

    def _header(self, size: int) -> bytes:
        if size > _MAX_HEADER:
            raise SourceError(
                f"is damaged after member {self._seen}: a header of {size:,} bytes is over the limit "
                f"of {_MAX_HEADER:,}"
            )
        self._expect(size)
        data = self._file.read(size)
        self._left -= len(data)
        if self._left:
            raise self._cut()
        return data

    def _read_pax(self, data: bytes, extended: _Extended) -> None:
        """Read the needed keys of records of the form ``b"LENGTH KEY=VALUE\\n"``."""
        at, real = 0, None
        while at < len(data) and data[at]:
            space = data.find(b" ", at, at + 20)
            length = int(data[at:space]) if _DIGITS.fullmatch(data, at, max(space, at)) else 0
            end = at + length
            if space < 0 or not space + 1 < end <= len(data):
                raise SourceError(f"is damaged after member {self._seen}: a broken extended header")
            key, _, value = data[space + 1 : end - 1].partition(b"=")
            if key == b"path":
                extended.name = value
            elif key == b"linkpath":
                extended.link = value
            elif key == b"size" and _DIGITS.fullmatch(value):
                extended.size = int(value)
            elif key.startswith(b"GNU.sparse."):
                extended.sparse = True
                real = value if key == b"GNU.sparse.name" else real
            at = end
        # GNU tar writes a made-up path beside this one.
        if real is not None:
            extended.name = real

    def _skip_map(self, block: bytes) -> None:
        """Skip the map after the header of a GNU sparse file."""
        more = block[482]
        while more:
            block = self._file.read(BLOCK)
            if len(block) < BLOCK:
                raise self._cut()
            more = block[504]

    def _expect(self, size: int) -> None:
        """Note that ``size`` bytes follow, and the padding of their last block."""
        self._left = size
        self._padding = -size % BLOCK

    def _skip(self) -> None:
        count = self._left + self._padding
        whole = self._seen - bool(self._left)
        self._left = self._padding = 0
        if count >= BLOCK and self._seekable:
            # In a file that was cut short this seeks past the end, and the next header is missing.
            self._file.seek(count, io.SEEK_CUR)
            return
        while count > 0:
            data = self._file.read(min(count, _SKIP_BYTES))
            if not data:
                raise self._cut(whole)
            count -= len(data)

    def _next_archive(self) -> bytes:
        """The first header of the next archive in the file; empty if there is none.

        This reads a compressed file to its end, where its checksum is verified.
        """
        for _ in range(_MAX_ZEROS // BLOCK):
            block = self._file.read(BLOCK)
            if not block:
                return b""
            if block.strip(b"\0"):
                if _is_header(block):
                    return block
                break
        self.remains = True
        return b""

    def _cut(self, whole: int | None = None) -> SourceError:
        seen = self._seen if whole is None else whole
        if seen <= 0:
            return SourceError("is not a tar archive, or was cut short before its first file ends")
        return SourceError(f"ends after member {seen}: it was cut short")


def is_tar(block: bytes) -> bool:
    """Whether the first 512 bytes of a file are a tar header; zeros alone are not."""
    if len(block) != BLOCK or block == _ZEROS:
        return False
    try:
        return _number(block[148:156]) == sum(block) - sum(block[148:156]) + 8 * ord(" ")
    except ValueError:
        return False


def _is_header(block: bytes) -> bool:
    """Whether the checksum in a block is right, by the standard or as some old programs made it."""
    if len(block) != BLOCK:
        return False
    try:
        checksum = _number(block[148:156])
    except ValueError:
        return False
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    return checksum == total or checksum == _signed_sum(block)


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:
        return block[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _number(field: bytes) -> int:
    """A number in octal digits, or binary after the byte 0x80 (GNU); ``ValueError`` otherwise."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.partition(b"\0")[0].strip()
    if text and not text.isdigit():
        raise ValueError(text)
    return int(text or b"0", 8)


def _signed_sum(block: bytes) -> int:
    """The checksum of signed bytes, as some old programs made it."""
    around = block[:148] + b" " * 8 + block[156:]
    return sum(struct.unpack("512b", around))
