"""Stores and processes: workers that are forked or spawned, and a ``Store`` that is handed to them.

Each program runs in a process of its own, which is ended if it says nothing for long: what is looked
for are waits without an end. This file is also their program.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Store, StoreError, errors, records
from engine.encoders import registry
from engine.encoders.onnx import OnnxEncoder
from engine.storage.rocks import threads

STUCK = 120  # seconds after which a program is taken to wait for ever
ROWS = np.random.default_rng(0).standard_normal((3000, 16)).astype(np.float32)
ROWS /= np.linalg.norm(ROWS, axis=1, keepdims=True)
IMAGE = "synthetic:bits?seed=0#3"
FORK = multiprocessing.get_context("fork")


# --- what workers do ------------------------------------------------------------------------------


def search(path: str) -> list[int]:
    with Store.open(path) as store:
        return store.search_vectors(ROWS[:300], k=1)[1][:, 0].tolist()


def look_up(path: str) -> list[int]:
    with Store.open(path, read_only=True) as store:
        found = [result.identical[0].id for result in store.lookup_many([IMAGE, IMAGE])]
        assert store.check().problems == ()
        assert store.find_identical(np.zeros((5, 100, 100, 3), np.bool_)).tolist() == [-1] * 5
        return found


def flush(store: Store) -> None:
    """Write tables, which waits for a thread of RocksDB."""
    for table in store.session.snapshot.keys._tables.values():
        table.flush()


def write(path: str) -> tuple[int, int]:
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=50")
        store.session.snapshot.keys.settle()
        flush(store)
        store.optimize()
        vectors = path + ".vectors"
        with Store.open(vectors, create=True) as other:
            other.ingest(ROWS, name="rows")
            other.optimize()  # trains in a thread of its own
        assert search(vectors) == list(range(1, 301))
        with Store.open(path, read_only=True) as copied:
            copied.backup(path + ".copy")
        return len(store), look_up(path)[0]


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(StoreError) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def inherited(store: Store) -> bool:
    """Every way into a store of the parent says whose it is, and leaves it as it is."""
    parent = str(os.getppid())
    calls: list[Callable[[], Any]] = [
        lambda: store.lookup(IMAGE),
        lambda: list(store.lookup_many([IMAGE])),
        lambda: store.search_vectors(ROWS[:1]),
        lambda: store.find_identical(np.zeros((5, 100, 100, 3), np.bool_)),
        lambda: store.ingest("synthetic:bits?n=60"),
        lambda: store.remove(ids=[1]),
        store.optimize,
        store.info,
        store.check,
        lambda: store.check(fix=True),
        store.refresh,
        lambda: store.get(1),
        lambda: store.sources(1),
        lambda: list(store.records()),
        lambda: len(store),
        lambda: store.backup(f"{store.path}.no"),
        lambda: store.export(f"{store.path}.no"),
        lambda: pickle.dumps(store),
    ]
    for call in calls:
        message = refused(call)
        assert parent in message and "Store.open" in message
    store.close()
    assert "Store.open" in refused(lambda: store.get(1))
    return True


# --- programs -------------------------------------------------------------------------------------


def forked(call: Callable[[], Any]) -> None:
    """Do something in a forked process that ends as a program ends."""
    pid = os.fork()
    if pid == 0:
        call()
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def fork_after_everything(folder: str) -> None:
    """Workers of every kind, forked from a process that wrote, searched and has stores open."""
    bits, rows = f"{folder}/bits", f"{folder}/rows"
    with Store.open(rows, create=True) as store:
        store.ingest(ROWS, name="rows")
        store.optimize()
    assert search(rows) == list(range(1, 301))  # by all threads of OpenMP
    with Store.open(bits, create=True, encoder="none") as writing, Store.open(rows) as reading:
        writing.ingest("synthetic:bits?n=50")
        reading.search_vectors(ROWS[:300])
        under_way = writing.records()
        next(under_way)
        scan = writing.session.snapshot.keys.scan("images")
        next(scan)
        forked(lambda: (inherited(writing), inherited(reading)))
        forked(lambda: None)
        with FORK.Pool(2) as pool:
            assert pool.map(search, [rows] * 3) == [list(range(1, 301))] * 3
            assert pool.map(look_up, [bits] * 3) == [[4, 4]] * 3
            assert pool.map(write, [f"{folder}/0"]) == [(50, 4)]
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=FORK) as pool:
            assert pool.submit(search, rows).result() == list(range(1, 301))
            message = pool.submit(refused_to_write, bits).result()
            assert str(os.getpid()) in message
        forked(lambda: forked(lambda: (write(f"{folder}/nested"), search(rows))))
        forked(lambda: in_threads(rows))
        # The parent goes on as if nothing had been.
        assert writing.ingest("synthetic:bits?n=60").added == 10
        flush(writing)
        assert len(list(under_way)) == 59 and len(list(scan)) == 49
        assert search(rows) == list(range(1, 301))
    worker = FORK.Process(target=wait_for, args=(event := FORK.Event(),))
    with Store.open(bits) as store:
        store.ingest("synthetic:bits?n=70")
        worker.start()
    # The lock is free once the parent gives it back, whatever its children inherited.
    with Store.open(bits) as store:
        assert store.ingest("synthetic:bits?n=80").added == 10
        assert store.check().problems == ()
    event.set()
    worker.join()
    for name in ("bits", "rows", "0", "0.vectors", "nested"):
        with Store.open(f"{folder}/{name}") as store:
            assert store.check().problems == ()


def refused_to_write(path: str) -> str:
    with Store.open(path) as store:
        return refused(lambda: store.ingest("synthetic:bits?n=60"))


def wait_for(event: Any) -> None:
    event.wait(STUCK)


def in_threads(path: str) -> None:
    found: list[list[int]] = []
    workers = [threading.Thread(target=lambda: found.append(search(path))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [list(range(1, 301))] * 2


def fork_in_the_middle(folder: str) -> None:
    """Forks inside of calls: a child that leaves them takes nothing of the parent's with it."""
    store = Store.open(f"{folder}/middle", create=True, encoder="none")
    store.ingest("synthetic:bits?n=50")

    def leave() -> None:
        pid = os.fork()
        if pid == 0:
            raise SystemExit(3)  # through all that the parent is doing
        assert os.waitpid(pid, 0)[1] == 3 << 8

    def leave_once() -> Callable[..., None]:
        left = iter([leave])
        return lambda *_: next(left, lambda: None)()

    rows = iter([("one", np.zeros((8, 8, 3), np.uint8)), ("two", np.ones((8, 8, 3), np.uint8))])

    def stream() -> Any:
        for row in rows:
            leave()
            yield row

    assert store.ingest(stream()).added == 2
    store.backup(f"{folder}/copy", progress=leave_once())
    store.export(f"{folder}/tables", progress=leave_once())
    with Store.open(f"{folder}/vectors", create=True) as other:
        other.ingest(ROWS, name="rows", progress=leave_once())
        other.optimize(progress=leave_once())
        assert search(f"{folder}/vectors") == list(range(1, 301))
    with Store.open(f"{folder}/copy") as copy:
        assert len(copy) == 52 and copy.check().problems == ()
    assert (Path(folder) / "tables/images.csv").exists()
    assert store.check().problems == ()
    store.close()


def encode(_: str) -> None:
    """A session of ONNX Runtime that a child inherits, and one of its own."""
    encoder = OnnxEncoder(registry.find(os.environ["ENCODER"]), threads=2)
    picture = np.full((20, 20, 3), 7, np.uint8)
    picture = encoder.preprocessing.resize(picture)
    right = encoder.encode([picture])

    def child() -> None:
        nonlocal encoder
        with pytest.raises(errors.EncoderError, match="forked"):
            encoder.encode([picture])
        encoder = OnnxEncoder(registry.find(os.environ["ENCODER"]), threads=2)
        assert (encoder.encode([picture]) == right).all()

    forked(child)
    forked(lambda: None)
    assert (encoder.encode([picture]) == right).all()


@pytest.mark.usual
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks there are not for programs with threads")
@pytest.mark.parametrize("program", [fork_after_everything, fork_in_the_middle, encode])
def test_forked_processes_work_and_leave_what_is_their_parents(program, tmp_path, tiny_encoder):
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            __file__,
            program.__name__,
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=STUCK,
        env=os.environ | {"ENCODER": str(tiny_encoder), "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(tmp_path.glob("engine-reader-*"))


def test_where_threads_were_busy_at_the_fork_writing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(threads._threads, "lost_by", 17)
    message = refused(lambda: Store.open(tmp_path / "no", create=True, encoder="none"))
    assert "17" in message and "spawn" in message
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    with Store.open(tmp_path / "yes", create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=5")
    monkeypatch.setattr(threads._threads, "lost_by", 17)
    with Store.open(tmp_path / "yes") as store:
        assert store.lookup(IMAGE).identical[0].id == 4
        assert "spawn" in refused(lambda: store.ingest("synthetic:bits?n=6"))


# --- pickling -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_store_is_pickled_as_how_to_open_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Store.open("here", create=True, encoder="none", memory="200M") as store:
        store.ingest("synthetic:bits?n=5")
        data = pickle.dumps(store)
        monkeypatch.chdir("/")
        with pickle.loads(data) as copy:
            assert copy.path == tmp_path / "here"
            assert copy.session.memory == store.session.memory
            assert copy.lookup(IMAGE).identical[0].id == 4
            with pytest.raises(errors.StoreLockedError):  # it is a reader while the other writes
                copy.ingest("synthetic:bits?n=6")
    with pickle.loads(data) as copy:
        assert copy.ingest("synthetic:bits?n=6").added == 1
    with Store.open(tmp_path / "here", read_only=True) as store:
        data = pickle.dumps(store)
    with pickle.loads(data) as copy, pytest.raises(errors.UsageError, match="read-only"):
        copy.ingest("synthetic:bits?n=7")
    assert "closed" in refused(lambda: pickle.dumps(copy))


@pytest.mark.slow
def test_a_spawned_worker_is_given_a_store(tmp_path):
    with Store.open(tmp_path / "rows", create=True) as store:
        store.ingest(ROWS, name="rows")
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            assert pool.submit(first_of, store).result().tolist() == [[1], [2]]


def first_of(store: Store) -> Any:
    return store.search_vectors(ROWS[:2], k=1)[1]


def test_what_workers_answer_with_can_be_pickled(tmp_path):
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in kinds:
        error = kind("what happened")
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (kind, str(error)) and "what" in str(again)
    retryable = pickle.loads(pickle.dumps(errors.ImageError("no", retryable=True)))
    assert retryable.retryable
    with Store.open(tmp_path / "bits", create=True, encoder="none") as store:
        report = store.ingest("synthetic:bits?n=5")
        answers = [report, store.lookup(IMAGE), store.get(1), store.info(), store.check()]
        for answer in answers:
            assert pickle.loads(pickle.dumps(answer)) == answer
    assert records.Kind.BITS is pickle.loads(pickle.dumps(records.Kind.BITS))


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
