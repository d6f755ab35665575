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

# Attempts to open a newer commit while an older one is open.
_FOLLOW_TRIES = 100
# A long call waits this many times the last opening's duration before it opens a newer commit.
_MIN_PAUSE = 3
_log = logging.getLogger("engine.storage")


class Session:
    """An open store directory. It begins as a reader, and may become the one writer.

    ``snapshot`` is the commit that this process sees. A reader's changes only with ``refresh`` or
    ``follow``; a writer's is always the newest.
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
        """Open the store for reading: first the manifest, then the keys.

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
        # Why it is closed, or None.
        self._closed: str | None = None
        # Whether the parent of this forked process opened it.
        self._abandoned = False
        self._owner = os.getpid()
        # The notice when the snapshot was opened.
        self._seen = b""
        self._opened_at = self._opening_took = 0.0  # seconds
        try:
            self._open_reader()
        except BaseException:
            self._notice.close()
            raise
        abandon_in_child(self)

    # --- state ------------------------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """Return the commit that this process sees; ``StoreError`` if the store is closed."""
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
        """Return the writer; ``StoreError`` if the store is not open for writing."""
        _ = self.snapshot
        if self._writer is None:
            raise StoreError(f"{self.path} is not open for writing")
        return self._writer

    @property
    def is_open(self) -> bool:
        """Return whether it is open; a failed write closes it."""
        failed = self._writer is not None and self._writer.failure is not None
        return self._closed is None and not failed

    @property
    def is_writer(self) -> bool:
        """Return whether this process holds the writer's lock."""
        return self._lock.held

    def being_written(self) -> bool:
        """Return whether another process, or another ``Store``, is writing."""
        return not self._lock.held and self._lock.busy()

    def require_own(self) -> None:
        """Raise ``StoreError`` in a process forked from the one that opened the store."""
        if self._abandoned:
            raise StoreError(self._closed)

    # --- reading ----------------------------------------------------------------------------------

    def is_behind(self) -> bool:
        """Return whether a writer has published a newer commit; always false for the writer itself."""
        return not self._lock.held and is_of_another_commit(self._notice.read(), self._seen)

    def refresh(self, tries: int = TRIES) -> None:
        """As a reader, switch to the newest commit."""
        _ = self.snapshot
        if self._writer is None:
            self._open_reader(tries)

    def follow(self, *, within_a_call: bool = False) -> None:
        """Switch to the newest commit or index. Without a newer one, this takes a microsecond or two.

        If a writer keeps changing the files, the old commit stays open. ``within_a_call``: spend at most
        a quarter of a long call's time on opening newer commits.
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
                # Before the manifest is read, so that a later index is noticed as new.
                self._seen = published
                self.read_index()
        except BusyError:
            # The next call tries again.
            return
        except StoreError as error:
            # Do not try again before something new is published.
            self._seen = self._notice.read()
            _log.warning("%s; lookups go on with what was committed before", error)

    def read_index(self) -> bool:
        """Take over the index of the current manifest, and nothing else; return whether it changed."""
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
        # If opening fails, the old snapshot stays open. Other threads see the old or the new one.
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

        ``salvage`` and ``to_remove``: see ``Writer``. ``wait``: seconds to wait for another writer, by
        default ``self.wait``; ``stop`` ends the waiting with ``StoppedError``.
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
        # Before anything is written: a store that only newer engines may write stays open for reading.
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

    # --- closing ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Release everything. Committed data is durable already."""
        if self._abandoned:
            return
        writer, self._writer = self._writer, None
        failure = writer.failure if writer is not None else None
        self._closed = self._closed or failure or f"{self.path} is closed"
        # Call each of them, whichever fails.
        with contextlib.ExitStack() as closing:
            closing.callback(self._lock.release)
            closing.callback(self._notice.close)
            closing.callback(self._close_snapshot)
            if writer is not None:
                writer.close()

    def abandon(self) -> None:
        """Mark it closed in a forked child; it stays the parent's."""
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
