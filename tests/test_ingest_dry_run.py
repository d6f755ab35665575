"""The dry run tells what an ingest then does, and touches nothing."""

from pathlib import Path

import numpy as np
import pytest
from damage import NearlyFull
from helpers import picture, save

from engine import Store, UsageError
from engine.storage.disk import using
from engine.storage.durable import tree_bytes


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    for i in range(300):
        save(tmp_path / "photos" / f"{i}.png", picture(i, 24, 24))
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    np.save(tmp_path / "masks.npy", np.random.default_rng(0).integers(0, 2, (500, 20, 20)) > 0)
    return [tmp_path / "photos", tmp_path / "masks.npy"]


def test_a_plan_without_a_store_makes_none(tmp_path: Path, sources: list[Path]) -> None:
    with using(NearlyFull(12345)):
        plan = Store.plan(tmp_path / "new" / "a.store", *sources, encoder="none")
    assert (plan.images, plan.unchanged, plan.rejected, plan.skipped) == (800, 0, 0, 1)
    photos = sum(file.stat().st_size for file in sources[0].glob("*.png"))
    assert plan.bytes_to_read == photos + sources[1].stat().st_size
    assert plan.free_bytes == 12345
    assert not (tmp_path / "new").exists()


@pytest.mark.usual
@pytest.mark.slow
@pytest.mark.parametrize("keep", ["auto", "yes", "no"])
@pytest.mark.parametrize("encoder", ["none", "simclr"])
def test_the_disk_is_enough_and_not_far_too_much(
    tmp_path: Path, sources: list[Path], keep: str, encoder: str
) -> None:
    few = [sources[1]] if encoder == "simclr" else sources
    path = tmp_path / "a.store"
    plan = Store.plan(path, *few, encoder=encoder, keep_pixels=keep)
    with Store.open(path, create=True, encoder=encoder) as store:
        store.ingest(*few, keep_pixels=keep)
    # RocksDB's own log, its options and half-filled blocks come on top: a fixed amount.
    fixed = 512 << 10
    taken = tree_bytes(path)
    assert taken - fixed <= plan.disk_bytes <= 2 * taken + fixed


@pytest.mark.slow
def test_a_plan_says_what_an_ingest_then_does(tmp_path: Path, sources: list[Path]) -> None:
    path = tmp_path / "a.store"
    (sources[0] / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest(*sources)
    save(sources[0] / "more" / "new.png", picture(1000, 24, 24))
    # Another image, in a file of as many bytes perhaps.
    save(sources[0] / "7.png", picture(1001, 24, 24))
    plan = Store.plan(path, *sources)
    assert (plan.images, plan.unchanged, plan.rejected, plan.skipped) == (2, 799, 1, 1)
    with Store.open(path) as store:
        report = store.ingest(*sources)
    assert (report.added, report.unchanged, report.rejected, report.skipped) == (2, 799, 1, 1)


def test_what_breaks_off_again_is_not_planned(tmp_path: Path) -> None:
    array = tmp_path / "a.npy"
    np.save(array, np.stack([picture(i) for i in range(30)]))
    array.write_bytes(array.read_bytes()[:-10])
    path = tmp_path / "a.store"
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest(array)
        again = store.ingest(array)
    assert (again.unchanged, again.rejected) == (29, 1)
    plan = Store.plan(path, array)
    assert (plan.images, plan.unchanged, plan.rejected) == (0, 29, 1)
    assert (plan.bytes_to_read, plan.disk_bytes) == (0, 0)


@pytest.mark.parametrize("keep", ["auto", "yes"])
def test_of_zeros_and_ones_no_row_is_read_to_plan(tmp_path: Path, keep: str) -> None:
    rows = np.random.default_rng(0).integers(0, 2, (500, 20, 20), np.uint8)
    np.save(tmp_path / "masks.npy", rows)
    np.save(tmp_path / "bool.npy", rows > 0)
    whole, known = (
        Store.plan(tmp_path / "s", tmp_path / name, encoder="none", keep_pixels=keep)
        for name in ("masks.npy", "bool.npy")
    )
    assert whole.images == known.images == 500
    assert whole.disk_bytes >= known.disk_bytes
    # Behind its header it has no rows, which only reading would tell.
    data = (tmp_path / "masks.npy").read_bytes()
    (tmp_path / "masks.npy").write_bytes(data[:1000])
    assert Store.plan(tmp_path / "s", tmp_path / "masks.npy", encoder="none").images == 500


@pytest.mark.slow
def test_vectors_are_only_planned_for_those_who_get_some(
    tmp_path: Path, sources: list[Path]
) -> None:
    path = tmp_path / "a.store"
    with Store.open(path, create=True, encoder="none"):
        pass
    without = Store.plan(path, sources[0])
    asked = Store.plan(path, sources[0], encoder="none")
    assert (asked.images, asked.disk_bytes) == (without.images, without.disk_bytes)
    adopted = Store.plan(path, sources[0], encoder="simclr")
    assert adopted.disk_bytes > without.disk_bytes + 300 * 512


@pytest.mark.parametrize("vectors", [False, True], ids=["images", "vectors"])
def test_the_rest_of_an_array_that_was_rejected_is_not_read_again(
    tmp_path: Path, vectors: bool
) -> None:
    rows = np.random.default_rng(0).standard_normal((50, 400)).astype(np.float32)
    array = tmp_path / "cut.npy"
    np.save(array, rows if vectors else (rows > 0).reshape(50, 20, 20))
    with array.open("r+b") as file:
        file.truncate(array.stat().st_size * 3 // 4)
    path = tmp_path / "a.store"
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest(array, normalize=vectors)
        again = store.ingest(array, normalize=vectors)
    plan = Store.plan(path, array, normalize=vectors)
    assert (plan.images, plan.bytes_to_read) == (0, 0)
    assert (plan.unchanged, plan.rejected) == (again.unchanged, again.rejected)
    assert plan.rejected == 1


def test_what_an_ingest_refuses_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = np.random.default_rng(ord(name)).standard_normal((5, 8)).astype(np.float32)
        np.save(tmp_path / f"{name}.npy", rows)
    path = tmp_path / "a.store"
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest(tmp_path / "a.npy")
    assert Store.plan(path, tmp_path / "b.npy").images == 5
    with pytest.raises(UsageError, match="not normalized"):
        Store.plan(path, tmp_path / "b.npy", normalize=True)
    for where in (path, tmp_path / "new"):
        with pytest.raises(UsageError, match="at least 128M"):
            Store.plan(where, tmp_path / "b.npy", memory="1M")


@pytest.mark.slow
def test_progress_is_told_to_the_end(tmp_path: Path, sources: list[Path]) -> None:
    told: list[tuple[int, int | None]] = []
    Store.plan(tmp_path / "s", *sources, progress=lambda done, total: told.append((done, total)))
    assert told
    assert told[-1][0] == 302  # files, and the array


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "source"), [("perhaps", "photos"), ("auto", "nothing.png")])
def test_what_makes_no_sense_is_a_usage_error(
    tmp_path: Path, sources: list[Path], keep: str, source: str
) -> None:
    with pytest.raises(UsageError):
        Store.plan(tmp_path / "s", tmp_path / source, keep_pixels=keep)
