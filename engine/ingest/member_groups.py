"""Groups the members of an archive for commits, and notes how far each group gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from engine.errors import SourceError
from engine.sources.items import FileItem, Member, Reject, Skipped
from engine.storage.source_rows import ArchiveRow


@dataclass(slots=True)
class ArchiveProgress:
    """An archive that is being read, and how far it is committed."""

    name: bytes
    row: ArchiveRow
    again: bool = False  # whether the next run has to try some members again


@dataclass(slots=True)
class MemberGroup:
    """Members of an archive that are committed together, and the problems between them."""

    archive: ArchiveProgress
    files: list[Member] = field(default_factory=list)
    problems: list[Reject] = field(default_factory=list)
    skipped: int = 0
    notes: list[str] = field(default_factory=list)  # notes about skipped members
    size: int = 0  # bytes that its members take in memory
    rejected: int = 0  # rejected members of the group
    before: list[tuple[int, int, int]] = field(default_factory=list)
    """The numbers of problems, skipped members and notes before each file."""

    @property
    def count(self) -> int:
        """The number of all members, also rejected and skipped ones."""
        return len(self.files) + len(self.problems) + self.skipped

    def add(self, found: Member | Reject | Skipped) -> None:
        """Add the next member of the archive."""
        if isinstance(found, Member):
            self.before.append((len(self.problems), self.skipped, len(self.notes)))
            self.files.append(found)
            self.size += found.memory_bytes
        elif isinstance(found, Reject):
            self.problems.append(found)
        else:
            self.skipped += 1
            if found.note:
                self.notes.append(found.note)

    def until(self, file: FileItem | Member) -> MemberGroup:
        """The part of the group before one of its files."""
        at = next(i for i, other in enumerate(self.files) if other is file)
        problems, skipped, notes = self.before[at]
        return MemberGroup(
            self.archive, self.files[:at], self.problems[:problems], skipped, self.notes[:notes]
        )

    def reject(self, problems: list[Reject], *, met_now: int) -> None:
        """Note the rejects committed with the group; the last ``met_now`` were not counted before."""
        self.rejected += met_now
        self.archive.again |= any(not (found.mtime_ns or found.size) for found in problems)

    def pass_by(self) -> ArchiveRow:
        """Advance the archive's row past the group; returns the row."""
        row = self.archive.row
        self.archive.row = replace(
            row,
            done=row.done + self.count,
            images=row.images + len(self.files) + len(self.problems) - self.rejected,
            rejected=row.rejected + self.rejected,
            skipped=row.skipped + self.skipped,
        )
        return self.archive.row

    def marks(self) -> tuple[ArchiveRow, int]:
        """How far the archive is committed, for ``go_back``."""
        return self.archive.row, self.rejected

    def go_back(self, marks: tuple[ArchiveRow, int]) -> None:
        """Undo the notes of a commit that did not fit the disk."""
        self.archive.row, self.rejected = marks


def member_groups(
    archive: ArchiveProgress,
    members: Iterator[Member | Reject | Skipped],
    *,
    max_files: int,
    max_bytes: int,
    stop: Callable[[], bool],
) -> Iterator[MemberGroup]:
    """The members of an archive in groups, each in memory until its commit.

    A group ends with the member that reaches ``max_files`` or ``max_bytes``. If the archive breaks
    off, its ``SourceError`` is raised after the last group.
    """
    group = MemberGroup(archive)
    broken: SourceError | None = None
    while not stop():
        try:
            found = next(members, None)
        except SourceError as error:
            broken, found = error, None
        if found is None:
            break
        group.add(found)
        if group.count >= max_files or group.size >= max_bytes:
            yield group
            group = MemberGroup(archive)
    if group.count:
        yield group
    if broken is not None:
        raise broken
