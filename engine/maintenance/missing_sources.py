"""Finds the sources whose files are gone, and folders where so many are that a disk may be away.

An unmounted disk, an offline share and a renamed folder all look like deleted files. So nothing is
removed before all sources have been looked for. Sources are counted by *root*, the folder that an
ingest was given; the store remembers its roots. Where most sources below a root are gone, the caller
has to confirm it. For sources below no root, each whole folder that is gone counts as a root.

The names found go to a temporary file, so memory does not grow with them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import IO

from engine.errors import MissingError, SourceError
from engine.records import MissingBelow
from engine.sources.file_presence import Whereabouts, stamp, without_query
from engine.storage.session import Session

MAX_SHARE = 0.5  # of the sources below a root; if more are gone, its disk may be away
_MAX_FOLDERS = 4096  # folders whose roots are cached, and vanished folders counted one by one
_MAX_REASONS = 1000
_MAX_SHOWN = 3
_IN_MEMORY = 4 << 20  # bytes of names, before they go to a file


class Where(Enum):
    """Where a source is."""

    THERE = 0
    FILE_GONE = 1
    MEMBER_GONE = 2  # the archive is there, was read again, and no longer has it


class What(Enum):
    """Which table of the keys names a missing source."""

    NAME = b"f"
    ARRAY = b"n"
    ARCHIVE = b"a"
    REJECT = b"r"


@dataclass(slots=True)
class _Count:
    gone: int = 0
    there: int = 0

    @property
    def needs_yes(self) -> bool:
        return self.gone > MAX_SHARE * (self.gone + self.there)

    def add(self, *, gone: bool, sources: int) -> None:
        if gone:
            self.gone += sources
        else:
            self.there += sources


@contextmanager
def noting() -> Iterator[None]:
    """Raise ``SourceError`` where writing to or reading from the temporary file fails."""
    try:
        yield
    except OSError as error:
        raise SourceError(
            f"the list of missing sources cannot be kept in the folder for temporary files: "
            f"{error.strerror or error}; make room there, or set TMPDIR"
        ) from None


class Missing:
    """The missing sources of one store, once ``look`` has looked for all of its sources."""

    def __init__(self, store: Session, go_on: Callable[[], None]) -> None:
        """``go_on`` is called before each look; an exception from it ends the search."""
        self._store = store
        self._go_on = go_on
        self._disk = Whereabouts()
        self._found: IO[bytes] | None = None
        self.kept: dict[str, None] = {}  # reasons why missing sources stay
        self._roots = {root: _Count() for root in store.snapshot.roots()}
        self._of_folder: dict[bytes, list[_Count]] = {}
        self._vanished: dict[bytes, _Count] = {}  # whole folders, below no root
        self._more_vanished = _Count()
        self._others = _Count()  # sources below no root whose folders are there
        self._common: bytes | None = None  # the folder above all of these
        self._last_folder = b""

    # --- looking ----------------------------------------------------------------------------------

    def look(self) -> None:
        """Look for every source; ``SourceError`` if the temporary file has no room."""
        with noting():
            self._found = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        for what, name, seen, sources in self._every():
            where = self.where(name, seen)
            if where is None:
                continue
            self._count(name, where, sources)
            if where is not Where.THERE:
                with noting():
                    self._found.write(what.value + len(name).to_bytes(4, "big") + name)

    def _every(self) -> Iterator[tuple[What, bytes, tuple[int, int] | None, int]]:
        """Each source that has a file: its table, name, stamp, and how many sources it counts as."""
        tables = self._store.snapshot.tables
        for name, row in tables.names.items(b"/"):
            yield What.NAME, name, (row.mtime_ns, row.size), 1
        for name, array in tables.arrays.arrays(b"/"):
            yield What.ARRAY, name, None, array.rows
        for name in tables.arrays.archive_names(b"/"):
            yield What.ARCHIVE, name, None, 0
        for name, reject in tables.rejects.items(b"/"):
            yield What.REJECT, name, (reject["mtime_ns"], reject["size"]), 0

    def where(self, name: bytes, seen: tuple[int, int] | None) -> Where | None:
        """Where the file of ``name`` is; None if that cannot be found out: ``kept`` then says why.

        ``seen`` is the stamp of the file when the source was seen there. A member of an archive with
        a newer stamp may be gone from it.
        """
        self._go_on()
        try:
            return self._where(name, seen)
        except SourceError as error:
            if len(self.kept) < _MAX_REASONS:
                self.kept[str(error)] = None
            return None

    def _where(self, name: bytes, seen: tuple[int, int] | None) -> Where:
        if os.path.lexists(name) or os.path.lexists(without_query(name)):
            return Where.THERE
        at = name.find(b"#")
        while at >= 0:
            outer = name[:at]
            file = outer if os.path.lexists(outer) else without_query(outer)
            if os.path.isfile(file):  # noqa: PTH113 - bytes, and False where nobody can tell
                row = self._store.snapshot.archive(outer) if seen is not None else None
                now = stamp(file)
                read = row is not None and row.complete and (row.mtime_ns, row.size) == now
                return Where.MEMBER_GONE if read and seen != now else Where.THERE
            at = name.find(b"#", at + 1)
        there = self._disk.is_there(without_query(name))
        return Where.THERE if there else Where.FILE_GONE

    def is_gone(self, name: bytes, seen: tuple[int, int] | None) -> bool:
        """Look for a source once more: whether it is certainly gone."""
        return self.where(name, seen) in (Where.FILE_GONE, Where.MEMBER_GONE)

    def found(self) -> Iterator[tuple[What, bytes]]:
        """The missing sources, in the order in which they were found."""
        assert self._found is not None
        with noting():
            self._found.seek(0)
        while True:
            with noting():
                head = self._found.read(5)
                name = self._found.read(int.from_bytes(head[1:], "big"))
            if not head:
                return
            yield What(head[:1]), name

    def close(self) -> None:
        """Delete the temporary file."""
        if self._found is not None:
            self._found.close()
            self._found = None

    # --- counting ---------------------------------------------------------------------------------

    def _count(self, name: bytes, where: Where, sources: int) -> None:
        gone = where is Where.FILE_GONE
        if not sources:
            return
        folder = os.path.dirname(name)  # noqa: PTH120 - bytes
        roots = self._of_folder.get(folder)
        if roots is None:
            if len(self._of_folder) >= _MAX_FOLDERS:
                self._of_folder.clear()
            roots = self._of_folder[folder] = list(self._roots_of(folder))
        for count in roots:
            count.add(gone=gone, sources=sources)
        if roots:
            return
        vanished = self._disk.missing_folder(self._file_of(name)) if gone else None
        if vanished is None:
            self._others.add(gone=gone, sources=sources)
            if folder != self._last_folder:
                self._last_folder = folder
                above = os.path.dirname(name.partition(b"#")[0])  # noqa: PTH120 - bytes
                both = [above] if self._common is None else [self._common, above]
                self._common = os.path.commonpath(both)
        elif vanished in self._vanished or len(self._vanished) < _MAX_FOLDERS:
            self._vanished.setdefault(vanished, _Count()).add(gone=True, sources=sources)
        else:
            self._more_vanished.add(gone=True, sources=sources)

    def _file_of(self, name: bytes) -> bytes:
        """The file that a missing source was in: an archive, or the source itself."""
        at = name.find(b"#")
        while at >= 0:
            outer = without_query(name[:at])
            if (
                outer.lower().endswith(b".npz")
                or self._store.snapshot.archive(name[:at]) is not None
            ):
                return outer
            at = name.find(b"#", at + 1)
        return without_query(name)

    def _roots_of(self, folder: bytes) -> Iterator[_Count]:
        """The counts of ``folder`` and the folders above it that are roots."""
        at = len(folder)
        while at > 0:
            if folder[:at] in self._roots:
                yield self._roots[folder[:at]]
            at = folder.rfind(b"/", 0, at)
        if b"/" in self._roots:
            yield self._roots[b"/"]

    def folders(self) -> Iterator[MissingBelow]:
        """The folders with missing sources below them; those that need a ``yes`` come first."""
        counts = [*self._roots.items(), *self._vanished.items()]
        if self._common is not None:
            counts.append((self._common, self._others))
        if self._more_vanished.gone:
            counts.append((b"/", self._more_vanished))
        # A file that was ingested by its own name is certainly gone: its folder is there.
        below = [
            MissingBelow(
                os.fsdecode(folder),
                one.gone,
                one.gone + one.there,
                one.needs_yes and one is not self._others,
            )
            for folder, one in counts
            if one.gone
        ]
        yield from sorted(below, key=lambda one: (not one.needs_yes, -one.missing))

    def require_yes(self) -> None:
        """Raise ``MissingError`` where so much is missing that a disk may be away."""
        suspect = [one for one in self.folders() if one.needs_yes]
        if not suspect:
            return
        parts = [f"{one.missing:,} of {one.sources:,} below {one.folder}" for one in suspect]
        more = len(parts) - _MAX_SHOWN
        shown = ", ".join(parts[:_MAX_SHOWN]) + (f", and {more:,} more folders" if more > 0 else "")
        raise MissingError(
            f"sources are missing as if a disk were away ({shown}); nothing was removed: mount the "
            f"disk, or say yes=True if they are gone for good (dry_run=True lists them)"
        )


def unfinished_arrays(store: Session) -> dict[str, None]:
    """Why images without a source stay: arrays that can be read further than they have been.

    A changed array names its images again as it is read. Until it is read to its end, images of its
    remaining rows have no source, but are not missing.
    """
    unfinished: dict[str, None] = {}
    for array, row in store.snapshot.tables.arrays.arrays():
        reject = store.snapshot.rejects([array])[0]
        broken = reject is not None and (reject["mtime_ns"], reject["size"]) == (
            row.mtime_ns,
            row.size,
        )
        # A synthetic set has no stamp and never changes.
        changes = row.mtime_ns or row.size
        if changes and not row.complete and not broken and len(unfinished) < _MAX_REASONS:
            name = os.fsdecode(array)
            reason = f"images without a source: {name} was not read to its end, ingest it again"
            unfinished[reason] = None
    return unfinished


def images_without_sources(store: Session, go_on: Callable[[], None]) -> Iterator[list[int]]:
    """Ids of images that have no source, as a changed file leaves them; in batches, ascending."""
    tables = store.snapshot.tables
    # All of these ascend by id, so each is read once.
    by = (
        _Spans((id_, 1) for id_ in tables.sources.ids()),
        _Spans((run.id, 1) for run in tables.runs.of_one_from(0)),
        _Spans((run.id, run.count) for run in tables.runs.of_several()),
    )
    for ids in tables.records.ids():
        go_on()
        yield [id_ for id_ in ids.tolist() if not any(spans.cover(id_) for spans in by)]


class _Spans:
    """Spans of ids, in the order of their first ids; ``cover`` takes ids in ascending order."""

    def __init__(self, spans: Iterator[tuple[int, int]]) -> None:
        """``spans`` are pairs of a first id and a number of ids."""
        self._spans = spans
        self._next = next(spans, None)
        self._end = 0

    def cover(self, id_: int) -> bool:
        """Whether an id is in any of them."""
        while self._next is not None and self._next[0] <= id_:
            self._end = max(self._end, sum(self._next))
            self._next = next(self._spans, None)
        return id_ < self._end
