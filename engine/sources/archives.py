"""Tar archives, plain or compressed, read in one pass from beginning to end, never unpacked to disk.

A member is called ``/path/a.tar#member``, with the member's path as it is in the archive: it is a name
and never a place. Folders, links and devices are no members; what belongs to an image (``shards``) is
none either. Members have numbers, and these depend on the archive only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qsl

from engine.errors import ImageError, SourceError, UsageError
from engine.pixels import SUFFIXES, looks_like_image
from engine.sources.base import Member, Problem, Skipped, absolute
from engine.sources.shards import MOST_SIDECAR, File, metadata_of, samples
from engine.sources.streams import plain, steady
from engine.sources.tar import Entry, TarReader, is_tar

TAR_SUFFIXES = (
    ".tar",
    *(".tar.gz", ".tgz"),
    *(".tar.bz2", ".tbz2", ".tbz"),
    *(".tar.xz", ".txz"),
    *(".tar.zst", ".tzst"),
)
HEAD_BYTES = 32  # that show whether a file is signed as an image
MOST_NAME = 4096  # bytes: no path on a disk is longer
_SUFFIXES = frozenset(suffix.encode() for suffix in SUFFIXES)
_SNIFF_MEMORY = 32 << 20


class TarArchive:
    """A tar archive, plain or compressed with gzip, bzip2, xz or zstd."""

    count = None  # only reading all of it would tell

    def __init__(self, path: Path, query: str = "") -> None:
        """``query`` is what stands behind ``?``: ``metadata=label,text`` chooses what is kept.

        ``UsageError`` if it is not known, ``OSError`` if there is no such file.
        """
        self._path = path
        status = path.stat()
        self.mtime_ns, self.size = status.st_mtime_ns, status.st_size
        self.name = name_of(path, query)
        self._wanted = wanted_fields(query_values(path, query, {"metadata"}))

    def members(self, start: int, most: int) -> Iterator[Member | Problem | Skipped]:
        """Its members from number ``start`` on, as ``ArchiveItem`` has it."""
        number = 0
        with self._reader(most) as reader:
            for sample in samples(self._files(reader, start, most)):
                for item in self._items(sample):
                    if number >= start:
                        yield item
                    number += 1

    def read(self, member: bytes, most: int) -> bytes:
        """The bytes of one member; ``SourceError`` if it is missing, ``ImageError`` if too large."""
        with self._reader(most) as reader:
            for entry in reader:
                if entry.name == member:
                    if entry.sparse:
                        raise ImageError(_SPARSE)
                    if entry.size > most:
                        raise over_limit(entry.size, most)
                    return reader.read(entry.size)
        raise SourceError(no_member(member))

    @contextmanager
    def _reader(self, most: int) -> Iterator[TarReader]:
        with steady(self._path, (self.mtime_ns, self.size)) as file:
            stream, seekable = plain(file, most)
            yield TarReader(stream, seekable=seekable)

    def _files(self, reader: TarReader, start: int, most: int) -> Iterator[File]:
        for number, entry in enumerate(reader):
            # There are fewer members than files, so what is before ``start`` as a file is as a member.
            yield self._file(entry, reader, most if number >= start else -1)

    def _file(self, entry: Entry, reader: TarReader, most: int) -> File:
        """What is needed of a file, the rest is passed by; nothing of an image if ``most`` is -1."""
        is_image = claims_by_name(entry.name)
        head = b""
        if not is_image and not entry.sparse:
            head = reader.read(HEAD_BYTES)
            is_image = looks_like_image(head)
        file = File(entry.name, is_image, entry.size)
        if is_image and most < 0:
            return file
        if is_image:
            file.problem = name_problem(entry.name)
            if entry.sparse:
                file.problem = _SPARSE
            elif entry.size > most:
                error = over_limit(entry.size, most)
                file.problem, file.passing = str(error), error.passing
        elif not file.is_sidecar or self._wanted == ():
            return file
        elif entry.size > MOST_SIDECAR:
            file.problem = f"of {entry.size:,} bytes is over the limit of {MOST_SIDECAR:,}"
        if not file.problem:
            rest = reader.read(entry.size - len(head))
            file.data = head + rest if head else rest
        return file

    def _items(self, sample: list[File]) -> Iterator[Member | Problem | Skipped]:
        """What a sample is to whoever reads the archive, in the archive's order."""
        pictured = any(file.is_image for file in sample)
        metadata, problem = None, ""
        if pictured and len(sample) > 1 and self._wanted != ():
            try:
                metadata = metadata_of(sample, self._wanted)
            except ImageError as error:
                problem = str(error)
        for file in sample:
            name = self.name + b"#" + file.name[:MOST_NAME]
            if not file.is_image:
                if not (pictured and file.is_sidecar):
                    yield Skipped(name)
            elif file.problem or problem:
                stamp = (0, 0) if file.passing else (self.mtime_ns, self.size)
                yield Problem(name, file.problem or problem, *stamp)
            else:
                yield Member(name, self.mtime_ns, self.size, file.data, metadata)


_SPARSE = "is a sparse file in the archive: pack it without --sparse"


def is_named_tar(path: Path) -> bool:
    """Whether a file is called a tar archive."""
    return path.name.lower().endswith(TAR_SUFFIXES)


def begins_as_tar(path: Path) -> bool:
    """Whether a file is a tar archive by its first bytes, decompressed if need be."""
    try:
        status = path.stat()
        with steady(path, (status.st_mtime_ns, status.st_size)) as file:
            stream, _ = plain(file, _SNIFF_MEMORY)
            return is_tar(stream.read(512))
    except (OSError, SourceError):
        return False


# --- what archives and tables share ---------------------------------------------------------------


def name_of(path: Path, query: str) -> bytes:
    """The name of an archive in results; with its query, so that a member can be found again."""
    return absolute(path) + (b"?" + query.encode("utf-8", "surrogateescape") if query else b"")


def query_values(path: Path, query: str, known: Collection[str]) -> dict[str, str]:
    """What stands behind ``?``; ``UsageError`` for a name that is not among ``known``."""
    pairs = parse_qsl(query, keep_blank_values=True)
    values = dict(pairs)
    if len(values) < len(pairs) or set(values) - set(known) or bool(query) != bool(pairs):
        names = " or ".join(f"?{name}=" for name in sorted(known))
        raise UsageError(f"{path}?{query}: {query!r} is not known: write {names}")
    return values


def wanted_fields(values: dict[str, str]) -> tuple[str, ...] | None:
    """The fields that ``metadata=a,b`` names: none for an empty one; None, all, where it is missing."""
    if "metadata" not in values:
        return None
    return tuple(name for name in values["metadata"].split(",") if name)


def claims_by_name(name: bytes) -> bool:
    """Whether a member is named as an image."""
    base = name.rpartition(b"/")[2]
    stem, dot, suffix = base.rpartition(b".")
    return bool(stem and dot) and (b"." + suffix.lower()) in _SUFFIXES


def name_problem(name: bytes) -> str:
    """Why a member cannot be called by its name; empty if it can."""
    if not name:
        return "a member without a name"
    if b"\0" in name:
        return "a name with a null byte"
    if len(name) > MOST_NAME:
        return f"a name of {len(name):,} bytes is over the limit of {MOST_NAME:,}"
    return ""


def over_limit(size: int, most: int) -> ImageError:
    """A member is too large for this ``--memory``."""
    return ImageError(
        f"{size:,} bytes are over the limit of {most:,} for this --memory", passing=True
    )


def no_member(member: bytes) -> str:
    """There is none of this name."""
    return f"has no member {member[:200].decode(errors='backslashreplace')!r}"
