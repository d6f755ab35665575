"""The writer: holds the one lock, recovers what a crash left, and hands out transactions.

A commit is: append to the extents, fdatasync them, then one synced RocksDB batch with everything
else and the new committed lengths. Rows past those lengths do not exist; the next writer cuts them.
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
_IDS = 1 << 15  # ids of vectors in hand
_MAX_ROOTS_BYTES = 256 << 10
_log = logging.getLogger("engine.storage")


class Writer:
    """The one writer of a store. ``snapshot`` is the newest commit, which it made or found."""

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

        ``salvage``: extents that are gone or cut short get their header and their length back, as
        zeros, where ``StoreDamagedError`` would be raised otherwise; for repairs, which know what is
        in them. ``to_remove``: on a full disk make room first, of what an interrupted writer left and
        of the reserve; an ingest would only fill it up again. ``reader`` is the snapshot that is open,
        which is closed before.
        """
        self.path = path
        self.memory = memory
        self.limits = limits
        self.failure: str | None = None
        self.abandoned = False  # it is the parent's of this forked process
        self._lock = lock
        self._notice = notice
        self._manifest_kept: Manifest | None = None  # of which the keys have a copy, for repairs
        self._transaction: Transaction | None = None
        self._reserved = 0  # bytes of the reserve that was last seen
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="engine-flush")
        self._appender = Appender(path, limits, self._last_extent, self._new_extent)
        found = manifest.load(path, writing=True)  # first: it says who may write here
        self._tight = not salvage and self._make_room(reader, to_remove=to_remove)
        reader.files.close(f"{path} is closed")
        published = commit_of(notice.read())
        keys = opening.open_writer(path, memory, tight=self._tight)
        self.snapshot = open_snapshot(path, memory, limits, found, keys, published, lambda: False)
        try:
            self.recover(salvage=salvage)
        except BaseException:
            self.close()
            raise
        notice.publish(self.snapshot.state.commit)
        _log.info("%s: open for writing at commit %d", path, self.snapshot.state.commit)

    @property
    def manifest(self) -> Manifest:
        """The manifest as it is now."""
        return self.snapshot.manifest

    @property
    def state(self) -> State:
        """What the newest commit left behind."""
        return self.snapshot.state

    def recover(self, *, salvage: bool) -> None:
        """Cut and forget what does not count; see ``engine.storage.recovery``."""
        named = recovery.recover(self.path, self.manifest, self.state, salvage=salvage)
        if named != self.manifest:
            self.name(named)

    def salvage_extents(self) -> None:
        """Give extents back what they lack, as zeros; open ones are let go first."""
        self._appender.close()
        self.snapshot = self.snapshot.with_files(self.snapshot.files.reopened())
        _, named = recovery.committed_extents(self.path, self.manifest, self.state, salvage=True)
        self.name(named)

    # --- room on the disk -------------------------------------------------------------------------

    def loosen(self) -> None:
        """Once there is room again, open the keys as at other times, so that they are compacted."""
        if not self._tight or ballast.free(self.path) < self._low(self.state, to_remove=False):
            return
        try:
            self.snapshot.files.keys.settle()
            self._close_files()  # RocksDB is opened by one at a time
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

    def _low(self, state: State, *, to_remove: bool) -> int:
        """Free bytes below which RocksDB is to take as little as it can."""
        twice = 2 * max(ballast.wanted(state, self.limits), ballast.LITTLE)
        return twice if to_remove else max(twice, ballast.LOW)

    def _make_room(self, reader: Snapshot, *, to_remove: bool) -> bool:
        """On a full disk, let go of what is not needed, before RocksDB writes; whether it was full.

        That is what an interrupted writer left, and ``to_remove`` the reserve, too.
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
        """As the holder of the lock, before RocksDB is open: cut what was appended for nothing."""
        with contextlib.suppress(EngineError, OSError):  # else the recovery comes to it
            now, _ = open_reader(
                self.path, self.memory, self.limits, self._notice, lambda: False
            )  # nobody else writes any more
            try:
                self._cut(now.manifest, now.state)
            finally:
                now.files.close(f"{self.path} is closed")

    def _cut(self, named: Manifest, state: State) -> None:
        committed, _ = recovery.committed_extents(self.path, named, state, salvage=False)
        recovery.cut(self.path, named, committed)

    # --- transactions -----------------------------------------------------------------------------

    def commit(self, changes: Chunk) -> None:
        """Make a changeset durable and visible, whole or not at all.

        ``NoRoomError`` where it does not fit the disk: the store goes on, and a smaller one may fit.
        Any other failed write closes the store: RocksDB takes no more writes after one, and what was
        appended is cut when the store is next opened for writing.
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
        """A transaction, which is committed at the end of the block, or given up on an error.

        Call it inside of ``safely``, since after a failed commit nothing more can be written.
        """
        self.require_open()
        transaction = Transaction(self.snapshot, self._appender, self._flusher, amend=False)
        self._transaction = transaction
        yield transaction
        self._finish(transaction, amend=False)

    def amend(self, change: Callable[[Transaction], None]) -> None:
        """Change what the newest commit left behind, whose number stays; for repairs.

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
        self.snapshot = Snapshot(
            self.path, self.memory, self.limits, self.manifest, state, self.snapshot.files
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
        """Write; any failure closes the store.

        But ``may_be_full``: that of extents for want of room is raised as it is, and the store stays
        open. Nothing was committed then, and what was appended is cut.
        """
        self._transaction = None
        try:
            write()
        except BaseException as error:
            if self.abandoned:
                raise  # a fork that leaves its parent's work has nothing to give back
            full = ballast.is_full(error)
            begun = self._transaction is not None and self._transaction.begun
            appending = may_be_full and not begun
            if full and appending and isinstance(error, OSError) and self._take_back():
                raise
            what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            what = what or type(error).__name__
            self.failure = (
                f"{self.path} could not be written: {what}; what was committed before is safe: "
                f"mend the cause and run the command again"
            )
            if full:
                self._close_files()  # the keys take no more, and whether they took this is in them
                self._cut_leftovers()
            self.close()
            if isinstance(error, OSError | StoreError):
                raise StoreError(self.failure) from None
            raise

    def give_up(self, error: NoRoomError) -> None:
        """Close the store, as other failed writes do: not even the smallest chunk fits the disk."""
        self.failure = str(error)
        self.close()

    def _require_room_for(self, changes: Chunk) -> None:
        """``NoRoomError`` where a changeset does not fit, or the store could not be opened then."""
        if changes.removal is not None or changes.rekept:  # these measure for themselves
            return
        free = ballast.free(self.path)
        if free < ballast.LOW and free < changes.disk_bytes() + ballast.LEFT:
            raise self._no_room(os.strerror(errno.ENOSPC))

    def _no_room(self, what: str) -> NoRoomError:
        return NoRoomError(
            f"{self.path} could not be written: {what}; what was committed before is safe: "
            f"make room and run the command again"
        )

    def _take_back(self) -> bool:
        """Cut what a commit has appended that did not come to be; whether that succeeded."""
        try:
            self._appender.close()
            self._cut(self.manifest, self.state)
        except (EngineError, OSError):
            return False
        return True

    # --- extents and the manifest -----------------------------------------------------------------

    @property
    def appender(self) -> Appender:
        """What appends to the extents."""
        return self._appender

    def name(self, named: Manifest) -> None:
        """Go on with a manifest that was saved."""
        self.snapshot = self.snapshot.with_manifest(named)

    def save(self, named: Manifest) -> None:
        """Replace the manifest on disk, and go on with it; where that fails, the old one is live."""
        named.save(self.path)
        self.name(named)

    def begin_extent(self) -> None:
        """Let the pixels that are kept next lie in a new extent."""
        self.require_open()
        self.safely(lambda: self._appender.begin_next(extents.PIXELS))

    def announce_index(self) -> None:
        """Tell readers that the manifest names another index."""
        self._notice.publish_index()

    def _last_extent(self, family: Family) -> tuple[int, int]:
        return self.state.last_extent(family)

    def _new_extent(self, family: Family) -> int:
        used = self.manifest.extents.get(family.name, ())
        number = file_names.next_number(used, file_names.MAX_EXTENT)  # never used again
        extents.create(self.path, family, number, bytes.fromhex(self.manifest.uuid))
        self.save(self.manifest.with_extent(family.name, number))
        return number

    # --- single changes ---------------------------------------------------------------------------

    def add_roots(self, folders: Iterable[bytes]) -> None:
        """Remember folders that an ingest takes, for a removal of what is missing below them."""
        self.require_open()
        known = self.snapshot.roots()
        roots = list(dict.fromkeys((*known, *folders)))
        value = json.dumps([os.fsdecode(root) for root in roots]).encode()
        if len(roots) <= len(known) or len(value) > _MAX_ROOTS_BYTES:
            return

        self.amend(lambda transaction: transaction.set_roots(value))

    def set_checksums(self, found: Sequence[tuple[int, int, int]]) -> None:
        """After a repair: (commit, which of its appends, xxh64 of what is there now) for each."""
        self.amend(lambda transaction: transaction.set_checksums(found))

    def set_dead(self, dead: dict[str, int]) -> None:
        """After a check: how many kept bytes of each extent are of no image."""
        self.amend(lambda transaction: transaction.set_counts(dead=dead))

    def set_removed_vectors(self, removed: dict[str, int]) -> None:
        """After a check: how many vectors of each encoder are of removed images."""
        self.amend(lambda transaction: transaction.set_counts(removed_vectors=removed))

    def set_removed(self, found: IdSet) -> None:
        """After a check: which ids are of removed images."""
        self.amend(lambda transaction: transaction.set_tombstones(found))

    def put_rows(
        self, rows: Iterable[tuple[str, bytes, bytes | None]], state: State | None = None
    ) -> None:
        """After a check: put rows of tables (None: take it away), and the state, at once."""

        def change(transaction: Transaction) -> None:
            transaction.put(rows)
            if state is not None:
                transaction.state = state

        self.amend(change)
        if state is not None:
            self._notice.publish(state.commit)

    def count_dead_vectors(self) -> None:
        """After a repair: count the vectors that are of no image again."""
        space = self.manifest.space
        if space.exists:
            dead = self.dead_vectors(space, self.state)
            self.set_removed_vectors({space.key: dead} if dead else {})

    def dead_vectors(self, space: VectorSpace, state: State) -> int:
        """How many of the vectors of a state are of images that were removed, or of none."""
        gone = self.snapshot.dead_ids()
        parts = state.vector_parts(space)
        vectors = Vectors(self.path, space.generation, space.dim, parts)
        try:
            blocks = vectors.id_blocks(0, vectors.rows, _IDS)
            return sum(int(gone.has(block).sum()) for block in blocks)
        finally:
            vectors.close()

    # --- the end ----------------------------------------------------------------------------------

    def require_open(self) -> None:
        """``StoreError`` after a failed write, or once it is closed."""
        if self.failure is not None:
            raise StoreError(self.failure)
        _ = self.snapshot.files.keys

    def close(self) -> None:
        """Give everything back. What was committed is durable already."""
        with contextlib.ExitStack() as closing:  # all of it, whatever fails
            closing.callback(self._lock.release)
            closing.callback(self._notice.close)
            closing.callback(self._close_files)
            self._flusher.shutdown()
            if self.failure is None:
                with contextlib.suppress(StoreError):  # it is closed already
                    self.snapshot.files.keys.settle()

    def _close_files(self) -> None:
        self._appender.close()
        self.snapshot.files.close(self.failure or f"{self.path} is closed")
