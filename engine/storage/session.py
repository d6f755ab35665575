"""A session: one process's hold on a store, with the snapshot it sees and the writer it may become."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.config import Limits, MemoryBudget
from engine.errors import StoreError, UsageError
from engine.forking import abandon_in_child
from engine.storage import file_names, manifest, nofollow
from engine.storage.commit_file import Notice, is_of_another_commit
from engine.storage.lock import WriterLock
from engine.storage.open_snapshot import open_reader
from engine.storage.rocks.open_reader import BusyError
from engine.storage.rocks.pin import TRIES
from engine.storage.snapshot import Snapshot
from engine.storage.writer import Writer

_FOLLOW_TRIES = 100  # to go over to a newer commit, where there is one to go on with
_MIN_PAUSE = 3  # times what the last opening took, before a long call opens a newer commit
_log = logging.getLogger("engine.storage")


class Session:
    """One store directory, open. It begins as a reader, and may become the one writer.

    ``snapshot`` is what this process sees: as a reader until ``refresh`` or ``follow`` go over to a
    newer commit, as the writer always the newest one.
    """

    def __init__(
        self,
        path: Path,
        memory: MemoryBudget,
        *,
        read_only: bool,
        limits: Limits | None = None,
        wait: float = 0.0,
    ) -> None:
        """Open it for reading: the manifest first, then the keys.

        ``wait``: seconds that ``become_writer`` waits for another writer.
        """
        self.path = path
        self.memory = memory
        self.limits = limits or Limits()
        self.read_only = read_only
        self.wait = wait
        self._lock = WriterLock(path)
        self._notice = Notice(path)
        self._snapshot: Snapshot | None = None
        self._writer: Writer | None = None
        self._closed: str | None = None  # why it is closed, if it is
        self._abandoned = False  # it was opened by the parent of this forked process
        self._owner = os.getpid()
        self._seen = b""  # the notice of commits, when the snapshot was opened
        self._opened_at = self._opening_took = 0.0  # seconds
        try:
            self._open_reader()
        except BaseException:
            self._notice.close()
            raise
        abandon_in_child(self)

    # --- what is open -----------------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """The commit that this process sees; ``StoreError`` if the store is closed."""
        if self._closed is not None:
            raise StoreError(self._closed)
        if self._writer is not None:
            if self._writer.failure is not None:
                raise StoreError(self._writer.failure)
            return self._writer.snapshot
        assert self._snapshot is not None
        return self._snapshot

    @property
    def writer(self) -> Writer:
        """The writer; ``StoreError`` where the store is not open for writing."""
        _ = self.snapshot
        if self._writer is None:
            raise StoreError(f"{self.path} is not open for writing")
        return self._writer

    @property
    def is_open(self) -> bool:
        """Whether it is open; a failed write closes it."""
        failed = self._writer is not None and self._writer.failure is not None
        return self._closed is None and not failed

    @property
    def is_writer(self) -> bool:
        """Whether this process holds the writer's lock."""
        return self._lock.held

    def being_written(self) -> bool:
        """Whether another process, or another ``Store``, is writing."""
        return not self._lock.held and self._lock.busy()

    def require_own(self) -> None:
        """``StoreError`` in a process that was forked from the one that opened it."""
        if self._abandoned:
            raise StoreError(self._closed)

    # --- reading ----------------------------------------------------------------------------------

    def is_behind(self) -> bool:
        """Whether a writer has published another commit since; never for the writer itself."""
        return not self._lock.held and is_of_another_commit(self._notice.read(), self._seen)

    def refresh(self, tries: int = TRIES) -> None:
        """As a reader, see what has been committed since this store was opened."""
        _ = self.snapshot
        if self._writer is None:
            self._open_reader(tries)

    def follow(self, *, within_a_call: bool = False) -> None:
        """Switch to the newest commit or index, if there is one; without one, a microsecond or two.

        Where a writer leaves no moment for it, what was open stays open. ``within_a_call``: no more
        than a quarter of the time of a long call goes into opening newer commits.
        """
        self.require_own()
        if self._closed is not None or self._writer is not None:
            return
        published = self._notice.read()
        if published == self._seen:
            return
        since = time.perf_counter() - self._opened_at
        if within_a_call and since < _MIN_PAUSE * self._opening_took:
            return
        try:
            if is_of_another_commit(published, self._seen):
                self.refresh(_FOLLOW_TRIES)
            else:
                # Before the manifest is read: what is published then is noticed again.
                self._seen = published
                self.read_index()
        except BusyError:
            return  # the next call tries again
        except StoreError as error:
            self._seen = self._notice.read()  # not again before there is something new
            _log.warning("%s; lookups go on with what was committed before", error)

    def read_index(self) -> bool:
        """Take the index from the manifest as it is now, and all else as it was; whether it changed."""
        found = self.snapshot.with_index_of(manifest.load(self.path))
        if found is None:
            return False
        if self._writer is not None:
            self._writer.snapshot = found
        else:
            self._snapshot = found
        return True

    def _open_reader(self, tries: int = TRIES) -> None:
        started = time.perf_counter()
        opened, seen = open_reader(
            self.path, self.memory, self.limits, self._notice, self.is_behind, tries
        )
        # If opening fails, the old snapshot stays open. A thread that asks finds one or the other.
        before, self._snapshot = self._snapshot, opened
        self._seen = seen
        self._opened_at = time.perf_counter()
        self._opening_took = self._opened_at - started
        if before is not None:
            before.files.close(f"{self.path} is closed")
        _log.debug("%s: open at commit %d", self.path, opened.state.commit)

    # --- writing ----------------------------------------------------------------------------------

    def become_writer(
        self,
        *,
        salvage: bool = False,
        to_remove: bool = False,
        wait: float | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Writer:
        """Take the writer's lock, recover what a crash left, and open the keys for writing.

        ``salvage`` and ``to_remove``: see ``Writer``. ``wait``: seconds to wait for another writer,
        where that is not ``self.wait``; ``stop`` ends the waiting with ``StoppedError``.
        """
        _ = self.snapshot
        if self._writer is not None:
            try:
                if not to_remove:
                    self._writer.loosen()
            except BaseException:
                self.close()
                raise
            if salvage:
                self._writer.salvage_extents()
            return self._writer
        if self.read_only:
            raise UsageError(f"{self.path} was opened read-only")
        nofollow.require_kinds(self.path, file_names.FILES, file_names.FOLDERS)
        # Before anything is written: a store that only newer engines write stays open for reading.
        manifest.load(self.path, writing=True)
        self._lock.acquire(self.wait if wait is None else wait, stop)
        try:
            self._writer = Writer(
                self.path,
                self.memory,
                self.limits,
                self._lock,
                self._notice,
                salvage=salvage,
                to_remove=to_remove,
                reader=self.snapshot,
            )
        except BaseException:
            self.close()
            raise
        return self._writer

    # --- the end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Give everything back. What was committed is durable already."""
        if self._abandoned:
            return
        writer, self._writer = self._writer, None
        failure = writer.failure if writer is not None else None
        self._closed = self._closed or failure or f"{self.path} is closed"
        with contextlib.ExitStack() as closing:  # all of it, whatever fails
            closing.callback(self._lock.release)
            closing.callback(self._notice.close)
            closing.callback(self._close_snapshot)
            if writer is not None:
                writer.close()

    def abandon(self) -> None:
        """In a forked child: it stays the parent's; all that is left here is to say so."""
        self._abandoned = True
        self._closed = (
            f"{self.path} was opened by process {self._owner}, from which this process was forked: "
            f"open it again here with Store.open"
        )
        if self._writer is not None:
            self._writer.abandoned = True
            self._writer.snapshot.files.abandon(self._closed)
        if self._snapshot is not None:
            self._snapshot.files.abandon(self._closed)

    def _close_snapshot(self) -> None:
        if self._snapshot is not None:
            self._snapshot.files.close(f"{self.path} is closed")
            self._snapshot = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
