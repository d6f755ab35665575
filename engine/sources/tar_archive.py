"""Tar archives, plain or compressed, read in one pass from beginning to end, never unpacked to disk.

A member is called ``/path/a.tar#member``, by its path in the archive. That path is only a name, and
never a place on disk. Folders and sidecars of images (``webdataset``) do not count as members. Links and
devices are members that are skipped. The numbers of members depend only on the archive.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import ImageError, SourceError
from engine.images.file_types import looks_like_image
from engine.images.unread_formats import unread_format
from engine.sources.decompress import Decompressed, plain
from engine.sources.items import HEAD_BYTES, Member, Reject, Skipped, over_limit, stamp_of
from engine.sources.member_names import (
    MAX_NAME,
    claims_by_name,
    name_of,
    name_problem,
    no_member,
    query_values,
    wanted_fields,
)
from engine.sources.skip_notes import HARD_LINKS, NO_ARCHIVE, unread
from engine.sources.steady_file import steady
from engine.sources.tar_reader import TarEntry, TarReader, is_tar
from engine.sources.webdataset import MAX_SIDECAR, SampleFile, metadata_of, samples

TAR_SUFFIXES = (
    ".tar",
    *(".tar.gz", ".tgz"),
    *(".tar.bz2", ".tbz2", ".tbz"),
    *(".tar.xz", ".txz"),
    *(".tar.zst", ".tzst"),
)
_SNIFF_MEMORY = 32 << 20


class TarArchive:
    """A tar archive, plain or compressed with gzip, bzip2, xz or zstd."""

    count = None  # only reading the whole archive would show it

    def __init__(self, path: Path, query: str = "") -> None:
        """``query`` is the text after ``?``: ``metadata=label,text`` chooses the fields to keep.

        ``UsageError`` for any other query, ``OSError`` if the file does not exist.
        """
        self._path = path
        self.mtime_ns, self.size = stamp_of(path.stat())
        self.name = name_of(path, query)
        self._wanted = wanted_fields(query_values(path, query, {"metadata"}))

    def members(self, start: int, max_bytes: int) -> Iterator[Member | Reject | Skipped]:
        """Its members from number ``start`` on; see ``ArchiveItem``."""
        number = 0
        with self._reader(max_bytes) as (reader, stream):
            for sample in samples(self._files(reader, start, max_bytes)):
                for item in self._items(sample):
                    if number >= start:
                        yield item
                    number += 1
            remains = reader.remains or (stream is not None and stream.remains)
            if remains and number >= start:
                yield Skipped(self.name, NO_ARCHIVE)

    def read(self, member: bytes, max_bytes: int) -> bytes:
        """The bytes of one member; ``SourceError`` if it is missing, ``ImageError`` if too large."""
        with self._reader(max_bytes) as (reader, _):
            for entry in reader:
                if entry.name == member:
                    if entry.link and entry.note == HARD_LINKS:
                        shown = entry.link[:200].decode(errors="backslashreplace")
                        raise ImageError(f"is a hard link in the archive: name {shown!r} instead")
                    if entry.note:
                        raise ImageError(f"is not a file in the archive: one of the {entry.note}")
                    if entry.sparse:
                        raise ImageError(_SPARSE)
                    if entry.size > max_bytes:
                        raise over_limit(entry.size, max_bytes)
                    return reader.read(entry.size)
        raise SourceError(no_member(member))

    @contextmanager
    def _reader(self, max_bytes: int) -> Iterator[tuple[TarReader, Decompressed | None]]:
        with steady(self._path, (self.mtime_ns, self.size)) as file:
            stream, compressed = plain(file, max_bytes)
            yield TarReader(stream, seekable=compressed is None), compressed

    def _files(self, reader: TarReader, start: int, max_bytes: int) -> Iterator[SampleFile]:
        for number, entry in enumerate(reader):
            # A file's number is never below its member's, so files before ``start`` are not needed.
            yield self._file(entry, reader, max_bytes if number >= start else -1)

    def _file(self, entry: TarEntry, reader: TarReader, max_bytes: int) -> SampleFile:
        """Read what is needed of a file and skip the rest; skip images too if ``max_bytes`` is -1."""
        if entry.note:
            return SampleFile(entry.name, False, 0, note=entry.note, begins=entry.begins)
        format_ = unread_format(entry.name)
        if format_ is not None:
            note = unread(format_)
            return SampleFile(entry.name, False, entry.size, note=note, begins=entry.begins)
        is_image = claims_by_name(entry.name)
        head = b""
        if not is_image and not entry.sparse:
            head = reader.read(HEAD_BYTES)
            is_image = looks_like_image(head)
        file = SampleFile(entry.name, is_image, entry.size, begins=entry.begins)
        if is_image and max_bytes < 0:
            return file
        if is_image:
            file.problem = name_problem(entry.name)
            if entry.sparse:
                file.problem = _SPARSE
            elif entry.size > max_bytes:
                error = over_limit(entry.size, max_bytes)
                file.problem, file.retryable = str(error), error.retryable
        elif not file.is_sidecar or self._wanted == ():
            return file
        elif entry.size > MAX_SIDECAR:
            file.problem = f"of {entry.size:,} bytes is over the limit of {MAX_SIDECAR:,}"
        if not file.problem:
            rest = reader.read(entry.size - len(head))
            file.data = head + rest if head else rest
        return file

    def _items(self, sample: list[SampleFile]) -> Iterator[Member | Reject | Skipped]:
        """The items of a sample, in the archive's order."""
        pictured = any(file.is_image for file in sample)
        metadata, lost = None, ""
        if pictured and len(sample) > 1 and self._wanted != ():
            try:
                metadata = metadata_of(sample, self._wanted)
            except ImageError as error:
                lost = str(error)
        for file in sample:
            name = self.name + b"#" + file.name[:MAX_NAME]
            if not file.is_image:
                if not (pictured and file.is_sidecar):
                    yield Skipped(name, file.note)
            elif file.problem:
                stamp = (0, 0) if file.retryable else (self.mtime_ns, self.size)
                yield Reject(name, file.problem, *stamp)
            else:
                yield Member(name, self.mtime_ns, self.size, file.data, metadata, note=lost)


_SPARSE = "is a sparse file in the archive: pack it without --sparse"


def is_named_tar(path: Path) -> bool:
    """Whether a file has the name of a tar archive."""
    return path.name.lower().endswith(TAR_SUFFIXES)


def begins_as_tar(path: Path) -> bool:
    """Whether a file's first bytes, decompressed if need be, are a tar header."""
    try:
        with steady(path, stamp_of(path.stat())) as file:
            stream, _ = plain(file, _SNIFF_MEMORY)
            return is_tar(stream.read(512))
    except (OSError, SourceError):
        return False
