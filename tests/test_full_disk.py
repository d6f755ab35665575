"""On a full disk images can be removed, which is how it gets room again; trying loses nothing."""

import errno
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import NearlyFull
from PIL import Image

from engine import Store, StoreError
from engine.config import Limits
from engine.storage import ballast
from engine.storage.disk import using
from engine.storage.rocks import database, opening
from engine.storage.state import State

DISK = 100 << 20
TINY_DISK = 10 << 20
IMAGES = 6000  # 22 MB with their pixels
SOURCE = f"synthetic:bits?n={IMAGES}&seed=0"


@contextmanager
def mounted(at: Path, size: int) -> Iterator[Path]:
    at.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own, that can be filled up."""
    with mounted(tmp_path / "disk", DISK) as at:
        yield at


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that is nearly full from the beginning."""
    with mounted(tmp_path / "tiny", TINY_DISK) as at:
        yield at


def fill(disk: Path) -> None:
    """Use up the room that is left, to the last block."""
    with (disk / "others").open("ab", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC
    assert shutil.disk_usage(disk).free < 4096


def engine(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "engine", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def remove(store: Path, ids: list[int]) -> subprocess.CompletedProcess[str]:
    code = "import sys, json; from engine import Store\nwith Store.open(sys.argv[1]) as s: "
    code += "print(s.remove(ids=json.load(sys.stdin)).images)"
    command = [sys.executable, "-c", code, str(store)]
    given = json.dumps(ids)
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)


def check(store: Path) -> int:
    with Store.open(store, read_only=True) as opened:
        report = opened.check()
        assert report.problems == ()
        return report.images


@pytest.mark.slow
def test_images_are_removed_from_a_full_disk_which_gets_its_room_back(disk: Path) -> None:
    store = disk / "store"
    with Store.open(store, create=True, encoder="none") as opened:
        opened.ingest(SOURCE)
        assert opened.info().bytes["RESERVE"] >= 6 << 20
    fill(disk)
    failed = engine("ingest", "synthetic:bits?n=9&seed=1", "--store", store)
    assert failed.returncode == 2
    assert len(failed.stderr.splitlines()) == 1
    assert "No space left on device" in failed.stderr
    assert (store / "RESERVE").exists(), "an ingest does not use it up"
    done = engine("remove", "--id", 1, "--id", 2, "--store", store)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (store / "RESERVE").exists()
    done = remove(store, random.Random(0).sample(range(3, IMAGES + 1), IMAGES // 3))
    assert (done.stdout, done.stderr) == (f"{IMAGES // 3}\n", "")
    left = IMAGES - 2 - IMAGES // 3
    assert check(store) == left
    some = engine("optimize", "--store", store, "--json")
    assert some.returncode == 0
    assert "needs" in json.loads(some.stdout)["skipped"][0], "there is no room for a copy"
    done = remove(store, list(range(1, IMAGES + 1)))
    assert done.stdout == f"{left}\n"
    done = engine("optimize", "--store", store, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["rewritten"] == 1
    assert shutil.disk_usage(disk).free > IMAGES * 3750
    assert check(store) == 0
    (disk / "others").unlink()
    done = engine("ingest", SOURCE, "--store", store)
    assert done.returncode == 0
    assert check(store) == IMAGES
    assert ballast.wanted(State(), Limits()) == 0


def noise(count: int) -> Iterator[tuple[str, bytes]]:
    """Image files of 120 KB each, that do not compress."""
    made = np.random.default_rng(0).integers(0, 256, (count, 200, 200, 3), np.uint8)
    for i, pixels in enumerate(made):
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG", compress_level=0)
        yield f"{i:03d}.png", data.getvalue()


def folder(at: Path) -> tuple[str, int]:
    (at / "in").mkdir()
    for name, data in noise(90):
        (at / "in" / name).write_bytes(data)
    (at / "in" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return str(at / "in"), 90


def archive(at: Path) -> tuple[str, int]:
    with tarfile.open(at / "in.tar", "w") as tar:
        for name, data in [*noise(90), ("bad.png", b"\x89PNG\r\n\x1a\n")]:
            found = tarfile.TarInfo(name)
            found.size = len(data)
            tar.addfile(found, io.BytesIO(data))
    return str(at / "in.tar"), 90


def array(at: Path) -> tuple[str, int]:
    return f"synthetic:bits?n={IMAGES}&seed=0", IMAGES


def vectors(at: Path) -> tuple[str, int]:
    np.save(at / "in.npy", np.random.default_rng(0).standard_normal((6000, 400), np.float32))
    return str(at / "in.npy"), 6000


@pytest.mark.slow
@pytest.mark.parametrize("make", [folder, archive, array, vectors])
def test_a_nearly_full_disk_takes_what_fits(
    tiny_disk: Path, tmp_path: Path, make: Callable[[Path], tuple[str, int]]
) -> None:
    source, count = make(tmp_path)
    path = tiny_disk / "store"
    left = []
    for _ in range(2):
        with (
            Store.open(path, create=True, encoder="none") as store,
            pytest.raises(StoreError, match=r"No space left on device; .* make room"),
        ):
            store.ingest(source, keep_pixels="yes")
        with Store.open(path, read_only=True) as store:
            report = store.check()
            assert (report.problems, report.leftover_bytes) == ((), 0)
            left.append(len(store))
    assert count / 5 < left[0] <= left[1] < count
    assert shutil.disk_usage(tiny_disk).free > ballast.LITTLE
    with Store.open(path) as store:
        assert store.remove(ids=[1, 2]).images == 2, "there is room for that"
        subprocess.run(["mount", "-o", "remount,size=64M", str(tiny_disk)], check=True)
        report = store.ingest(source, keep_pixels="yes")
        assert len(store) == count
        assert report.seen == count + (make in (folder, archive))
        assert report.rejected == (make in (folder, archive))
        assert store.check().problems == ()
        if report.rejects_file:
            assert len(Path(report.rejects_file).read_text().splitlines()) == 1
        if make in (folder, archive):
            assert store.info().sources == count
            again = store.ingest(source, keep_pixels="yes")
            assert (again.unchanged, again.rejected) == (count, 1)


@pytest.mark.slow
def test_a_limit_of_the_system_takes_what_fits_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """As a quota does: there is room on the disk, and a write fails all the same."""
    path = tmp_path / "store"
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=10")
    code = "import resource, sys; from engine.cli.app import main; "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); sys.exit(main())"
    command = [sys.executable, "-c", code, "ingest", "synthetic:bits?n=2000", "--store", str(path)]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "File too large; what was committed before is safe" in failed.stderr
    with Store.open(path) as store:
        assert 200 < len(store) < 280
        report = store.check()
        assert (report.problems, report.leftover_bytes) == ((), 0)
        store.ingest("synthetic:bits?n=2000")
        assert len(store) == 2000
        assert store.check().problems == ()


@pytest.mark.slow
def test_an_ingest_cuts_what_an_earlier_one_left(disk: Path) -> None:
    store = disk / "store"
    with Store.open(store, create=True, encoder="none") as opened:
        opened.ingest("synthetic:bits?n=100")
    with (store / "pixels" / "00000001.blobs").open("ab") as file:
        file.write(bytes(20 << 20))  # appended, and not committed
    fill(disk)
    done = engine("ingest", "synthetic:bits?n=1000", "--encoder", "none", "--store", store)
    assert (done.returncode, done.stderr) == (0, "")
    assert check(store) == 1000


@pytest.mark.slow
def test_what_an_interrupted_ingest_left_is_the_first_to_go(disk: Path) -> None:
    store = disk / "store"
    with Store.open(store, create=True, encoder="none") as opened:
        opened.ingest(SOURCE)
    with (store / "pixels" / "00000001.blobs").open("ab") as file:
        file.write(bytes(20 << 20))  # appended, and not committed
    fill(disk)
    done = engine("remove", "--id", 1, "--store", store)
    assert (done.returncode, done.stderr) == (0, "")
    assert (store / "RESERVE").exists(), "that was enough"
    assert shutil.disk_usage(disk).free > 10 << 20
    assert check(store) == IMAGES - 1


@pytest.mark.slow
def test_a_removal_stops_while_the_store_can_still_be_opened(disk: Path) -> None:
    store = disk / "store"
    with Store.open(store, create=True, encoder="none") as opened:
        opened.ingest("synthetic:bits?n=150000&seed=0", keep_pixels="no")
    os.truncate(store / "RESERVE", 5 << 20)  # less than such a removal takes
    fill(disk)
    ids = list(range(1, 150_001, 2))
    done = remove(store, ids)
    assert done.returncode == 1
    assert "is full" in done.stderr
    left = check(store)
    assert 75_000 < left < 150_000
    (disk / "others").unlink()
    assert remove(store, ids).stdout == f"{left - 75_000}\n"
    assert check(store) == 75_000


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_an_index_is_built_where_there_is_room_for_its_pieces_beside_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    block = np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32)
    rows = Limits(exact_rows=3000, recall_sample=10)
    with Store.open(tmp_path / "store", create=True, encoder="none", limits=rows) as store:
        store.ingest(block[:-1], name="vectors")
    # Some 2000 codes of 41 bytes in 125 lists, each of which ends in a block that may be empty.
    codes = (2000 + 32 * 125) * 41
    with Store.open(tmp_path / "store", limits=Limits(exact_rows=500, recall_sample=10)) as store:
        with using(NearlyFull(ballast.LEFT + codes + (100 << 10))):
            store.ingest(block[-1:], name="one more")
        assert "the disk is nearly full" in caplog.text
        assert store.info().segments == []
        with using(NearlyFull(ballast.LEFT + 2 * codes + (100 << 10))):
            store.ingest(block[:1], name="and one more")
        assert len(store.info().segments) == 1


LITTLE = Limits(ballast_store=100)  # stores of so little have a ballast file


@pytest.mark.slow
def test_the_reserve_is_made_when_there_is_plenty_of_room_and_only_then(tmp_path: Path) -> None:
    path = tmp_path / "store" / "RESERVE"
    with (
        Store.open(tmp_path / "store", create=True, encoder="none", limits=LITTLE) as store,
        using(NearlyFull(10 << 20)),
    ):
        store.ingest("synthetic:bits?n=10")
        assert not path.exists()
    with Store.open(tmp_path / "store", limits=LITTLE) as store:
        store.ingest("synthetic:bits?n=20")
        assert path.stat().st_size > 6 << 20
        assert store.check().problems == ()
        assert store.info().bytes["RESERVE"] >= path.stat().st_size
    with Store.open(tmp_path / "store", limits=LITTLE) as store:
        with using(NearlyFull(3 << 20)):
            store.remove(ids=[1])
        assert not path.exists(), "given back where room is short"
        with using(NearlyFull(1 << 20)), pytest.raises(StoreError, match="is full"):
            store.remove(ids=[2])
        assert len(store) == 19
        assert store.check().problems == ()


@pytest.mark.parametrize("how", ["linked", "a hole"])
def test_a_reserve_that_would_give_no_room_back_is_made_again(tmp_path: Path, how: str) -> None:
    path, size = tmp_path / "RESERVE", 64 << 10
    assert ballast.renew(tmp_path, size // 2)
    if how == "linked":
        os.link(path, tmp_path / "backup")
    else:
        os.truncate(path, 0)
        os.truncate(path, size)
    with using(NearlyFull(size)):
        assert not ballast.renew(tmp_path, size)
    assert ballast.renew(tmp_path, size)
    assert path.stat().st_size == size
    assert path.stat().st_blocks * 512 >= size
    assert path.stat().st_nlink == 1
    if how == "linked":
        assert (tmp_path / "backup").stat().st_size == size // 2


def test_a_store_without_much_in_it_has_no_reserve(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=100")
    assert not (tmp_path / "store" / "RESERVE").exists()


def test_a_store_that_writes_already_uses_its_reserve(tmp_path: Path) -> None:
    path = tmp_path / "store" / "RESERVE"
    with Store.open(tmp_path / "store", create=True, encoder="none", limits=LITTLE) as store:
        store.ingest("synthetic:bits?n=20")
        size = path.stat().st_size
        with using(NearlyFull(4096, size, path)):
            assert store.remove(ids=[1]).images == 1
            assert not path.exists()
        store.remove(ids=[2])
        assert path.stat().st_size > 6 << 20, "made again where there is room again"
        assert len(store) == 18
        assert store.check().problems == ()


@pytest.mark.slow
def test_where_there_is_room_again_keys_are_compacted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[bool] = []
    real = opening.open_writer

    def open_writer(*given: Any, tight: bool = False, **named: Any) -> database.Keys:
        opened.append(tight)
        return real(*given, tight=tight, **named)

    monkeypatch.setattr(opening, "open_writer", open_writer)
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=20")
    with Store.open(tmp_path / "store") as store:
        with using(NearlyFull(3 << 20)):
            store.remove(ids=[1])
            store.ingest("synthetic:bits?n=21")
        assert opened == [False, True], "there is none yet"
        store.remove(ids=[2])
        assert opened == [False, True], "a removal needs none"
        store.ingest("synthetic:bits?n=22")
        assert opened == [False, True, False]
        store.ingest("synthetic:bits?n=23")
        assert len(opened) == 3
        assert len(store) == 23, "the two that were removed have come again"
        assert store.lookup("synthetic:bits?seed=0#22").identical[0].verified == "bytes"
        assert store.check().problems == ()
