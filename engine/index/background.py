"""Long work in the background of others: what memory it may take, whom it reports to, who stops it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

from engine.config import MemoryBudget

_SOON = 0.1  # seconds
_NICER = 10  # a tenth of the share of others, where there is not enough for all
T = TypeVar("T")
Progress = Callable[[int], None]  # gets the rows that are done, as they are
Stop = Callable[[], bool]


class StoppedError(Exception):
    """Whoever asked for it does not want it any more; nothing is left of it."""


@dataclass(frozen=True, slots=True)
class BackgroundWork:
    """What a build may use, whom it reports to and who stops it."""

    memory: MemoryBudget
    progress: Progress = lambda rows: None
    stop: Stop = lambda: False

    def check_stop(self) -> None:
        """A step without rows: raises ``StoppedError`` if no more is wanted."""
        self.report(0)

    def report(self, rows: int) -> None:
        """A step after which so many rows are done; raises ``StoppedError`` if no more is wanted."""
        self.progress(rows)
        if self.stop():
            raise StoppedError

    def at_low_priority(self, job: Callable[[BackgroundWork], T]) -> T:
        """Do a job in a thread of a lower priority, and wait for it.

        Building keeps all cores busy for minutes, beside which a lookup of another process would wait
        for its turn a hundred times as long as it takes. ``progress`` and ``stop`` are asked in this
        thread. Where waiting is interrupted, the job ends at its next step, before this returns.
        """
        own = os.getpid()
        asked: SimpleQueue[int | None] = SimpleQueue()
        answers: SimpleQueue[bool] = SimpleQueue()

        def ask(rows: int) -> None:
            asked.put(rows)
            if not answers.get():
                raise StoppedError

        def run(threads: int) -> T:
            import faiss

            try:
                faiss.omp_set_num_threads(threads)  # each thread has a setting of its own
                _yield_to_others()
                return job(BackgroundWork(self.memory, ask))
            finally:
                asked.put(None)

        import faiss

        with ThreadPoolExecutor(1, thread_name_prefix="engine-build") as pool:
            future = pool.submit(run, faiss.omp_get_max_threads())
            try:
                while (rows := asked.get()) is not None:
                    wanted = False
                    try:
                        self.report(rows)
                        wanted = True
                    except StoppedError:
                        pass  # the job raises it, too
                    finally:
                        answers.put(wanted)
            except BaseException:
                while not future.done() and os.getpid() == own:  # a fork has no thread to wait for
                    answers.put(False)
                    with contextlib.suppress(Empty):
                        asked.get(timeout=_SOON)
                raise
            return future.result()


def _yield_to_others() -> None:
    """Lower the priority of this thread, for good, and of those that it starts."""
    if sys.platform == "linux":  # elsewhere it would be that of the process
        own = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + _NICER)
