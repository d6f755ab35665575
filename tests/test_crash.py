"""A child that writes is killed again and again, and nothing that it committed is lost.

The child reports each commit once it has returned. What it reported is kept here, outside the store,
and has to be there when the store is opened next. This file is also the child's program.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from children import report_commits
from helpers import mask, sized
from PIL import Image

from engine import Store
from engine.config import Limits
from engine.storage.changeset import Chunk
from engine.storage.writer import Writer

ROUNDS = sized(3, 12)
FILES = 6  # new ones each round
SYNTHETIC = "synthetic:bits?seed=5"


# Chunks, extents and segments of a few rows, so that all their edges are met.
LIMITS = Limits(
    chunk_files=2,
    chunk_rows=30,
    exact_rows=50,
    unindexed_rows=80,
    extent_rows=100,
    extent_bytes=200_000,
    removal_batch=7,
    compact_batch=50,
    compact_bytes=20_000,
    compact_extents=1,
)


def child(store: str) -> None:
    """Wait for a line of sources, then ingest them and tell of each commit."""

    def report(files: Writer, chunk: Chunk) -> None:
        for name in chunk.names:
            print("file", Path(name.name.decode()).stem, flush=True)
        for name, array in chunk.arrays:
            assert name.decode() == SYNTHETIC
            print("rows", array.rows, flush=True)

    report_commits(report)
    sources = sys.stdin.readline().split()
    if sources:
        with Store.open(store, limits=LIMITS) as opened:
            opened.ingest(*sources)


def spawn(store: Path, what: str = "child") -> subprocess.Popen[str]:
    """A child that is started while something else is done, and waits."""
    return subprocess.Popen(
        [sys.executable, __file__, what, str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # One thread: FAISS's would wait for each other. What a kill leaves in TMPDIR goes with ours.
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(store.parent)},
    )


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_that_it_told_of(tmp_path: Path, tiny_encoder: Path) -> None:
    kills, rng = random.Random(7), random.Random(7)  # when it is killed, and what is looked up
    store, photos = tmp_path / "store", tmp_path / "photos"
    Store.open(store, create=True, encoder=str(tiny_encoder)).close()
    photos.mkdir()
    following = spawn(store)
    files: set[int] = set()  # what the child told of
    rows = 0
    for round_ in range(ROUNDS):
        for i in range(round_ * FILES, (round_ + 1) * FILES):
            Image.fromarray(mask(i).astype(np.uint8) * 255).save(photos / f"{i}.png")
        # Both orders: files and rows are committed in different ways.
        sources = [str(photos), f"{SYNTHETIC}&n=1e6"][:: -1 if round_ % 2 else 1]
        run, following = following, spawn(store)
        with run:
            assert run.stdin is not None
            assert run.stdout is not None
            print(*sources, file=run.stdin, flush=True)
            # Some commits, however long they take here, and then a moment inside of one.
            told = [run.stdout.readline() for _ in range(kills.randint(1, 8))]
            time.sleep(kills.uniform(0, 0.1))
            run.kill()
            told += run.stdout.read().splitlines(keepends=True)
        for line in told:
            what, number = line.split() if line.endswith("\n") else ("cut short", 0)
            if what == "file":
                files.add(int(number))
            elif what == "rows":
                rows = max(rows, int(number))

        with Store.open(store, read_only=True) as reader:
            assert reader.check().problems == ()
            info = reader.info()
            assert info.images == info.vectors >= len(files) + rows
            for i in files:
                (hit,) = reader.lookup(mask(i), tiers=["identical"]).identical
                assert hit.sources == (f"{photos}/{i}.png",)
            for row in {*rng.sample(range(rows), min(rows, 40)), *range(max(rows - 40, 0), rows)}:
                (hit,) = reader.lookup(f"{SYNTHETIC}#{row}", tiers=["identical"]).identical
                assert hit.sources == (f"{SYNTHETIC}#{row}",)
                assert hit.verified == "bytes"
    following.communicate()  # with nothing to do, it ends
    assert rows > 0
    assert files

    with Store.open(store, limits=LIMITS) as writer:  # and goes on where the last one was
        array = writer.session.snapshot.array(SYNTHETIC.encode())
        known = array.rows if array else 0
        assert known >= rows
        report = writer.ingest(photos, f"{SYNTHETIC}&n={known + 45}")
        assert report.seen == ROUNDS * FILES + known + 45
        assert len(writer) == report.seen
        assert report.unchanged >= len(files) + rows
        assert writer.check().problems == ()
        result = writer.lookup(f"{SYNTHETIC}#{known}", k=5, tiers=["similar"])
        assert result.similar[0].score == pytest.approx(1, abs=1e-4)


def upkeep(store: str) -> None:
    """Wait for a line of ids, remove these images, telling of each commit, and optimize."""

    def report(files: Writer, chunk: Chunk) -> None:
        print("moved" if chunk.rekept else "removed", files.state.removed, flush=True)

    report_commits(report)
    ids = [int(id_) for id_ in sys.stdin.readline().split()]
    if ids:
        with Store.open(store, limits=LIMITS) as opened:
            opened.remove(ids=ids)
            opened.optimize()


def line_of(lines: IO[str], kind: str) -> list[str]:
    """The lines up to the next of this kind, or to the end."""
    found: list[str] = []
    for line in lines:
        found.append(line)
        if line.startswith(kind):
            break
    return found


@pytest.mark.slow
def test_a_killed_removal_or_optimize_loses_nothing_and_goes_on(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    kills, rng = random.Random(11), random.Random(11)
    store, n = tmp_path / "store", 400
    with Store.open(store, create=True, encoder=str(tiny_encoder), limits=LIMITS) as made:
        made.ingest(f"{SYNTHETIC}&n={n}")
    gone: set[int] = set()
    seen: list[str] = []  # what kind of commit was the last one before a kill
    following = spawn(store, "upkeep")
    for round_ in range(ROUNDS):
        left = sorted(set(range(1, n + 1)) - gone)
        if round_ % 2:  # neighbours, so that their extent is worth rewriting
            until, asked = "moved", gone | set(left[: min(len(left) // 2, 80)])
        else:
            until, asked = "removed", gone | set(rng.sample(left, min(len(left) // 2, 40)))
        run, following = following, spawn(store, "upkeep")
        with run:
            assert run.stdin is not None
            assert run.stdout is not None
            print(*sorted(asked), file=run.stdin, flush=True)
            told: list[str] = []
            for _ in range(kills.randint(1, 3)):
                told += line_of(run.stdout, until)
            seen += [line.split()[0] for line in told[-1:]]
            time.sleep(kills.uniform(0, 0.05))
            run.kill()
            told += run.stdout.read().splitlines(keepends=True)
        counts = [int(line.split()[1]) for line in told if line.endswith("\n")]
        removed = max(counts, default=len(gone))
        with Store.open(store, read_only=True) as reader:
            assert reader.check().problems == ()
            info = reader.info()
            assert info.removed >= removed >= len(gone)
            assert info.images + info.removed == n
            there = set(reader.session.snapshot.those_there(list(range(1, n + 1))))
            lost = set(range(1, n + 1)) - there
            assert gone <= lost <= asked
            assert set(reader.session.snapshot.removed_ids().ids().tolist()) == lost
            # Ids go in their order.
            assert lost - gone == set(sorted(asked - gone)[: len(lost - gone)])
            gone = lost
            for id_ in [*rng.sample(sorted(there), min(len(there), 40)), *sorted(gone)[:5]]:
                hits = reader.lookup(f"{SYNTHETIC}#{id_ - 1}", tiers=["identical"]).identical
                wanted = [] if id_ in gone else [(id_, "bytes")]
                assert [(hit.id, hit.verified) for hit in hits] == wanted
    following.communicate()
    assert len(gone) > n // 4
    assert {*seen} == {"removed", "moved"}, "it was killed while it removed, and while it rewrote"

    with Store.open(store, limits=LIMITS) as writer:
        writer.remove(ids=gone)
        writer.optimize()
        assert writer.check().problems == ()
        assert len(writer) == n - len(gone)
        report = writer.ingest(f"{SYNTHETIC}&n={n}")
        assert report.added == len(gone)
        assert writer.check().problems == ()


if __name__ == "__main__":
    {"child": child, "upkeep": upkeep}[sys.argv[1]](*sys.argv[2:])


FULL = """
import resource, signal, sys
from engine.cli.app import main

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.usual
@pytest.mark.slow
@pytest.mark.parametrize("limit", [300_000, 1_000_000, 2_000_000])
def test_where_no_more_can_be_written_the_error_is_one_line_and_the_store_is_whole(
    tmp_path: Path, limit: int
) -> None:
    """Small limits stop the fingerprints, larger ones RocksDB's own log in the middle of a commit."""
    store = str(tmp_path / "store")
    Store.open(store, create=True, encoder="none").close()
    source = "synthetic:bits?n=40000&seed=0"
    command = [sys.executable, "-c", FULL, str(limit), "ingest", source]
    command += ["--encoder", "none", "--keep-pixels", "no", "--store", store]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "could not be written" in done.stderr
    with Store.open(store, limits=LIMITS) as opened:
        assert opened.check().ok
        assert opened.ingest(source, keep_pixels="no").seen == 40_000
        assert opened.info().images == 40_000
        assert opened.check().ok
