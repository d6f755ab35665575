"""``engine bench``: what it measures of each sort of data, what it leaves out, and how it is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from bench.data import image_sets
from bench.harness.errors import BenchError, WrongAnswerError
from bench.harness.measurement import Measurement, Skipped
from bench.harness.memory_limit import limited
from bench.harness.process import run_child
from bench.report.results import Results
from bench.report.results_file import load
from bench.suite import existing_store, existing_store_child, run
from bench.suite.context import Context
from bench.suite.image_stages import in_memory, lookups
from bench.suite.plan import Plan, plan
from bench.suite.stages import stages_of, unsuited
from engine import Store, StoreDamagedError, UsageError
from engine.errors import how_to_install

N = 600
LINUX = Path("/proc/self/status").exists()
GIVEN = {
    "steps": 2,
    "seed": 3,
    "memory": "256M",
    "limit": "",
    "embed": "",
    "peers": "none",
    "dataset": "",
    "store": "",
}
PHOTOS = Path(__file__).parent.parent / "scripts" / "photos"


def planned(n: int | None, folder: Path, **given: object) -> Plan:
    if given.get("store"):
        given = {"steps": None} | given
    return plan(n, folder=folder, **(GIVEN | given))  # type: ignore[arg-type]


def measured(results: Results) -> dict[tuple[int, str, str, str], Measurement]:
    return {(one.n, one.tier, one.method, one.figure): one for one in results.measurements}


@pytest.fixture(scope="module")
def bits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    out = tmp_path_factory.mktemp("bench") / "new" / "results"
    told: list[tuple[int, int | None]] = []
    labels: list[str] = []
    results, _ = run.run(
        planned(N, out, peers="sqlite,faiss-ivf,pdqhash,imagededup"),
        out=out,
        progress=lambda done, total: told.append((done, total)),
        note=labels.append,
    )
    assert told == sorted(told) and all(done <= (total or 0) for done, total in told)
    assert "the engine, 600 images" in labels and "IndexFlatL2, 60 vectors" in labels
    return results, out


@pytest.mark.exhaustive
def test_every_tier_is_measured_at_every_size(bits: tuple[Results, Path]) -> None:
    found = measured(bits[0])
    for n in (N // 10, N):
        for method in ("engine", "pixel by pixel", "list of hashes", "dict of hashes", "SQLite"):
            assert len(found[n, "identical", method, "hit"].samples) >= 60
            assert len(found[n, "identical", method, "miss"].samples) >= 60
            assert found[n, "ingest", method, "time"].median > 0
        for figure in ("hit, cold", "miss, cold", "hit, batch", "miss, batch"):
            assert found[n, "identical", "engine", figure].unit == "s"
        assert found[n, "near", "engine", "recall"].samples == (1.0,)
        assert found[n, "near", "pdqhash", "recall"].unit == ""
        for method in ("engine", "IndexFlatL2", "faiss-ivf"):
            assert found[n, "similar", method, "recall@10"].median > 0.9
            assert found[n, "similar", method, "single"].median > 0
            assert found[n, "similar", method, "build"].unit == "s"
    assert found[N, "ingest", "engine", "disk"].median > 3_750 * N
    assert found[N, "ingest", "engine", "disk, pixels"].median > 3_750 * N
    for figure in ("generate", "pack", "hash", "prove", "embed"):
        assert found[N, "images", "made", figure].median > 0
    assert found[N, "disk", "disk", "read"].median > 0
    if LINUX:
        assert 30e6 < found[N, "run", "engine", "rss"].median < 2e9


@pytest.mark.exhaustive
def test_what_was_not_measured_says_why(bits: tuple[Results, Path]) -> None:
    skipped = {(one.n, one.method): one.why for one in bits[0].skipped}
    assert skipped.keys() == {(60, "imagededup"), (600, "imagededup")}
    assert "no lookup of one" in skipped[600, "imagededup"]


@pytest.mark.exhaustive
def test_only_results_are_left(bits: tuple[Results, Path]) -> None:
    results, out = bits
    names = {path.name for path in out.iterdir()}
    assert {"results.csv", "results.json"} <= names
    assert not any(name.startswith("engine-bench-") for name in names)
    again = load(out)
    assert again.settings == results.settings and again.complete
    assert again.settings["sizes"] == [60, 600] and again.settings["seed"] == 3
    assert len(again.measurements) == len(results.measurements)


# --- other data -----------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_folder_of_pictures_is_measured_with_its_own_vectors(tmp_path: Path) -> None:
    given = planned(12, tmp_path / "out", dataset=str(PHOTOS), steps=1)
    found = measured(run.run(given, out=tmp_path / "out")[0])
    assert found[12, "identical", "engine", "hit"].median > 0
    assert found[12, "identical", "dict of hashes", "hit"].median > 0
    assert (12, "identical", "pixel by pixel", "hit") not in found
    assert found[12, "near", "engine", "recall"].median > 0.8
    assert found[12, "similar", "engine", "recall@10"].median == 1.0
    assert found[12, "images", "made", "embed"].median > 0
    assert found[12, "ingest", "engine", "disk, vectors"].median > 0


@pytest.mark.exhaustive
@pytest.mark.slow
def test_pictures_that_cannot_be_read_are_not_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(6):
        picture = Image.fromarray(draw.integers(0, 256, (40, 50, 3), np.uint8))
        picture.save(folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    given = planned(None, tmp_path, dataset=str(folder), steps=1, embed="none")
    assert given.sizes == (7,)
    found = measured(run.run(given, out=None)[0])
    assert len(found[7, "identical", "dict of hashes", "hit"].samples) == 6


@pytest.mark.exhaustive
@pytest.mark.slow
def test_pictures_that_no_array_stands_for_are_taken_in_and_not_asked_for(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        mask = draw.integers(0, 2, (40, 50), np.uint8)
        Image.fromarray(mask * 255).save(folder / f"mask-{number}.png")
        Image.fromarray(np.stack([mask] * 3, axis=2)).save(folder / f"dark-{number}.png")
    out = tmp_path / "out"
    given = planned(None, out, dataset=str(folder), steps=1, peers="pdqhash")
    results, left_out = run.run(given, out=out)
    found = measured(results)
    assert found[6, "ingest", "engine", "time"].median > 0 and results.complete and not left_out
    assert not any(tier in ("identical", "near", "similar") for _, tier, _, _ in found)
    why = {(one.tier, one.method): one.why for one in results.skipped}
    assert why.keys() >= {("identical", "engine"), ("near", "engine"), ("similar", "engine")}
    assert why.keys() >= {("identical", "dict of hashes"), ("near", "pdqhash")}
    assert all(one.startswith("none of its pictures is opaque") for one in why.values())


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_picture_that_is_there_more_often_than_a_lookup_names_is_right(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture = Image.open(PHOTOS / sorted(path.name for path in PHOTOS.glob("*.jpg"))[0])
    for number in range(30):
        picture.resize((160, 120)).save(folder / f"{number}.png")
    given = planned(None, tmp_path, dataset=str(folder), steps=1, embed="none")
    found = measured(run.run(given, out=None)[0])
    assert len(found[30, "identical", "engine", "hit"].samples) == 30
    assert found[30, "near", "engine", "recall"].samples == (1.0,)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with a name")
def test_what_is_called_a_picture_and_is_no_file_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    Image.new("RGB", (20, 20), (9, 90, 200)).save(tmp_path / "one.png")
    assert image_sets.FileSet(str(tmp_path), 0).files == [str(tmp_path / "one.png")]


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.skipif(not LINUX, reason="memory of processes is read from /proc")
def test_few_pictures_are_held_at_once_and_none_is_taken_off_the_engine(tmp_path: Path) -> None:
    count, size = 32, 2_000 * 1_500 * 3
    for number in range(count):
        Image.new("RGB", (2_000, 1_500), (number + 2, 90, 200)).save(
            tmp_path / f"{number}.png", compress_level=1
        )
    spec = {"n": count, "lookups": False, "memory_bytes": 128 << 20, "folder": ""}
    spec |= {"images": {"folder": str(tmp_path), "seed": 0, "encoder": "none"}}
    one = run_child("peers.method_child", spec | {"method": "dict of hashes", "n": 1})
    held = run_child("peers.method_child", spec | {"method": "dict of hashes"})
    assert held.resident_peak < one.resident_peak + count * size / 2
    spec |= {"method": "engine", "folder": str(tmp_path / "s.store")}
    taken = run_child("peers.method_child", spec)
    assert taken.result["baseline"] < held.result["baseline"] - 4 * size


def header(text: str) -> bytes:
    """An .npy file of that header, and some rows."""
    raw = text.encode().ljust(128, b" ") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + bytes(600 * 32)


def test_a_pipe_that_is_called_as_an_array_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "v.npy")
    with pytest.raises(UsageError, match="is no file"):
        planned(None, tmp_path, dataset=str(tmp_path / "v.npy"))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_vectors_of_a_file_are_measured(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((2_500, 24)).astype(np.float32)
    np.save(tmp_path / "v.npy", rows / np.linalg.norm(rows, axis=1, keepdims=True))
    given = planned(2_000, tmp_path, dataset=str(tmp_path / "v.npy"), peers="faiss-ivf")
    results, _ = run.run(given, out=None)
    found = measured(results)
    assert found[2_000, "similar", "engine", "recall@10"].median >= 0.95
    assert found[200, "similar", "IndexFlatL2", "recall@10"].median > 0.99
    assert not any(tier == "identical" for _, tier, _, _ in found)
    with pytest.raises(UsageError, match="has 2,000 to measure, fewer than 2,001"):
        planned(2_001, tmp_path, dataset=str(tmp_path / "v.npy"))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (b"", "is no array of vectors"),
        (b"nothing", "is no array of vectors"),
        (np.zeros((600, 0), np.float32), "vectors are float32"),
        (np.zeros(600, np.float32), "vectors are float32"),
        (np.array([{}] * 600), "is no array of vectors"),
        (np.where(np.arange(4_800) == 77, np.nan, 1).reshape(600, 8), "row 9 of .* has NaN"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (600, 8"), "is no array"),
        (header("{'descr': '<f4', 'shape': ('"), "is no array"),
        (header("\n  {\n 1: 2}\n}"), "is no array"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (2**70, 8), }"), "is no array"),
        (header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**70}, 8), }}"), "is no "),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-600, 8), }"), "is no array"),
        (header("(" * 5000), "is no array"),
    ],
)
def test_a_file_that_holds_no_vectors_is_refused(
    tmp_path: Path, wrong: bytes | np.ndarray, reason: str
) -> None:
    file = tmp_path / "v.npy"
    if isinstance(wrong, bytes):
        file.write_bytes(wrong)
    elif wrong.dtype == np.float64:
        np.save(file, wrong.astype(np.float32))
    else:
        np.save(file, wrong, allow_pickle=True)
    with pytest.raises(UsageError, match=reason) as caught:
        planned(None, tmp_path, dataset=str(file))
    assert "\n" not in str(caught.value) and "unsafe" not in str(caught.value)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_distances_of_vectors_of_many_lengths_are_not_held_to_inner_products(
    tmp_path: Path,
) -> None:
    rows = np.random.default_rng(0).standard_normal((700, 8)).astype(np.float32)
    np.save(tmp_path / "v.npy", rows)
    given = planned(None, tmp_path, dataset=str(tmp_path / "v.npy"), steps=1, peers="lancedb")
    results, _ = run.run(given, out=None)
    found = measured(results)
    assert found[200, "similar", "engine", "recall@10"].median >= 0.95
    assert found[200, "similar", "IndexFlatL2", "single"].median > 0
    assert (200, "similar", "IndexFlatL2", "recall@10") not in found
    assert {left.method for left in results.skipped} == {"IndexFlatL2", "lancedb"}
    assert all("not of unit length" in left.why for left in results.skipped)


@pytest.mark.slow
def test_a_store_that_is_there_is_asked_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "s.store"
    with Store.open(path, create=True) as store:
        store.ingest(*sorted(map(str, PHOTOS.glob("*.jpg")))[:5])
        store.remove(ids=[2])
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    results, _ = run.run(planned(None, tmp_path, store=str(path)), out=None)
    found = measured(results)
    assert found[4, "identical", "engine", "found"].samples == (1.0,)
    assert len(found[4, "identical", "engine", "hit"].samples) == 4
    assert len(found[4, "similar", "engine", "single"].samples) == 4
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_an_image_that_changed_since_is_not_found_identical(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, file in enumerate(sorted(PHOTOS.glob("*.jpg"))[:4]):
        Image.open(file).resize((200, 150)).save(pictures / f"{number}.png")
    with Store.open(tmp_path / "s.store", create=True, encoder="none") as store:
        store.ingest(str(pictures))
    again = Image.open(pictures / "0.png")
    again.putpixel((0, 0), (1, 2, 3))  # near what it was
    again.save(pictures / "0.png")
    results, _ = run.run(planned(None, tmp_path, store=str(tmp_path / "s.store")), out=None)
    assert measured(results)[4, "identical", "engine", "found"].samples == (0.75,)


@pytest.mark.slow
def test_vectors_of_a_store_are_found_similar(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    np.save(tmp_path / "v.npy", rows)
    with Store.open(tmp_path / "s.store", create=True) as store:
        store.ingest(str(tmp_path / "v.npy"), normalize=True)
    results, _ = run.run(planned(None, tmp_path, store=str(tmp_path / "s.store")), out=None)
    found = measured(results)
    assert found[50, "similar", "engine", "found"].samples == (1.0,)
    assert (50, "identical", "engine", "found") not in found


@pytest.mark.slow
def test_what_was_found_is_counted_for_each_tier(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    np.save(tmp_path / "v.npy", draw.standard_normal((20, 8)).astype(np.float32))
    np.save(tmp_path / "m.npy", draw.integers(0, 2, (20, 16, 16)).astype(bool))
    path = tmp_path / "s.store"
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest(str(tmp_path / "v.npy"), str(tmp_path / "m.npy"), normalize=True)
    found = existing_store_child.ask(str(path), 1 << 28, 40, 0)
    assert found["asked"] == found["found"] == {"identical": 20, "similar": 20}
    shown = [one for one in existing_store.figures(found) if isinstance(one, Measurement)]
    assert {one.tier for one in shown if one.figure == "found"} == {"identical", "similar"}


@pytest.mark.slow
def test_a_store_that_is_damaged_is_not_one_whose_sources_are_gone(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.random.default_rng(0).integers(0, 2, (3000, 16, 16)) > 0)
    path = tmp_path / "s.store"
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest(str(tmp_path / "m.npy"))
        store.optimize()
    largest = max((path / "keys").glob("*.sst"), key=lambda file: file.stat().st_size)
    data = bytearray(largest.read_bytes())
    for at in range(100, len(data) // 2):
        data[at] ^= 0x5A
    largest.write_bytes(data)
    with pytest.raises(StoreDamagedError):
        existing_store_child.ask(str(path), 1 << 28, 40, 0)


@pytest.mark.parametrize("read", ["reading the disk", "lookups"])
def test_what_a_kernel_cannot_be_asked_for_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    monkeypatch.delattr(os, "posix_fadvise", raising=False)  # as on macOS
    context = Context(planned(N, tmp_path), tmp_path, None)
    if read == "lookups":
        (tmp_path / "store").mkdir()
        figures = lookups(context, N)
    else:
        (stage,) = (one for one in stages_of(context) if one.label == read)
        figures = stage.work(lambda share: None)
    assert isinstance(next(figures), Skipped)


@pytest.mark.slow
def test_a_store_without_images_is_an_error(tmp_path: Path) -> None:
    Store.open(tmp_path / "s.store", create=True, encoder="none").close()
    with pytest.raises(BenchError, match="holds no image to ask for"):
        run.run(planned(None, tmp_path, store=str(tmp_path / "s.store")), out=None)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_all_bit_images_can_be_embedded(tmp_path: Path) -> None:
    given = planned(40, tmp_path, embed="all", steps=1)
    found = measured(run.run(given, out=None)[0])
    assert found[40, "similar", "engine", "recall@10"].median == 1.0
    assert (40, "similar", "IndexFlatL2", "single") not in found
    assert found[40, "ingest", "engine", "disk, vectors"].median > 0


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.slow
def test_what_does_not_fit_into_memory_is_left_out_and_the_largest_that_fits_measured(
    tmp_path: Path,
) -> None:
    given = planned(20_000, tmp_path, memory="128M", embed="none", steps=2)
    context = Context(given, tmp_path, None)
    found = list(in_memory(context, "pixel by pixel", 20_000, lambda share: None))
    assert isinstance(found[0], Skipped)
    assert found[0].why == "it would take 0.6 GB of memory, more than --memory allows"
    assert {one.n for one in found[1:]} == {4_000}
    assert "hit" in {one.figure for one in found[1:] if isinstance(one, Measurement)}


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.skipif(not LINUX, reason="memory is bounded by control groups, or by ulimit on Linux")
def test_lookups_within_a_limit_give_the_same_answers(tmp_path: Path) -> None:
    given = planned(N, tmp_path, limit="256M", steps=1, embed="none")
    assert given.memory == 128 << 20
    results, _ = run.run(given, out=None)
    assert results.settings["memory_limit_bytes"] == 256 << 20
    assert results.settings["memory_limit_by"]
    assert measured(results)[N, "near", "engine", "recall"].samples == (1.0,)


@pytest.mark.slow
@pytest.mark.skipif(not LINUX, reason="needs ulimit -d")
def test_where_no_group_can_be_made_anonymous_memory_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for way in ("_version_1", "_version_2", "_systemd"):
        monkeypatch.setattr(f"bench.harness.memory_limit.{way}", lambda memory, stack: None)
    with pytest.raises(BenchError, match="cannot be limited here"), limited(1 << 30):
        pass
    with limited(512 << 20, fallback=True) as limit:
        assert "page cache is not" in limit.how
        spec = {"method": "pixel by pixel", "n": 30_000, "folder": "", "memory_bytes": 1 << 30}
        spec |= {"lookups": False, "images": {"seed": 0}}
        with pytest.raises(BenchError, match=r"MemoryError|allocate|memory"):
            run_child("peers.method_child", spec, within=limit.within)


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_peer_that_crashes_takes_nothing_else_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The process of a peer finds a module of its name that ends it, as a broken library would.
    (tmp_path / "lmdb.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "out"
    given = planned(50, out, peers="lmdb", steps=1, embed="none")
    monkeypatch.setattr("bench.suite.peer_names.find_spec", lambda module: object())
    results, _ = run.run(given, out=out)
    (left,) = results.skipped
    assert left.method == "LMDB" and "signal 6" in left.why
    assert (50, "identical", "engine", "hit") in measured(results) and results.complete


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_peer_that_is_not_installed_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.suite.peer_names.find_spec", lambda module: None)
    given = planned(50, tmp_path, peers="hnswlib", steps=1)
    results, _ = run.run(given, out=None)
    (left,) = results.skipped
    assert left.why == f"hnswlib is not installed: {how_to_install('peers')}"


def test_a_peer_that_the_data_do_not_suit_says_so(tmp_path: Path) -> None:
    peers = "sqlite,hnswlib,pdqhash"
    rows = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
    np.save(tmp_path / "v.npy", rows)
    for given, wanted in (
        ({}, set()),
        ({"embed": "none"}, {"hnswlib"}),
        ({"dataset": str(PHOTOS)}, {"SQLite", "hnswlib"}),
        ({"dataset": str(tmp_path / "v.npy")}, {"SQLite", "pdqhash"}),
    ):
        context = Context(planned(10, tmp_path, peers=peers, **given), tmp_path, None)
        skipped = list(unsuited(context))
        assert {one.method for one in skipped} == wanted
        assert all(isinstance(one, Skipped) and one.why for one in skipped)
        labels = " ".join(stage.label for stage in stages_of(context))
        assert not any(f"{name}, " in labels for name in wanted)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_an_interrupted_run_keeps_what_was_measured(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def interrupt(label: str) -> None:
        if label.startswith("the engine"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run(planned(100, out, steps=1), out=out, note=interrupt)
    kept = load(out)
    assert not kept.complete
    assert {one.method for one in kept.measurements} >= {"made", "dict of hashes"}
    assert not any(path.name.startswith("engine-bench-") for path in out.iterdir())


@pytest.mark.slow
def test_a_wrong_answer_ends_the_run(tmp_path: Path) -> None:
    store = tmp_path / "s.store"
    with Store.open(store, create=True, encoder="none") as opened:
        opened.ingest("synthetic:bits?n=20&seed=1")
    spec = {"job": "singles", "n": 20, "folder": str(store), "memory_bytes": 128 << 20}
    spec |= {"count": 5, "warm": True, "set": {"seed": 0}}
    with pytest.raises(WrongAnswerError, match="seed=0#"):
        run_child("suite.store_child", spec)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"seed": -1}, "seed must be 0 or more"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"memory": "much"}, "is not a size"),
        ({"limit": "1M"}, "at least 128M"),
        ({"limit": "255M"}, "--memory-limit must be at least 256M, not 255M"),
        ({"embed": "some"}, "embed is one of"),
        ({"peers": "milvus"}, "no peer called 'milvus'"),
        ({"dataset": "nowhere"}, "nowhere is no data set"),
        ({"n": None, "store": "nowhere"}, "nowhere is no store"),
        ({"n": None, "store": ".", "dataset": "."}, "leave --dataset out"),
        ({"store": "."}, "leave --n out"),
        ({"n": None, "store": ".", "steps": 2}, "leave --steps out"),
        ({"n": None, "store": ".", "embed": "all"}, "leave --embed out"),
        ({"n": None, "store": ".", "peers": "SQLite"}, "leave --peers out"),
        ({"dataset": "v.npy", "embed": "all"}, "leave --embed out"),
        ({"dataset": "bits"}, "bits is no data set"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    tmp_path: Path, wrong: dict[str, object], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        planned(**({"n": 10, "folder": tmp_path / "out"} | wrong))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_set_that_the_disk_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"1,000,000,000,000 images take about 3,900\.0 TB"):
        planned(10**12, tmp_path)


def test_vectors_that_the_disk_cannot_hold_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "v.npy", np.eye(700, 8, dtype=np.float32))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000))
    with pytest.raises(UsageError, match=r"200 vectors take about 0\.0 GB of disk"):
        planned(None, tmp_path, dataset=str(tmp_path / "v.npy"))


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("nothing")
    with pytest.raises(UsageError, match="there is no image file in"):
        planned(10, tmp_path, dataset=str(tmp_path))


def test_an_earlier_result_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("precious")
    with pytest.raises(UsageError, match="is not empty"):
        run.run(planned(10, tmp_path), out=tmp_path)
    with pytest.raises(UsageError, match="cannot be used"):
        run.run(planned(10, tmp_path), out=tmp_path / "results.csv")
    assert (tmp_path / "results.csv").read_text() == "precious"


# --- the command ----------------------------------------------------------------------------------


def command(*given: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "engine", "bench", *given],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_command_prints_one_object_and_compares(tmp_path: Path) -> None:
    few = ("--n", "40", "--steps", "1", "--embed", "none", "--json")
    first = command(*few, "--out", "one", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["figures"] and "compared" not in json.loads(first.stdout)
    again = command(*few, "--out", "two", "--compare", "one", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    (line,) = again.stdout.splitlines()
    compared = json.loads(line)["compared"]
    assert len(compared["changes"]) == len(json.loads(line)["figures"])


@pytest.mark.usual
@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--n", "0"], "n must be at least 1"),
        (["--n=-1"], "n must be at least 1"),
        (["--n", "abc"], "not 'abc'"),
        (["--n", "1e12"], "3,900.0 TB of disk"),
        (["--compare", "nowhere.json"], "cannot be read"),
        (["--out", "full"], "full is not empty"),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path: Path, given: list[str], reason: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    done = command(*given, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("engine: ") and reason in line


def begun(folder: Path) -> subprocess.Popen[str]:
    """A run that lasts for minutes, with its results in ``out``."""
    command = [sys.executable, "-m", "engine", "bench", "--n", "1e5", "--embed", "none"]
    return subprocess.Popen(
        [*command, "--out", "out"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_what_was_measured(tmp_path: Path, sent: signal.Signals) -> None:
    process = begun(tmp_path)
    try:
        while process.poll() is None and not (tmp_path / "out" / "results.json").exists():
            time.sleep(0.1)
        process.send_signal(sent)
        _, told = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "the results measured so far are in out" in told
    kept = load(tmp_path / "out")
    assert not kept.complete and kept.measurements
    assert not list((tmp_path / "out").glob("engine-bench-*"))


def killed(parent: int) -> bool:
    """Whether it had a child, which is killed."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        try:
            os.kill(int(child), signal.SIGKILL)
        except ProcessLookupError:
            continue
        return True
    return False


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.skipif(
    not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists(),
    reason="the kernel does not name a process's children",
)
def test_a_run_that_fails_says_where_what_was_measured_is(tmp_path: Path) -> None:
    process = begun(tmp_path)
    try:
        while process.poll() is None:  # between two stages there is no child
            if (tmp_path / "out" / "results.json").exists() and killed(process.pid):
                break
            time.sleep(0.05)
        _, told = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 2
    assert "the results measured so far are in out" in told
    assert "a measurement ended with signal 9" in told.splitlines()[-1]
    assert load(tmp_path / "out").measurements


# --- sets -----------------------------------------------------------------------------------------


def test_copies_are_near_and_not_identical(tmp_path: Path) -> None:
    chosen = image_sets.make({"seed": 1})
    with Store.open(tmp_path / "s.store", create=True, encoder="none") as store:
        store.ingest(*chosen.sources(30))
        for wanted, query in chosen.copies(30, 10):
            result = store.lookup(query)
            assert not result.identical
            assert [hit.sources for hit in result.near] == [(wanted,)]


def test_a_set_is_the_same_for_every_process() -> None:
    spec = {"folder": str(PHOTOS), "seed": 5, "encoder": "none"}
    one, other = image_sets.make(spec), image_sets.make(json.loads(json.dumps(spec)))
    assert one.sources(9) == other.sources(9) != image_sets.make(spec | {"seed": 6}).sources(9)
    for (name, image), (again, same) in zip(one.hits(9, 4), other.hits(9, 4), strict=True):
        assert name == again
        np.testing.assert_array_equal(image, same)
    for (_, changed), (name, _) in zip(one.misses(9, 2), one.hits(9, 2), strict=True):
        assert changed.dtype == np.uint8 and name in one.sources(9)
