"""The writer's lock: one writer, told by name; gone with its process; no matter to readers."""

import fcntl
import json
import math
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from damage import FailingDisk

from engine import Store, StoreError, StoreLockedError, UsageError
from engine.stop import StoppedError
from engine.storage.disk import using
from engine.storage.lock import NAME, WriterLock

HOLD = """
import sys
from pathlib import Path
from engine.storage.lock import WriterLock
lock = WriterLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.readline()
lock.release()
print("released", flush=True)
sys.stdin.read()
"""
LONG = 600.0  # seconds: no test waits for their end


@contextmanager
def another_process_that_holds(store: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.slow
def test_another_process_is_named_and_its_lock_ends_with_it(tmp_path: Path) -> None:
    where = tmp_path / "a"
    Store.open(where, create=True, encoder="none").close()
    with Store.open(where) as store:
        with another_process_that_holds(where) as process:
            with pytest.raises(StoreLockedError) as caught:
                store.ingest("synthetic:bits?n=1")
            assert f"process {process.pid} on this machine since 2" in str(caught.value)
            assert "wait for it with wait= (in seconds)" in str(caught.value)
            assert "\n" not in str(caught.value)
            with Store.open(where) as reader:  # readers are not in its way
                assert reader.check().ok
            store.refresh()
        assert store.ingest("synthetic:bits?n=1").added == 1  # it was killed, and left its file


def test_the_lock_is_exclusive_and_given_back(tmp_path: Path) -> None:
    first, second = WriterLock(tmp_path), WriterLock(tmp_path)
    first.acquire()
    first.acquire()
    assert (first.held, second.held) == (True, False)
    with pytest.raises(StoreLockedError, match=f"process {os.getpid()} on"):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    assert (first.held, second.held) == (False, True)
    second.release()
    assert (tmp_path / NAME).exists()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b'{"pid": "x", "host": 3}',
        b"\xff" * 5000,
        b'{"pid": 1e999, "host": ""}',
        b"[" * 4000,
    ],
)
def test_what_is_written_in_the_file_does_not_matter(tmp_path: Path, text: bytes) -> None:
    (tmp_path / NAME).write_bytes(text)
    first, second = WriterLock(tmp_path), WriterLock(tmp_path)
    first.acquire()
    (tmp_path / NAME).write_bytes(text)
    with pytest.raises(StoreLockedError, match="being written by another process"):
        second.acquire()
    first.release()


def test_who_only_asks_whether_it_is_held_is_not_in_the_way(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path)
    lock.acquire()
    lock.release()
    with (tmp_path / NAME).open() as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)  # as ``busy`` does for a moment
        threading.Timer(0.03, fcntl.flock, [asking, fcntl.LOCK_UN]).start()
        lock.acquire()
    assert lock.held
    lock.release()


def test_a_full_disk_does_not_stand_in_the_way(tmp_path: Path) -> None:
    first, second = WriterLock(tmp_path), WriterLock(tmp_path)
    with using(FailingDisk("pwrite")):
        first.acquire()
        with pytest.raises(StoreLockedError):
            second.acquire()
        first.release()
        second.acquire()
        second.release()


def test_a_folder_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot be written: .*; it can still be read"):
        WriterLock(tmp_path / "gone").acquire()


def refusal(lock: WriterLock, wait: float = 0.0) -> str:
    with pytest.raises(StoreLockedError) as caught:
        lock.acquire(wait)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"pid": 7, "host": socket.gethostname()}, "process 7 on this machine:"),  # older engines
        ({"pid": 7, "host": "attic", "since": 1e9}, "process 7 on attic since 2001-09-0"),
        ({"pid": 7, "host": "attic", "since": "yesterday"}, "process 7 on attic:"),
        ({"pid": 7, "host": "attic", "since": 1e300}, "process 7 on attic:"),
        ({"pid": 7, "host": "attic", "since": math.nan}, "process 7 on attic:"),
        ({"pid": 7, "host": "a\nb"}, "process 7 on another machine:"),
        ({"pid": 7, "host": "a" * 3000}, "process 7 on another machine:"),
    ],
)
def test_the_holder_is_named_as_far_as_the_file_says_so(
    tmp_path: Path, said: dict[str, object], shown: str
) -> None:
    first, second = WriterLock(tmp_path), WriterLock(tmp_path)
    first.acquire()
    (tmp_path / NAME).write_text(json.dumps(said))
    assert f"{tmp_path} is being written by {shown}" in refusal(second)
    first.release()


# --- waiting --------------------------------------------------------------------------------------


def test_whoever_waits_has_the_lock_once_it_is_given_back(tmp_path: Path) -> None:
    first, second = WriterLock(tmp_path), WriterLock(tmp_path)
    first.acquire()
    second.acquire(LONG, lambda: bool(first.release()))  # asked between two tries
    assert (first.held, second.held) == (False, True)
    second.release()


def test_the_waiting_runs_out_and_can_be_stopped(tmp_path: Path) -> None:
    first, second = WriterLock(tmp_path), WriterLock(tmp_path)
    first.acquire()
    text = refusal(second, 0.02)
    assert f"written by process {os.getpid()} on this machine since " in text
    assert text.endswith(": waited 0.02 s: raise wait=, or end that process")
    with pytest.raises(StoppedError):
        second.acquire(LONG, lambda: True)
    assert not second.held
    first.release()


def test_the_lock_is_that_of_a_store_that_was_made_again(tmp_path: Path) -> None:
    where = tmp_path / "store"
    where.mkdir()
    first, second, third = WriterLock(where), WriterLock(where), WriterLock(where)
    first.acquire()

    def made_again() -> bool:
        if not (tmp_path / "old").exists():
            where.rename(tmp_path / "old")
            where.mkdir()
        return False

    second.acquire(LONG, made_again)
    assert first.held
    assert second.held
    refusal(third)  # the lock in the old folder would keep nobody out
    first.release()
    second.release()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    where = tmp_path / "store"
    with Store.open(where, create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=2")
    return where


def once(action: Callable[[], object], answer: bool) -> Callable[[], bool]:
    """A ``stop`` that does something the first time, and then says always the same."""
    left = [action]

    def stop() -> bool:
        while left:
            left.pop()()
        return answer

    return stop


@pytest.mark.slow
def test_a_store_waits_for_another_writer(made: Path) -> None:
    with Store.open(made) as first, Store.open(made, wait=LONG) as second:
        first.remove(ids=[1])
        assert second.ingest("synthetic:bits?n=4", stop=once(first.close, answer=False)).added == 3
    with Store.open(made) as first, Store.open(made, wait=LONG) as second:
        first.remove(ids=[3])
        assert second.remove(ids=[2], stop=once(first.close, answer=False)).images == 1
    with Store.open(made) as first, Store.open(made, wait=LONG) as second:
        first.ingest("synthetic:bits?n=5")
        assert not second.optimize(stop=once(first.close, answer=False)).interrupted


@pytest.mark.slow
def test_a_call_that_waits_can_be_stopped_and_has_changed_nothing(made: Path) -> None:
    with Store.open(made) as first, Store.open(made, wait=LONG) as second:
        first.remove(ids=[1])
        added = second.ingest("synthetic:bits?n=4", stop=lambda: True)
        assert (added.interrupted, added.seen) == (True, 0)
        removed = second.remove(ids=[2], stop=lambda: True)
        assert (removed.interrupted, removed.images, removed.not_found) == (True, 0, ())
        assert second.optimize(stop=lambda: True).interrupted
        assert len(second) == 1


def test_only_a_store_that_writes_waits(made: Path) -> None:
    with Store.open(made) as first, Store.open(made, read_only=True, wait=LONG) as second:
        first.remove(ids=[1])
        with pytest.raises(UsageError, match="read-only"):
            second.ingest("synthetic:bits?n=4")
        assert second.remove(ids=[2], dry_run=True).images == 1
        again = pickle.loads(pickle.dumps(second))
        assert (again.session.read_only, again.session.wait) == (True, LONG)
        again.close()


@pytest.mark.parametrize("wait", [-1, -0.1, math.nan, "5", None, True])
def test_what_is_no_time_to_wait_is_refused_before_anything_is_made(
    tmp_path: Path, wait: float
) -> None:
    with pytest.raises(UsageError, match=r"wait= is a number of seconds, 0 or more, not "):
        Store.open(tmp_path / "store", create=True, encoder="none", wait=wait)
    with pytest.raises(UsageError, match=r"wait= is a number"):
        Store.salvage(tmp_path / "store", wait=wait)
    assert not list(tmp_path.iterdir())


# --- the command ----------------------------------------------------------------------------------

WRITING: list[tuple[str, ...]] = [
    ("ingest", "synthetic:bits?n=3"),
    ("remove", "--id", "1"),
    ("optimize",),
    ("check", "--fix"),
]


@contextmanager
def a_command_that_waits(
    store: Path, *arguments: str, wait: float = LONG
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "engine", *arguments, "--store", store, "--wait", f"{wait}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert re.match(
                r"engine: waiting for process \d+ on this machine since \S+ \S+, which", line
            )
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", WRITING, ids=lambda arguments: arguments[0])
def test_a_command_waits_until_the_lock_is_given_back(
    made: Path, arguments: tuple[str, ...]
) -> None:
    with another_process_that_holds(made) as holder:
        with a_command_that_waits(made, *arguments) as waiting:
            assert holder.stdin is not None
            assert holder.stdout is not None
            holder.stdin.write("\n")
            holder.stdin.flush()
            assert holder.stdout.readline() == "released\n"
            _, err = waiting.communicate()
        assert (waiting.returncode, "locked" in err, "written by" in err) == (0, False, False)


@pytest.mark.slow
def test_a_killed_holder_frees_the_lock(made: Path) -> None:
    with (
        another_process_that_holds(made) as holder,
        a_command_that_waits(made, "ingest", "synthetic:bits?n=3") as waiting,
    ):
        holder.kill()
        waiting.communicate()
        assert waiting.returncode == 0
    with Store.open(made) as store:
        assert len(store) == 3


@pytest.mark.slow
@pytest.mark.parametrize("arguments", WRITING, ids=lambda arguments: arguments[0])
def test_a_command_that_waits_ends_with_ctrl_c(made: Path, arguments: tuple[str, ...]) -> None:
    with another_process_that_holds(made), a_command_that_waits(made, *arguments) as waiting:
        waiting.send_signal(signal.SIGINT)
        waiting.communicate()
        assert waiting.returncode == 130
    with Store.open(made) as store:
        assert len(store) == 2


@pytest.mark.slow
@pytest.mark.parametrize("arguments", WRITING, ids=lambda arguments: arguments[0])
def test_a_command_that_has_waited_long_enough_says_who_holds_the_lock(
    made: Path, arguments: tuple[str, ...]
) -> None:
    with (
        another_process_that_holds(made) as holder,
        a_command_that_waits(made, *arguments, wait=0.01) as waiting,
    ):
        _, err = waiting.communicate()
        assert waiting.returncode == 2
        (line,) = err.splitlines()
        assert f"is being written by process {holder.pid} on this machine since 2" in line
        assert line.endswith(": waited 0.01 s: raise --wait, or end that process")
