"""Finds what earlier runs did with a source, and whether it has changed since.

A file has changed if its stamp, (mtime_ns, size), has. A rejected file is read again only after its
stamp or the decoder has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Generic, Protocol, TypeVar

from engine.images import decode
from engine.records import Kind
from engine.sources.items import ArchiveItem, ArrayItem, FileItem, Member, VectorItem
from engine.storage.snapshot import Snapshot
from engine.storage.source_rows import ArchiveRow, ArrayRow

Stamp = tuple[int, int]  # mtime_ns, size
Row = TypeVar("Row", covariant=True)


class Stamped(Protocol):
    """A source, or a store's row of one."""

    @property
    def mtime_ns(self) -> int:
        """When its file was last changed; 0 without a file."""

    @property
    def size(self) -> int:
        """Bytes of its file."""


class FileState(Enum):
    """What a run does with a file."""

    NEW = auto()  # new or changed: read it
    UNCHANGED = auto()
    REJECTED = auto()  # rejected before, and would be again


@dataclass(frozen=True, slots=True)
class Resumed(Generic[Row]):
    """How far an archive or an array is committed."""

    before: Row | None = None
    """Its row in the store, even if the source has changed since."""
    begun: bool = False
    """Whether that row is of the unchanged source; if not, all counts are 0."""
    done: int = 0  # members or rows, also rejected and skipped ones
    unchanged: int = 0
    rejected: int = 0
    skipped: int = 0
    hopeless: bool = False
    """Whether the rest was rejected before, and would be again."""

    @property
    def row(self) -> Row | None:
        """The row to go on from."""
        return self.before if self.begun else None

    def replaced_by_none(self, item: ArrayItem | VectorItem) -> bool:
        """Whether an array with committed rows has changed, and is now empty.

        A synthetic set never changes: an ingest may only ask for fewer of its rows.
        """
        changed = self.before is not None and not self.begun and any(stamp_of(item))
        return changed and item.count == 0


def stamp_of(one: Stamped) -> Stamp:
    """The stamp of a source, which changes with its file."""
    return one.mtime_ns, one.size


def is_final(reject: dict[str, Any], stamp: Stamp) -> bool:
    """Whether a reject would be rejected again: neither its file nor the decoder has changed."""
    before = (reject["mtime_ns"], reject["size"])
    return any(before) and before == stamp and reject.get("decoder") == decode.DECODER


def resume_files(store: Snapshot | None, items: Sequence[FileItem | Member]) -> list[FileState]:
    """What a run does with each file, by its stamp; a ``store`` of None is an empty one."""
    states = [FileState.NEW] * len(items)
    if store is None:
        return states
    for i, row in enumerate(store.names([item.name for item in items])):
        if row is not None and stamp_of(row) == stamp_of(items[i]):
            states[i] = FileState.UNCHANGED
    new = [i for i, state in enumerate(states) if state is FileState.NEW]
    rejects = store.rejects([items[i].name for i in new])
    for i, reject in zip(new, rejects, strict=True):
        if reject is not None and is_final(reject, stamp_of(items[i])):
            states[i] = FileState.REJECTED
    return states


def resume_archive(store: Snapshot | None, item: ArchiveItem) -> Resumed[ArchiveRow]:
    """How far an archive is committed; a ``store`` of None is an empty one."""
    row = store.archive(item.name) if store is not None else None
    if store is None or row is None or stamp_of(row) != stamp_of(item):
        return Resumed(row)
    return Resumed(
        row,
        begun=True,
        done=row.done,
        unchanged=row.images,
        rejected=row.rejected,
        skipped=row.skipped,
        hopeless=not row.complete and _is_hopeless(store, item),
    )


def resume_array(store: Snapshot | None, item: ArrayItem | VectorItem) -> Resumed[ArrayRow]:
    """How far an array of images or vectors is committed; a ``store`` of None is an empty one."""
    row = store.array(item.name) if store is not None else None
    if store is None or row is None or stamp_of(row) != stamp_of(item):
        return Resumed(row)
    if (row.kind is Kind.VECTOR) != isinstance(item, VectorItem):
        return Resumed(row)
    done = min(row.rows, item.count)
    return Resumed(
        row,
        begun=True,
        done=done,
        unchanged=done - row.rejected,
        rejected=row.rejected,
        hopeless=_is_hopeless(store, item),
    )


def _is_hopeless(store: Snapshot, item: ArchiveItem | ArrayItem | VectorItem) -> bool:
    reject = store.rejects([item.name])[0]
    return reject is not None and is_final(reject, stamp_of(item))
