"""Files: those that are new or changed are prepared while the group before them is committed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from engine.ingest.counts import Tally
from engine.ingest.image_commits import ImageCommits
from engine.ingest.resume import FileState, resume_files
from engine.ingest.workers import Preparing, Waiting
from engine.sources.items import FileItem, Member
from engine.storage.snapshot import StoreView


class FileIngest:
    """Ingests groups of files, one of which is always under way."""

    def __init__(
        self, store: StoreView, preparing: Preparing, images: ImageCommits, tally: Tally
    ) -> None:
        self._store = store
        self._preparing = preparing
        self._images = images
        self._tally = tally
        self._waiting: list[Waiting] = []

    def ingest(self, group: Sequence[FileItem | Member], pool: ThreadPoolExecutor) -> None:
        """Have a group prepared, and meanwhile commit the one before."""
        ahead = self._preparing.begin(pool, self._new(group))
        self.finish()
        self._waiting = ahead

    def finish(self) -> None:
        """Commit the group that is under way."""
        waiting, self._waiting = self._waiting, []
        self._images.commit(waiting)

    def _new(self, group: Sequence[FileItem | Member]) -> list[FileItem | Member]:
        """The files of a group that are new or changed by their stamp; the rest is not read."""
        new: list[FileItem | Member] = []
        for item, state in zip(group, resume_files(self._store, group), strict=True):
            if state is FileState.NEW:
                new.append(item)
                continue
            self._tally.counts.unchanged += state is FileState.UNCHANGED
            self._tally.counts.rejected += state is FileState.REJECTED
            self._tally.advance(1)
        return new
