"""Commits chunk after chunk: the chunk with its rejects, and then the index.

A chunk that does not fit the disk is rolled back and committed in halves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from engine.errors import ImageError, SourceError
from engine.ingest.chunk_builder import ChunkBuilder
from engine.ingest.counts import Tally
from engine.ingest.index_updates import IndexUpdates
from engine.ingest.rejects import Rejects
from engine.ingest.resume import stamp_of
from engine.memory import PeakMemory
from engine.sources.items import ArchiveItem, ArrayItem, Reject, VectorItem
from engine.storage.ballast import NoRoomError
from engine.storage.changeset import Chunk
from engine.storage.session import Session

_log = logging.getLogger("engine.ingest")
_NAMED = 10  # images in a warning
T = TypeVar("T")


class Commits:
    """The commits of one run."""

    def __init__(
        self,
        store: Session,
        tally: Tally,
        index: IndexUpdates,
        peak: PeakMemory,
    ) -> None:
        self.rejects = Rejects(store, tally)
        self._store = store
        self._tally = tally
        self._index = index
        self._peak = peak
        self._missing = 0  # images for which the encoder gave no vector
        self._some_missing: list[int] = []  # the ids of the first ones

    def commit(self, builder: ChunkBuilder) -> None:
        """Commit a builder's chunk, and index vectors once many are in no segment."""
        chunk = builder.finish()
        self._peak.sample()
        self.save(chunk)
        if chunk.vectors is not None:
            missing = np.flatnonzero(~chunk.vectors.any(axis=1))
            self._missing += len(missing)
            some = builder.first_id + missing[: _NAMED - len(self._some_missing)]
            self._some_missing += some.tolist()
        self._index.update(self._store.limits.unindexed_rows)

    def reject(self, problems: Sequence[Reject]) -> None:
        """Commit rejects, if there are any."""
        if not problems:
            return
        chunk = Chunk()
        self.rejects.put(chunk, problems)
        self.save(chunk)
        self._tally.advance(len(problems))

    def reject_rest(
        self,
        item: ArchiveItem | ArrayItem | VectorItem,
        error: SourceError | ImageError,
        left: int = 1,
    ) -> None:
        """Reject a source that breaks off, with ``left`` members or rows that were not read."""
        self.reject([broken(item, error)])
        self._tally.advance(max(left - 1, 0))

    def save(self, chunk: Chunk) -> None:
        """Commit a chunk, and then list its rejects in ``rejects.jsonl``."""
        started = time.perf_counter()
        size = chunk.disk_bytes() if _log.isEnabledFor(logging.INFO) else 0
        self._store.writer.commit(chunk)
        self.rejects.log()
        if not chunk.empty:
            _log.info(
                "commit %d: %d rows, %d bytes at most, in %.3f s",
                self._store.snapshot.state.commit,
                _rows(chunk),
                size,
                time.perf_counter() - started,
            )

    def or_halves(self, attempt: Callable[[], T], halves: Callable[[], T] | None) -> T:
        """Call ``attempt``; if its commit does not fit the disk, undo its counts and call ``halves``.

        Without ``halves`` it raises ``NoRoomError``.
        """
        before = self._tally.marks()
        try:
            return attempt()
        except NoRoomError:
            if halves is None:
                raise
            _log.debug("no room for this commit: it is halved")
        self._tally.go_back(before)
        self.rejects.go_back()
        return halves()

    def warn_of_missing_vectors(self) -> None:
        """Log the ids of images that were added without a vector."""
        if self._missing:
            named = ", ".join(map(str, self._some_missing))
            more = self._missing - len(self._some_missing)
            _log.warning(
                "the encoder gave no vector for %d of the images (ids %s%s): lookups find them as "
                "identical and near, but not as similar",
                self._missing,
                named,
                f" and {more} more" if more else "",
            )


def broken(item: ArchiveItem | ArrayItem | VectorItem, error: SourceError | ImageError) -> Reject:
    """The reject of a source that breaks off."""
    return Reject(item.name, str(error), *((0, 0) if error.retryable else stamp_of(item)))


def _rows(chunk: Chunk) -> int:
    """The number of images, vectors, names and rejects in a chunk."""
    imported = len(chunk.imported) if chunk.imported is not None else 0
    rows = len(chunk.rows) if chunk.rows is not None else 0
    return imported + rows + len(chunk.images) + len(chunk.names) + len(chunk.rejects)
