"""RocksDB's background threads across a fork: ended before it, started again after it.

Threads do not survive a fork, but RocksDB's count of them does: a forked process would wait for ever for
a thread that is only counted. RocksDB can run without background threads. So it has none at the moment
of a fork, and both processes start some afterwards; work waits in the queue in between.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

from rocksdict import Env

from engine.errors import StoreError

_TASKS = Path("/proc/self/task")
# The name of a background thread, followed by its priority.
_NAME = "rocksdb:"
# Seconds to wait for a running flush or compaction.
_MAX_WAIT = 10.0
_POLL = 0.0005  # seconds


class _Threads:
    """The background threads of RocksDB in this process, which all databases share."""

    def __init__(self) -> None:
        # Whether a database was ever opened, here or in a parent.
        self.used = False
        # The process that forked while some threads were busy.
        self.lost_by: int | None = None
        self._counts: Counter[str] = Counter()
        self._ended = False

    def before(self) -> None:
        """End all of them before a fork."""
        if not self.used:
            return
        self._counts = _running() or Counter(low=1, high=1)
        self._set(Counter())
        deadline = time.monotonic() + _MAX_WAIT
        running = _running()
        while running and time.monotonic() < deadline:
            time.sleep(_POLL)
            # Another thread may have forked in between and started them again.
            self._set(Counter())
            running = _running()
        # No Python thread can run between this look and the fork, so none opens a database.
        self._ended = running is not None and not running

    def after(self) -> None:
        """Start as many again after a fork, in both processes."""
        if self.used:
            self._set(self._counts)

    def in_child(self) -> None:
        """Do the same in the child, or note that threads were lost."""
        if self.used and not self._ended:
            self.lost_by = self.lost_by or os.getppid()
        else:
            self.after()

    @staticmethod
    def _set(counts: Counter[str]) -> None:
        env = Env()
        env.set_low_priority_background_threads(counts["low"])
        env.set_high_priority_background_threads(counts["high"])
        env.set_bottom_priority_background_threads(counts["bottom"])


_threads = _Threads()


def use(*, to_write: bool) -> None:
    """Note that a database is about to be opened; ``StoreError`` if a write would hang forever."""
    if to_write and _threads.lost_by is not None:
        raise StoreError(
            f"process {os.getpid()} cannot write to a store: it was forked from process "
            f"{_threads.lost_by} while that was writing; start workers before, or with 'spawn'"
        )
    _threads.used = True


def _running() -> Counter[str] | None:
    """Return the running background threads by priority; None if the system does not report them."""
    found: Counter[str] = Counter()
    try:
        tasks = list(_TASKS.iterdir())
    except OSError:
        return None
    for task in tasks:
        try:
            name = (task / "comm").read_text(encoding="ascii", errors="replace").strip()
        # The thread has ended.
        except OSError:
            continue
        if name.startswith(_NAME):
            found[name.removeprefix(_NAME)] += 1
    return found


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_threads.before,
        after_in_parent=_threads.after,
        after_in_child=_threads.in_child,
    )
