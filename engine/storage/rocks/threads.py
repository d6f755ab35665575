"""Threads of RocksDB across a fork: ended before it, started again after it.

Threads do not survive a fork, but what counts them does: a forked process would wait for ever for a
thread that is only counted. RocksDB can be told to have no background threads, so it has none at the
moment of a fork, and both processes start some afterwards; work waits in its queue meanwhile.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

from rocksdict import Env

from engine.errors import StoreError

_TASKS = Path("/proc/self/task")
_NAME = "rocksdb:"  # of a background thread, and its priority behind it
_MAX_WAIT = 10.0  # seconds for a flush or a compaction that is under way
_POLL = 0.0005  # seconds


class _Threads:
    """The background threads of RocksDB in this process, which all databases share."""

    def __init__(self) -> None:
        self.used = False  # whether a database was ever opened, here or in a parent
        self.lost_by: int | None = None  # the process that forked while some were busy
        self._counts: Counter[str] = Counter()
        self._ended = False

    def before(self) -> None:
        """Before a fork: end all of them."""
        if not self.used:
            return
        self._counts = _running() or Counter(low=1, high=1)
        self._set(Counter())
        deadline = time.monotonic() + _MAX_WAIT
        running = _running()
        while running and time.monotonic() < deadline:
            time.sleep(_POLL)
            self._set(Counter())  # another thread may have forked meanwhile, and started them again
            running = _running()
        # The last look and the fork are one step for all Python threads: none opens a database between.
        self._ended = running is not None and not running

    def after(self) -> None:
        """After it, in both processes: start as many again."""
        if self.used:
            self._set(self._counts)

    def in_child(self) -> None:
        """After it, in the child."""
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
    """Note that a database is about to be opened; ``StoreError`` where writing would never end."""
    if to_write and _threads.lost_by is not None:
        raise StoreError(
            f"process {os.getpid()} cannot write to a store: it was forked from process "
            f"{_threads.lost_by} while that was writing; start workers before, or with 'spawn'"
        )
    _threads.used = True


def _running() -> Counter[str] | None:
    """How many background threads of each priority run; None where the system does not say."""
    found: Counter[str] = Counter()
    try:
        tasks = list(_TASKS.iterdir())
    except OSError:
        return None
    for task in tasks:
        try:
            name = (task / "comm").read_text(encoding="ascii", errors="replace").strip()
        except OSError:  # it has ended
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
