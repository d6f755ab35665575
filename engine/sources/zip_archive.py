"""Zip archives, read entry by entry along their directory; nothing is unpacked to disk or remembered.

It reads stored, deflated, bzip2 and zstd members, and zip64 (APPNOTE 6.3).

Zip trust: this reader opens archives of images; Python's ``zipfile`` opens ``.npz`` files (in ``npy``).
``zipfile`` keeps the whole directory in memory, some 500 bytes per member, and trusts its sizes. An
archive of images may come from anyone and have millions of members, and each member is read whole. So
this reader reads one entry at a time, refuses overlapping members, and refuses a member that takes more
memory than there is. An ``.npz`` is written by NumPy, which also reads it with ``zipfile``, and holds a
few arrays. Their rows are read as a stream, which this reader does not offer. Only stored and deflated
arrays are read, because for them no size in the directory decides how much is unpacked at a time.
"""

from __future__ import annotations

import bz2
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from engine.errors import ImageError, SourceError, UsageError
from engine.images.file_types import looks_like_image
from engine.images.unread_formats import unread_format
from engine.sources import zip_directory
from engine.sources.decompress import damage, decompressor, line_of
from engine.sources.items import HEAD_BYTES, Member, Reject, Skipped, absolute, over_limit, stamp_of
from engine.sources.member_names import MAX_NAME, claims_by_name, name_problem, no_member
from engine.sources.skip_notes import DEVICES, FOLDERS_WITH_DATA, LINKS, unread
from engine.sources.steady_file import NO_MEMORY, is_limit, steady
from engine.sources.zip_directory import ZipEntry

_LOCAL = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED, _BZIP2, _ZSTD = 0, 8, 12, 93
_NOT_READ = {
    1: "Shrink",
    6: "Implode",
    9: "Deflate64",
    14: "LZMA",
    95: "xz",
    96: "packed JPEG",
    97: "WavPack",
    98: "PPMd",
    99: "AES",
}
_DAMAGED = "is damaged in the archive"


class ZipArchive:
    """A zip archive, whose members come in the order of its directory."""

    def __init__(self, path: Path, query: str = "") -> None:
        """``UsageError`` for a query, which zips do not take; ``OSError`` if the file does not exist."""
        if query:
            raise UsageError(f"{path}: a zip takes no ?{query[:200]}: leave that out")
        self._path = path
        self.mtime_ns, self.size = stamp_of(path.stat())
        self.name = absolute(path)

    @property
    def count(self) -> int | None:
        """The number of members that its directory gives, folders included; None if unreadable."""
        try:
            with steady(self._path, (self.mtime_ns, self.size)) as file:
                return zip_directory.find(file, self.size).count
        except SourceError:
            return None

    def members(self, start: int, max_bytes: int) -> Iterator[Member | Reject | Skipped]:
        """Its members from number ``start`` on; see ``ArchiveItem``."""
        with steady(self._path, (self.mtime_ns, self.size)) as file:
            left = self.size
            for number, entry in enumerate(self._entries(file)):
                left -= entry.packed
                # Overlapping members would unpack the same bytes many times.
                if left < 0:
                    raise SourceError(f"is damaged: its members overlap from member {number} on")
                if number >= start:
                    yield self._member(file, entry, max_bytes)

    def read(self, member: bytes, max_bytes: int) -> bytes:
        """The bytes of one member; ``SourceError`` if it is missing, ``ImageError`` if too large."""
        with steady(self._path, (self.mtime_ns, self.size)) as file:
            older = None
            for entry in self._entries(file):
                if entry.name == member:
                    return self._bytes(file, entry, max_bytes)
                # Older stores may know the member by this name.
                if entry.as_cp437 == member:
                    older = older or entry
            if older is not None:
                return self._bytes(file, older, max_bytes)
        raise SourceError(no_member(member))

    def _entries(self, file: IO[bytes]) -> Iterator[ZipEntry]:
        """The entries of the directory but folders."""
        # A second open file keeps the buffer of the directory apart from that of the members.
        with steady(self._path, (self.mtime_ns, self.size)) as beside:
            for entry in zip_directory.entries(beside, zip_directory.find(file, self.size)):
                if entry.size or not entry.is_folder:
                    yield entry

    def _bytes(self, file: IO[bytes], entry: ZipEntry, max_bytes: int) -> bytes:
        note = _note(entry)
        if note:
            raise ImageError(f"is not a file in the archive: it is one of the {note}")
        return _read(file, entry, max_bytes)

    def _member(
        self, file: IO[bytes], entry: ZipEntry, max_bytes: int
    ) -> Member | Reject | Skipped:
        name = self.name + b"#" + entry.name[:MAX_NAME]
        note = _note(entry)
        format_ = unread_format(entry.name)
        if not note and format_ is not None:
            note = unread(format_)
        if note:
            return Skipped(name, note)
        try:
            if not claims_by_name(entry.name) and not _is_signed(file, entry):
                return Skipped(name)
            problem = name_problem(entry.name)
            if problem:
                raise ImageError(problem)
            data = _read(file, entry, max_bytes)
        except ImageError as error:
            stamp = (0, 0) if error.retryable else (self.mtime_ns, self.size)
            return Reject(name, str(error), *stamp)
        return Member(name, self.mtime_ns, self.size, data)


def _note(entry: ZipEntry) -> str:
    """What an entry is, if it is not a file; empty if it is."""
    if entry.is_folder:
        return FOLDERS_WITH_DATA
    if entry.is_link:
        return LINKS
    of_a_file = entry.size or stat.S_IFMT(entry.mode) in (0, stat.S_IFREG)
    return "" if of_a_file else DEVICES


def _is_signed(file: IO[bytes], entry: ZipEntry) -> bool:
    """Whether a member's first bytes are an image's; False if they cannot be read."""
    if entry.is_encrypted or not entry.size:
        return False
    try:
        packed = _packed(file, entry, min(entry.packed, 1024))
        return looks_like_image(_unpack(packed, entry.method, HEAD_BYTES))
    except ImageError:
        return False


def _read(file: IO[bytes], entry: ZipEntry, max_bytes: int) -> bytes:
    """The verified bytes of a member; ``ImageError`` if they cannot be read."""
    if entry.is_encrypted:
        raise ImageError("is encrypted: unpack it with its password and ingest the result")
    # The packed bytes are in memory too, and are rarely larger.
    if max(entry.size, entry.packed) > max_bytes:
        raise over_limit(max(entry.size, entry.packed), max_bytes)
    packed = _packed(file, entry, entry.packed)
    # One byte more than the directory says shows that a member is larger. No more is unpacked.
    data = _unpack(packed, entry.method, entry.size + 1)
    if len(data) != entry.size:
        what = "larger" if len(data) > entry.size else "smaller"
        raise ImageError(f"{_DAMAGED}: it is {what} than the directory says")
    if zlib.crc32(data) != entry.checksum:
        raise ImageError(f"{_DAMAGED}: its checksum does not match")
    return data


def _packed(file: IO[bytes], entry: ZipEntry, count: int) -> bytes:
    """The first ``count`` packed bytes of a member."""
    if entry.at >> 62:
        raise ImageError(f"{_DAMAGED}: it is not in the file")
    file.seek(entry.at)
    head = file.read(_LOCAL.size)
    if len(head) < _LOCAL.size or not head.startswith(b"PK\3\4"):
        raise ImageError(f"{_DAMAGED}: it is not where the directory says")
    name_bytes, extra_bytes = _LOCAL.unpack(head)[-2:]
    # Skip the local header, which repeats the directory.
    file.read(name_bytes + extra_bytes)
    data = file.read(count)
    if len(data) < count:
        raise ImageError(f"{_DAMAGED}: the archive ends before it does")
    return data


def _unpack(packed: bytes, method: int, max_bytes: int) -> bytes:
    """Unpack up to ``max_bytes`` bytes."""
    try:
        if method == _STORED:
            return packed[:max_bytes]
        if method == _DEFLATED:
            return zlib.decompressobj(-15).decompress(packed, max_bytes)
        if method == _BZIP2:
            return bz2.BZ2Decompressor().decompress(packed, max_bytes)
        if method == _ZSTD:
            return decompressor("zstd", max_bytes).decompress(packed, max_bytes)
    except damage() as error:
        if is_limit(error):
            raise ImageError(NO_MEMORY, retryable=True) from None
        raise ImageError(f"{_DAMAGED}: {line_of(error)}") from None
    except SourceError as error:
        raise ImageError(str(error), retryable=True) from None
    called = _NOT_READ.get(method, "an unknown compression")
    raise ImageError(f"is packed with {called} (method {method}): pack it with Deflate")
