"""Optimize gives back what removed images took, and changes no answer: not when it is interrupted,
not to readers beside it."""

import errno
import itertools
import json
import select
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import FailingDisk, NearlyFull
from helpers import mask
from PIL import Image

from engine import Store, StoreError
from engine.cli.app import main
from engine.config import Limits
from engine.maintenance import optimize
from engine.storage import extents, swaps
from engine.storage.disk import Disk, using
from engine.storage.extents import HEADER_BYTES
from engine.storage.rows import TABLES
from engine.storage.session import Session
from engine.storage.writer import Writer

IDENTICAL = ["identical"]
EACH = 16 + 96  # bytes that are kept of an image
ROWS = 40


# Extents of ten images, chunks of five, commits of two.
LIMITS = Limits(
    chunk_rows=5,
    extent_bytes=10 * EACH,
    compact_batch=7,
    compact_bytes=2 * EACH,
    compact_extents=2,
)


def numbers(store: Store) -> list[int]:
    """The extents of pixels, of which the keys, the manifest and the disk know alike."""
    files = store.session.snapshot
    found = [number for number, _ in files.state.extents[extents.PIXELS.name]]
    assert files.manifest.extents[extents.PIXELS.name] == found
    assert sorted(int(path.stem) for path in (store.path / "pixels").iterdir()) == found
    return found


def expect(store: Store, gone: set[int], rows: int = ROWS) -> None:
    """Image i + 1 is row i, and all are found but those that are gone."""
    for row in range(rows):
        hits = store.lookup(mask(row), tiers=IDENTICAL).identical
        there = [] if row + 1 in gone else [(row + 1, "bytes")]
        assert [(hit.id, hit.verified) for hit in hits] == there
    asked = np.stack([mask(row) for row in range(rows)])
    ids = [-1 if row + 1 in gone else row + 1 for row in range(rows)]
    assert store.find_identical(asked).tolist() == ids


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with 40 rows of an array in four extents."""
    np.save(tmp_path / "a.npy", np.stack([mask(row) for row in range(ROWS)]))
    with Store.open(tmp_path / "store", create=True, encoder="none", limits=LIMITS) as made:
        made.ingest(tmp_path / "a.npy")
        assert numbers(made) == [1, 2, 3, 4]
    return tmp_path / "store"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path, limits=LIMITS) as opened:
        yield opened
        assert opened.check().problems == ()


@pytest.mark.slow
def test_extents_that_are_worth_it_are_rewritten(store: Store) -> None:
    gone = {1, 2, 11, 21, 22, 23}  # two, one and three of ten
    store.remove(ids=gone)
    report = store.optimize()
    assert (report.rewritten, report.moved, report.skipped) == (2, 15, ())
    assert report.bytes_before > 0
    assert numbers(store) == [2, 4, 5, 6]
    expect(store, gone)
    assert store.session.snapshot.state.dead == {"2": EACH}
    again = store.optimize()
    assert (again.rewritten, again.moved) == (0, 0)


@pytest.mark.slow
def test_the_newest_extent_is_rewritten_too(store: Store) -> None:
    store.remove(ids=range(31, 34))
    assert store.optimize().moved == 7
    assert numbers(store) == [1, 2, 3, 5]
    expect(store, {31, 32, 33})
    store.ingest("synthetic:bits?n=1")
    expect(store, {31, 32, 33})


@pytest.mark.slow
def test_a_newest_extent_that_is_not_full_is_rewritten_too(tmp_path: Path, store: Store) -> None:
    np.save(tmp_path / "b.npy", np.stack([mask(row) for row in range(ROWS, ROWS + 5)]))
    store.ingest(tmp_path / "b.npy")
    store.remove(ids=[42, 43])
    report = store.optimize()
    assert (report.rewritten, report.moved, report.skipped) == (1, 3, ())
    assert numbers(store) == [1, 2, 3, 4, 6]
    expect(store, {42, 43}, ROWS + 5)


@pytest.mark.slow
def test_what_is_dead_as_a_whole_goes_and_its_number_is_not_used_again(store: Store) -> None:
    store.remove(ids=range(11, 21))
    report = store.optimize()
    assert (report.rewritten, report.moved) == (1, 0)
    assert numbers(store) == [1, 3, 4]
    store.remove(ids=range(1, 41))
    assert store.optimize().rewritten == 3
    (left,) = numbers(store)
    assert left > 4
    expect(store, {*range(1, 41)})
    store.ingest("synthetic:bits?n=3")
    assert min(numbers(store)) > 4
    assert store.lookup("synthetic:bits?seed=0#2").identical[0].verified == "bytes"


def test_nothing_is_done_where_nothing_was_removed(store: Store) -> None:
    report = store.optimize()
    assert (report.rewritten, report.moved, report.skipped) == (0, 0, ())
    assert numbers(store) == [1, 2, 3, 4]


@pytest.mark.slow
def test_kept_files_move_with_their_images(tmp_path: Path, store: Store) -> None:
    names = []
    for i in range(6):
        image = np.random.default_rng(i).integers(0, 256, (6, 6, 3), np.uint8)
        names.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(names[-1])
    store.ingest(*names, keep_pixels="yes")
    store.remove(sources=names[::2])
    assert store.optimize().moved > 0
    for name in names[1::2]:
        (hit,) = store.lookup(name, tiers=IDENTICAL).identical
        kept = store.session.snapshot.kept_whole(hit.id)
        assert kept == (name.read_bytes(), False)


@pytest.mark.slow
def test_what_moves_is_not_held_longer_than_its_commit(path: Path) -> None:
    large = 1 << 20
    limits = Limits(extent_bytes=40 * large, compact_bytes=4 * large)
    rng = np.random.default_rng(0)
    many = ((f"{i}", rng.integers(0, 256, (600, 600, 3), np.uint8)) for i in range(60))
    with Store.open(path, limits=limits) as store:
        store.ingest(many, keep_pixels="yes")
        ids = [found.id for found in store.records() if found.width == 600]
        store.remove(ids=ids[::2])
        tracemalloc.start()
        try:
            report = store.optimize()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert report.moved >= 30
    assert peak < 16 * large


@pytest.mark.slow
def test_files_that_name_removed_images_are_forgotten(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "a.png"
    for level in (0, 5, 9):  # the first is known by its record, the last by its name
        Image.fromarray(mask(100).astype(np.uint8) * 255).save(path, compress_level=level)
        store.ingest(path)
    store.remove(sources=[path])
    assert len(list(store.session.snapshot.keys.scan("files"))) == 1
    store.optimize()
    assert not list(store.session.snapshot.keys.scan("files"))


@pytest.mark.slow
def test_keys_take_less_room_afterwards(tmp_path: Path) -> None:
    with Store.open(tmp_path / "many", create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=30000", keep_pixels="no")
        store.optimize()
        before = store.info().bytes["keys"]
        store.remove(ids=range(1, 27_001))
        store.optimize()
        assert store.info().bytes["keys"] < before / 2
        assert store.check().problems == ()


# --- what cannot be done --------------------------------------------------------------------------


@pytest.mark.slow
def test_what_does_not_fit_is_left_and_told_of(store: Store) -> None:
    gone = {1, 2, 3, *range(11, 21), *range(21, 25)}
    store.remove(ids=gone)
    room = optimize._SLACK + 6 * (EACH + optimize._KEY_BYTES)
    with using(NearlyFull(room)):
        report = store.optimize()
    assert (report.rewritten, report.moved) == (2, 6), (
        "the empty one, and the emptiest of the others"
    )
    assert "1 extent" in report.skipped[0]
    assert f"{7 * (EACH + optimize._KEY_BYTES) + optimize._SLACK:,} bytes" in report.skipped[0]
    assert "keys were not compacted" in report.skipped[1]
    expect(store, gone)
    assert store.optimize().moved == 7


@pytest.mark.slow
def test_what_cannot_be_read_stays_and_is_told_of(path: Path) -> None:
    gone = {1, 2, 3, 11, 12}
    with Store.open(path, limits=LIMITS) as store:
        store.remove(ids=gone)
        blobs = path / "pixels" / "00000001.blobs"
        whole = blobs.read_bytes()
        store.session.snapshot.kept_pixels.close()
        with blobs.open("r+b") as file:
            file.truncate(HEADER_BYTES + 9 * EACH + 1)
        report = store.optimize()
        assert (report.rewritten, report.moved) == (1, 8 + 6)
        assert "engine check --fix" in report.skipped[0]
        assert report.damaged == 1
        blobs.write_bytes(whole)
        assert store.optimize().moved == 1
        expect(store, gone)
        assert store.check().problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [{"1": 10 * EACH}, {"1": EACH}, {}, {"1": 4 * EACH, "9": 3}])
def test_a_wrong_count_is_found_loses_nothing_and_is_mended(
    store: Store, wrong: dict[str, int]
) -> None:
    gone = {1, 2, 3}
    store.remove(ids=gone)
    store.session.writer.set_dead(wrong)
    problems = store.check().problems
    assert any("count as dead" in problem.what for problem in problems)
    store.optimize()
    expect(store, gone)
    if store.check().problems:
        assert store.check(fix=True).ok
    assert store.check().problems == ()
    store.optimize()
    expect(store, gone)


# --- interrupted ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_stops_after_a_commit_and_goes_on(store: Store) -> None:
    gone = {*range(1, 41, 3)}
    store.remove(ids=gone)
    moved = 0
    for _ in range(50):
        began = store.session.snapshot.state.commit
        report = store.optimize(
            stop=lambda began=began: store.session.snapshot.state.commit > began + 1
        )
        moved += report.moved
        expect(store, gone)
        assert store.check().problems == ()
        if not report.interrupted:
            break
    assert moved >= 40 - len(gone)
    assert set(numbers(store)).isdisjoint({1, 2, 3, 4})


@pytest.mark.slow
def test_one_that_is_told_to_stop_only_once_stops(store: Store) -> None:
    gone = {1, 2, 11, 12, 21, 22}
    store.remove(ids=gone)
    for at in range(1, 9):
        asked = itertools.count(1)
        report = store.optimize(stop=lambda asked=asked, at=at: next(asked) == at)
        assert report.interrupted
        # What was not moved yet does not count as what cannot be read.
        assert (report.damaged, report.skipped) == (0, ())
        expect(store, gone)


@pytest.mark.slow
def test_it_asks_whether_to_stop_between_the_tables(store: Store) -> None:
    asked = []
    assert not store.optimize(stop=lambda: bool(asked.append(1))).interrupted
    assert len(asked) > len(TABLES)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["rename", "unlink"], ids=["manifest", "unlink"])
def test_a_dropped_extent_is_forgotten_by_the_next_writer(
    path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    gone = {1, 2, 3}
    with Store.open(path, limits=LIMITS) as store, monkeypatch.context() as patch:
        store.remove(ids=gone)
        drop = swaps.drop_extents

        def dropping(writer: Writer, numbers: Sequence[int]) -> None:
            with using(FailingDisk(at, errno.EIO)):
                drop(writer, numbers)

        patch.setattr(swaps, "drop_extents", dropping)
        # What was committed is whole without the deletion, so that ends nothing.
        fails = pytest.raises(StoreError, match="Input/output error")
        with fails if at == "rename" else nullcontext():
            store.optimize()
    assert (path / "pixels" / "00000001.blobs").exists()
    with Store.open(path, read_only=True) as reader:
        expect(reader, gone)
        assert reader.check().problems == ()
    with Store.open(path, limits=LIMITS) as store:
        store.remove(ids=[99])
        assert numbers(store) == [2, 3, 4, 5]
        expect(store, gone)
        assert store.check().problems == ()


# --- readers --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_reader_of_an_older_commit_gets_the_right_answer(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Store.open(path, limits=LIMITS) as store, Store.open(path, read_only=True) as reader:
        expect(reader, set())
        gone = {1, 2, 3, 11, 12, 13}
        store.remove(ids=gone)
        moved = stayed = 0
        for row in range(ROWS):  # each of them just before it asks
            reader.refresh()
            seen, before = reader.session.snapshot.state.commit, gone.copy()
            with monkeypatch.context() as patch:
                patch.setattr(Session, "follow", lambda files: None)
                store.remove(ids=[row + 1])
                gone.add(row + 1)
                store.optimize()
                asked = [(row + 20) % ROWS, (row + 5) % ROWS]
                for one in asked:
                    hits = reader.lookup(mask(one), tiers=IDENTICAL).identical
                    known = before if reader.session.snapshot.state.commit == seen else gone
                    assert [hit.id for hit in hits] == ([] if one + 1 in known else [one + 1])
                    assert all(hit.verified == "bytes" for hit in hits)
                block = np.stack([mask(one) for one in range(ROWS)])
                found = reader.find_identical(block)
                known = before if reader.session.snapshot.state.commit == seen else gone
                ids = [-1 if one + 1 in known else one + 1 for one in range(ROWS)]
                assert found.tolist() == ids
                moved += known is gone
                stayed += known is before
        assert moved > 0, "some extent was gone that the older commit has images in"
        assert stayed > 0, "and often none was"
        assert caplog.text == ""


CHILD = """
import sys
import pytest
from engine import Store
from test_maintenance_optimize import LIMITS

with Store.open(sys.argv[1], limits=LIMITS) as store:
    while sys.stdin.readline():
        store.ingest(sys.argv[2])
        ids = store.find_identical(__import__("numpy").load(sys.argv[2]))
        store.remove(ids=ids[::2].tolist())
        store.optimize()
        store.remove(ids=ids[1::2].tolist())
        store.optimize()
        print("done", flush=True)
"""


@pytest.mark.slow
def test_readers_beside_it_are_not_disturbed(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(tmp_path / "more.npy", np.stack([mask(row) for row in range(100, 140)]))
    command = [sys.executable, "-c", CHILD, str(path), str(tmp_path / "more.npy")]
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )
    asked = np.stack([mask(row) for row in range(ROWS)])
    more = np.stack([mask(row) for row in range(100, 140)])
    with child, Store.open(path, read_only=True) as reader:
        assert child.stdin is not None and child.stdout is not None
        for time_ in range(8):
            print("go", file=child.stdin, flush=True)
            done = False
            while not done:  # at least once beside it
                assert reader.find_identical(asked).tolist() == list(range(1, ROWS + 1))
                for row in range(100, 140, 7):
                    for hit in reader.lookup(mask(row), tiers=IDENTICAL).identical:
                        assert hit.verified == "bytes"
                found = reader.find_identical(more)
                # Each time they get ids of their own: of this one, or of the one before as yet.
                at = np.flatnonzero(found != -1)
                times = set(((found[at] - 1 - ROWS - at) / ROWS).tolist())
                assert times in (set(), {time_}), "of one commit, and in order"
                assert reader.check().problems == ()
                done = bool(select.select([child.stdout], [], [], 0)[0])
            assert child.stdout.readline() == "done\n"
        child.stdin.close()
        assert child.wait() == 0
    assert caplog.text == ""
    with Store.open(path, limits=LIMITS) as store:
        assert store.check().problems == ()
        expect(store, set())


class Stuck(Disk):
    """A disk that deletes no extent of pixels."""

    def unlink(self, path: Any, **folder: Any) -> None:
        if str(path).endswith(".blobs"):
            raise OSError(errno.EIO, "Input/output error")
        super().unlink(path, **folder)


@pytest.mark.slow
def test_what_cannot_be_deleted_stays_until_the_next_writer(path: Path) -> None:
    gone = set(range(1, 11))
    with Store.open(path, limits=LIMITS) as store:
        before = set((path / "pixels").iterdir())
        store.remove(ids=gone)
        with using(Stuck()):
            store.optimize()
        assert before <= set((path / "pixels").iterdir())
        assert store.ingest("synthetic:bits?n=1").added == 1  # it is open, and goes on
    with Store.open(path, limits=LIMITS) as store:
        store.session.become_writer()
        assert len(numbers(store)) < len(before) + 1
        expect(store, gone)


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_says_that_something_cannot_be_read(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.open(path, limits=LIMITS) as store:
        store.remove(ids=[1, 2, 3])
        store.session.writer.set_dead({"1": 4 * EACH})
    assert main(["optimize", "--store", str(path)]) == 3
    assert "engine check --fix" in capsys.readouterr().out
    assert main(["check", "--fix", "--store", str(path)]) == 0
    assert main(["optimize", "--store", str(path)]) == 0


@pytest.mark.slow
def test_the_command_says_what_it_did(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(path, limits=LIMITS) as store:
        store.remove(ids=range(1, 6))
    assert main(["optimize", "--store", str(path)]) == 0
    said = capsys.readouterr().out
    assert "1 extent of pixels rewritten, 5 images moved" in said
    assert main(["optimize", "--store", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rewritten"] == 0
    shutil.rmtree(path)
    assert main(["optimize", "--store", str(path)]) == 2
