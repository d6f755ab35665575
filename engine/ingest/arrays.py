"""Ingests arrays of images and synthetic sets block by block, from the first uncommitted row."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from engine.errors import ImageError, SourceError
from engine.ingest.commit import Commits
from engine.ingest.counts import Tally
from engine.ingest.encode import Encoding
from engine.ingest.prepare_rows import PreparedRows, joined, prepare_rows
from engine.ingest.resume import Resumed, resume_array, stamp_of
from engine.ingest.row_commits import RowCommits
from engine.ingest.stopping import Stopping
from engine.ingest.vector_arrays import VectorArray
from engine.memory import PeakMemory
from engine.records import Kind
from engine.sources.items import ArrayItem, RowBlock
from engine.storage.changeset import Chunk
from engine.storage.session import Session
from engine.storage.source_rows import ArrayRow


class ArrayIngest:
    """Ingests arrays of images, one at a time."""

    def __init__(
        self,
        store: Session,
        rows: RowCommits,
        commits: Commits,
        tally: Tally,
        stopping: Stopping,
        peak: PeakMemory,
        encoding: Encoding,
        *,
        keep_pixels: str,
        workers: int,
    ) -> None:
        self._store = store
        self._rows = rows
        self._commits = commits
        self._tally = tally
        self._stopping = stopping
        self._peak = peak
        self._encoding = encoding
        self._keep_pixels = keep_pixels
        self._workers = workers

    def ingest(self, array: ArrayItem, pool: ThreadPoolExecutor) -> None:
        """Ingest the rows of an array that are not committed yet, block by block."""
        start = 0
        try:
            require_row_fits(array.row_bytes, self._store.memory.chunk)
            found = resume_array(self._store.snapshot, array)
            row = self._row(array, found)
            start = found.done
            self._tally.resume(found, left=max(array.count - start, 1))
            if found.hopeless:
                return
            if found.replaced_by_none(array):
                self._commits.save(Chunk(arrays=[(array.name, replace(row, complete=True))]))
                return
            blocks = array.blocks(start, self._max_rows(), self._store.memory.block)
            for rows in self._ahead(blocks, row.kind, pool):
                row, start = self._rows.commit(array.name, row, rows, array.count)
                if start < rows.block.first + len(rows.keys) or self._stopping.asked():
                    return
        except (SourceError, ImageError) as error:
            self._commits.reject_rest(array, error, array.count - start)

    def _row(self, array: ArrayItem, found: Resumed[ArrayRow]) -> ArrayRow:
        """The row to go on from, or a new one."""
        before = found.before
        # The name used to be an array of vectors.
        if before is not None and before.kind is Kind.VECTOR:
            VectorArray(self._store, array.name, before.number).forget(0)
        if found.row is not None:
            return found.row
        return ArrayRow(self._store.snapshot.state.next_array, *stamp_of(array), 0, array.kind)

    def _max_rows(self) -> int:
        """The largest number of rows in one commit."""
        limits = self._store.limits
        if self._encoding.enabled:
            return min(limits.chunk_rows, limits.chunk_encoded_rows)
        return limits.chunk_rows

    def _ahead(
        self, blocks: Iterator[RowBlock], kind: Kind, pool: ThreadPoolExecutor
    ) -> Iterator[PreparedRows]:
        """Each block, prepared. While one is committed, the next is prepared and a third is read."""
        # The fingerprint of an 8-bit row takes 0.4 ms, so all workers share its block. A bit image is
        # little more than hashed, and several threads that release the interpreter's lock every 3 µs
        # take a tenth longer than one.
        parts = 1 if kind is Kind.BITS else self._workers
        # A task waits only for tasks that were submitted before it, so one worker is enough.
        reading = pool.submit(next, blocks, None)
        hashing = [pool.submit(self._prepare, reading, part, parts) for part in range(parts)]
        reading = pool.submit(_next, blocks, reading)
        while all(self._stopping.ready(part) for part in hashing):
            rows = joined([part.result() for part in hashing])
            if rows is None:
                return
            hashing = [pool.submit(self._prepare, reading, part, parts) for part in range(parts)]
            reading = pool.submit(_next, blocks, reading)
            yield rows

    def _prepare(
        self, reading: Future[RowBlock | None], part: int, parts: int
    ) -> PreparedRows | None:
        """Wait for a block to be read and prepare a part of it; runs in a worker thread."""
        block = reading.result()
        if block is None:
            return None
        seed = self._store.snapshot.settings.hash_seed
        rows = prepare_rows(block, part, parts, hash_seed=seed, keep_pixels=self._keep_pixels)
        self._peak.sample()
        return rows


def require_row_fits(row_bytes: int, most: int) -> None:
    """``SourceError`` if one row of an array takes more than ``most`` bytes."""
    if row_bytes > most:
        raise SourceError(f"has rows of {row_bytes:,} bytes: raise memory=", retryable=True)


def _next(blocks: Iterator[RowBlock], before: Future[RowBlock | None]) -> RowBlock | None:
    """Wait for the block before, and read the next one."""
    before.result()
    return next(blocks, None)
