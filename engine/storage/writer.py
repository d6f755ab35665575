"""The writer: holds the one lock, recovers what a crash left, and provides transactions.

A commit appends to the extents and syncs them (fdatasync). Then one synced RocksDB batch writes all rows
and the new committed lengths. Data past those lengths does not exist; the next writer cuts it off.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.config import Limits, MemoryBudget
from engine.errors import EngineError, StoreError
from engine.storage import ballast, extents, file_names, manifest, recovery
from engine.storage.appender import Appender
from engine.storage.ballast import NoRoomError
from engine.storage.bitmap import IdSet
from engine.storage.changeset import Chunk
from engine.storage.commit_file import Notice, commit_of
from engine.storage.extents import Family
from engine.storage.lock import WriterLock
from engine.storage.manifest import Manifest
from engine.storage.open_snapshot import open_reader, open_snapshot
from engine.storage.rocks import opening
from engine.storage.snapshot import Snapshot
from engine.storage.state import State
from engine.storage.transaction import Transaction
from engine.storage.vector_space import VectorSpace
from engine.storage.vectors import Vectors

REJECTS = file_names.REJECTS
_IDS = 1 << 15  # ids of vectors read at a time
_MAX_ROOTS_BYTES = 256 << 10
_log = logging.getLogger("engine.storage")


class Writer:
    """The one writer of a store. ``snapshot`` is the newest commit, made or found by this writer."""

    def __init__(
        self,
        path: Path,
        memory: MemoryBudget,
        limits: Limits,
        lock: WriterLock,
        notice: Notice,
        *,
        salvage: bool = False,
        to_remove: bool = False,
        reader: Snapshot,
    ) -> None:
        """Recover a store whose ``lock`` is held, and open its keys for writing.

        ``salvage``: extents that are gone or cut short get back their header and their length, in zeros,
        instead of raising ``StoreDamagedError``. It is for repairs, which know what is in them.
        ``to_remove``: on a full disk, first delete an interrupted writer's leftovers and the ballast
        file; an ingest would only fill the disk again. ``reader``: the open snapshot, closed first.
        """
        self.path = path
        self.memory = memory
        self.limits = limits
        self.failure: str | None = None
        # Whether this is a forked child's copy of its parent's writer.
        self.abandoned = False
        self._lock = lock
        self._notice = notice
        # The manifest that the keys have a copy of, for repairs.
        self._manifest_kept: Manifest | None = None
        self._transaction: Transaction | None = None
        # Bytes of the ballast file when last seen.
        self._reserved = 0
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="engine-flush")
        self._appender = Appender(path, limits, self._last_extent, self._new_extent)
        # First of all, because it says which engines may write.
        found = manifest.load(path, writing=True)
        self._tight = not salvage and self._make_room(reader, to_remove=to_remove)
        reader.files.close(f"{path} is closed")
        published = commit_of(notice.read())
        keys = opening.open_writer(path, memory, tight=self._tight)
        self.snapshot = open_snapshot(path, memory, limits, found, keys, published, lambda: False)
        try:
            self._recover(found, salvage=salvage)
        except BaseException:
            self.close()
            raise
        notice.publish(self.snapshot.state.commit)
        _log.info("%s: open for writing at commit %d", path, self.snapshot.state.commit)

    @property
    def manifest(self) -> Manifest:
        """Return the current manifest."""
        return self.snapshot.manifest

    @property
    def state(self) -> State:
        """Return the state after the newest commit."""
        return self.snapshot.state

    def _recover(self, saved: Manifest, *, salvage: bool) -> None:
        """Cut and delete uncommitted data; see ``engine.storage.recovery``."""
        named = recovery.recover(self.path, saved, self.manifest, self.state, salvage=salvage)
        if named != self.manifest:
            self.name(named)

    def salvage_extents(self) -> None:
        """Restore missing headers and lengths of extents, in zeros; open extents are closed first."""
        self._appender.close()
        self.snapshot = self.snapshot.with_files(self.snapshot.files.reopened())
        _, named = recovery.committed_extents(self.path, self.manifest, self.state, salvage=True)
        self.name(named)

    # --- room on the disk -------------------------------------------------------------------------

    def loosen(self) -> None:
        """Once there is room again, reopen the keys normally, so that they are compacted."""
        if not self._tight or ballast.free(self.path) < self._low(self.state, to_remove=False):
            return
        try:
            self.snapshot.files.keys.settle()
            # RocksDB must be closed before it is opened again.
            self._close_files()
            keys = opening.open_writer(self.path, self.memory)
            self.snapshot = open_snapshot(
                self.path,
                self.memory,
                self.limits,
                self.manifest,
                keys,
                self.state.commit,
                lambda: False,
            )
            self._tight = False
        except BaseException:
            self.close()
            raise

    def require_room(self) -> None:
        """Raise ``StoreError`` if the disk is too full to be sure that the store opens again.

        It is for removals, and first deletes the ballast file.
        """
        if ballast.free(self.path) < ballast.LITTLE:
            ballast.give_back(self.path)
            self._reserved = 0
        if ballast.free(self.path) < ballast.LITTLE:
            raise StoreError(
                f"the disk of {self.path} is full: what was committed is safe; "
                f"make room, or run 'engine optimize', and then the command again"
            )

    def _low(self, state: State, *, to_remove: bool) -> int:
        """Return the free bytes below which RocksDB has to use as little disk as it can."""
        twice = 2 * max(ballast.wanted(state, self.limits), ballast.LITTLE)
        return twice if to_remove else max(twice, ballast.LOW)

    def _make_room(self, reader: Snapshot, *, to_remove: bool) -> bool:
        """On a full disk, free space before RocksDB writes; return whether the disk was full.

        It deletes an interrupted writer's leftovers and, with ``to_remove``, the ballast file.
        """
        state = reader.state
        if ballast.free(self.path) >= self._low(state, to_remove=to_remove):
            return False
        self._cut_leftovers()
        if to_remove and ballast.free(self.path) < max(
            ballast.wanted(state, self.limits), ballast.LITTLE
        ):
            ballast.give_back(self.path)
        return True

    def _cut_leftovers(self) -> None:
        """Cut off uncommitted appends. The lock is held, and RocksDB is not open yet."""
        # If this fails, the recovery does it later.
        with contextlib.suppress(EngineError, OSError):
            now, _ = open_reader(self.path, self.memory, self.limits, self._notice, lambda: False)
            try:
                self._cut(now.manifest, now.state)
            finally:
                now.files.close(f"{self.path} is closed")

    def _cut(self, named: Manifest, state: State) -> None:
        committed, _ = recovery.committed_extents(self.path, named, state, salvage=False)
        recovery.cut(self.path, named, committed)

    # --- transactions -----------------------------------------------------------------------------

    def commit(self, changes: Chunk) -> None:
        """Make a chunk durable and visible, whole or not at all.

        Raises ``NoRoomError`` if it does not fit on the disk; the store stays open, and a smaller chunk
        may fit. Any other failed write closes the store, because RocksDB takes no more writes after
        one. The next writer cuts off what was appended.
        """
        self.require_open()
        if changes.empty:
            return
        self._require_room_for(changes)

        def write() -> None:
            with self.begin() as transaction:
                transaction.add(changes)

        try:
            self.safely(write, may_be_full=changes.removal is None)
        except OSError as error:
            raise self._no_room(error.strerror or str(error)) from None

    @contextlib.contextmanager
    def begin(self) -> Iterator[Transaction]:
        """Yield a transaction; it is committed at the end of the block, or dropped on an error.

        Call this inside ``safely``, since nothing more can be written after a failed commit.
        """
        self.require_open()
        transaction = Transaction(self.snapshot, self._appender, self._flusher, amend=False)
        self._transaction = transaction
        yield transaction
        self._finish(transaction, amend=False)

    def amend(self, change: Callable[[Transaction], None]) -> None:
        """Change the newest commit, whose number stays; for repairs.

        An error of ``change`` leaves everything as it was. A failed commit closes the store.
        """
        self.require_open()
        transaction = Transaction(self.snapshot, self._appender, self._flusher, amend=True)
        change(transaction)
        self.safely(lambda: self._finish(transaction, amend=True))

    def _finish(self, transaction: Transaction, *, amend: bool) -> None:
        named = transaction.manifest or self.manifest
        copy = named if named is not self._manifest_kept and not amend else None
        state = transaction.finish(copy)
        self._manifest_kept = named if copy is not None else self._manifest_kept
        live = state.manifest_of(self.manifest)
        self.snapshot = Snapshot(
            self.path, self.memory, self.limits, live, state, self.snapshot.files
        )
        if not amend:
            self._committed(state)

    def _committed(self, state: State) -> None:
        self._notice.publish(state.commit)
        _log.debug("%s: commit %d", self.path, state.commit)
        wanted = ballast.wanted(state, self.limits)
        if wanted > 1.25 * self._reserved:
            there = ballast.renew(self.path, wanted)
            self._reserved = wanted if there else 0

    def safely(self, write: Callable[[], None], *, may_be_full: bool = False) -> None:
        """Run ``write``; any failure closes the store.

        Exception: with ``may_be_full``, a lack of room for extents is raised as it is, and the store
        stays open. Nothing was committed then, and the appends are cut off.
        """
        self._transaction = None
        try:
            write()
        except BaseException as error:
            if self.abandoned:
                # A forked child that leaves its parent's work has nothing to release.
                raise
            full = ballast.is_full(error)
            begun = self._transaction is not None and self._transaction.begun
            appending = may_be_full and not begun
            if full and appending and isinstance(error, OSError) and self._take_back():
                raise
            what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            what = what or type(error).__name__
            self.failure = (
                f"{self.path} could not be written: {what}; what was committed before is safe: "
                f"mend the cause, then open the store or run the command again"
            )
            if full:
                # The keys take no more writes. Opening them again shows whether they took this one.
                self._close_files()
                self._cut_leftovers()
            self.close()
            if isinstance(error, OSError | StoreError):
                raise StoreError(self.failure) from None
            raise

    def give_up(self, error: NoRoomError) -> None:
        """Close the store, as other failed writes do: not even the smallest chunk fits on the disk."""
        self.failure = str(error)
        self.close()

    def _require_room_for(self, changes: Chunk) -> None:
        """Raise ``NoRoomError`` if a chunk does not fit, or leaves no room to open the store."""
        # Removals and re-kept images check the room themselves.
        if changes.removal is not None or changes.rekept:
            return
        free = ballast.free(self.path)
        if free < ballast.LOW and free < changes.disk_bytes() + ballast.LEFT:
            raise self._no_room(os.strerror(errno.ENOSPC))

    def _no_room(self, what: str) -> NoRoomError:
        return NoRoomError(
            f"{self.path} could not be written: {what}; what was committed before is safe: "
            f"make room, then open the store or run the command again"
        )

    def _take_back(self) -> bool:
        """Cut off the appends of a failed commit; return whether that succeeded."""
        try:
            self._appender.close()
            self._cut(self.manifest, self.state)
        except (EngineError, OSError):
            return False
        return True

    # --- extents and the manifest -----------------------------------------------------------------

    @property
    def appender(self) -> Appender:
        """Return the appender of the extents."""
        return self._appender

    def name(self, named: Manifest) -> None:
        """Switch to a manifest that was saved."""
        self.snapshot = self.snapshot.with_manifest(named)

    def save(self, named: Manifest) -> None:
        """Replace the manifest on disk and switch to it; if that fails, the old one stays live."""
        named.save(self.path)
        self.name(named)

    def begin_extent(self) -> None:
        """Begin a new extent for the next kept pixels."""
        self.require_open()
        self.safely(lambda: self._appender.begin_next(extents.PIXELS))

    def announce_index(self) -> None:
        """Announce to readers that the manifest names another index."""
        self._notice.publish_index()

    def _last_extent(self, family: Family) -> tuple[int, int]:
        return self.state.last_extent(family)

    def _new_extent(self, family: Family) -> int:
        used = self.manifest.extents.get(family.name, ())
        # A number is never used again.
        number = file_names.next_number(used, file_names.MAX_EXTENT)
        extents.create(self.path, family, number, bytes.fromhex(self.manifest.uuid))
        self.save(self.manifest.with_extent(family.name, number))
        return number

    # --- single changes ---------------------------------------------------------------------------

    def add_roots(self, folders: Iterable[bytes]) -> None:
        """Record folders that an ingest takes, so that a removal can find files missing below them."""
        self.require_open()
        known = self.snapshot.roots()
        roots = list(dict.fromkeys((*known, *folders)))
        value = json.dumps([os.fsdecode(root) for root in roots]).encode()
        if len(roots) <= len(known) or len(value) > _MAX_ROOTS_BYTES:
            return

        self.amend(lambda transaction: transaction.set_roots(value))

    def set_checksums(self, found: Sequence[tuple[int, int, int]]) -> None:
        """After a repair: set checksums. Each item is (commit, index of its append, current xxh64)."""
        self.amend(lambda transaction: transaction.set_checksums(found))

    def set_dead(self, dead: dict[str, int]) -> None:
        """After a check: set how many kept bytes of each extent no image uses."""
        self.amend(lambda transaction: transaction.set_counts(dead=dead))

    def set_removed_vectors(self, removed: dict[str, int]) -> None:
        """After a check: set how many vectors of each encoder belong to removed images."""
        self.amend(lambda transaction: transaction.set_counts(removed_vectors=removed))

    def set_removed(self, found: IdSet) -> None:
        """After a check: set the ids of removed images."""
        self.amend(lambda transaction: transaction.set_tombstones(found))

    def put_rows(
        self, rows: Iterable[tuple[str, bytes, bytes | None]], state: State | None = None
    ) -> None:
        """After a check: put rows of tables (None: delete), and the state, in one batch."""

        def change(transaction: Transaction) -> None:
            transaction.put(rows)
            if state is not None:
                transaction.state = state

        self.amend(change)
        if state is not None:
            self._notice.publish(state.commit)

    def count_dead_vectors(self) -> None:
        """After a repair: recount the vectors that belong to no image."""
        space = self.manifest.space
        if space.exists:
            dead = self.dead_vectors(space, self.state)
            self.set_removed_vectors({space.key: dead} if dead else {})

    def dead_vectors(self, space: VectorSpace, state: State) -> int:
        """Count the vectors of a state that belong to removed images, or to none."""
        gone = self.snapshot.dead_ids()
        parts = state.vector_parts(space)
        vectors = Vectors(self.path, space.generation, space.dim, parts)
        try:
            blocks = vectors.id_blocks(0, vectors.rows, _IDS)
            return sum(int(gone.has(block).sum()) for block in blocks)
        finally:
            vectors.close()

    # --- closing ----------------------------------------------------------------------------------

    def require_open(self) -> None:
        """Raise ``StoreError`` after a failed write, or if it is closed."""
        if self.failure is not None:
            raise StoreError(self.failure)
        _ = self.snapshot.files.keys

    def close(self) -> None:
        """Release everything. Committed data is durable already."""
        # Call each of them, whichever fails.
        with contextlib.ExitStack() as closing:
            closing.callback(self._lock.release)
            closing.callback(self._notice.close)
            closing.callback(self._close_files)
            self._flusher.shutdown()
            if self.failure is None:
                # The keys may be closed already.
                with contextlib.suppress(StoreError):
                    self.snapshot.files.keys.settle()

    def _close_files(self) -> None:
        self._appender.close()
        self.snapshot.files.close(self.failure or f"{self.path} is closed")
