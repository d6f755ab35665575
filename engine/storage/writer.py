"""One store directory: recovers it, and owns the only commit point.

    photos.store/
      MANIFEST.json    which files are live (engine.storage.manifest)
      LOCK             the one writer's lock (engine.storage.lock)
      COMMIT           the newest commit, for readers that are open (engine.storage.commit_file)
      keys/            RocksDB: images, records, sources (engine.storage.rocks.database, .rows)
      pixels/          kept pixels          ┐
      fingerprints/    32 bytes an image    ├ append-only extents (engine.storage.extents)
      vectors/GEN/     float32 and ids      ┘
      encoder/GEN/     the encoder that made them, so that a store can be moved and outlive upgrades
      index/           immutable IVF segments (engine.index.segment)
      rejects.jsonl    what could not be ingested, and why
      RESERVE          room for a removal on a full disk (engine.storage.ballast)

A commit is: append to the extents, fdatasync them, then one synced RocksDB batch with everything
else and the new committed lengths. Rows past those lengths do not exist; the next writer cuts them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from engine.config import Limits, MemoryBudget
from engine.errors import EngineError, StoreDamagedError, StoreError, UsageError
from engine.forking import abandon_in_child
from engine.index import segment
from engine.index.build import Ordered
from engine.records import Buffer, Kind, Pixels, Place
from engine.storage import ballast, extents, file_names, manifest, nofollow, tombstones
from engine.storage.bitmap import IdSet
from engine.storage.changeset import Chunk, NewImage, NewRows, Removal
from engine.storage.commit_file import commit_of, is_of_another_commit
from engine.storage.durable import fsync_dir, inside, remove
from engine.storage.extents import Append, ExtentReader, ExtentWriter, Family
from engine.storage.live_ids import sources_in
from engine.storage.lock import WriterLock
from engine.storage.manifest import (
    EncoderEntry,
    Manifest,
    Measured,
    QuantizerEntry,
    SegmentEntry,
)
from engine.storage.rocks import open_reader, opening
from engine.storage.rocks.database import Batch
from engine.storage.rocks.pin import TRIES
from engine.storage.rows import (
    ARRAY,
    ImageRow,
    NameRow,
    RecordRow,
    Run,
    pack_images,
    pack_records,
    u64,
)
from engine.storage.snapshot import StoreView
from engine.storage.state import State, appends_in, packed_appends
from engine.storage.vectors import Vectors

REJECTS = file_names.REJECTS
_MAX_ROOTS_BYTES = 256 << 10
_CARRIED = 1 << 15  # rows of vectors at a time
_LAST_INDEX = file_names.MAX_NUMBER - (
    1 << 20
)  # from there on as many are used for what is made at once
_FOLLOW_TRIES = 100  # to go over to a newer commit, where there is one to go on with
_MAX_OFTEN = 3  # times as long as it took, before a call that goes on goes over again
_log = logging.getLogger("engine")


class StoreFiles(StoreView):
    """One store directory: a view of it, that becomes its one writer and commits chunks."""

    def __init__(
        self, path: Path, memory: MemoryBudget, *, read_only: bool, limits: Limits | None = None
    ) -> None:
        self.read_only = read_only
        self._lock = WriterLock(path)
        self._writers: dict[str, ExtentWriter] = {}
        self._manifest_kept: Manifest | None = None  # of which the keys have a copy, for repairs
        self._appends: list[Append] = []  # of the commit that is being made
        self._keys_written = False  # whether the keys' part of that commit was begun
        self._reserved = 0  # bytes of the reserve that was last seen
        self._tight = False  # whether the keys are open as on a full disk
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="engine-flush")
        self._owner = os.getpid()
        self._abandoned = False  # it was opened by the parent of this forked process
        super().__init__(path, memory, limits)
        abandon_in_child(self)

    # --- opening, recovering, closing -------------------------------------------------------------

    def refresh(self, tries: int = TRIES) -> None:
        """As a reader, see what has been committed since this store was opened."""
        self._require_healthy()
        if not self._lock.held:
            self._open_reader(tries)

    def follow(self, *, within_a_call: bool = False) -> None:
        """Go over to a commit or an index that a writer has told of; a microsecond if there is none.

        Where a writer leaves no moment for it, what was open stays open. ``within_a_call`` that began
        with the newest commit, going over takes a quarter of the time at most.
        """
        self.require_own()
        if self._keys is None or self._lock.held:
            return
        told = self._notice.read()
        if told != self._seen:
            since = time.perf_counter() - self._opened_at
            if within_a_call and since < _MAX_OFTEN * self._opening_took:
                return
            try:
                if is_of_another_commit(told, self._seen):
                    self.refresh(_FOLLOW_TRIES)
                else:
                    self._seen = told  # before the manifest is read: what comes then is told again
                    self.read_index()
                    self._forget_index()
            except open_reader.BusyError:
                return  # the next call tries again
            except StoreError as error:
                if self._keys is None:
                    raise
                self._seen = self._notice.read()  # not again before there is something new
                _log.warning("%s; lookups go on with what was committed before", error)

    def is_behind(self) -> bool:
        """Whether a writer has told of another commit; never to the writer itself."""
        return not self._lock.held and super().is_behind()

    def become_writer(self, *, salvage: bool = False, to_remove: bool = False) -> None:
        """Take the writer's lock, recover what a crash left, and open the keys for writing.

        ``salvage``: extents that are gone or cut short get their header and their length back, as
        zeros, where ``StoreDamagedError`` would be raised otherwise; for repairs, which know what
        is in them. ``to_remove``: on a full disk make room first, of what an interrupted writer left
        and of the reserve; an ingest would only fill it up again.
        """
        self._require_healthy()
        if self._lock.held:
            if self._tight and not to_remove:
                self._loosen()
            if salvage:
                self._reopen_extents()
                self._committed_extents(salvage=True)
            return
        if self.read_only:
            raise UsageError(f"{self.path} was opened read-only")
        nofollow.require_kinds(self.path, file_names.FILES, file_names.FOLDERS)
        self._lock.acquire()
        try:
            self._tight = not salvage and self._make_room(to_remove=to_remove)
            self._close_files()
            told = commit_of(self._notice.read())
            found = manifest.load(self.path, writing=True)
            self._load(found, opening.open_writer(self.path, self.memory, tight=self._tight), told)
            self._recover(salvage=salvage)
            self._notice.publish(self.state.commit)
        except BaseException:
            self.close()
            raise

    def _loosen(self) -> None:
        """Once there is room again, open the keys as at other times, so that they are compacted."""
        if ballast.free(self.path) < self._low(to_remove=False):
            return
        try:
            self.keys.settle()
            self._close_files()  # RocksDB is opened by one at a time
            table = opening.open_writer(self.path, self.memory)
            self._load(self.manifest, table, self.state.commit)
            self._tight = False
        except BaseException:
            self.close()
            raise

    def _low(self, *, to_remove: bool) -> int:
        """Free bytes below which RocksDB is to take as little as it can."""
        twice = 2 * max(ballast.wanted(self.state), ballast.LITTLE)
        return twice if to_remove else max(twice, ballast.LOW)

    def _make_room(self, *, to_remove: bool) -> bool:
        """On a full disk, let go of what is not needed, before RocksDB writes; whether it was full.

        That is what an interrupted writer left, and ``to_remove`` the reserve, too.
        """
        if ballast.free(self.path) >= self._low(to_remove=to_remove):
            return False
        self._cut_leftovers()
        if to_remove and ballast.free(self.path) < max(ballast.wanted(self.state), ballast.LITTLE):
            ballast.give_back(self.path)
        return True

    def _cut_leftovers(self) -> None:
        """As the holder of the lock, before RocksDB is open: cut what was appended for nothing."""
        with contextlib.suppress(EngineError, OSError):  # else the recovery comes to it
            self._open_reader()  # as of now: nobody else writes any more
            self._cut(self._committed_extents(salvage=False))

    def _cut(self, committed: Mapping[tuple[str, int], int]) -> None:
        """Cut what extents have past their committed lengths."""
        for family in self.families():
            for number in self.manifest.extents[family.name]:
                extents.cut(self.path, family, number, committed.get((family.name, number), 0))

    def _recover(self, *, salvage: bool) -> None:
        """Cut rows past the committed lengths; forget files that the manifest does not name."""
        committed = self._committed_extents(salvage=salvage)  # before anything is cut or deleted
        indexed = tuple(self.state.live_segments(self.manifest))
        if indexed != self.manifest.segments:
            # Over vectors that the keys have lost, or that were laid out anew, or not in the end.
            self.manifest = self.manifest.with_index(indexed)
            self.manifest.save(self.path)
        named = self.manifest.only(committed)
        if named != self.manifest:
            # Extents that were begun and not used, or rewritten, and not forgotten yet.
            self.manifest = named
            self.manifest.save(self.path)
        self._cut(committed)
        self._own_last()
        self._remove_leftovers()
        # Names that a killed writer had not synced yet: what is committed next may rely on them.
        fsync_dir(self.path)
        for top in (*file_names.OF_FOLDER, file_names.ENCODER):
            if nofollow.is_folder(self.path, top):
                fsync_dir(self.path / top)
                for entry in nofollow.entries(self.path, top):
                    if entry.is_folder:
                        fsync_dir(self.path / top / entry.name)
        with contextlib.suppress(OSError):  # not ours to open, perhaps; then others made it, too
            fsync_dir(self.path.resolve().parent)

    def _own_last(self) -> None:
        """Copy those extents that are appended to and have a second name, before they are read."""
        for family in self.families():
            number, _ = self.state.last_extent(family)
            if number:
                nofollow.own(self.path, family.inside(number))

    def _remove_leftovers(self) -> None:
        """Delete files of ours that the manifest does not name, and what was made for a while."""
        live = {str(path) for path in self.manifest.index_files(Path())}
        for family in self.families():
            live |= {family.inside(number) for number in self.manifest.extents[family.name]}
        for name in self.data_files() - live:
            nofollow.remove(self.path, name)
        for entry in nofollow.entries(self.path):
            if entry.is_file and file_names.NEW_FILE.fullmatch(entry.name):
                nofollow.remove(self.path, entry.name)
            if (
                entry.is_folder
                and file_names.MADE_FOLDER.fullmatch(entry.name)
                and not WriterLock(self.path / entry.name).busy()  # else it is being filled
            ):
                nofollow.discard(self.path, entry.name, file_names.MADE)
        nofollow.discard(
            self.path, file_names.MENDED, file_names.ROCKSDB
        )  # of a repair that was killed

    def _committed_extents(self, *, salvage: bool) -> dict[tuple[str, int], int]:
        """The committed data bytes of each extent, all of which are named and there.

        The keys are what counts. Where the manifest or a file has less, the store was damaged or
        put together from copies of different age, and writing on would lose what is left.
        """
        committed = {}
        for name, pairs in self.state.extents.items():
            for number, size in pairs:
                if not size and number not in self.manifest.extents.get(name, []):
                    continue  # of an encoder whose vectors are all gone
                committed[name, number] = size
                path = self._family(name).path(self.path, number)
                there = nofollow.size(self.path, inside(path, self.path)) or 0
                if number not in self.manifest.extents.get(name, []):
                    what = f"{manifest.NAME} does not name {path.name}, which holds committed data"
                elif there < extents.HEADER_BYTES + size:
                    what = f"{path} is gone or cut short"
                else:
                    continue
                if not salvage:
                    raise StoreDamagedError(
                        f"{self.path} cannot be written: {what}; 'engine check' says what is lost, "
                        f"'engine check --fix' mends what can be"
                    )
                if number not in self.manifest.extents.get(name, []):
                    self.manifest = self.manifest.with_extent(name, number)
                    self.manifest.save(self.path)
        if salvage:
            uuid_ = bytes.fromhex(self.manifest.uuid)
            for family in self.families():
                for number in self.manifest.extents[family.name]:
                    size = committed.get((family.name, number), 0)
                    extents.restore(self.path, family, number, uuid_, size)
        return committed

    def _reopen_extents(self) -> None:
        """Let go of open extents: what was deleted or replaced under them must not be gone on with."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        self._pixels.close()
        self._forget_index()

    def close(self) -> None:
        """Give everything back. What was committed is durable already."""
        if self._abandoned:
            return
        self._flusher.shutdown()
        if self._lock.held and not self._failed and self._keys is not None:
            self._keys.settle()
        self._close_files()
        self._notice.close()
        self._lock.release()

    def abandon(self) -> None:
        """In a forked child: it stays the parent's; all that is left here is to say so."""
        self._abandoned = True
        self._keys = None
        self._failed = (
            f"{self.path} was opened by process {self._owner}, from which this process was forked: "
            f"open it again here with Store.open"
        )

    def require_own(self) -> None:
        """``StoreError`` in a process that was forked from the one that opened it."""
        if self._abandoned:
            raise StoreError(self._failed)

    def being_written(self) -> bool:
        """Whether another process, or another ``Store``, is writing."""
        return not self._lock.held and self._lock.busy()

    def _close_files(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        super()._close_files()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _require_healthy(self) -> None:
        if self._failed:
            raise StoreError(self._failed)
        if self._keys is None:
            raise StoreError(f"{self.path} is closed")

    def _require_writer(self) -> None:
        self._require_healthy()
        if not self._lock.held:
            raise StoreError(f"{self.path} is not open for writing")

    # --- writing ----------------------------------------------------------------------------------

    def commit(self, chunk: Chunk) -> None:
        """Make a chunk durable and visible, whole or not at all.

        ``NoRoomError`` where it does not fit the disk: the store goes on, and a smaller chunk may fit.
        Any other failed write closes the store: RocksDB takes no more writes after one, and what was
        appended is cut when the store is next opened for writing.
        """
        self._require_writer()
        if chunk.empty:
            return
        self._require_room_for(chunk)
        try:
            self._safely(lambda: self._commit(chunk), may_be_full=chunk.removal is None)
        except OSError as error:
            raise self._no_room(error.strerror or str(error)) from None

    def _require_room_for(self, chunk: Chunk) -> None:
        """``NoRoomError`` where a chunk does not fit the disk, or the store could not be opened then."""
        if chunk.removal is not None or chunk.rekept:  # these measure for themselves
            return
        free = ballast.free(self.path)
        if free < ballast.LOW and free < chunk.disk_bytes() + ballast.LEFT:
            raise self._no_room(os.strerror(errno.ENOSPC))

    def give_up(self, error: ballast.NoRoomError) -> None:
        """Close the store, as other failed writes do: not even the smallest chunk fits the disk."""
        self._failed = str(error)
        self.close()

    def _no_room(self, what: str) -> ballast.NoRoomError:
        return ballast.NoRoomError(
            f"{self.path} could not be written: {what}; what was committed before is safe: "
            f"make room and run the command again"
        )

    def _safely(self, write: Callable[[], None], *, may_be_full: bool = False) -> None:
        """Write; any failure closes the store.

        But ``may_be_full``: that of extents for want of room is raised as it is, and the store stays
        open. Nothing was committed then, and what was appended is cut.
        """
        try:
            write()
        except BaseException as error:
            if self._abandoned:
                raise  # a fork that leaves its parent's work has nothing to give back
            full = ballast.is_full(error)
            appending = may_be_full and not self._keys_written
            if full and appending and isinstance(error, OSError) and self._take_back():
                raise
            what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            what = what or type(error).__name__
            self._failed = (
                f"{self.path} could not be written: {what}; what was committed before is safe: "
                f"mend the cause and run the command again"
            )
            if full:
                self._close_files()  # the keys take no more, and whether they took this is in them
                self._cut_leftovers()
            self.close()
            if isinstance(error, OSError | StoreError):
                raise StoreError(self._failed) from None
            raise

    def _take_back(self) -> bool:
        """Cut what a commit has appended that did not come to be; whether that succeeded."""
        try:
            for writer in self._writers.values():
                writer.close()
            self._writers.clear()
            self._cut(self._committed_extents(salvage=False))
        except (EngineError, OSError):
            return False
        return True

    def _commit(self, chunk: Chunk) -> None:
        state = self.state.next()
        batch = self.keys.batch()
        self._appends = []
        self._keys_written = False
        first_id = state.next_id
        images = chunk.images
        rows = chunk.rows
        rekept = chunk.rekept
        given = chunk.given
        assert given is None or not (images or rows)
        vectors = given if given is not None else chunk.vectors
        count = len(images) + (len(rows) if rows else 0) + (len(given) if given is not None else 0)

        kept = [image.keep for image in images if image.keep is not None]
        places = iter([self._writer(extents.PIXELS).put(blob) for blob in kept])
        first_row = None
        if rows and rows.keep is not None:
            first_row = self._writer(extents.PIXELS).put(rows.keep.reshape(-1).data)
        replaced = [
            self._writer(extents.PIXELS).put(one.keep) if one.keep is not None else None
            for one in rekept
        ]
        prints = b"".join(image.fingerprint for image in images)
        self._put_rows(extents.FINGERPRINTS, prints)
        if rows:
            self._put_rows(extents.FINGERPRINTS, rows.fingerprints.tobytes())
        if given is not None:
            self._put_zeros(extents.FINGERPRINTS, len(given) * extents.FINGERPRINTS.row_bytes)
        encoder = self.manifest.encoder
        if vectors is not None and encoder is not None and len(vectors):
            block = np.ascontiguousarray(vectors, np.float32)
            ids = np.arange(first_id, first_id + len(block), dtype=np.int64)
            generation = encoder.generation
            if given is None and not (real := block.any(axis=1)).all():
                ids[~real] = 0  # the encoder gave none: similar to nothing
                gone = state.removed_vectors.get(str(generation), 0)
                state.removed_vectors[str(generation)] = gone + int((~real).sum())
            self._put_rows(extents.vectors(generation, encoder.dim), block.reshape(-1).data)
            self._put_rows(extents.vector_ids(generation), ids.tobytes())
            vector_rows = state.vectors.get(str(generation), 0)
            state.vectors[str(generation)] = vector_rows + len(block)
        # Both take their time and neither needs the other's result: only the write needs both.
        flushed = self._flusher.submit(self._flush_all)
        try:
            for key, row in chunk.out_of_runs:  # before what tells that a key is shared
                batch.put("images", key, row._replace(in_runs=False).pack())
            self._put_images(batch, images, first_id, places)
            if rows:
                self._put_new_rows(batch, rows, first_id + len(images), first_row)
            if given is not None:
                self._put_given(batch, first_id, *given.shape)
            for one, place in zip(rekept, replaced, strict=True):
                batch.put("images", one.key, one.row._replace(place=place).pack())
                if one.row.place is not None:
                    state.bury(one.row.place)
            if chunk.removal is not None:
                self._put_removal(batch, chunk.removal, state)
            self._put_metadata(batch, chunk.described)
            state.sources += self._put_sources(batch, chunk)
        finally:
            flushed.result()
        for append in self._appends:
            numbers = state.extents.setdefault(append.family, [])
            if not numbers or numbers[-1][0] != append.extent:
                numbers.append([append.extent, 0])
            numbers[-1][1] = append.offset + append.length

        state.next_id += count
        state.images += count
        state.next_array = max([state.next_array, *(row.number + 1 for _, row in chunk.arrays)])
        for name, reject in chunk.rejects:
            batch.put("rejects", name, json.dumps(reject).encode())
        self._put_appends(batch, state)
        self._commit_keys(batch, state, self.manifest)

    def _put_appends(self, batch: Batch, state: State) -> None:
        """Put what this commit has appended, for ``check``."""
        if self._appends:
            batch.put("commits", u64(state.commit), packed_appends(self._appends))

    def _forget_appends(self, batch: Batch, families: set[str], numbers: set[int]) -> None:
        """Drop from the records of commits what was appended to extents that go."""
        for key, value in self.keys.scan("commits"):
            parts = appends_in(value)
            left = [a for a in parts if a.family not in families or a.extent not in numbers]
            if not left:
                batch.delete("commits", key)
            elif len(left) < len(parts):
                batch.put("commits", key, packed_appends(left))

    def _commit_keys(self, batch: Batch, state: State, named: Manifest) -> None:
        """Commit the keys' part of a chunk; ``named`` is the manifest that goes with it."""
        self._keys_written = True
        batch.put("meta", b"state", state.pack())
        if named is not self._manifest_kept:
            batch.put("meta", b"manifest", named.dump())
        self.keys.commit(batch)
        self._manifest_kept = named

        self.state = state
        self._notice.publish(state.commit)
        self._forget()
        wanted = ballast.wanted(state)
        if wanted > 1.25 * self._reserved:
            there = ballast.renew(self.path, wanted)
            self._reserved = wanted if there else 0
        self._forget_index()

    def require_room(self) -> None:
        """``StoreError`` where the disk is too full to be sure that the store opens again.

        For a removal: the reserve is given back first.
        """
        if ballast.free(self.path) < ballast.LITTLE:
            ballast.give_back(self.path)
            self._reserved = 0
        if ballast.free(self.path) < ballast.LITTLE:
            raise StoreError(
                f"the disk of {self.path} is full: what was committed is safe; "
                f"make room, or run 'engine optimize', and then the command again"
            )

    def drop_extents(self, numbers: Sequence[int]) -> None:
        """Give back extents of pixels in which no image has any; they have to be dead as a whole.

        The commit first, then the manifest, then the files: readers that see an older commit find a
        file gone only once they can tell that there is a newer one.
        """
        self._require_writer()
        self._safely(lambda: self._drop_extents(set(numbers)))

    def _drop_extents(self, numbers: set[int]) -> None:
        family = extents.PIXELS
        state, batch = self.state.next(), self.keys.batch()
        pairs = state.extents[family.name]
        if any(number in numbers and state.dead.get(str(number)) != size for number, size in pairs):
            raise StoreError("an extent that holds images was to be dropped; this is a bug")
        if pairs[-1][0] in numbers:  # numbers are not used again: readers may know the old file
            writer = self._open_writer(family)
            if writer.number in numbers:
                self._begin_next(writer)
            pairs.append([writer.number, 0])
        state.extents[family.name] = [pair for pair in pairs if pair[0] not in numbers]
        for number in numbers:
            state.dead.pop(str(number), None)
        self._forget_appends(batch, {family.name}, numbers)
        before = self.manifest.extents[family.name]
        live = {(name, n) for name, named in self.manifest.extents.items() for n in named}
        named = self.manifest.only(live - {(family.name, number) for number in numbers})
        self._commit_keys(batch, state, named)
        self.manifest = named
        self.manifest.save(self.path)
        self._pixels.close()
        for number in numbers.intersection(before):
            nofollow.remove(self.path, family.inside(number))  # else the next writer does

    def begin_extent(self) -> None:
        """Let the pixels that are kept next lie in a new extent."""
        self._require_writer()
        self._safely(lambda: self._begin_next(self._open_writer(extents.PIXELS)))

    def _put_removal(self, batch: Batch, removal: Removal, state: State) -> None:
        for table, key, value in removal.rows:
            if value is None:
                batch.delete(table, key)
            else:
                batch.put(table, key, value)
        for place in removal.dead:
            state.bury(place)
        for key, value in tombstones.rows_with(self.keys, removal.images):
            batch.put(tombstones.TABLE, key, value)
        state.images -= len(removal.images)
        state.removed += len(removal.images)
        state.sources -= removal.sources
        if removal.vectors and self.manifest.encoder:
            of = str(self.manifest.encoder.generation)
            state.removed_vectors[of] = state.removed_vectors.get(of, 0) + removal.vectors

    def _put_images(
        self, batch: Batch, images: Sequence[NewImage], first_id: int, places: Iterator[Place]
    ) -> None:
        firsts: dict[bytes, ImageRow] = {}
        for id_, image in enumerate(images, first_id):
            place = next(places) if image.keep is not None else None
            row = ImageRow(id_, image.proof, place, canonical=image.keeps_canonical)
            first = firsts.get(image.key) or image.first
            if first is None:
                firsts[image.key] = row
                batch.put("images", image.key, row.pack())
            else:
                # Another image with this key: a collision. Both live on.
                firsts[image.key] = first._replace(shared=True)
                batch.put("images", image.key, firsts[image.key].pack())
                batch.put("images", image.key + u64(id_), row.pack())
            pixels = image.pixels
            record = RecordRow(
                pixels.kind,
                pixels.height,
                pixels.width,
                pixels.channels,
                pixels.frames,
                image.quality,
                image.file_bytes,
                image.key,
                image.file_hash,
                image.container,
                image.decoder,
                image.metadata,
            )
            batch.put("records", u64(id_), record.pack())
            if image.file_hash:
                batch.put("files", image.file_hash, u64(id_))

    def _put_new_rows(
        self, batch: Batch, rows: NewRows, first_id: int, first_row: Place | None
    ) -> None:
        if first_row is not None:
            first_row = first_row._replace(length=first_row.length // len(rows))
        keys, values = pack_images(first_id, rows.keys, rows.proofs, first_row, rows.in_runs)
        batch.put_all("images", keys, values)
        for key, value in pack_records(first_id, rows.shape, rows.keys, rows.qualities):
            batch.put("records", key, value)

    def _put_given(self, batch: Batch, first_id: int, count: int, dim: int) -> None:
        shape = Pixels(Kind.VECTOR, 1, dim, 1, 1, b"")
        for key, value in pack_records(first_id, shape, [], np.zeros(count, np.uint8)):
            batch.put("records", key, value)

    def _put_metadata(self, batch: Batch, described: Sequence[tuple[int, dict[str, Any]]]) -> None:
        """Put what is said of images that nothing was said of; rows of arrays share their records."""
        for id_, metadata in described:
            record = self.record(id_)
            if record is not None and record.metadata is None and record.container != ARRAY:
                batch.put("records", u64(id_), replace(record, metadata=metadata).pack())

    def _put_sources(self, batch: Batch, chunk: Chunk) -> int:
        """Put names, runs and arrays; returns by how much the number of sources grows."""
        grown = 0
        for new in chunk.names:
            if new.before is None:
                grown += 1
            elif new.before.id != new.id:
                batch.delete("sources", u64(new.before.id) + new.name)
            batch.put("names", new.name, NameRow(new.id, new.mtime_ns, new.size).pack())
            batch.put("sources", u64(new.id) + new.name, new.file_hash)
            if new.file_hash:
                batch.put("files", new.file_hash, u64(new.id))
            batch.delete("rejects", new.name)
        for name, array in chunk.arrays:
            before = self.array(name)
            if before is not None and before.number != array.number:
                grown -= self._forget_runs(batch, before.number)
            batch.put("arrays", b"n" + name, array.pack())
            batch.put("arrays", b"#" + array.number.to_bytes(4, "big"), name)
            batch.delete("rejects", name)
        for name, archive in chunk.archives:
            batch.put("arrays", b"a" + name, archive.pack())
            batch.delete("rejects", name)
        for run in chunk.runs:
            grown += run.count
            for piece in run.pieces():
                batch.put("runs", *piece.by_row)
                batch.put("runs", *piece.by_id)
        return grown

    def _forget_runs(self, batch: Batch, array: int) -> int:
        """Remove the rows of an array that has changed since; returns how many there were."""
        gone = 0
        for key, value in self.keys.scan("runs", b"r" + array.to_bytes(4, "big")):
            run = Run.from_row(key, value)
            batch.delete("runs", key)
            batch.delete("runs", run.by_id[0])
            gone += sources_in(self.keys, run) if self.state.removed else run.count
        batch.delete("arrays", b"#" + array.to_bytes(4, "big"))
        return gone

    # --- appending --------------------------------------------------------------------------------

    def _writer(self, family: Family) -> ExtentWriter:
        writer = self._open_writer(family)
        if writer.full:
            self._begin_next(writer)
        return writer

    def _open_writer(self, family: Family) -> ExtentWriter:
        writer = self._writers.get(family.name)
        if writer is None:
            last, end = self.state.last_extent(family)
            writer = ExtentWriter(self.path, family, last, end)
            self._writers[family.name] = writer
        return writer

    def _begin_next(self, writer: ExtentWriter) -> None:
        # The file first, then the manifest that names it, then the rows that use it.
        family = writer.family
        used = self.manifest.extents.get(family.name, ())
        number = file_names.next_number(used, file_names.MAX_EXTENT)  # never used again
        self._flush(writer)
        extents.create(self.path, family, number, bytes.fromhex(self.manifest.uuid))
        self.manifest = self.manifest.with_extent(family.name, number)
        self.manifest.save(self.path)
        writer.begin(number)

    def _put_rows(self, family: Family, rows: Buffer) -> None:
        view = memoryview(rows).cast("B")
        while view:
            writer = self._writer(family)
            part = view[: writer.room]
            writer.put(part)
            view = view[len(part) :]

    def _put_zeros(self, family: Family, length: int) -> None:
        while length:
            writer = self._writer(family)
            part = min(length, writer.room)
            writer.put_zeros(part)
            length -= part

    def _flush(self, writer: ExtentWriter) -> None:
        done = writer.flush()
        if done is not None:
            self._appends.append(done)

    def _flush_all(self) -> None:
        for writer in self._writers.values():
            self._flush(writer)

    def adopt_encoder(self, install: Callable[[Path], EncoderEntry]) -> None:
        """Give a store that was made without an encoder its first one."""
        self.become_writer()  # reads the manifest again: another process may have been faster
        if self.manifest.encoder is None:
            self.manifest = replace(self.manifest, encoder=install(self.path))
            self.manifest.save(self.path)

    def adopt_vectors(self, dim: int, *, normalized: bool) -> None:
        """Let a store that has no vectors hold given ones; what its encoder was goes."""
        self._require_writer()
        assert not self.vector_rows
        self._safely(lambda: self._adopt_vectors(dim, normalized=normalized))

    def _adopt_vectors(self, dim: int, *, normalized: bool) -> None:
        before = self.manifest.encoder
        # A generation of its own: extents of the one before may have been begun.
        used = [before.generation] if before is not None else []
        generation = file_names.next_number(used, file_names.MAX_GENERATION)
        entry = EncoderEntry(manifest.GIVEN, generation, dim, "", "", normalized)
        if before == replace(entry, generation=generation - 1):
            return
        families = (extents.PIXELS.name, extents.FINGERPRINTS.name)
        kept = {name: n for name, n in self.manifest.extents.items() if name in families}
        named = replace(self.manifest, encoder=entry, extents=kept).with_index(())
        self.manifest = named
        self.manifest.save(self.path)
        if self.state.extents.keys() - {*families}:  # of vectors that are all gone
            state = self.state.next()
            state.extents = {name: n for name, n in state.extents.items() if name in families}
            self._commit_keys(self.keys.batch(), state, named)
        for name in [name for name in self._writers if name not in families]:
            self._writers.pop(name).close()
        if before is not None and not before.given:
            folder = file_names.encoder_folder(before.file, before.generation)
            nofollow.discard(self.path, folder, file_names.MADE, called=f"{folder}/")
            with contextlib.suppress(OSError):
                nofollow.remove_folder(self.path, file_names.ENCODER)
        self._forget_index()

    def add_roots(self, folders: Iterable[bytes]) -> None:
        """Remember folders that an ingest is given, for a removal of what is missing below them."""
        self._require_writer()
        known = self.roots()
        roots = list(dict.fromkeys((*known, *folders)))
        names = json.dumps([os.fsdecode(root) for root in roots]).encode()
        if len(roots) > len(known) and len(names) <= _MAX_ROOTS_BYTES:
            batch = self.keys.batch()
            batch.put("meta", b"roots", names)
            self._safely(lambda: self.keys.commit(batch))

    def set_checksums(self, found: Sequence[tuple[bytes, int, int]]) -> None:
        """After a repair: (commit, which of its appends, xxh64 of what is there now) for each."""
        batch = self.keys.batch()
        parts: dict[bytes, list[list[Any]]] = {}
        for commit, at, xxh64 in found:
            if commit not in parts:
                parts[commit] = json.loads(self.keys.get("commits", commit) or b"[]")
            parts[commit][at][4] = xxh64
        for commit, rows in parts.items():
            batch.put("commits", commit, json.dumps(rows).encode())
        self.keys.commit(batch)

    def set_dead(self, dead: dict[str, int]) -> None:
        """After a check: how many kept bytes of each extent are of no image."""
        self._set_state(replace(self.state, dead=dead))

    def set_removed_vectors(self, removed: dict[str, int]) -> None:
        """After a check: how many vectors of each encoder are of removed images."""
        self._set_state(replace(self.state, removed_vectors=removed))

    def count_dead_vectors(self) -> None:
        """After a repair: count the vectors of the encoder that are of no image anew."""
        encoder = self.manifest.encoder
        if encoder is not None:
            dead = self._dead_vectors(encoder, self.state)
            self.set_removed_vectors({str(encoder.generation): dead} if dead else {})

    def put_rows(
        self, rows: Iterable[tuple[str, bytes, bytes | None]], state: State | None = None
    ) -> None:
        """After a check: put rows of tables (None: take it away), and the state, at once."""
        batch = self.keys.batch()
        for table, key, value in rows:
            if value is None:
                batch.delete(table, key)
            else:
                batch.put(table, key, value)
        if state is not None:
            batch.put("meta", b"state", state.pack())
        self.keys.commit(batch)
        if state is not None:
            self.state = state
            self._notice.publish(state.commit)
        self._forget()

    def set_removed(self, found: IdSet) -> None:
        """After a check: which ids are of removed images."""
        batch = self.keys.batch()
        for key, _ in self.keys.scan(tombstones.TABLE):
            batch.delete(tombstones.TABLE, key)
        for key, value in tombstones.rows_of(found):
            batch.put(tombstones.TABLE, key, value)
        self.keys.commit(batch)
        self._forget()

    def _set_state(self, state: State) -> None:
        batch = self.keys.batch()
        batch.put("meta", b"state", state.pack())
        self.keys.commit(batch)
        self.state = state

    # --- derived data -----------------------------------------------------------------------------

    def publish_index(
        self,
        live: Sequence[SegmentEntry],
        quantizers: Sequence[QuantizerEntry] = (),
        measured: Measured | None = None,
    ) -> None:
        """Let searches go by these segments instead; files of others are deleted.

        ``quantizers``: new ones, beside those there are; ``measured`` is kept unless it is said anew.
        """
        self._require_writer()
        before = self.manifest
        known = {entry.number: entry for entry in (*before.quantizers, *quantizers)}
        named = replace(before, quantizers=tuple(known.values()))
        named = named.with_index(live, measured or before.measured)
        named.save(self.path)  # where that fails, what was live still is
        self.manifest = named
        # Readers that have them mapped keep them until they let go.
        for path in before.index_files(self.path) - self.manifest.index_files(self.path):
            remove(path, self.path)
        self._forget_index()
        self._notice.publish_index()

    def next_index_number(self) -> int:
        """A number that no file of the index has."""
        numbers = [entry.number for entry in self.manifest.segments]
        numbers += [entry.number for entry in self.manifest.quantizers]
        return file_names.next_number(numbers, _LAST_INDEX)

    def replace_vectors(
        self,
        made: Path,
        old: Sequence[tuple[int, int]],
        new: Ordered,
        quantizer: QuantizerEntry | None,
    ) -> None:
        """Go over from extents of vectors to what was laid out from them in the folder ``made``.

        ``old``: these extents, with the rows that were laid out; what was appended to them since is
        carried over. The new files get their names, the manifest names both, one commit goes over,
        and then the old ones go. At any moment those segments are live whose rows are committed.
        """
        self._require_writer()
        self._safely(lambda: self._replace_vectors(made, old, new, quantizer))

    def _replace_vectors(
        self,
        made: Path,
        old: Sequence[tuple[int, int]],
        new: Ordered,
        quantizer: QuantizerEntry | None,
    ) -> None:
        encoder, before = self.manifest.encoder, self.manifest
        assert encoder is not None
        families = (
            extents.vectors(encoder.generation, encoder.dim),
            extents.vector_ids(encoder.generation),
        )
        state, batch = self.state.next(), self.keys.batch()
        there, gone = dict(state.vector_parts(encoder)), {number for number, _ in old}
        late = [(number, rows, there[number]) for number, rows in old if there[number] > rows]
        # One more may be needed for what was appended meanwhile.
        number = file_names.next_number(
            before.extents.get(families[0].name, ()), file_names.MAX_EXTENT - 1
        )
        self._appends = []
        both = before
        for family in families:
            self._open_writer(family).close()
            del self._writers[family.name]
            pairs = [pair for pair in state.extents[family.name] if pair[0] not in gone]
            if new.rows:
                extents.adopt(made, self.path, family, number, bytes.fromhex(before.uuid))
                both = both.with_extent(family.name, number)
                pairs.insert(0, [number, new.rows * family.row_bytes])
            if late:
                both = both.with_extent(family.name, number + 1)
                pairs.append([number + 1, self._carry_over(family, number + 1, late)])
            if not pairs:  # numbers are not used again: readers may know the old file
                extents.create(self.path, family, number, bytes.fromhex(before.uuid))
                both = both.with_extent(family.name, number)
                pairs.append([number, 0])
            state.extents[family.name] = pairs
        self._appends += [replace(part, extent=number) for pair in new.appends for part in pair]
        ours = [e for e in before.segments if quantizer and e.quantizer == quantizer.number]
        live = [e for e in ours if not gone & {extent for extent, _, _ in e.ranges}]
        if quantizer is not None and quantizer not in before.quantizers:
            both = replace(both, quantizers=(*before.quantizers, quantizer))
        if new.segment is not None:
            laid_out = replace(new.segment, ranges=((number, 0, new.rows),))
            live.insert(0, laid_out)
            both = replace(both, segments=(*before.segments, laid_out))
        segment.make_folder(self.path)
        for path in both.index_files(made) - before.index_files(made):
            name = inside(path, made)
            nofollow.rename(made, name, self.path, name)
        fsync_dir(self.path / manifest.INDEX_FOLDER)
        both.save(self.path)
        named = both.only(
            (name, n)
            for name, numbers in both.extents.items()
            for n in numbers
            if n not in gone or name not in {family.name for family in families}
        ).with_index(live)
        self._forget_appends(batch, {family.name for family in families}, gone)
        self._put_appends(batch, state)
        generation = str(encoder.generation)
        state.vectors[generation] = sum(rows for _, rows in state.vector_parts(encoder))
        state.removed_vectors.pop(generation, None)
        dead = self._dead_vectors(encoder, state) if self.state.dead_vectors else 0
        if dead:
            state.removed_vectors[generation] = dead
        self.manifest = both
        self._commit_keys(batch, state, named)
        self.manifest = named
        self.manifest.save(self.path)
        for path in both.index_files(self.path) - named.index_files(self.path):
            remove(path, self.path)
        for family in families:
            for n in gone:
                nofollow.remove(self.path, family.inside(n))  # else the next writer does

    def _carry_over(self, family: Family, number: int, late: Sequence[tuple[int, int, int]]) -> int:
        """Copy rows [first, end) of extents to a new extent; returns the bytes of data in it."""
        extents.create(self.path, family, number, bytes.fromhex(self.manifest.uuid))
        writer = ExtentWriter(self.path, family, number, 0)
        reader = ExtentReader(self.path, family)
        try:
            for extent, first, end in late:
                rows = reader.rows(extent, end, np.uint8)
                for at in range(first, end, _CARRIED):
                    writer.put(rows[at : min(at + _CARRIED, end)].reshape(-1).data)
                    self._flush(writer)
            return writer.end
        finally:
            writer.close()
            reader.close()

    def _dead_vectors(self, encoder: EncoderEntry, state: State) -> int:
        """How many of the vectors of a state are of images that were removed, or of none."""
        gone = self.dead_ids()
        parts = state.vector_parts(encoder)
        vectors = Vectors(self.path, encoder.generation, encoder.dim, parts)
        try:
            blocks = vectors.id_blocks(0, vectors.rows, _CARRIED)
            return sum(int(gone.has(block).sum()) for block in blocks)
        finally:
            vectors.close()

    def log_rejects(self, lines: Sequence[dict[str, Any]]) -> Path:
        """Append to ``rejects.jsonl``; the table ``rejects`` is what counts, this is for people."""
        path = self.path / REJECTS
        try:
            fd = nofollow.open_file(self.path, REJECTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        except OSError as error:
            raise StoreError(f"{path} could not be written: {error.strerror or error}") from None
        return path
