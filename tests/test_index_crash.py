"""A process that builds or lays out the index is killed at any of its writes, and nothing is lost.

A server imports the engine once and forks for each kill; the fork counts the calls that change files,
and ends itself by SIGKILL at one of them, before it or after it. This file is also the server's program.

Calls are sampled; ``--all`` takes more of them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from damage import killed_at
from helpers import sized
from indexed import clustered, leftovers, new_store, small_limits, stored

from engine import Store
from engine.storage.disk import using

LEAST = 60
LIMITS = small_limits(LEAST, extent_rows=250, recall_sample=20, rerank_depths=(1, 3))
BLOCK = clustered(1200)
POINTS = sized(3, 40)
REMOVED = range(1, 41)


# What is done to a store of the vectors 1 to 300, of which 40 are removed: the vectors that are then
# there, besides those that were.
def add(store: Store) -> None:
    store.ingest(BLOCK[300:370], name="more")


def add_many(store: Store) -> None:
    store.ingest(BLOCK[300:1200], name="many")


def optimize(store: Store) -> None:
    store.optimize()


WORKS: dict[str, tuple[Callable[[Store], None], int]] = {
    "a segment is added and merged": (add, 370),
    "it is trained anew": (add_many, 1200),
    "vectors are laid out": (optimize, 300),
}


# --- the server -----------------------------------------------------------------------------------


def serve() -> None:
    for line in sys.stdin:
        store, work, kill, at = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            disk, count = killed_at(kill, after=at == 1)
            with using(disk), Store.open(store, limits=LIMITS) as opened:
                WORKS[work][0](opened)
            os.write(writer, str(count[0]).encode())
            os._exit(0)
        os.close(writer)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([status, int(os.read(reader, 20) or 0)]), flush=True)
        os.close(reader)


@pytest.fixture(scope="module")
def server() -> Iterator[Callable[[Path, str, int, int], tuple[int, int]]]:
    """Asks for one work on a store: its exit status, and how many calls there were."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **one},
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def ask(store: Path, work: str, kill: int, at: int) -> tuple[int, int]:
            print(json.dumps([str(store), work, kill, at]), file=process.stdin, flush=True)
            status, calls = json.loads(process.stdout.readline())
            return status, calls

        yield ask
        process.stdin.close()


pytestmark = pytest.mark.usefixtures("one_thread")


# --- the tests ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("start") / "s"
    with new_store(path, LIMITS) as store:
        store.ingest(BLOCK[:200], name="a")
        store.ingest(BLOCK[200:300], name="b")
        store.remove(ids=REMOVED)
    return path


def expect(store: Store, least: int, most: int) -> int:
    """All of the first ``least`` vectors are there, bit for bit, and no other than ``most``."""
    there = stored(store)
    last = max(there)
    assert least <= last <= most
    wanted = np.setdiff1d(np.arange(1, last + 1), REMOVED)
    assert there == {int(id_): BLOCK[id_ - 1].tobytes() for id_ in wanted}
    ids = store.search_vectors(BLOCK[wanted - 1], 1, recall=1)[1]
    assert np.array_equal(ids[:, 0], wanted)
    ids = store.search_vectors(BLOCK[wanted - 1], 1)[1]
    assert np.mean(ids[:, 0] == wanted) > 0.9
    assert not np.isin(store.search_vectors(BLOCK[:40], 20)[1], REMOVED).any()
    return last


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 1], ids=["before a call", "after a call"])
@pytest.mark.parametrize("work", WORKS)
def test_a_kill_at_any_write_loses_nothing(
    tmp_path: Path,
    start: Path,
    server: Callable[[Path, str, int, int], tuple[int, int]],
    work: str,
    at: int,
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(start, whole)
    status, calls = server(whole, work, 0, at)
    assert status == 0
    assert calls > 20
    most = WORKS[work][1]
    with Store.open(whole, read_only=True, limits=LIMITS) as store:
        assert expect(store, most, most) == most
        assert leftovers(whole) == []
    for kill in sorted({*np.linspace(1 + at, calls, POINTS).astype(int).tolist()}):
        path = tmp_path / "killed"
        shutil.copytree(start, path)
        status, _ = server(path, work, kill, at)
        assert status == -signal.SIGKILL
        with Store.open(path, read_only=True, limits=LIMITS) as store:
            last = expect(store, 300, most)
            assert store.check().problems == (), kill
        with Store.open(path, limits=LIMITS) as store:
            store.ingest(np.stack([BLOCK[last % len(BLOCK)]]), name="last")
            if last < len(BLOCK):
                expect(store, last + 1, last + 1)
            assert leftovers(path) == [], kill
            assert store.check().problems == (), kill
            if kill % 3 == 0:
                store.optimize()
                if last < len(BLOCK):
                    expect(store, last + 1, last + 1)
                assert store.check().problems == (), kill
                assert leftovers(path) == [], kill
        shutil.rmtree(path)


if __name__ == "__main__":
    serve()
