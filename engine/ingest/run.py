"""One run of an ingest, from sources to commits.

    items → groups → prepare (read, hash, decode, fingerprint; in threads) → known? → encode → commit

The images of a chunk are prepared while the chunk before is encoded and committed. An image that
cannot be read becomes a row of the rejects, and the run goes on. Only an error of the store ends a run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from engine.config import KEEP_BITS_LIMIT, check_keep_pixels, check_workers, cpu_count
from engine.encoders.onnx import OnnxEncoder
from engine.ingest.archives import ArchiveIngest
from engine.ingest.arrays import ArrayIngest
from engine.ingest.commit import Commits
from engine.ingest.counts import Tally
from engine.ingest.encode import Encoding
from engine.ingest.files import FileIngest
from engine.ingest.groups import Groups
from engine.ingest.image_commits import ImageCommits
from engine.ingest.image_vectors import ImageVectors
from engine.ingest.index_updates import IndexUpdates
from engine.ingest.row_commits import RowCommits
from engine.ingest.stopping import Stopping
from engine.ingest.vectors import VectorIngest
from engine.ingest.workers import Preparing, worker_pool
from engine.memory import PeakMemory
from engine.records import IngestReport
from engine.sources.items import ArchiveItem, Item, VectorItem
from engine.sources.skip_notes import WITHOUT_METADATA
from engine.storage.ballast import NoRoomError
from engine.storage.session import Session
from engine.storage.writer import REJECTS

_log = logging.getLogger("engine.ingest")


def nothing_done() -> IngestReport:
    """The report of a run that was stopped before it began."""
    return IngestReport(0, 0, 0, 0, 0, 0, 0.0, 0.0, 0, 0, None, interrupted=True)


class Ingest:
    """One run over some sources. ``run`` may be called once."""

    def __init__(
        self,
        store: Session,
        encoder: OnnxEncoder | None,
        *,
        keep_pixels: str = "auto",
        workers: int | None = None,
        normalize: bool = False,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        """``progress(done)`` counts items; ``stop``, called often, ends the run.

        A stopped run commits what is finished. With ``normalize``, imported vectors are divided by
        their length.
        """
        check_keep_pixels(keep_pixels)
        check_workers(workers)
        self._store = store
        self._workers = workers or cpu_count()
        self._stopping = stopping = Stopping(stop, store.limits.finishing_seconds)
        self._tally = tally = Tally(progress)
        encoding = Encoding(store, encoder, stopping)
        preparing = Preparing(store, encoding, keep_pixels)
        self._peak = peak = PeakMemory()
        self._index = IndexUpdates(store, stopping, peak)
        self._commits = commits = Commits(store, tally, self._index, peak)
        self._image_vectors = ImageVectors(store, encoding, tally, normalize=normalize)
        images = ImageCommits(store, encoding, commits, tally, stopping, self._image_vectors)
        limits = store.limits
        # The kept bytes of a group's images and their resized pictures are in memory until the commit.
        each = KEEP_BITS_LIMIT + (3 * encoder.preprocessing.size**2 if encoder else 0)
        self._group_files = max(1, min(limits.chunk_files, store.memory.chunk // each))
        self._files = FileIngest(store, preparing, images, tally)
        self._archives = ArchiveIngest(
            store,
            preparing,
            images,
            commits,
            tally,
            stopping,
            vectors=self._image_vectors,
            group_files=self._group_files,
        )
        self._arrays = ArrayIngest(
            store,
            RowCommits(store, encoding, commits, tally),
            commits,
            tally,
            stopping,
            peak,
            encoding,
            keep_pixels=keep_pixels,
            workers=self._workers,
        )
        self._vectors = VectorIngest(
            store, encoding, commits, tally, stopping, peak, normalize=normalize
        )

    def run(self, items: Iterable[Item]) -> IngestReport:
        """Ingest all items; returns the report."""
        with self._peak.sampled():
            return self._run(items)

    def _run(self, items: Iterable[Item]) -> IngestReport:
        started = time.perf_counter()
        self._store.become_writer()
        groups = Groups(
            self._image_vectors.checked(items),
            self._commits,
            self._tally,
            self._stopping,
            max_files=self._group_files,
            max_bytes=self._store.memory.chunk,
            max_problems=self._store.limits.chunk_files,
        )
        try:
            self._take_all(groups)
        except NoRoomError as error:
            self._store.writer.give_up(error)
            raise
        self._commits.warn_of_missing_vectors()
        self._index.update(self._store.limits.exact_rows)
        if groups.failure is not None:
            raise groups.failure
        report = self._report(time.perf_counter() - started)
        _log.info("ingest: %d seen, %d added, in %.3f s", report.seen, report.added, report.seconds)
        return report

    def _take_all(self, groups: Groups) -> None:
        with worker_pool(self._workers) as pool:
            for group in groups:
                if self._stopping.asked():
                    break
                if isinstance(group, list):
                    self._files.ingest(group, pool)
                else:
                    self._files.finish()
                    if isinstance(group, ArchiveItem):
                        self._archives.ingest(group, pool)
                    elif isinstance(group, VectorItem):
                        self._vectors.ingest(group, pool)
                    else:
                        self._arrays.ingest(group, pool)
                if self._stopping.asked():
                    break
            self._files.finish()

    def _report(self, seconds: float) -> IngestReport:
        self._peak.sample()
        counts = self._tally.counts
        return IngestReport(
            seen=counts.seen,
            added=counts.added,
            duplicates=counts.duplicates,
            unchanged=counts.unchanged,
            rejected=counts.rejected,
            skipped=counts.skipped,
            seconds=round(seconds, 3),
            images_per_second=round(counts.seen / seconds, 1) if seconds else 0.0,
            peak_memory_bytes=self._peak.anonymous,
            peak_rss_bytes=self._peak.resident,
            rejects_file=str(self._store.path / REJECTS)
            if counts.rejected or WITHOUT_METADATA in counts.notes
            else None,
            interrupted=self._stopping.asked(),
            notes=dict(counts.notes),
            vectors=counts.vectors,
            image_vectors=counts.image_vectors,
        )
