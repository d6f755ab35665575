"""Runs long work at low priority, with a memory budget, progress reports and a way to stop it."""

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
from engine.stop import StoppedError

_SOON = 0.1  # seconds
_NICER = 10  # a tenth of the processor time of other threads, if they compete for it
T = TypeVar("T")
Progress = Callable[[int], None]  # is called with the number of rows done since the last call
Stop = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class BackgroundWork:
    """The memory budget, the progress reports and the stop of a build."""

    memory: MemoryBudget
    progress: Progress = lambda rows: None
    stop: Stop = lambda: False

    def check_stop(self) -> None:
        """Raise ``StoppedError`` if the work is to stop."""
        self.report(0)

    def report(self, rows: int) -> None:
        """Report ``rows`` more rows as done; raise ``StoppedError`` if the work is to stop."""
        self.progress(rows)
        if self.stop():
            raise StoppedError

    def at_low_priority(self, job: Callable[[BackgroundWork], T]) -> T:
        """Do a job in a thread of lower priority, and wait for it.

        Building keeps all cores busy for minutes. Without this, a lookup of another process would wait
        for a core a hundred times as long as it takes. ``progress`` and ``stop`` are called in this
        thread. If waiting is interrupted, the job ends at its next step, before this returns.
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
                faiss.omp_set_num_threads(threads)  # Faiss has this setting for each thread
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
                        pass  # the job raises it too
                    finally:
                        answers.put(wanted)
            except BaseException:
                # A forked process does not have the thread, so it does not wait.
                while not future.done() and os.getpid() == own:
                    answers.put(False)
                    with contextlib.suppress(Empty):
                        asked.get(timeout=_SOON)
                raise
            return future.result()


def _yield_to_others() -> None:
    """Lower the priority of this thread for good, and of the threads that it starts."""
    # On other systems this would lower the priority of the whole process.
    if sys.platform == "linux":
        own = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + _NICER)
