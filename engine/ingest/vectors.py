"""Ingests arrays of imported vectors block by block, from the first uncommitted row."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from engine.errors import ImageError, SourceError, UsageError
from engine.ingest.arrays import require_row_fits
from engine.ingest.checked_vectors import CheckedBlock, checked
from engine.ingest.commit import Commits
from engine.ingest.counts import Tally
from engine.ingest.encode import Encoding
from engine.ingest.resume import Resumed, resume_array, stamp_of
from engine.ingest.stopping import Stopping
from engine.ingest.vector_arrays import VectorArray, check_admission
from engine.memory import PeakMemory
from engine.records import Kind
from engine.sources.items import Reject, VectorItem
from engine.storage import swaps
from engine.storage.changeset import Chunk
from engine.storage.session import Session
from engine.storage.source_rows import ArrayRow

_log = logging.getLogger("engine.ingest")


class VectorIngest:
    """Ingests arrays of vectors, one at a time."""

    def __init__(
        self,
        store: Session,
        encoding: Encoding,
        commits: Commits,
        tally: Tally,
        stopping: Stopping,
        peak: PeakMemory,
        *,
        normalize: bool,
    ) -> None:
        """With ``normalize``, vectors are divided by their length."""
        self._store = store
        self._encoding = encoding
        self._commits = commits
        self._tally = tally
        self._stopping = stopping
        self._peak = peak
        self._normalize = normalize

    def ingest(self, array: VectorItem, pool: ThreadPoolExecutor) -> None:
        """Ingest the rows of an array that are not committed yet, block by block."""
        before = self._tally.counts.seen
        try:
            self._ingest(array, pool)
        finally:
            counts = self._tally.counts
            counts.vectors += counts.seen - before

    def _ingest(self, array: VectorItem, pool: ThreadPoolExecutor) -> None:
        start, is_first = 0, not self._tally.begun
        try:
            require_row_fits(array.row_bytes, self._store.memory.chunk)
            found = resume_array(self._store.snapshot, array)
            row = self._row(array, found)
            start = row.rows
            self._tally.resume(found, left=max(array.count - start, 1))
            if found.hopeless:
                return
            if start < array.count:
                check_admission(self._store.snapshot, array.dim, normalize=self._normalize)
            committed = VectorArray(self._store, array.name, row.number)
            # The changed array may be shorter than it was.
            if not found.begun:
                committed.forget(array.count)
            if found.replaced_by_none(array):
                self._commits.save(Chunk(arrays=[(array.name, replace(row, complete=True))]))
                return
            for block in self._ahead(array, start, pool):
                start = block.first + len(block.rows)
                row = self._commit(committed, block, array, row)
                if self._stopping.asked():
                    return
        except UsageError as error:
            if is_first:
                raise
            # Not fatal: earlier items are committed, and later ones may fit the store.
            self._commits.reject_rest(
                array, SourceError(str(error), retryable=True), array.count - start
            )
        except (SourceError, ImageError) as error:
            self._commits.reject_rest(array, error, array.count - start)

    def _row(self, array: VectorItem, found: Resumed[ArrayRow]) -> ArrayRow:
        """The row to go on from, or a new one; a changed array keeps its number."""
        if found.row is not None:
            return found.row
        before = found.before
        same = before is not None and before.kind is Kind.VECTOR
        number = (
            before.number if before is not None and same else self._store.snapshot.state.next_array
        )
        return ArrayRow(number, *stamp_of(array), 0, Kind.VECTOR)

    def _ahead(
        self, array: VectorItem, start: int, pool: ThreadPoolExecutor
    ) -> Iterator[CheckedBlock]:
        """Each block, checked. While one is committed, the next is read and checked."""
        snapshot, limits = self._store.snapshot, self._store.limits
        normalize = snapshot.space.normalized if snapshot.vector_rows else self._normalize
        most = min(self._store.memory.block, limits.chunk_vector_bytes)
        blocks = array.vectors(start, limits.chunk_vectors, most)

        def read() -> CheckedBlock | None:
            block = next(blocks, None)
            self._peak.sample()
            if block is None:
                return None
            return checked(block, normalize=normalize, numbers=limits.checked_numbers)

        reading = pool.submit(read)
        while self._stopping.ready(reading) and (block := reading.result()) is not None:
            reading = pool.submit(read)
            yield block

    def _commit(
        self, committed: VectorArray, block: CheckedBlock, array: VectorItem, row: ArrayRow
    ) -> ArrayRow:
        """Commit a block; if it does not fit the disk, commit one half and then the other.

        Returns the new row of the array.
        """
        end = block.first + len(block.rows)
        problems = block.problems(array.name, array.mtime_ns, array.size)
        rejected = row.rejected + sum(problem.rows for problem in problems)
        new = replace(row, rows=end, complete=end == array.count, rejected=rejected)

        def attempt() -> ArrayRow:
            self._try(committed, block, array.name, new, problems)
            return new

        def halves() -> ArrayRow:
            first, second = block.halves()
            return self._commit(
                committed, second, array, self._commit(committed, first, array, row)
            )

        return self._commits.or_halves(attempt, halves if len(block.rows) > 1 else None)

    def _try(
        self,
        committed: VectorArray,
        block: CheckedBlock,
        name: bytes,
        array: ArrayRow,
        problems: Sequence[Reject],
    ) -> None:
        chunk, unchanged = committed.take(block)
        if chunk.imported is not None and not self._store.snapshot.vector_rows:
            swaps.adopt_vectors(self._store.writer, block.rows.shape[1], normalized=self._normalize)
            self._encoding.disable()
        added = len(chunk.imported) if chunk.imported is not None else 0
        _log.debug("a block: %d vectors, %d of them new", len(block.rows), added)
        chunk.arrays = [(name, array)]
        self._commits.rejects.put(chunk, problems)
        self._commits.save(chunk)
        self._tally.counts.added += added
        self._tally.counts.unchanged += unchanged
        self._tally.advance(len(block.rows))
