"""Ingests files: prepares new and changed ones while the group before them is committed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from engine.ingest.counts import Tally
from engine.ingest.image_commits import ImageCommits
from engine.ingest.resume import FileState, resume_files
from engine.ingest.workers import Preparing, Waiting
from engine.sources.items import FileItem, Member
from engine.storage.session import Session


class FileIngest:
    """Ingests groups of files; prepares one group ahead."""

    def __init__(
        self, store: Session, preparing: Preparing, images: ImageCommits, tally: Tally
    ) -> None:
        self._store = store
        self._preparing = preparing
        self._images = images
        self._tally = tally
        self._waiting: list[Waiting] = []

    def ingest(self, group: Sequence[FileItem | Member], pool: ThreadPoolExecutor) -> None:
        """Let the workers prepare a group, and commit the one before it."""
        ahead = self._preparing.begin(pool, self._new(group))
        self.finish()
        self._waiting = ahead

    def finish(self) -> None:
        """Commit the prepared group, if there is one."""
        waiting, self._waiting = self._waiting, []
        self._images.commit(waiting)

    def _new(self, group: Sequence[FileItem | Member]) -> list[FileItem | Member]:
        """The files of a group that are new or have another stamp; counts the others as done."""
        new: list[FileItem | Member] = []
        brought: list[FileItem | Member] = []
        for item, state in zip(group, resume_files(self._store.snapshot, group), strict=True):
            if state is FileState.NEW:
                new.append(item)
                continue
            self._tally.counts.unchanged += state is FileState.UNCHANGED
            self._tally.counts.rejected += state is FileState.REJECTED
            self._tally.advance(1)
            if item.vector is not None and state is FileState.UNCHANGED:
                brought.append(item)
        if brought:
            rows = self._store.snapshot.names([item.name for item in brought])
            known = zip(brought, rows, strict=True)
            self._images.bring([(item, row.id) for item, row in known if row is not None])
        return new
