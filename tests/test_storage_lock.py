"""The writer's lock: one writer, told by name; gone with its process; no matter to readers."""

import fcntl
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from damage import FailingDisk

from engine import Store, StoreError, StoreLockedError
from engine.storage.disk import using
from engine.storage.lock import NAME, WriterLock

HOLD = """
import sys
from pathlib import Path
from engine.storage.lock import WriterLock
lock = WriterLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


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
            assert f"process {process.pid} on {socket.gethostname()}" in str(caught.value)
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


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"pid": "x", "host": 3}', b"\xff" * 5000])
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
