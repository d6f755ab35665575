"""A backup is the store as of one commit, whole, beside any writer; or nothing is there.

The child writes with memtables of a few kilobytes, so that RocksDB flushes and compacts all the time,
and with small extents and segments. This file is also the child's program.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import SILENCE, Lines, report_commits, small_tables, until_input_ends
from damage import FailingDisk, NearlyFull
from helpers import picture, sized
from PIL import Image

from engine import EngineError, Store, StoreDamagedError, StoreError, StoreLockedError, UsageError
from engine.cli.app import main
from engine.config import Limits, MemoryBudget
from engine.maintenance import backup
from engine.storage import extents, manifest, nofollow, pinned_files, staging
from engine.storage.changeset import Chunk
from engine.storage.disk import Disk, using
from engine.storage.lock import WriterLock
from engine.storage.rocks import database, opening
from engine.storage.writer import Writer

BACKUPS = int(os.environ.get("ENGINE_BACKUPS", sized(3, 12)))
SOURCE = "synthetic:bits?seed=5"
IDENTICAL = ["identical"]


# Chunks, extents and segments of a few rows.
LIMITS = Limits(
    chunk_rows=10, exact_rows=20, unindexed_rows=40, extent_rows=100, extent_bytes=200_000
)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_tables(monkeypatch)


# --- the children ---------------------------------------------------------------------------------


def write(store: str) -> None:
    """Ingest ever more rows until standard input ends, and tell how many are committed."""
    small_tables(pytest.MonkeyPatch())
    stop = until_input_ends()

    def report(files: Writer, chunk: Chunk) -> None:
        print(files.state.images, flush=True)
        time.sleep(0.02)  # or there is no moment between two flushes in which a store can be opened

    report_commits(report)
    with Store.open(store, limits=LIMITS) as opened:
        opened.ingest(f"{SOURCE}&n=1e7", stop=stop.is_set)


def churn(store: str) -> None:
    """Ingest, remove and optimize until standard input ends, and tell of each round."""
    small_tables(pytest.MonkeyPatch())
    stop = until_input_ends()
    with Store.open(store, limits=LIMITS) as opened:
        turn = 0
        while not stop.is_set():
            opened.ingest(f"synthetic:bits?seed={turn}&n=60")
            ids = [record.id for record in opened.records()]
            opened.remove(ids=ids[turn % 2 :: 2])
            opened.optimize()
            turn += 1
            print(turn, flush=True)


def back_up(store: str, dest: str) -> None:
    """Back a store up, slowly, and tell of each file."""
    put = backup.Backup._put

    def tell(run: backup.Backup, path: Path, file: pinned_files.HeldFile) -> None:
        put(run, path, file)
        print(path.name, flush=True)
        time.sleep(0.02)

    backup.Backup._put = tell  # type: ignore[method-assign]
    with Store.open(store) as opened:
        opened.backup(dest)


PARTS = {part.__name__: part for part in (write, churn, back_up)}


def spawn(part: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, __file__, part, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


class Told(Lines):
    """The lines of a child."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        super().__init__(child.stdout)
        self.child = child


@contextmanager
def child(part: str, *arguments: str | Path) -> Iterator[Told]:
    process = spawn(part, *arguments)
    try:
        yield Told(process)
    finally:
        process.kill()
        process.communicate()


# --- a store with everything in it ----------------------------------------------------------------


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """Files, rows, bits and colours, kept and not, rejects, vectors in and out of segments."""
    folder = tmp_path_factory.mktemp("full")
    photos = folder / "photos"
    photos.mkdir()
    for i in range(8):
        Image.fromarray(picture(i)).save(photos / f"{i}.png")
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    np.save(folder / "rows.npy", np.stack([picture(i) for i in (3, 3, 20, 21)]))
    patch = pytest.MonkeyPatch()
    small_tables(patch)
    with (
        patch.context(),
        Store.open(folder / "store", create=True, encoder=str(tiny_encoder), limits=LIMITS) as s,
    ):
        s.ingest(photos, keep_pixels="yes")
        s.ingest(folder / "rows.npy", f"{SOURCE}&n=205")
        s.ingest(f"{SOURCE}&n=210", encoder="none")
        assert len(s.info().segments) > 0
        assert s.info().vectors < s.info().images
    patch.undo()
    return folder


def seen(store: Store) -> list[Any]:
    """Everything that a store answers."""
    info = store.info()
    ids = range(1, store.session.snapshot.state.next_id)
    queries = np.random.default_rng(0).standard_normal((4, 16))
    return [
        replace(info, path="", bytes={}),
        [(store.get(id_), sorted(store.sources(id_))) for id_ in ids],
        store.search_vectors(queries, 9, recall=1)[1].tolist(),
        store.search_vectors(queries, 9)[1].tolist(),
        [store.lookup(picture(i)).identical for i in (0, 7, 20, 50)],
        [store.session.snapshot.kept_whole(id_) for id_ in ids],
    ]


def trees(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        stat = path.stat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (stat.st_mtime_ns, stat.st_ctime_ns, data)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("place", ["new", "new/below", "empty"])
def test_a_backup_is_the_store(full: Path, tmp_path: Path, place: str) -> None:
    dest = tmp_path / place
    if place == "empty":
        dest.mkdir()
    before = trees(full / "store")
    told: list[tuple[int, int | None]] = []
    with Store.open(full / "store", read_only=True) as store:
        report = store.backup(dest, progress=lambda done, total: told.append((done, total)))
        state, expected = store.session.snapshot.state, seen(store)
    assert trees(full / "store") == before, "nothing is written to the source"
    assert (report.path, report.commit, report.images) == (str(dest), state.commit, state.images)
    assert report.vectors == sum(state.vectors.values())
    assert told[-1] == (report.bytes, report.bytes)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    there = {path.name for path in dest.iterdir()}
    assert there == {path.name for path in (full / "store").iterdir()}
    assert (dest / "LOCK").read_bytes() == b""
    assert not list(tmp_path.rglob(".*"))
    with Store.open(dest, limits=LIMITS) as copy:
        assert copy.check().problems == ()
        assert copy.check().leftover_bytes == 0
        assert seen(copy) == expected
        assert copy.ingest(f"{SOURCE}&n=300").added == 90, "it can be written to"
        assert copy.check().problems == ()
    with Store.open(full / "store", read_only=True) as store:
        assert seen(store) == expected, "and is no part of the other any more"


@pytest.mark.slow
def test_what_is_unknown_or_of_one_machine_is_not_copied(full: Path, tmp_path: Path) -> None:
    shutil.copytree(full / "store", tmp_path / "store")
    for name in ("RESERVE", "notes.txt", "pixels/99999999.blobs", ".x.new", "keys/999999.dbtmp"):
        (tmp_path / "store" / name).write_bytes(b"x")
    with Store.open(tmp_path / "store") as store:
        store.backup(tmp_path / "copy")
    there = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*")}
    assert not there & {"RESERVE", "notes.txt", "pixels/99999999.blobs", ".x.new", "keys/LOCK"}
    assert not any(name.startswith("keys/LOG") or name.endswith("dbtmp") for name in there)


@pytest.mark.slow
def test_a_store_is_backed_up_by_the_one_that_writes_it(full: Path, tmp_path: Path) -> None:
    shutil.copytree(full / "store", tmp_path / "store")
    with Store.open(tmp_path / "store", limits=LIMITS) as store:
        store.ingest(f"{SOURCE}&n=400", encoder="none")  # in the log, and in no table
        report = store.backup(tmp_path / "copy")
        assert report.commit == store.session.snapshot.state.commit
        assert store.ingest(f"{SOURCE}&n=410", encoder="none").added == 10
        with (
            Store.open(tmp_path / "store", limits=LIMITS) as other,
            pytest.raises(StoreLockedError),
        ):
            other.ingest("synthetic:bits?n=1&seed=9")  # the lock was not given back by accident
        with pytest.raises(Exception, match=r"lock|LOCK"):
            opening.open_writer(tmp_path / "store", MemoryBudget())  # nor RocksDB's
    with Store.open(tmp_path / "copy") as copy:
        assert copy.check().problems == ()
        (hit,) = copy.lookup(f"{SOURCE}#399", tiers=IDENTICAL).identical
        assert hit.sources == (f"{SOURCE}#399",)
        assert copy.lookup(f"{SOURCE}#400", tiers=IDENTICAL).identical == ()


@pytest.mark.slow
def test_an_empty_store_and_a_copy_of_a_copy(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a", create=True, encoder="none") as store:
        store.backup(tmp_path / "b")
        uuid = store.info().uuid
    with Store.open(tmp_path / "b", limits=LIMITS) as store:
        store.ingest("synthetic:bits?n=3")
        store.backup(tmp_path / "c")
    with Store.open(tmp_path / "c") as store:
        assert (len(store), store.info().uuid) == (3, uuid)
        assert store.check().problems == ()


# --- beside a writer ------------------------------------------------------------------------------


@pytest.mark.slow
def test_backups_beside_a_writer_are_each_one_commit(tmp_path: Path, tiny_encoder: Path) -> None:
    where = tmp_path / "store"
    Store.open(where, create=True, encoder=str(tiny_encoder)).close()
    commits = set()
    with child("write", where) as writer:
        writer.hear(1)
        for turn in range(BACKUPS):
            writer.hear(len(writer.lines) + 2)
            told = int(writer.lines[-1])
            dest = tmp_path / "copy"
            with Store.open(where, read_only=True) as store:
                report = store.backup(dest)
            commits.add(report.commit)
            assert report.images >= told, "a commit that was acknowledged is missing"
            with Store.open(dest, limits=LIMITS) as copy:
                assert copy.check().problems == ()
                images = len(copy)
                assert images == report.images == report.vectors
                assert images == 10 * report.commit, "whole commits"
                assert copy.info().sources == images
                for id_ in range(1, images + 1, max(1, images // 50)):
                    assert copy.sources(id_) == [f"{SOURCE}#{id_ - 1}"]
                    (hit,) = copy.lookup(f"{SOURCE}#{id_ - 1}", tiers=IDENTICAL).identical
                    assert (hit.id, hit.verified) == (id_, "bytes")
                with pytest.raises(UsageError, match="has no image"):
                    copy.get(images + 1)
                if turn % 5 == 0:
                    assert copy.ingest(f"{SOURCE}&n={images + 25}").added == 25
                    assert copy.check().problems == ()
            shutil.rmtree(dest)
        assert writer.child.stdin is not None
        writer.child.stdin.close()
        writer.child.stdin = None
        writer.child.wait(SILENCE)
        assert writer.child.returncode == 0
    assert len(commits) > 1
    with Store.open(where) as store:
        assert store.check().problems == ()


@pytest.mark.slow
def test_backups_beside_one_that_removes_and_optimizes_are_whole(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    where, dest = tmp_path / "store", tmp_path / "copy"
    Store.open(where, create=True, encoder=str(tiny_encoder)).close()
    with child("churn", where) as writer:
        writer.hear(4)
        for _ in range(BACKUPS):
            with Store.open(where, read_only=True) as store:
                store.backup(dest)
            with Store.open(dest) as copy:
                assert copy.check().problems == ()
                for count, record in enumerate(copy.records()):
                    if count % 10 == 0:
                        (name,) = copy.sources(record.id)
                        (hit,) = copy.lookup(name, tiers=IDENTICAL).identical
                        assert (hit.id, hit.verified) == (record.id, "bytes")
            shutil.rmtree(dest)
            writer.hear(len(writer.lines) + 1)
    assert len(writer.lines) >= BACKUPS


@pytest.mark.slow
def test_keys_that_move_while_they_are_opened_are_opened_again(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that is gone when it is to be opened: what is in it is in tables that were not listed."""
    shutil.copytree(full / "store", tmp_path / "store")
    monkeypatch.setattr(database, "_LONG_LOG", -1)
    open_, turns = pinned_files.Held.open, []
    with Store.open(tmp_path / "store", limits=LIMITS) as writer:
        writer.ingest(f"{SOURCE}&n=700", encoder="none")

        def meanwhile(files: pinned_files.Held, name: str) -> None:
            if not turns:
                writer.session.snapshot.keys.settle()
            turns.append(name)
            open_(files, name)

        monkeypatch.setattr(pinned_files.Held, "open", meanwhile)
        with Store.open(tmp_path / "store", read_only=True) as store:
            store.backup(tmp_path / "copy")
    # RocksDB's own work beside it, once it has begun, may move them another time.
    assert turns.count("keys/IDENTITY") >= 2
    with Store.open(tmp_path / "copy") as copy:
        assert copy.check().problems == ()
        assert copy.lookup(f"{SOURCE}#699", tiers=IDENTICAL).identical


def test_a_log_that_the_first_listing_misses_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    Store.open(path, create=True, encoder="none").close()
    (log,) = (path / "keys").glob("*.log")
    late = log.with_name("999999.log")
    open_ = pinned_files.Held.open

    def meanwhile(files: pinned_files.Held, name: str) -> None:
        late.write_bytes(log.read_bytes())
        open_(files, name)

    monkeypatch.setattr(pinned_files.Held, "open", meanwhile)
    with pinned_files.hold_keys(path) as (held, _):
        assert {f"keys/{log.name}", f"keys/{late.name}"} <= held.files.keys()


@pytest.mark.slow
def test_what_a_killed_writer_left_in_extents_is_not_copied(full: Path, tmp_path: Path) -> None:
    shutil.copytree(full / "store", tmp_path / "store")
    for path in (tmp_path / "store").glob("*/*.blobs"):
        with path.open("ab") as file:
            file.write(b"never committed")
    with Store.open(tmp_path / "store") as store:
        assert store.check().leftover_bytes > 0
        store.backup(tmp_path / "copy")
    with Store.open(tmp_path / "copy") as copy:
        assert copy.check().leftover_bytes == 0
        assert copy.check().problems == ()


@pytest.mark.slow
def test_extents_and_segments_of_later_commits_are_not_copied(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the manifest names and the copied keys do not have yet."""
    shutil.copytree(full / "store", tmp_path / "store")
    real = backup.hold_rest

    @contextmanager
    def later(store: Path) -> Iterator[Any]:
        with Store.open(store, limits=LIMITS) as other:
            other.ingest(f"{SOURCE}&n=430")
        with real(store) as got:
            yield got

    with Store.open(tmp_path / "store", read_only=True) as store, monkeypatch.context() as patch:
        expected = seen(store)
        patch.setattr(backup, "hold_rest", later)
        store.backup(tmp_path / "copy")
    with Store.open(tmp_path / "copy", limits=LIMITS) as copy:
        assert copy.check().problems == ()
        assert copy.check().leftover_bytes == 0
        found = seen(copy)
        # Where segments were merged since, the copy has fewer, and searches more exactly.
        assert [*found[1:3], *found[4:]] == [*expected[1:3], *expected[4:]]
        assert copy.info().images == expected[0].images == 220
        assert copy.ingest(f"{SOURCE}&n=300").added == 90
        assert copy.check().problems == ()


@pytest.mark.slow
def test_what_a_writer_gives_up_meanwhile_begins_the_backup_anew(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the keys and the manifest, pixels may move to other extents, with another commit."""
    shutil.copytree(full / "store", tmp_path / "store")
    real, turns = backup.hold_rest, []

    @contextmanager
    def meanwhile(store: Path) -> Iterator[Any]:
        whole = manifest.load(store)
        if not turns:
            with Store.open(store, limits=LIMITS) as other:
                other.ingest(f"{SOURCE}&n=700", encoder="none")
            found = manifest.load(store)
            pixels = extents.PIXELS.name
            missing = {**found.extents, pixels: found.extents[pixels][1:]}
            replace(found, extents=missing).save(store)
            whole = found
        turns.append(1)
        with real(store) as got:
            whole.save(store)
            yield got

    monkeypatch.setattr(backup, "hold_rest", meanwhile)
    with Store.open(tmp_path / "store") as store:
        store.backup(tmp_path / "copy")
    assert len(turns) == 2
    with Store.open(tmp_path / "copy") as copy:
        assert copy.check().problems == ()
        assert copy.lookup(f"{SOURCE}#699", tiers=IDENTICAL).identical


@pytest.mark.slow
def test_what_is_deleted_while_it_is_copied_is_copied(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(full / "store", tmp_path / "store")
    put, gone = backup.Backup._put, []

    def delete(run: backup.Backup, path: Path, file: pinned_files.HeldFile) -> None:
        if not gone:
            gone.append(shutil.rmtree(tmp_path / "store"))
        put(run, path, file)

    monkeypatch.setattr(backup.Backup, "_put", delete)
    with Store.open(tmp_path / "store", read_only=True) as store:
        store.backup(tmp_path / "copy")
    with Store.open(tmp_path / "copy") as copy, Store.open(full / "store") as store:
        assert copy.check().problems == ()
        assert seen(copy) == seen(store)


# --- nothing or all -------------------------------------------------------------------------------


@pytest.mark.usual
@pytest.mark.slow
@pytest.mark.parametrize("there", [False, True])
def test_a_killed_backup_leaves_nothing_and_the_next_one_cleans_up(
    full: Path, tmp_path: Path, there: bool
) -> None:
    dest = tmp_path / "copy"
    if there:
        dest.mkdir()
    for files in (1, 5, 12):
        with child("back_up", full / "store", dest) as run:
            run.hear(files)
            run.child.send_signal(signal.SIGKILL)
            run.child.wait(SILENCE)
        with pytest.raises(EngineError):
            Store.open(dest)
        assert len(list((dest if there else tmp_path).glob(".copy.backup-*.new"))) == 1
    with Store.open(full / "store") as store:
        store.backup(dest)
    assert not list(tmp_path.rglob(".*"))
    with Store.open(dest) as copy:
        assert copy.check().problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("moved", range(10))
def test_killed_while_its_parts_are_moved_it_is_no_store_yet(
    full: Path, tmp_path: Path, moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = tmp_path / "copy"
    dest.mkdir()

    class KilledError(BaseException):
        pass

    class Dying(Disk):
        turns = 0

        def rename(self, path: Any, new: Any, **folders: int | None) -> None:
            # Before there are any parts, a folder loses the mark that it was begun.
            if Path(new).parent == dest and Path(path).suffix != ".begun":
                self.turns += 1
                if self.turns > moved:
                    raise KilledError
            super().rename(path, new, **folders)

    with monkeypatch.context() as patch, Store.open(full / "store") as store, using(Dying()):
        patch.setattr(staging, "_remove", lambda *_: None)  # a dead process does not clean up
        patch.setattr(nofollow, "discard", lambda *_, **__: None)
        with pytest.raises(KilledError):
            store.backup(dest)
    assert len(list(dest.iterdir())) == moved + 1
    assert not (dest / "MANIFEST.json").exists()
    with Store.open(full / "store") as store:
        store.backup(dest)
    with Store.open(dest) as copy:
        assert copy.check().problems == ()
    assert sorted(p.name for p in dest.iterdir()) == sorted(
        p.name for p in (full / "store").iterdir()
    )


@pytest.mark.slow
@pytest.mark.parametrize("moved", range(10))
def test_a_disk_that_fails_while_the_parts_are_moved_leaves_nothing(
    full: Path, tmp_path: Path, moved: int
) -> None:
    dest = tmp_path / "copy"
    dest.mkdir()

    class Failing(Disk):
        turns = 0

        def rename(self, path: Any, new: Any, **folders: int | None) -> None:
            if Path(new).parent == dest:
                self.turns += 1
                if self.turns > moved:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
            super().rename(path, new, **folders)

    failed = pytest.raises(StoreError, match="cannot be made: Input/output error")
    with Store.open(full / "store") as store, using(Failing()), failed:
        store.backup(dest)
    assert list(dest.iterdir()) == []


@pytest.mark.slow
def test_two_backups_to_one_place_do_not_take_each_other_for_leftovers(
    full: Path, tmp_path: Path
) -> None:
    with child("back_up", full / "store", tmp_path / "copy") as run:
        run.hear(1)
        with (
            Store.open(full / "store") as store,
            pytest.raises(StoreError, match="another process is making"),
        ):
            store.backup(tmp_path / "copy")
        assert run.child.wait(SILENCE) == 0
    with Store.open(tmp_path / "copy") as copy:
        assert copy.check().problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["copy_file_range", "pwrite", "fdatasync"])
@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    full: Path, tmp_path: Path, how: str, there: bool
) -> None:
    dest = tmp_path / "copy"
    if there:
        dest.mkdir()
    disk = FailingDisk(how, at=11)
    if how == "pwrite":  # as on macOS, which has no other way
        disk.copy_file_range = FailingDisk("copy_file_range", errno.ENOSYS).copy_file_range
    failed = pytest.raises(StoreError, match="cannot be made: No space left on device")
    with Store.open(full / "store") as store, using(disk), failed as error:
        store.backup(dest)
    assert "\n" not in str(error.value)
    assert dest.exists() == there
    assert not list(tmp_path.rglob("*" if not there else "*/*"))
    with Store.open(full / "store") as store:
        store.backup(dest)
    with Store.open(dest) as copy:
        assert copy.check().problems == ()


@pytest.mark.slow
def test_a_disk_with_too_little_room_is_told_before_anything_is_copied(
    full: Path, tmp_path: Path
) -> None:
    refused = pytest.raises(StoreError, match=r"[\d,]+ bytes and its disk has 1,000 free")
    with Store.open(full / "store") as store, using(NearlyFull(1000)), refused:
        store.backup(tmp_path / "copy")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; only root can make one."""
    where = tmp_path / "disk"
    where.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=False)


@pytest.mark.slow
@pytest.mark.parametrize("told_before", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_a_small_disk_ends_up_as_it_was(
    tmp_path: Path,
    small_disk: Path,
    there: bool,
    told_before: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Store.open(tmp_path / "store", create=True, encoder="none", limits=LIMITS) as store:
        store.ingest(f"{SOURCE}&n=500")
    dest = small_disk if there else small_disk / "copy"
    if not told_before:
        monkeypatch.setattr(backup.Backup, "_check_room", lambda *arguments: None)
    says = "it needs" if told_before else "No space left"
    with Store.open(tmp_path / "store") as store, pytest.raises(StoreError, match=says):
        store.backup(dest)
    assert not list(small_disk.iterdir())
    with Store.open(small_disk / "x", create=True, encoder="none") as store:
        assert len(store) == 0, "all of the disk is free again"


# --- what is refused ------------------------------------------------------------------------------


def test_a_place_that_will_not_do_is_refused(full: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    (tmp_path / "file").touch()
    with Store.open(full / "store") as store:
        for dest, says in (
            (tmp_path / "folder", "is not empty"),
            (tmp_path / "file", "is a file"),
            (full / "store", "inside of the store"),
            (full / "store" / "copy", "inside of the store"),
            (full / "store" / "keys" / "copy", "inside of the store"),
        ):
            with pytest.raises(UsageError, match=says):
                store.backup(dest)
        with pytest.raises(StoreError, match="cannot be made: Not a directory"):
            store.backup(tmp_path / "file" / "copy")
    with pytest.raises(StoreError, match="is closed"):
        store.backup(tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_only_its_own_leftovers_are_removed(full: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kept = [".copy.12345678.new", ".copy.backup-1234567.new", ".copies.backup-12345678.new"]
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / ".copy.backup-12345678.new").mkdir()
    (tmp_path / ".copy.backup-00000000.new").symlink_to(tmp_path / kept[0])
    with Store.open(full / "store") as store:
        store.backup(tmp_path / "copy")
    left = [".copy.backup-00000000.new", "copy", "file"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, *left])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("pixels/*.blobs", "is gone"),
        ("vectors/1/*.ids", "is gone"),
        ("index/*.ivf", "is gone"),
        ("encoder/1/model.onnx", "is gone"),
        ("keys/*.sst", "sst"),
        ("keys/MANIFEST-*", "no CURRENT"),
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_source_is_named_and_nothing_is_left(
    full: Path, tmp_path: Path, pattern: str, says: str, cut: bool
) -> None:
    where = tmp_path / "store"
    shutil.copytree(full / "store", where)
    with Store.open(where, read_only=True) as store:
        hurt = sorted(where.glob(pattern))[0]
        if cut and hurt.parent.name in ("index", "1") and hurt.suffix != ".ids":
            pytest.skip("only check reads all of it")
        if cut:
            with hurt.open("r+b") as file:
                file.truncate(hurt.stat().st_size // 2)
            says = "cut short|cannot be opened|cannot be read|its keys"
        else:
            hurt.unlink()
        with pytest.raises(StoreDamagedError, match=says) as error:
            Store.backup(store, tmp_path / "copy")
    assert str(where) in str(error.value)
    assert ".new" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_manifest_that_lacks_what_is_committed_is_damage(full: Path, tmp_path: Path) -> None:
    where = tmp_path / "store"
    shutil.copytree(full / "store", where)
    found = manifest.load(where)
    replace(found, extents={**found.extents, "pixels.blobs": []}).save(where)
    with (
        Store.open(where, read_only=True) as store,
        pytest.raises(StoreDamagedError, match=r"does not name pixels/00000001\.blobs"),
    ):
        store.backup(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_holes_stay_holes_and_large_files_go_in_pieces(
    tmp_path: Path,
) -> None:
    pieces = Limits(copy_bytes=5000)
    data = np.random.default_rng(0).bytes(20_000)
    with (tmp_path / "a").open("wb") as file:
        file.seek(1 << 20)
        file.write(data)
        file.seek(3 << 20)
        file.write(data)
        file.truncate(5 << 20)
    for plain in (False, True):
        opened = pinned_files.Held(tmp_path)
        opened.open("a")
        opened.measure()
        run = backup.Backup(tmp_path, MemoryBudget(), tmp_path / "x", limits=pieces)
        run._plain = plain
        copied = tmp_path / f"copied-{plain}"
        run._put(copied, opened.files["a"])
        opened.close()
        assert copied.read_bytes() == (tmp_path / "a").read_bytes()
        assert run._done == 5 << 20
        if (tmp_path / "a").stat().st_blocks * 512 < 1 << 20:
            assert copied.stat().st_blocks * 512 < 1 << 20


@pytest.mark.slow
def test_a_read_only_source_is_backed_up(full: Path, tmp_path: Path) -> None:
    where = tmp_path / "store"
    shutil.copytree(full / "store", where)
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
    run = ["unshare", "--mount", "sh", "-c", script, "sh", str(where)]
    can = shutil.which("unshare") and not subprocess.run([*run, "true"], check=False).returncode
    paths = [] if can else [where, *where.rglob("*")]
    if not can and os.geteuid() == 0:
        pytest.skip("no read-only mount can be made here, and root may write anywhere")
    modes = {path: path.stat().st_mode for path in paths}
    try:
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        command = [sys.executable, "-m", "engine", "backup", str(tmp_path / "copy")]
        done = subprocess.run(
            [*(run if can else []), *command, "--store", str(where)],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert done.returncode == 0, done.stderr
    with Store.open(tmp_path / "copy", limits=LIMITS) as copy:
        assert copy.check().problems == ()
        assert copy.ingest("synthetic:bits?n=1&seed=77").added == 1


# --- the folder made aside ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("there", [False, True])
def test_everything_is_durable_before_it_is_in_its_place(
    full: Path, tmp_path: Path, there: bool
) -> None:
    """A power cut: what was not synced is not there, or not whole."""
    dest = tmp_path / "copy"
    if there:
        dest.mkdir()
    synced: set[int] = set()  # by inode
    sizes: dict[int, int] = {}
    renamed: list[str] = []

    class Checking(Disk):
        def fsync(self, fd: int) -> None:
            super().fsync(fd)
            stat = os.fstat(fd)
            synced.add(stat.st_ino)
            sizes[stat.st_ino] = stat.st_size

        def rename(self, path: Any, new: Any, **folders: int | None) -> None:
            # Files of a store are renamed in an open folder. Nothing is in a folder that is begun,
            # and the lock of a temporary one needs not be durable.
            if isinstance(path, Path) and not path.name.endswith((".begun", ".claim")):
                self._check(path)
            super().rename(path, new, **folders)

        def _check(self, path: Path) -> None:
            for part in [path, *path.rglob("*")]:
                stat = part.stat()
                assert stat.st_ino in synced, part
                assert part.is_dir() or sizes[stat.st_ino] == stat.st_size
            if there:
                # The mark of an unfinished making is durable before the first part appears, and all
                # others are before the one that makes a store of them.
                assert dest.stat().st_ino in synced
                if path.name == "keys":
                    synced.discard(dest.stat().st_ino)
            renamed.append(path.name)

    with Store.open(full / "store") as store, using(Checking()):
        store.backup(dest)
    assert dest.stat().st_ino in synced
    assert tmp_path.stat().st_ino in synced or there
    assert renamed[-1] == ("MANIFEST.json" if there else renamed[0])


def test_where_files_cannot_be_locked_a_folder_is_made_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(lock: WriterLock) -> None:
        raise StoreError("no locks here")

    monkeypatch.setattr(WriterLock, "acquire", fails)
    with staging.made_aside(tmp_path / "x", "test", ("LOCK", "a")) as made:
        (made / "a").write_text("1")
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["LOCK", "a"]


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_another_process_takes_for_left_behind_is_begun_anew(
    tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = tmp_path / "x"
    if there:
        dest.mkdir()
    acquire, turns = WriterLock.acquire, []

    def late(lock: WriterLock) -> None:
        turns.append(1)
        if len(turns) == 1:
            with (
                pytest.raises(InterruptedError),
                staging.made_aside(dest, "test", ("a",)),
            ):
                raise InterruptedError
        acquire(lock)

    monkeypatch.setattr(WriterLock, "acquire", late)
    with staging.made_aside(dest, "test", ("a",)) as made:
        assert WriterLock(made).busy()
        (made / "a").write_text("1")
    assert len(turns) == 3
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "a"]


def test_what_was_killed_before_it_was_locked_is_removed(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "there"):
        folder.mkdir(exist_ok=True)
    (tmp_path / ".x.test-0123abcd.begun").mkdir()
    (tmp_path / "there" / ".there.test-0123abcd.begun").mkdir()
    for name in ("x", "there"):
        with staging.made_aside(tmp_path / name, "test", ("a",)) as made:
            (made / "a").write_text("1")
        assert [path.name for path in (tmp_path / name).iterdir()] == ["a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "x"]


def test_what_appears_at_the_place_meanwhile_is_kept(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="not empty"),
        staging.made_aside(tmp_path / "x", "test", ("a",)) as made,
    ):
        (made / "a").write_text("1")
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "b").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "b"]


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_copies_and_says_what(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--store", str(full / "store")]
    assert main(["backup", str(tmp_path / "a"), *store]) == 0
    out = capsys.readouterr().out
    assert f"copied to {tmp_path / 'a'}" in out
    assert len(out.splitlines()) == 1
    assert main(["backup", str(tmp_path / "b"), *store, "--json"]) == 0
    assert '"commit":' in capsys.readouterr().out
    assert main(["backup", str(tmp_path / "b"), *store]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["check", "--store", str(tmp_path / "b")]) == 0


if __name__ == "__main__":
    PARTS[sys.argv[1]](*sys.argv[2:])
