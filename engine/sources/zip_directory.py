"""Finds the directory of a zip archive and reads its entries one by one (APPNOTE 6.3, with zip64)."""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from engine.errors import SourceError

_END = struct.Struct("<4s4H2LH")  # the end record of the central directory
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s4B4HL2L5H2L")
_MAX_COMMENT = 0xFFFF
# Signatures of an end record that are tried. Some may be there by chance or malice.
_MAX_ENDS = 16
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED = 0x1 | 0x40
_UTF8 = 0x800
_UNIX = (3, 19)  # Unix and macOS
_ZIP64_FIELD, _NAME_FIELD = 0x0001, 0x7075
_DAMAGED = "is damaged: its directory cannot be found"


@dataclass(slots=True)
class ZipEntry:
    """One member, as the directory describes it."""

    name: bytes  # UTF-8, if the archive gives enough information
    flags: int
    method: int
    checksum: int
    packed: int  # packed bytes
    size: int  # unpacked bytes
    at: int  # offset of its local header
    mode: int  # Unix mode with the file type; 0 if unknown
    as_cp437: bytes  # the name for a reader that knows only code page 437

    @property
    def is_encrypted(self) -> bool:
        """Whether a password is needed."""
        return bool(self.flags & _ENCRYPTED)

    @property
    def is_folder(self) -> bool:
        """Whether its name is that of a folder."""
        return self.name.endswith(b"/")

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)


@dataclass(frozen=True, slots=True)
class ZipDirectory:
    """The place of the directory in the file."""

    at: int
    size: int
    count: int
    shift: int  # bytes to add to each offset, for a file with data before the archive


def find(file: IO[bytes], size: int) -> ZipDirectory:
    """Find the directory from the end of a file of ``size`` bytes; ``SourceError`` if there is none."""
    begin = max(0, size - _MAX_COMMENT - _END.size)
    file.seek(begin)
    tail = file.read(size - begin)
    wrong = SourceError("is not a zip archive, or was cut short: its directory is missing")
    for at in _ends(tail):
        try:
            return _directory(file, begin + at, _END.unpack_from(tail, at))
        except SourceError as error:
            wrong = error
    raise wrong


def _ends(tail: bytes) -> list[int]:
    """The offsets in ``tail`` where the end record may be, likeliest first.

    The likeliest has a comment that ends with the file and a directory that is not empty. If there are
    several, it is the last.
    """
    found: list[int] = []
    at = len(tail) - _END.size + 4
    while len(found) < _MAX_ENDS and (at := tail.rfind(b"PK\5\6", 0, max(at, 0))) >= 0:
        found.append(at)
        at += 3

    def unlikely(at: int) -> tuple[bool, bool]:
        *_, length, _, comment = _END.unpack_from(tail, at)
        return at + _END.size + comment != len(tail), not length

    return sorted(found, key=unlikely)


def _directory(file: IO[bytes], end: int, record: tuple[int, ...]) -> ZipDirectory:
    """The directory that the record at byte ``end`` points to; ``SourceError`` if it is missing."""
    _, disk, _, _, count, length, offset, _ = record
    if disk not in (0, _FULL_16):
        raise SourceError("is one part of a split archive: join them with 'zip -s 0'")
    long = _long_record(file, end)
    full = count == _FULL_16 or _FULL_32 in (length, offset)
    # Writers to a pipe always write a zip64 record. One that contradicts the end record is there by
    # chance.
    if long is not None and (full or long[1:3] == (count, length)):
        end, count, length, offset = long
    elif full and count != _FULL_16:
        raise SourceError(_DAMAGED)
    # The directory is right before the end record, or else at its stated offset.
    for at in (end - length, offset):
        if 0 <= at <= end - length and _begins(file, at, length):
            # The shift is never negative: members come before the directory.
            shift = max(0, at - offset)
            return ZipDirectory(at, length, min(count, length // _CENTRAL.size), shift)
    if end - length < 0:
        raise SourceError("is damaged: its directory is larger than the file")
    raise SourceError(_DAMAGED)


def _begins(file: IO[bytes], at: int, length: int) -> bool:
    """Whether a directory of ``length`` bytes may be at byte ``at``."""
    file.seek(at)
    return length == 0 or file.read(4) == b"PK\1\2"


def _long_record(file: IO[bytes], end: int) -> tuple[int, int, int, int] | None:
    """Offset of the zip64 record before byte ``end``, and its count, length and offset, if any."""
    if end < _LOCATOR64.size:
        return None
    file.seek(end - _LOCATOR64.size)
    locator = file.read(_LOCATOR64.size)
    if not locator.startswith(b"PK\6\7") or len(locator) < _LOCATOR64.size:
        return None
    # Look right before the locator first, because data before the archive makes the stated offset wrong.
    # If the record has extra data after it, only the stated offset finds it.
    for at in (end - _LOCATOR64.size - _END64.size, _LOCATOR64.unpack(locator)[2]):
        if 0 <= at <= end - _LOCATOR64.size - _END64.size:
            file.seek(at)
            found = file.read(_END64.size)
            if found.startswith(b"PK\6\6") and len(found) == _END64.size:
                count, length, offset = _END64.unpack(found)[7:]
                return at, count, length, offset
    return None


def entries(file: IO[bytes], directory: ZipDirectory) -> Iterator[ZipEntry]:
    """All entries, folders and links too; ``SourceError`` if the directory breaks off."""
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
        name, extra = variable[:name_bytes], variable[name_bytes : name_bytes + extra_bytes]
        if _FULL_32 in (packed, size, at):
            size, packed, at = _long(extra, [size, packed, at])
        mode = attributes >> 16 if system in _UNIX else 0
        old = name
        if not flags & _UTF8 and (extra or not name.isascii()):
            old = name.decode("cp437").encode()
            name = _unicode_name(name, extra) or _unix_name(name, system) or old
        at += directory.shift
        yield ZipEntry(name, flags, method, checksum, packed, size, at, mode, old)


def _unicode_name(name: bytes, extra: bytes) -> bytes | None:
    """The UTF-8 name in Info-ZIP's extra field, if it belongs to ``name``."""
    field = _field(extra, _NAME_FIELD)
    if len(field) < 6 or field[0] != 1:
        return None
    # A program that does not know the field has renamed the member.
    if int.from_bytes(field[1:5], "little") != zlib.crc32(name):
        return None
    return field[5:] if _is_utf8(field[5:]) else None


def _unix_name(name: bytes, system: int) -> bytes | None:
    """``name`` if it was written on Unix and is UTF-8; else None."""
    return name if system in _UNIX and _is_utf8(name) else None


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _long(extra: bytes, values: list[int]) -> list[int]:
    """Size, packed size and offset, with each 0xFFFFFFFF replaced by the value in the zip64 field."""
    field = _field(extra, _ZIP64_FIELD)
    wide = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
    return [next(wide, value) if value == _FULL_32 else value for value in values]


def _field(extra: bytes, wanted: int) -> bytes:
    """The data of the first extra field with the tag ``wanted``; empty if there is none."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        if tag == wanted:
            return extra[at + 4 : at + 4 + length]
        at += 4 + length
    return b""
