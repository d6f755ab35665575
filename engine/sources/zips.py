"""Zip archives, read along their directory; nothing is unpacked to disk, nothing remembered.

Python's zipfile is not used: it holds the whole directory, some 500 bytes a member, and believes what
that says of sizes. Read are stored, deflated, bzip2 and zstd members, and zip64 (APPNOTE 6.3).
"""

from __future__ import annotations

import bz2
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from engine.errors import ImageError, SourceError, UsageError
from engine.pixels import looks_like_image
from engine.sources.base import HEAD_BYTES, Member, Problem, Skipped, absolute, over_limit
from engine.sources.naming import MOST_NAME, claims_by_name, name_problem, no_member
from engine.sources.streams import damage, decompressor, steady

_END = struct.Struct("<4s4H2LH")  # of the central directory
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MOST_COMMENT = 0xFFFF
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED = 0x1 | 0x40
_UTF8 = 0x800
_UNIX = 3
_STORED, _DEFLATED, _BZIP2, _ZSTD = 0, 8, 12, 93
_DIRECTORY_BYTES = 1 << 16  # of the directory, read at a time
_DAMAGED = "is damaged in the archive"


@dataclass(slots=True)
class _Entry:
    """One member, as the directory has it."""

    name: bytes
    flags: int
    method: int
    checksum: int
    packed: int  # bytes
    size: int  # bytes, once it is unpacked
    at: int  # where its own header is

    @property
    def is_encrypted(self) -> bool:
        return bool(self.flags & _ENCRYPTED)


class ZipArchive:
    """A zip archive; its members come in the order of its directory, which is that of the file."""

    def __init__(self, path: Path, query: str = "") -> None:
        """``UsageError`` for a query (there is none to give), ``OSError`` if there is no such file."""
        if query:
            raise UsageError(f"{path}: a zip takes no ?{query[:200]}: leave that out")
        self._path = path
        status = path.stat()
        self.mtime_ns, self.size = status.st_mtime_ns, status.st_size
        self.name = absolute(path)

    @property
    def count(self) -> int | None:
        """Its members by its own account, folders included; None if it cannot be read."""
        try:
            with steady(self._path, (self.mtime_ns, self.size)) as file:
                return _directory(file, self.size).count
        except SourceError:
            return None

    def members(self, start: int, most: int) -> Iterator[Member | Problem | Skipped]:
        """Its members from number ``start`` on, as ``ArchiveItem`` has it."""
        with steady(self._path, (self.mtime_ns, self.size)) as file:
            left = self.size
            for number, entry in enumerate(self._entries(file)):
                left -= entry.packed
                if left < 0:  # one byte is unpacked many times over
                    raise SourceError(f"is damaged: from member {number} on its members overlap")
                if number >= start:
                    yield self._member(file, entry, most)

    def read(self, member: bytes, most: int) -> bytes:
        """The bytes of one member; ``SourceError`` if it is missing, ``ImageError`` if too large."""
        with steady(self._path, (self.mtime_ns, self.size)) as file:
            for entry in self._entries(file):
                if entry.name == member:
                    return _read(file, entry, most)
        raise SourceError(no_member(member))

    def _entries(self, file: IO[bytes]) -> Iterator[_Entry]:
        """The files of the directory; folders and links are none."""
        # Of its own, so that the two do not make each other read everything again.
        with steady(self._path, (self.mtime_ns, self.size)) as beside:
            yield from _entries(beside, _directory(file, self.size))

    def _member(self, file: IO[bytes], entry: _Entry, most: int) -> Member | Problem | Skipped:
        name = self.name + b"#" + entry.name[:MOST_NAME]
        try:
            if not claims_by_name(entry.name) and not _is_signed(file, entry):
                return Skipped(name)
            problem = name_problem(entry.name)
            if problem:
                raise ImageError(problem)
            data = _read(file, entry, most)
        except ImageError as error:
            stamp = (0, 0) if error.passing else (self.mtime_ns, self.size)
            return Problem(name, str(error), *stamp)
        return Member(name, self.mtime_ns, self.size, data)


@dataclass(frozen=True, slots=True)
class _Directory:
    """Where the directory is."""

    at: int
    size: int
    count: int
    shift: int  # by which everything is later than it says: something was put in front


def _directory(file: IO[bytes], size: int) -> _Directory:
    """Find the directory from the file's end; ``SourceError`` if there is none."""
    begin = max(0, size - _MOST_COMMENT - _END.size)
    file.seek(begin)
    tail = file.read(size - begin)
    at = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - _END.size + 4))
    if at < 0:
        raise SourceError("is not a zip archive, or was cut short: its directory is missing")
    _, _, _, _, count, length, offset, _ = _END.unpack_from(tail, at)
    end = begin + at
    if end >= _LOCATOR64.size and (count == _FULL_16 or _FULL_32 in (length, offset)):
        file.seek(max(0, end - _LOCATOR64.size))
        locator = file.read(_LOCATOR64.size)
        if locator.startswith(b"PK\6\7") and len(locator) == _LOCATOR64.size:
            # Right in front of its locator, wherever that says it is: something may be put in front.
            file.seek(max(0, end - _LOCATOR64.size - _END64.size))
            found = file.read(_END64.size)
            if not found.startswith(b"PK\6\6") or len(found) < _END64.size:
                raise SourceError("is damaged: its directory cannot be found")
            count, length, offset = _END64.unpack(found)[7:]
            end -= _LOCATOR64.size + _END64.size
    shift = end - length - offset
    if shift < 0:
        raise SourceError("is damaged: its directory is larger than the file")
    return _Directory(end - length, length, min(count, length // _CENTRAL.size), shift)


def _entries(file: IO[bytes], directory: _Directory) -> Iterator[_Entry]:
    file.seek(directory.at)
    left, number = directory.size, 0
    while left > 0:
        head = file.read(_CENTRAL.size)
        if len(head) < _CENTRAL.size or not head.startswith(b"PK\1\2"):
            raise SourceError(f"is damaged: its directory breaks off after member {number}")
        (_, _, system, _, _, flags, method, _, _, checksum, packed, size, *rest) = _CENTRAL.unpack(
            head
        )
        name_bytes, extra_bytes, comment_bytes, _, _, attributes, at = rest
        variable = file.read(name_bytes + extra_bytes + comment_bytes)
        left -= len(head) + len(variable)
        if len(variable) < name_bytes + extra_bytes + comment_bytes or left < 0:
            raise SourceError(f"is damaged: its directory breaks off after member {number}")
        number += 1
        name = variable[:name_bytes]
        link = system == _UNIX and stat.S_ISLNK(attributes >> 16)
        if name.endswith(b"/") or link:
            continue
        if _FULL_32 in (packed, size, at):
            extra = variable[name_bytes : name_bytes + extra_bytes]
            size, packed, at = _long(extra, [size, packed, at])
        if not flags & _UTF8:
            name = name.decode("cp437").encode()
        yield _Entry(name, flags, method, checksum, packed, size, at + directory.shift)


def _long(extra: bytes, values: list[int]) -> list[int]:
    """Size, packed size and place where those that are 0xFFFFFFFF stand in a zip64 field."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        field = extra[at + 4 : at + 4 + length]
        at += 4 + length
        if tag == 1:
            wide = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
            return [next(wide, value) if value == _FULL_32 else value for value in values]
    return values


def _is_signed(file: IO[bytes], entry: _Entry) -> bool:
    """Whether a member's first bytes are an image's; not of one that cannot be read."""
    if entry.is_encrypted or not entry.size:
        return False
    try:
        packed = _packed(file, entry, min(entry.packed, 1024))
        return looks_like_image(_unpack(packed, entry.method, HEAD_BYTES))
    except ImageError:
        return False


def _read(file: IO[bytes], entry: _Entry, most: int) -> bytes:
    """The bytes of a member, all of them and unharmed, or ``ImageError``."""
    if entry.is_encrypted:
        raise ImageError("is encrypted: unpack it with its password and ingest what comes out")
    # What is packed is held beside it, and is hardly ever larger.
    if max(entry.size, entry.packed) > most:
        raise over_limit(max(entry.size, entry.packed), most)
    packed = _packed(file, entry, entry.packed)
    # One byte more than it should be: what is larger than it says is never unpacked further.
    data = _unpack(packed, entry.method, entry.size + 1)
    if len(data) != entry.size:
        what = "more" if len(data) > entry.size else "less"
        raise ImageError(f"{_DAMAGED}: {what} comes out than it says")
    if zlib.crc32(data) != entry.checksum:
        raise ImageError(f"{_DAMAGED}: its checksum is another")
    return data


def _packed(file: IO[bytes], entry: _Entry, count: int) -> bytes:
    """The first ``count`` bytes of a member as they are in the file."""
    if entry.at >> 62:
        raise ImageError(f"{_DAMAGED}: it is not in the file")
    file.seek(entry.at)
    head = file.read(_LOCAL.size)
    if len(head) < _LOCAL.size or not head.startswith(b"PK\3\4"):
        raise ImageError(f"{_DAMAGED}: it is not where the directory says")
    name_bytes, extra_bytes = _LOCAL.unpack(head)[-2:]
    file.read(name_bytes + extra_bytes)  # what it says of itself, the directory says too
    data = file.read(count)
    if len(data) < count:
        raise ImageError(f"{_DAMAGED}: the archive ends before it does")
    return data


def _unpack(packed: bytes, method: int, most: int) -> bytes:
    """Up to ``most`` bytes of what is packed."""
    try:
        if method == _STORED:
            return packed[:most]
        if method == _DEFLATED:
            return zlib.decompressobj(-15).decompress(packed, most)
        if method == _BZIP2:
            return bz2.BZ2Decompressor().decompress(packed, most)
        if method == _ZSTD:
            return decompressor("zstd", most).decompress(packed, most)
    except damage() as error:
        raise ImageError(f"{_DAMAGED}: {' '.join(str(error).split())}") from None
    except SourceError as error:
        raise ImageError(str(error), passing=True) from None
    raise ImageError(f"is packed in a way that is not read (method {method}): pack it with deflate")
