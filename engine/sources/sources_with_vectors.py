"""Gives the images of some sources the vectors of a file, as one stream of items."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.errors import SourceError, UsageError
from engine.images.hashing import Stamp
from engine.sources.items import (
    ArchiveItem,
    FileItem,
    Item,
    Member,
    Reject,
    Skipped,
    VectorItem,
)
from engine.sources.source_stream import Sources
from engine.sources.vector_files import NamedVectors, OrderedVectors, VectorFile

_GROUP = 512  # images whose names are compared together


class SourcesWithVectors:
    """Sources whose images come with the vectors of a file; otherwise like ``Sources``."""

    def __init__(self, sources: Sources, vectors: VectorFile) -> None:
        """``UsageError`` if the numbers of images and of vectors that go by order differ.

        Then all sources are listed once, before anything is read.
        """
        self._sources = sources
        self._vectors = vectors
        self.folders = sources.folders
        self.dim = vectors.dim
        self.unnamed = 0  # images that the file does not name, so far
        self._groups: list[int] = []
        if isinstance(vectors, OrderedVectors):
            self._groups = _listed(sources, vectors)

    def count(self) -> int | None:
        """The number of items; None if only reading all would show it."""
        return self._sources.count()

    def __iter__(self) -> Iterator[Item]:
        if isinstance(self._vectors, OrderedVectors):
            return _in_order(self._sources, self._vectors, self._groups)
        return self._by_name(self._vectors)

    def _by_name(self, vectors: NamedVectors) -> Iterator[Item]:
        here = os.fsencode(Path.cwd()) + b"/"
        for item in self._sources:
            if isinstance(item, FileItem):
                names = _names_of(item.name, here, self.folders)
                yield self._named(item, names, vectors)
            elif isinstance(item, ArchiveItem):
                yield _NamedArchive(item, self, vectors)
            elif isinstance(item, Reject | Skipped | VectorItem):
                yield item
            else:
                yield _refused(item.name)

    def _named(
        self, item: FileItem | Member, names: set[bytes], vectors: NamedVectors
    ) -> FileItem | Member | Reject:
        """An item with its vector, if the file has one of its names."""
        rows = {row for name in names if (row := vectors.find(name)) is not None}
        if len(rows) > 1:
            at = " and ".join(map(str, sorted(rows)))
            why = f"rows {at} of {vectors.path} both name it: write whole paths"
            return Reject(item.name, why)
        if not rows:
            self.unnamed += 1
            return item
        return replace(item, vector=vectors.row(rows.pop()))

    def member(self, item: Member, archive: bytes, vectors: NamedVectors) -> Member | Reject:
        """A member of an archive with its vector."""
        found = self._named(item, {item.name, item.name[len(archive) + 1 :]}, vectors)
        assert isinstance(found, Member | Reject)
        return found


class _NamedArchive:
    """An archive whose members come with vectors by their names."""

    def __init__(
        self, archive: ArchiveItem, sources: SourcesWithVectors, vectors: NamedVectors
    ) -> None:
        self.name, self.mtime_ns, self.size = archive.name, archive.mtime_ns, archive.size
        self.brings_vectors = True
        self.vector_dim: int | None = vectors.dim
        self.vectors_stamped = False
        self._archive = archive
        self._sources = sources
        self._vectors = vectors

    @property
    def count(self) -> int | None:
        """About how many members it has."""
        return self._archive.count

    def members(self, start: int, max_bytes: int) -> Iterator[Member | Reject | Skipped]:
        """Its members from number ``start`` on; see ``ArchiveItem``."""
        for found in self._archive.members(start, max_bytes):
            if isinstance(found, Member):
                yield self._sources.member(found, self.name, self._vectors)
            else:
                yield found


def _names_of(name: bytes, here: bytes, folders: dict[bytes, None]) -> set[bytes]:
    """The names by which a file may be called: whole, below the current folder, below a source."""
    names = {name}
    if name.startswith(here):
        names.add(name[len(here) :])
    at = name.rfind(b"/")
    while at > 0:
        if name[:at] in folders:
            names.add(name[at + 1 :])
        at = name.rfind(b"/", 0, at)
    return names


def _refused(name: bytes) -> Reject:
    return Reject(name, "vectors= goes with image files and archives, not with rows of an array")


def _listed(sources: Sources, vectors: OrderedVectors) -> list[int]:
    """A stamp of the names of each group of images, all in order; checks that the numbers are equal."""
    if sources.has_lists:
        raise UsageError(
            f"{vectors.path} goes by the order of the images, and a list can be read only once: name "
            f"the images, in an .npz file with the arrays names and vectors"
        )
    stamps: list[int] = []
    stamp, count = Stamp(), 0
    for item in sources:
        if isinstance(item, Skipped):
            continue
        name = os.fsdecode(item.name)
        if isinstance(item, Reject):
            raise UsageError(
                f"{name}: {item.reason}; so the order of the images is not known: name them, in an "
                f".npz file with the arrays names and vectors"
            )
        if not isinstance(item, FileItem):
            raise UsageError(
                f"{name} is not an image file or a folder of them, and only these go with vectors by "
                f"order: name the images, in an .npz file with the arrays names and vectors"
            )
        stamp.update(item.name + b"\0")
        count += 1
        if count % _GROUP == 0:
            stamps.append(stamp.value)
    if count != vectors.count:
        raise UsageError(
            f"{vectors.path} has {vectors.count:,} vectors for {count:,} images: row i belongs to the "
            f"i-th image, so there must be as many"
        )
    return [*stamps, stamp.value]


def _in_order(sources: Sources, vectors: OrderedVectors, stamps: list[int]) -> Iterator[Item]:
    rows = vectors.rows()
    stamp, group = Stamp(), list[FileItem]()
    expected = iter(stamps)

    def compared() -> Iterator[Item]:
        if stamp.value != next(expected, None):
            raise SourceError(
                "the sources changed while they were read: ingest them again", retryable=True
            )
        for item in group:
            yield replace(item, vector=np.asarray(next(rows)))

    for item in sources:
        if isinstance(item, FileItem):
            group.append(item)
            stamp.update(item.name + b"\0")
            if len(group) == _GROUP:
                yield from compared()
                group = []
        elif isinstance(item, Skipped):
            yield item
        else:
            raise SourceError(
                f"{os.fsdecode(item.name)} appeared while the sources were read: ingest them again",
                retryable=True,
            )
    yield from compared()
