"""Work that is done apart: who is asked, who is told, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import faiss
import pytest

from engine.config import MemoryBudget
from engine.index.background import BackgroundWork
from engine.stop import StoppedError

MEMORY = MemoryBudget()


def steps(ended: list[int], count: int = 5) -> Callable[[BackgroundWork], str]:
    """A job of some steps, that notes how many it did."""

    def job(work: BackgroundWork) -> str:
        done = 0
        try:
            for _ in range(count):
                work.report(10)
                done += 1
        finally:
            ended.append(done)
        return "made"

    return job


def test_it_is_told_of_and_asked_for_in_the_thread_that_waits() -> None:
    told: list[tuple[int, threading.Thread]] = []
    asked: list[threading.Thread] = []
    work = BackgroundWork(
        MEMORY,
        lambda rows: told.append((rows, threading.current_thread())),
        lambda: bool(asked.append(threading.current_thread())),
    )
    ran: list[threading.Thread] = []

    def job(apart: BackgroundWork) -> int:
        ran.append(threading.current_thread())
        assert apart.memory is MEMORY
        apart.report(3)
        apart.report(4)
        return 7

    assert work.at_low_priority(job) == 7
    here = threading.current_thread()
    assert told == [(3, here), (4, here)]
    assert asked == [here, here]
    assert ran != [here]


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
def test_others_come_first_and_only_before_the_job() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = priority()
    assert BackgroundWork(MEMORY).at_low_priority(lambda _: priority()) > before
    assert priority() == before


def test_it_uses_as_many_threads_as_its_caller() -> None:
    before = faiss.omp_get_max_threads()
    try:
        for threads in (1, 3):
            faiss.omp_set_num_threads(threads)
            assert (
                BackgroundWork(MEMORY).at_low_priority(lambda _: faiss.omp_get_max_threads())
                == threads
            )
    finally:
        faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("after", [0, 1, 4])
def test_it_ends_where_no_more_is_wanted(after: int) -> None:
    ended: list[int] = []
    answers = iter([False] * after + [True] * 9)
    with pytest.raises(StoppedError):
        BackgroundWork(MEMORY, stop=lambda: next(answers)).at_low_priority(steps(ended))
    assert ended == [after]


def test_an_error_of_the_job_is_raised_as_it_is() -> None:
    def job(work: BackgroundWork) -> None:
        work.report(1)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        BackgroundWork(MEMORY).at_low_priority(job)


def test_an_error_of_who_is_told_ends_the_job() -> None:
    ended: list[int] = []

    def progress(rows: int) -> None:
        raise ValueError("not today")

    with pytest.raises(ValueError, match="not today"):
        BackgroundWork(MEMORY, progress).at_low_priority(steps(ended))
    assert ended == [0]


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGINT raises ``KeyboardInterrupt``, also where a shell started this process with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("moment", ["told", "between"])
def test_an_interrupt_ends_the_job_before_it_is_raised(moment: str) -> None:
    ended: list[int] = []
    begun, sent = threading.Event(), threading.Event()

    def progress(rows: int) -> None:
        if moment == "told":
            signal.raise_signal(signal.SIGINT)

    def job(work: BackgroundWork) -> None:
        if moment == "between":
            work.report(1)  # so the caller waits for what comes next
            begun.set()
            sent.wait()
        steps(ended)(work)

    def interrupt() -> None:
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)
        sent.set()

    other = threading.Thread(target=interrupt)
    if moment == "between":
        other.start()
    with pytest.raises(KeyboardInterrupt):
        BackgroundWork(MEMORY, progress).at_low_priority(job)
    assert ended == [0]
    if moment == "between":
        other.join()


def test_work_may_be_done_apart_again() -> None:
    ended: list[int] = []
    work = BackgroundWork(MEMORY)
    for _ in range(20):
        assert work.at_low_priority(steps(ended, 50)) == "made"
    assert ended == [50] * 20
