"""A reembed is ended at any of its writes: by a kill, by a power cut, or because the disk is full.

Until its one commit the store answers with the old encoder, from then on with the new one, and never
with both. Nothing is lost; a further run goes on with the vectors that are finished. This file is also
the program of the server that forks the processes to be killed.

Calls are sampled; ``--all`` takes all.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import write_encoder
from damage import FailingDisk, NearlyFull, killed_at
from helpers import mask, picture, save, sized
from power import Committed, DiskState, Named, Recorder

from engine import Store, StoreError
from engine.config import Limits
from engine.encoders import registry
from engine.encoders.onnx import OnnxEncoder
from engine.images.canonical import from_array
from engine.records import ReembedReport
from engine.storage import staged_space
from engine.storage.disk import Disk, using

LIMITS = Limits(
    chunk_files=4,
    chunk_rows=8,
    exact_rows=12,
    unindexed_rows=30,
    extent_rows=9,
    finishing_seconds=60,
)
PHOTOS, MASKS, REMOVED = 9, 14, (2, 12)
NEXT = PHOTOS + MASKS + 1  # the id of the next image
POINTS = sized(5, 1000)

pytestmark = pytest.mark.usefixtures("one_thread")


# --- the server -----------------------------------------------------------------------------------


def serve() -> None:
    for line in sys.stdin:
        store, encoder, kill, after = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            disk, count = killed_at(kill, after=after)
            with using(disk), Store.open(store, limits=LIMITS) as opened:
                opened.reembed(encoder)
            os.write(writer, str(count[0]).encode())
            os._exit(0)
        os.close(writer)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([status, int(os.read(reader, 20) or 0)]), flush=True)
        os.close(reader)


@pytest.fixture(scope="module")
def server() -> Iterator[Callable[[Path, Path, int, bool], tuple[int, int]]]:
    """Asks for a reembed of a store: its exit status, and how many calls changed files."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **one},
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def ask(store: Path, encoder: Path, kill: int, after: bool) -> tuple[int, int]:
            print(
                json.dumps([str(store), str(encoder), kill, after]), file=process.stdin, flush=True
            )
            status, calls = json.loads(process.stdout.readline())
            return status, calls

        yield ask
        process.stdin.close()


# --- the stores -----------------------------------------------------------------------------------


def fill(path: Path, sources: Path, encoder: Path) -> None:
    """Make a store with photographs in files, kept masks, an index, and images that were removed."""
    with Store.open(path, create=True, encoder=str(encoder), limits=LIMITS) as store:
        store.ingest(sources / "photos")
        store.ingest(sources / "masks.npy")
        store.remove(ids=REMOVED)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for n in range(PHOTOS):
        save(folder / f"photos/{n}.png", picture(n, 10, 10))
    np.save(folder / "masks.npy", np.stack([mask(n) for n in range(MASKS)]))
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, sources: Path, tiny_encoder: Path) -> Path:
    path = tmp_path_factory.mktemp("start") / "s"
    fill(path, sources, tiny_encoder)
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of the dimension of ``tiny_encoder``, so that only the vectors tell them apart."""
    made = tmp_path_factory.mktemp("encoders") / "other"
    return write_encoder(made, dim=16, image_size=8, seed=1)


class Known:
    """The vectors that each encoder makes of the images."""

    def __init__(self, *encoders: Path) -> None:
        arrays = [picture(n, 10, 10) for n in range(PHOTOS)] + [mask(n) for n in range(MASKS)]
        arrays.append(mask(99))
        pixels = [from_array(one) for one in arrays]
        self._vectors: dict[str, np.ndarray] = {}
        for encoder in encoders:
            made = OnnxEncoder(registry.find(str(encoder)))
            self._vectors[made.name] = made.encode([made.preprocessing.of(one) for one in pixels])

    def require(self, store: Store, last: int = NEXT - 1) -> str:
        """All images to ``last`` have vectors of one encoder, and are found; returns its name."""
        found = store.info().encoder
        assert found is not None
        wanted = self._vectors[str(found["name"])]
        ids = np.array([n for n in range(1, last + 1) if n not in REMOVED])
        assert [one.id for one in store] == ids.tolist()
        assert np.allclose(store.vectors(ids), wanted[ids - 1], atol=1e-6)
        scores, nearest = store.search_vectors(wanted[ids - 1], 1, recall=1)
        assert np.array_equal(nearest[:, 0], ids)
        assert np.allclose(scores, 1, atol=1e-5)
        assert store.check().problems == ()
        return str(found["name"])


@pytest.fixture(scope="module")
def known(tiny_encoder: Path, other: Path) -> Known:
    return Known(tiny_encoder, other)


def one_generation(path: Path) -> None:
    """Nothing is left of the old encoder, nor of the way to the new one."""
    generation = [p.name for p in (path / "vectors").iterdir()]
    assert generation == [p.name for p in (path / "encoder").iterdir()]
    assert len(generation) == 1
    assert [p.name for p in (path / staged_space.FOLDER).iterdir()] == ["LOCK"]
    assert not [p for p in path.rglob("*") if ".new" in p.name]


def finish(path: Path, other: Path, known: Known, was: str) -> ReembedReport:
    """The next writer adds an image, and the next run ends the reembed; returns its report."""
    with Store.open(path, limits=LIMITS) as store:
        store.ingest(mask(99)[None], name="last")
        assert known.require(store, NEXT) == was
        assert store.check().leftover_bytes == 0
        staged = store.info().reembed
        report = store.reembed(str(other))
        assert report.switched
        assert known.require(store, NEXT) == "other"
        if was == "tiny":
            assert report.kept >= (int(str(staged["vectors"])) if staged else 0)
            assert report.kept + report.embedded >= NEXT - len(REMOVED)
        else:
            assert report.embedded == 0
        assert store.info().reembed is None
    one_generation(path)
    return report


# --- kills ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before a call", "after a call"])
def test_a_kill_at_any_write_leaves_one_encoder_or_the_other(
    tmp_path: Path,
    start: Path,
    other: Path,
    known: Known,
    server: Callable[[Path, Path, int, bool], tuple[int, int]],
    after: bool,
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(start, whole)
    status, calls = server(whole, other, 0, after)
    assert status == 0
    with Store.open(whole, read_only=True, limits=LIMITS) as store:
        assert known.require(store) == "other"
    one_generation(whole)
    # The switch is among the last calls, before the index is built.
    some = {*np.linspace(1 + after, calls, POINTS).astype(int).tolist()}
    some |= {*range(calls - 3 * POINTS, calls, 3)}
    switched, kept = False, 0
    for kill in sorted(n for n in some if n > after):
        path = tmp_path / "killed"
        shutil.copytree(start, path)
        status, _ = server(path, other, kill, after)
        assert status == -signal.SIGKILL
        with Store.open(path, read_only=True, limits=LIMITS) as store:
            was = known.require(store)
            store.backup(tmp_path / "copy")
        with Store.open(tmp_path / "copy", read_only=True, limits=LIMITS) as copy:
            assert known.require(copy) == was
        shutil.rmtree(tmp_path / "copy")
        # Each call comes after all that earlier ones have led to.
        assert not (switched and was == "tiny"), kill
        switched = was == "other"
        kept = max(kept, finish(path, other, known, was).kept)
        shutil.rmtree(path)
    assert switched
    assert kept > 0


# --- power cuts -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_power_cut_at_any_write_leaves_one_encoder_or_the_other(
    tmp_path: Path, sources: Path, tiny_encoder: Path, other: Path, known: Known
) -> None:
    with Recorder(DiskState(), tmp_path / "disk", tmp_path / "copies") as recorder:
        path = recorder.root / "s"
        fill(path, sources, tiny_encoder)
        begin = len(recorder.events)
        with Store.open(path, limits=LIMITS) as store:
            store.reembed(str(other))
        recorder.tell("other")
    rng = random.Random(0)
    rest = range(begin, len(recorder.events) + 1)
    chosen = {begin, len(recorder.events)} | set(rng.sample(rest, min(POINTS, len(rest))))
    for number, event in enumerate(recorder.events[begin:], begin + 1):
        # Names decide: those of the manifest, of the record, and what goes in the end.
        named = isinstance(event, Named) and event.kind is None and rng.random() < POINTS / 20
        if named or isinstance(event, Committed):
            chosen |= {number - 1, number}
    seen: set[bytes] = set()
    for number, what, disk in recorder.states():
        if number not in chosen:
            continue
        for how in ("synced", "last name", "some", "all"):
            left = disk.clone()
            if how != "all":
                left = disk.after_power_cut(
                    rng if how == "some" else None, last_name=how == "last name"
                )
            if (signature := left.signature()) in seen:
                continue
            seen.add(signature)
            laid = tmp_path / "laid"
            left.lay(laid)
            where = f"{how}, {number} ({what})"
            with Store.open(laid / "s", read_only=True, limits=LIMITS) as store:
                was = known.require(store)
            assert left.promise is None or was == left.promise, where
            if len(seen) % 3 == 0:
                finish(laid / "s", other, known, was)
            shutil.rmtree(laid)
    # There are some 340 different states.
    assert len(seen) > min(POINTS, 300)


# --- full and failing disks -----------------------------------------------------------------------


def test_too_little_room_is_said_before_anything_is_done(
    tmp_path: Path, start: Path, other: Path, known: Known
) -> None:
    path = shutil.copytree(start, tmp_path / "s")
    with Store.open(path, limits=LIMITS) as store:
        plan = store.reembed(str(other), dry_run=True)
        with using(NearlyFull(plan.disk_bytes - 1)), pytest.raises(StoreError, match="make room"):
            store.reembed(str(other))
        assert not (path / "vectors/2").exists()
        assert known.require(store) == "tiny"


class Filling(Disk):
    """A disk that others fill up: it has room for some measurements of it, and then hardly any."""

    def __init__(self, plenty: int) -> None:
        self._left = plenty

    def free(self, folder: Path) -> int:
        self._left -= 1
        return 1 << 40 if self._left >= 0 else 1000


def test_a_disk_that_fills_up_halfway_loses_nothing(
    tmp_path: Path, start: Path, other: Path, known: Known
) -> None:
    path = shutil.copytree(start, tmp_path / "s")
    with Store.open(path, limits=LIMITS) as store:
        with using(Filling(4)), pytest.raises(StoreError, match="is full: the finished") as said:
            store.reembed(str(other))
        assert "\n" not in str(said.value)
        staged = store.info().reembed
        assert staged is not None and int(str(staged["vectors"])) > 0
        assert known.require(store) == "tiny"
    assert finish(path, other, known, "tiny").kept > 0


@pytest.mark.slow
@pytest.mark.parametrize("call", ["pwrite", "fsync", "fdatasync", "rename", "mkdir"])
def test_a_call_that_fails_is_one_line_and_loses_nothing(
    tmp_path: Path, start: Path, other: Path, known: Known, call: str
) -> None:
    probe = FailingDisk(call, at=1 << 30)
    path = shutil.copytree(start, tmp_path / "probe")
    with using(probe), Store.open(path, limits=LIMITS) as store:
        store.reembed(str(other))
    for at in sorted({*np.linspace(1, probe.calls, POINTS).astype(int).tolist()}):
        for error in (errno.ENOSPC, errno.EIO):
            path = shutil.copytree(start, tmp_path / "s")
            with Store.open(path, limits=LIMITS) as store, using(FailingDisk(call, error, at=at)):
                try:
                    store.reembed(str(other))
                # An index that cannot be built, or a file that stays, is no error.
                except StoreError as raised:
                    assert "\n" not in str(raised)
            with Store.open(path, read_only=True, limits=LIMITS) as store:
                was = known.require(store)
            finish(path, other, known, was)
            shutil.rmtree(path)


# --- other writers --------------------------------------------------------------------------------

# Adds one image after another, until standard input ends, and prints how many.
ADDING = """
import sys, threading
import numpy as np
from engine import Store
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
count = 0
while count < 300 and not (over.is_set() and count > 3):
    bits = np.random.default_rng(1000 + count).integers(0, 2, (1, 16, 16)).astype(bool)
    with Store.open(sys.argv[1], wait=60) as store:
        store.ingest(bits, name=f"n{count}")
    count += 1
    print(count, flush=True)
"""


@pytest.mark.slow
def test_another_process_may_ingest_meanwhile(
    tmp_path: Path, start: Path, other: Path, known: Known
) -> None:
    path = shutil.copytree(start, tmp_path / "s")
    with subprocess.Popen(
        [sys.executable, "-c", ADDING, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "1\n"
        with Store.open(path, limits=LIMITS) as store:
            assert store.reembed(str(other)).switched
        child.stdin.close()
        count = int([*child.stdout][-1])
        assert child.wait() == 0
    made = OnnxEncoder(registry.find(str(other)))
    with Store.open(path, limits=LIMITS) as store:
        assert len(store) == NEXT - 1 - len(REMOVED) + count
        bits = [
            np.random.default_rng(1000 + n).integers(0, 2, (1, 16, 16)).astype(bool)[0]
            for n in range(count)
        ]
        wanted = made.encode([made.preprocessing.of(from_array(one)) for one in bits])
        ids = np.arange(NEXT, NEXT + count)
        assert np.allclose(store.vectors(ids), wanted, atol=1e-6)
        store.remove(ids=ids.tolist())
        assert known.require(store) == "other"


def test_images_of_a_writer_that_it_waits_for_get_vectors_too(
    tmp_path: Path, start: Path, other: Path, known: Known
) -> None:
    path = shutil.copytree(start, tmp_path / "s")
    staged, reports = threading.Event(), []

    def progress(done: int, total: int | None) -> None:
        if done == total:
            staged.set()

    def run() -> None:
        with Store.open(path, limits=LIMITS) as store:
            reports.append(store.reembed(str(other), progress=progress))

    with Store.open(path, limits=LIMITS) as writer:
        writer.remove(ids=[1])  # takes the lock, and keeps it
        thread = threading.Thread(target=run)
        thread.start()
        assert staged.wait(120)
        writer.ingest(np.stack([mask(n) for n in range(200, 220)]), name="late")
        writer.remove(ids=[5])
    thread.join()
    assert reports[0].switched
    made = OnnxEncoder(registry.find(str(other)))
    wanted = made.encode([made.preprocessing.of(from_array(mask(n))) for n in range(200, 220)])
    with Store.open(path, limits=LIMITS) as store:
        assert np.allclose(store.vectors(np.arange(NEXT, NEXT + 20)), wanted, atol=1e-6)
        assert not np.isin(store.search_vectors(np.eye(16), 60)[1], [1, 5, *REMOVED]).any()
        assert store.info().vectors == len(store) == NEXT - 1 - len(REMOVED) - 2 + 20
        assert store.check().problems == ()


def test_a_writer_that_gives_the_store_other_vectors_ends_it(
    tmp_path: Path, sources: Path, tiny_encoder: Path, other: Path
) -> None:
    path = tmp_path / "s"
    Store.open(path, create=True, encoder="none", limits=LIMITS).close()
    with Store.open(path, limits=LIMITS) as store:
        store.ingest(sources / "masks.npy")
    adopted: list[bool] = []

    def progress(done: int, total: int | None) -> None:
        if done and not adopted:
            adopted.append(True)
            with Store.open(path, limits=LIMITS) as writer:
                writer.ingest(sources / "photos", encoder=str(tiny_encoder))

    with Store.open(path, limits=LIMITS) as store:
        with pytest.raises(StoreError, match="has changed the encoder"):
            store.reembed(str(other), progress=progress)
        assert store.info().encoder["name"] == "tiny"
        assert store.info().vectors == PHOTOS
        # What was staged is outdated, and the next run begins again.
        assert store.info().reembed is None
        assert store.reembed(str(other)).embedded == PHOTOS + MASKS
        assert store.check().problems == ()
    one_generation(path)


if __name__ == "__main__":
    serve()
