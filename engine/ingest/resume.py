"""What earlier runs did with a source, and whether it is as it was then.

The stamp of a file, its (mtime_ns, size), tells whether it has changed. What was rejected is not read
again while neither its stamp nor the decoder changes.
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
    """A source, or the row that a store has of one."""

    @property
    def mtime_ns(self) -> int:
        """When its file was last changed; 0 where there is none."""

    @property
    def size(self) -> int:
        """Bytes of its file."""


class FileState(Enum):
    """What is to be done with a file."""

    NEW = auto()  # or changed: it is to be read
    UNCHANGED = auto()
    REJECTED = auto()  # before, and it would be again


@dataclass(frozen=True, slots=True)
class Resumed(Generic[Row]):
    """How far an archive or an array is committed."""

    before: Row | None = None
    """Its row in the store, also where the source has changed since."""
    begun: bool = False
    """Whether that row is of the source as it is now; else all counts are 0."""
    done: int = 0  # members or rows, whatever became of them
    unchanged: int = 0
    rejected: int = 0
    skipped: int = 0
    hopeless: bool = False
    """Whether what is left was rejected before, and would be again."""

    @property
    def row(self) -> Row | None:
        """The row to go on from."""
        return self.before if self.begun else None

    def replaced_by_none(self, count: int) -> bool:
        """Whether something is committed of an array that has changed and has no rows any more."""
        return self.before is not None and not self.begun and count == 0


def stamp_of(one: Stamped) -> Stamp:
    """What tells whether a source is as it was."""
    return one.mtime_ns, one.size


def is_final(reject: dict[str, Any], stamp: Stamp) -> bool:
    """Whether what was rejected would be again: it has not changed, nor has what decodes it."""
    before = (reject["mtime_ns"], reject["size"])
    return any(before) and before == stamp and reject.get("decoder") == decode.DECODER


def resume_files(store: Snapshot | None, items: Sequence[FileItem | Member]) -> list[FileState]:
    """What is to be done with each of some files, by their stamps; ``None`` is an empty store."""
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
    """How far an archive is committed; ``None`` is an empty store."""
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
    """How far an array, of images or of vectors, is committed; ``None`` is an empty store."""
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
