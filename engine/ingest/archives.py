"""Ingests archives and tables member by member, in order, so that a run goes on from the last one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from engine.errors import ImageError, SourceError, UsageError
from engine.ingest.commit import Commits
from engine.ingest.counts import Tally
from engine.ingest.image_commits import ImageCommits
from engine.ingest.image_vectors import ImageVectors
from engine.ingest.member_groups import ArchiveProgress, MemberGroup, member_groups
from engine.ingest.resume import resume_archive, stamp_of
from engine.ingest.stopping import Stopping
from engine.ingest.workers import Preparing, Waiting
from engine.sources.items import ArchiveItem, VectorArchive
from engine.storage.changeset import Chunk
from engine.storage.session import Session
from engine.storage.source_rows import ArchiveRow


class ArchiveIngest:
    """Ingests archives, one at a time."""

    def __init__(
        self,
        store: Session,
        preparing: Preparing,
        images: ImageCommits,
        commits: Commits,
        tally: Tally,
        stopping: Stopping,
        *,
        vectors: ImageVectors,
        group_files: int,
    ) -> None:
        """``group_files`` is the largest number of images in one commit."""
        self._store = store
        self._preparing = preparing
        self._images = images
        self._commits = commits
        self._tally = tally
        self._stopping = stopping
        self._vectors = vectors
        self._group_files = group_files

    def ingest(self, item: ArchiveItem, pool: ThreadPoolExecutor) -> None:
        """Ingest the members of an archive that are not committed yet, group by group."""
        found = resume_archive(self._store.snapshot, item)
        self._tally.resume(found, left=1)
        row = found.row or ArchiveRow(*stamp_of(item))
        if row.complete or found.hopeless or not self._admits(item):
            return
        archive = ArchiveProgress(item.name, row)
        groups = member_groups(
            archive,
            item.members(row.done, self._store.memory.max_file),
            max_files=self._group_files,
            max_bytes=self._store.memory.block // 2,
            stop=self._stopping.asked,
        )
        waiting: tuple[list[Waiting], MemberGroup] | None = None
        error: SourceError | ImageError | None = None
        while True:
            try:
                group = next(groups, None)
            except (SourceError, ImageError) as broken:
                error, group = broken, None
            if group is None:
                break
            self._preparing.reserve(group.size + (waiting[1].size if waiting is not None else 0))
            # Members that were rejected before are prepared too: a name may stand for several members,
            # and the bytes are in memory already.
            ahead = self._preparing.begin(pool, group.files)
            if waiting is not None and not self._images.commit(*waiting):
                return
            waiting = ahead, group
            # While a large member is in memory, nothing else is read.
            if group.size > 2 * self._store.memory.block:
                if not self._images.commit(*waiting):
                    return
                waiting = None
        if waiting is not None and not self._images.commit(*waiting):
            return
        self._preparing.reserve(0)
        if error is not None:
            self._commits.reject_rest(item, error)
        else:
            self._complete(item, archive)

    def _admits(self, item: ArchiveItem) -> bool:
        """Whether the store takes the vectors of an archive, if it has some; else it is rejected.

        ``UsageError`` if it is the first source of the run.
        """
        if not isinstance(item, VectorArchive) or not item.brings_vectors:
            return True
        try:
            self._vectors.admit(item.vector_dim)
        except UsageError as error:
            if not self._tally.begun:
                raise
            self._commits.reject_rest(item, SourceError(str(error), retryable=True))
            return False
        return True

    def _complete(self, item: ArchiveItem, archive: ArchiveProgress) -> None:
        """Commit that an archive is read to its end, unless the run was stopped before."""
        if self._stopping.asked():
            return
        row = replace(archive.row, complete=True)
        # The next run reads it from its beginning; committed members are unchanged then.
        row = ArchiveRow(*stamp_of(item)) if archive.again else row
        self._commits.save(Chunk(archives=[(item.name, row)]))
