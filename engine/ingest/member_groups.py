"""Members of an archive in groups of one commit, and how far the archive is read with each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from engine.errors import SourceError
from engine.sources.items import FileItem, Member, Reject, Skipped
from engine.storage.source_rows import ArchiveRow


@dataclass(slots=True)
class ArchiveProgress:
    """An archive while it is read, and how far it is committed."""

    name: bytes
    row: ArchiveRow
    again: bool = False  # something in it is to be tried again at the next run


@dataclass(slots=True)
class MemberGroup:
    """Members of an archive that are committed together, and what was met between them."""

    archive: ArchiveProgress
    files: list[Member] = field(default_factory=list)
    problems: list[Reject] = field(default_factory=list)
    skipped: int = 0
    notes: list[str] = field(default_factory=list)  # of those that were skipped
    size: int = 0  # bytes that it holds while it waits
    rejected: int = 0  # of it
    before: list[tuple[int, int, int]] = field(default_factory=list)
    """What was met before each file: how many problems, skipped and notes."""

    @property
    def count(self) -> int:
        """Members of all kinds."""
        return len(self.files) + len(self.problems) + self.skipped

    def add(self, found: Member | Reject | Skipped) -> None:
        """The next member of the archive."""
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
        """What was met before one of its files."""
        at = next(i for i, other in enumerate(self.files) if other is file)
        problems, skipped, notes = self.before[at]
        return MemberGroup(
            self.archive, self.files[:at], self.problems[:problems], skipped, self.notes[:notes]
        )

    def reject(self, problems: list[Reject], *, met_now: int) -> None:
        """Note that ``problems`` are committed with it, the last ``met_now`` not counted before."""
        self.rejected += met_now
        self.archive.again |= any(not (found.mtime_ns or found.size) for found in problems)

    def pass_by(self) -> ArchiveRow:
        """Note that it is done; returns the archive's row."""
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
        """How far the archive is, to ``go_back`` to."""
        return self.archive.row, self.rejected

    def go_back(self, marks: tuple[ArchiveRow, int]) -> None:
        """Forget what was noted of a commit that did not fit the disk."""
        self.archive.row, self.rejected = marks


def member_groups(
    archive: ArchiveProgress,
    members: Iterator[Member | Reject | Skipped],
    *,
    max_files: int,
    max_bytes: int,
    stop: Callable[[], bool],
) -> Iterator[MemberGroup]:
    """Members of one commit at a time, each of whom is in memory until then.

    A group ends with the member that reaches ``max_files`` or ``max_bytes``. Where the archive breaks
    off, its error is raised behind the last group.
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
