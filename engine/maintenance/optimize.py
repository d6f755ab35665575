"""Frees the disk space of removed images, and compacts the keys.

1. vectors     rewritten in the order of the index, without those of removed images (``reorder``)
2. pixels      extents that are a fifth or more dead: the pixels of live images are copied to the
               newest extent, in commits of bounded size; then the old extent is dropped
3. files       rows that name removed images are dropped
4. keys        compacted, table by table, so that deleted rows take no room

An interrupted run goes on when it is run again. Fingerprints of removed images stay where they are,
because a row's number says which image it belongs to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from engine.errors import StoreDamagedError, UsageError
from engine.index.background import BackgroundWork
from engine.index.maintain import IndexUpdater, recall_of
from engine.index.operating_point import check_recall
from engine.maintenance.reorder import Reorder, ReorderResult
from engine.memory import PeakMemory
from engine.records import OptimizeReport, Place
from engine.stop import Stop, StoppedError
from engine.storage import extents, swaps
from engine.storage.changeset import Chunk, Rekept, Removal
from engine.storage.disk import disk
from engine.storage.durable import UnreadableError, tree_bytes
from engine.storage.extent_reader import ExtentReader, MovedError
from engine.storage.image_rows import ImageRow
from engine.storage.rocks.database import FOLDER
from engine.storage.session import Session
from engine.storage.table import in_batches

_WORTH = 0.2  # the dead share of an extent from which rewriting it is worth it
_KEY_BYTES = 256  # of disk that the keys need for a while for each moved image, at most
_SLACK = 1 << 20  # bytes: an extent's header, a manifest, RocksDB's own files


class Optimize:
    """One optimize of one store, which becomes its writer. ``run`` may be called once."""

    def __init__(
        self,
        store: Session,
        *,
        recall: float | None = None,
        progress: Callable[[int, int | None], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        """``progress(done, total)`` counts images; ``stop`` ends the run after a commit.

        ``recall`` is the recall of later searches that do not set their own.
        """
        self._store = store
        self._recall = check_recall(recall) if recall is not None else None
        self._peak = PeakMemory()
        self._progress = progress or (lambda done, total: None)
        self._stop = Stop(stop)
        self._done = 0
        self._moved = 0
        self._rewritten = 0
        self._damaged = 0
        self._stopped = False
        self._skipped: list[str] = []
        self._work = BackgroundWork(store.memory, self._count_rows, self._stop.asked)

    def run(self) -> OptimizeReport:
        """Do every step that the disk has room for; returns a report."""
        started = time.perf_counter()
        # Fail before the index is built, not after.
        if self._store.read_only:
            raise UsageError(f"{self._store.path} was opened read-only")
        before = tree_bytes(self._store.path)
        laid = self._vectors()
        if self._stopped or not self._become_writer():
            return self._report(before, laid, started)
        self._extents()
        if not self._stop.asked():
            self._files()
        if not self._stop.asked():
            self._compact()
        return self._report(before, laid, started)

    def _become_writer(self) -> bool:
        """Become the writer; False if it was stopped while it waited."""
        try:
            self._store.become_writer(to_remove=True, stop=self._stop.asked)
        except StoppedError:
            self._stopped = True
        return not self._stopped

    def _report(self, before: int, laid: int, started: float) -> OptimizeReport:
        return OptimizeReport(
            bytes_before=before,
            bytes_after=tree_bytes(self._store.path),
            rewritten=self._rewritten,
            moved=self._moved,
            seconds=round(time.perf_counter() - started, 3),
            skipped=tuple(self._skipped),
            damaged=self._damaged,
            laid_out=laid,
            recall=recall_of(self._store.snapshot.manifest),
            peak_memory_bytes=self._peak.anonymous,
            interrupted=self._stopped or self._stop.asked(),
        )

    # --- vectors ----------------------------------------------------------------------------------

    def _vectors(self) -> int:
        """Reorder the vectors, if that is worth it, and measure recall; returns how many it rewrote."""
        laid = ReorderResult()
        try:
            laid = Reorder(self._store, self._work).run()
            self._store.become_writer(to_remove=True, stop=self._stop.asked)
            indexing = IndexUpdater(self._store, self._work)
            indexing.update(self._store.limits.exact_rows)
            indexing.measure(self._recall, again=laid.rows > 0)
        except StoppedError:
            # It may have waited for another writer, so the lock may not be ours.
            self._stopped = True
        except MovedError:
            laid = ReorderResult(
                skipped="the index was not built: another process laid the vectors out at the same time"
            )
        except (OSError, MemoryError, StoreDamagedError, UnreadableError) as error:
            # Some failures close the store.
            if not self._store.is_open:
                raise
            what = error.strerror if isinstance(error, OSError) else str(error)
            self._skipped.append(f"the index was not built: {what or type(error).__name__}")
        if laid.skipped:
            self._skipped.append(laid.skipped)
        return laid.rows

    def _count_rows(self, rows: int) -> None:
        self._peak.sample()
        self._done += rows
        self._progress(self._done, None)

    # --- pixels -----------------------------------------------------------------------------------

    def _extents(self) -> None:
        """Rewrite the extents worth it, emptiest first, as many at a time as the disk has room for."""
        while not self._stop.asked():
            doomed = self._doomed()
            fit, need = self._fitting(doomed)
            if not fit:
                if doomed:
                    live = sum(size - dead for _, size, dead in doomed)
                    self._skipped.append(
                        f"{len(doomed)} extents of pixels were not rewritten: the next one needs "
                        f"{need:,} bytes free on the disk, and all of them at most {live:,} bytes"
                    )
                return
            stuck = self._rewrite(fit)
            if stuck or self._stop.asked():
                return

    def _doomed(self) -> list[tuple[int, int, int]]:
        """Number, bytes and dead bytes of each extent worth a rewrite, the emptiest first."""
        state = self._store.snapshot.state
        pairs = state.extents.get(extents.PIXELS.name, [])
        found = [(number, size, state.dead.get(str(number), 0)) for number, size in pairs]
        worth = [one for one in found if one[1] and one[2] >= _WORTH * one[1]]
        return sorted(worth, key=lambda one: one[2] / one[1], reverse=True)

    def _fitting(self, doomed: Sequence[tuple[int, int, int]]) -> tuple[list[int], int]:
        """The extents that the disk has room for at once, and the bytes that the next one needs."""
        state = self._store.snapshot.state
        kept = sum(size for _, size in state.extents.get(extents.PIXELS.name, []))
        live = kept - sum(state.dead.values())
        each = max(live // max(state.images, 1), 1)  # bytes of an image
        free = disk().free(self._store.path) - _SLACK
        fit: list[int] = []
        for number, size, dead in doomed:
            need = (size - dead) + (size - dead) // each * _KEY_BYTES
            if need > max(free, 0):
                return fit, need + _SLACK
            free -= need
            fit.append(number)
        return fit, 0

    def _rewrite(self, numbers: list[int]) -> bool:
        """Copy live pixels out of these extents and drop them; returns whether any has to stay."""
        store = self._store
        last, _ = store.snapshot.state.last_extent(extents.PIXELS)
        if last in numbers:
            store.writer.begin_extent()
        reader = ExtentReader(store.path, extents.PIXELS)
        doomed, stuck = set(numbers), set[int]()
        self._done = 0
        try:
            # Vectors have no key, and no pixels.
            records = (found for found in store.snapshot.tables.records.image_keys() if found[1])
            for batch in in_batches(records, self._store.limits.compact_batch):
                self._move(self._rows_in(batch, doomed), reader, stuck)
                self._done += len(batch)
                self._progress(self._done, store.snapshot.state.images)
                if self._stop.asked():
                    return False
        finally:
            reader.close()
        state = store.snapshot.state
        for number, size in state.extents[extents.PIXELS.name]:
            if number in doomed and state.dead.get(str(number), 0) != size:
                stuck.add(number)
        free = sorted(doomed - stuck)
        most = store.limits.compact_extents
        for at in range(0, len(free), most):
            swaps.drop_extents(store.writer, free[at : at + most])
            self._rewritten += len(free[at : at + most])
        if stuck:
            self._damaged += len(stuck)
            self._skipped.append(
                f"{len(stuck)} extents of pixels stay: they cannot be read, or their dead bytes are "
                f"not those counted; run 'engine check --fix'"
            )
        return bool(stuck)

    def _rows_in(self, batch: Sequence[tuple[int, bytes]], doomed: set[int]) -> list[Rekept]:
        """The rows of images whose pixels lie in ``doomed`` extents, in the order of the pixels."""
        found: list[Rekept] = []
        images = self._store.snapshot.tables.images
        rows = self._store.snapshot.images_of([key for _, key in batch])
        for (id_, key), candidates in zip(batch, rows, strict=True):
            for row in candidates:
                if row.id == id_ and row.place is not None and row.place.extent in doomed:
                    name = key if row is candidates[0] else images.further_key(key, id_)
                    found.append(Rekept(name, row, None))
        return sorted(found, key=lambda one: _place(one.row))

    def _move(self, found: Sequence[Rekept], reader: ExtentReader, stuck: set[int]) -> None:
        chunk, size = Chunk(), 0
        for at, one in enumerate(found):
            place = _place(one.row)
            try:
                # Announce the next 256 together.
                if at % 256 == 0:
                    ahead = [_place(next_.row) for next_ in found[at : at + 256]]
                    ends = [p.offset + p.length for p in ahead if p.extent == place.extent]
                    size_ = max(ends) - place.offset
                    reader.announce([Place(place.extent, place.offset, size_)])
                data = reader.read(place)
            except StoreDamagedError:
                stuck.add(place.extent)
                continue
            # A copy of the row: ``found`` has thousands, and must not keep their pixels in memory.
            chunk.rekept.append(replace(one, keep=data))
            size += place.length
            if size >= self._store.limits.compact_bytes:
                self._commit(chunk)
                chunk, size = Chunk(), 0
                if self._stop.asked():
                    return
        self._commit(chunk)

    def _commit(self, chunk: Chunk) -> None:
        self._store.writer.commit(chunk)
        self._moved += len(chunk.rekept)

    # --- keys -------------------------------------------------------------------------------------

    def _files(self) -> None:
        """Drop rows of ``files`` that name removed images."""
        if not self._store.snapshot.state.removed:
            return
        files = self._store.snapshot.tables.files
        for batch in in_batches(files.items(), self._store.limits.compact_batch):
            there = set(self._store.snapshot.those_there(sorted({id_ for _, id_ in batch})))
            stale = [file_hash for file_hash, id_ in batch if id_ not in there]
            removal = Removal(rows=[files.change(file_hash, None) for file_hash in stale])
            self._store.writer.commit(Chunk(removal=removal))
            if self._stop.asked():
                return

    def _compact(self) -> None:
        need = tree_bytes(self._store.path / FOLDER) + _SLACK
        free = disk().free(self._store.path)
        if free < need:
            self._skipped.append(
                f"the keys were not compacted: that needs {need:,} bytes on the disk, and {free:,} "
                f"are free"
            )
            return
        for table in self._store.snapshot.tables.all():
            if self._stop.asked():
                return
            table.compact()


def _place(row: ImageRow) -> Place:
    assert row.place is not None
    return row.place
