"""The benchmarks of the similarity index at tiny sizes: what they ask, check, keep and judge."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import BenchError, WrongAnswerError
from bench.data import (
    arrays,
    clustered_vectors,
    descriptors,
    exact_neighbours,
    vector_store,
)
from bench.harness import disk, memory_limit
from bench.harness.process import run_child
from bench.peers import vector_index
from bench.peers.engine_index import ENGINE
from bench.peers.hnswlib_index import HNSWLIB
from bench.peers.vector_indexes import INDEXES, PEERS
from bench.questions import (
    index_cold,
    index_growth,
    index_live,
    index_live_child,
    index_peers,
    index_report,
    index_rounds,
)
from bench.questions.index_measured import Measured
from bench.questions.index_rounds import REMOVED
from engine import Store, UsageError

N = 2_000
MEMORY = 256 << 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/io").exists(), reason="what a process reads and writes: Linux tells"
    ),
]


@pytest.fixture(autouse=True)
def cache_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the stores of these tests are dropped from the page cache."""
    monkeypatch.setattr(disk, "_DROP_CACHES", tmp_path / "none" / "drop_caches")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The files of some vectors and of some queries."""
    folder = tmp_path_factory.mktemp("vectors")
    vectors, queries = folder / "vectors.npy", folder / "queries.npy"
    arrays.write_array(vectors, clustered_vectors.blocks(0, 0, N), N, clustered_vectors.DIM)
    arrays.write_array(queries, [clustered_vectors.queries(0, 60)], 60, clustered_vectors.DIM)
    return vectors, queries


def run(main: Callable[[], bool], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> bool:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    return main()


# --- vectors --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_made_row_depends_on_the_seed_and_its_number_only() -> None:
    rows = clustered_vectors.rows(3, 0, 40_000)
    np.testing.assert_array_equal(rows[16_380:16_390], clustered_vectors.rows(3, 16_380, 10))
    np.testing.assert_array_equal(
        rows[7:33_000], np.concatenate(list(clustered_vectors.blocks(3, 7, 32_993)))
    )
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert rows.dtype == np.float32 and len(np.unique(rows[:, 0])) > 39_000
    assert not np.array_equal(rows[:10], clustered_vectors.rows(4, 0, 10))
    assert not np.array_equal(rows[:10], clustered_vectors.queries(3, 10))


@pytest.mark.slow
def test_made_vectors_have_near_neighbours_that_lie_in_several_cells() -> None:
    rows, queries = clustered_vectors.rows(0, 0, 30_000), clustered_vectors.queries(0, 100)
    scores = np.sort(queries @ rows.T, axis=1)
    assert scores[:, -1].mean() > scores[:, -1_000].mean() + 0.2, "clustered"
    import faiss

    cells = faiss.index_factory(clustered_vectors.DIM, "IVF256,Flat", faiss.METRIC_INNER_PRODUCT)
    cells.train(rows)
    cells.add(rows)
    cells.nprobe = 4
    found = exact_neighbours.recall(
        cells.search(queries, 10)[1], exact_neighbours.exact([rows], queries, 10)
    )
    assert 0.3 < found < 0.98, "neither hopeless nor trivial"


def test_an_array_is_written_in_blocks_and_is_there_once_it_is_whole(tmp_path: Path) -> None:
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    path = tmp_path / "rows.npy"
    arrays.write_array(path, [rows[:2], rows[2:]], 5, 3)
    np.testing.assert_array_equal(arrays.open_array(path), rows)
    np.testing.assert_array_equal(
        np.concatenate(list(arrays.blocks(arrays.open_array(path)))), rows
    )

    def broken() -> Iterator[arrays.Vectors]:
        yield rows
        raise RuntimeError

    with pytest.raises(RuntimeError):
        arrays.write_array(tmp_path / "other.npy", broken(), 10, 3)
    assert not (tmp_path / "other.npy").exists()


def test_a_file_that_holds_no_vectors_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "double.npy", np.zeros((3, 3)))
    (tmp_path / "text.npy").write_text("no array")
    for name in ("double.npy", "text.npy", "none.npy"):
        with pytest.raises(UsageError, match=name):
            arrays.open_array(tmp_path / name)


def test_exact_neighbours_are_those_of_all_rows_together() -> None:
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((500, 8)).astype(np.float32)
    queries = draw.standard_normal((700, 8)).astype(np.float32)
    found = exact_neighbours.exact([rows[:3], rows[3:200], rows[200:]], queries, 10)
    np.testing.assert_array_equal(found, np.argsort(-queries @ rows.T, axis=1)[:, :10])
    few = exact_neighbours.exact([rows[:4]], queries, 10)
    assert (few[:, :4] >= 0).all() and (few[:, 4:] == -1).all()


def test_recall_is_the_share_of_those_wanted() -> None:
    wanted = np.array([[1, 2], [3, -1]])
    assert exact_neighbours.recall(np.array([[2, 1], [3, 9]]), wanted) == 1
    assert exact_neighbours.recall(np.array([[1, 7], [-1, -1]]), wanted) == pytest.approx(1 / 3)


def photograph(path: Path, seed: int) -> None:
    """A picture of blobs and edges."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (24, 32, 3), np.uint8))
    coarse.resize((320, 240), Image.Resampling.BICUBIC).save(path)


@pytest.mark.slow
def test_descriptors_are_made_once_and_queries_come_from_other_photographs(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(12):
        photograph(photos / f"{number}.png", number)
    photograph(photos / "again.png", 1)  # its descriptors are there already
    Image.new("RGB", (300, 300), (9, 9, 9)).save(photos / "flat.png")
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    made = descriptors.make([photos], tmp_path / "cache", 600, 50, 0)
    rows, queries = (np.load(path) for path in made)
    assert rows.shape == (600, 128) and queries.shape == (50, 128)
    assert rows.dtype == queries.dtype == np.float32
    both = np.concatenate([rows, queries])
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, atol=1e-5)
    assert len(np.unique(both, axis=0)) == 650
    stamps = [path.stat().st_mtime_ns for path in made]
    assert descriptors.make([photos], tmp_path / "cache", 600, 50, 0) == made
    assert [path.stat().st_mtime_ns for path in made] == stamps
    with pytest.raises(BenchError, match=r"give more of them with --photos"):
        descriptors.make([photos], tmp_path / "cache", 1_000_000, 50, 0)


def test_without_opencv_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UsageError, match=r"OpenCV is not installed: pip install .* '\.\[peers\]'"):
        descriptors.make([tmp_path], tmp_path / "cache", 10, 10, 0)


# --- indexes beside each other --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usual
@pytest.mark.parametrize("name", INDEXES)
def test_an_index_finds_what_it_took_in(
    name: str, files: tuple[Path, Path], tmp_path: Path
) -> None:
    pytest.importorskip(INDEXES[name].module)
    vectors, queries = files
    np.save(
        tmp_path / "truth.npy", exact_neighbours.exact([np.load(vectors)], np.load(queries), 10)
    )
    folder = str(tmp_path / "index")
    # A process of its own for each, as in the benchmark: some libraries can be set up only once.
    place: dict[str, Any] = {"method": name, "folder": folder, "memory_bytes": MEMORY}
    built = run_child(
        "peers.index_child",
        place | {"job": "build", "vectors": str(vectors), "threads": 2, "wanted": 0.97},
    ).result
    assert built["seconds"] > 0 and built["disk"] > N * 64
    asked = place | {"queries": str(queries), "truth": str(tmp_path / "truth.npy")}
    asked |= {"k": 10, "gone": None}
    given = {"job": "sweep", "threads": 2, "settings": INDEXES[name].sweep[-1:]}
    points = run_child("peers.index_child", asked | given).result["points"]
    assert points[-1]["recall"] > 0.9 and min(point["qps"] for point in points) > 0
    given = {"job": "single", "threads": 1, "setting": points[-1]["setting"]}
    single = run_child("peers.index_child", asked | given).result
    assert single["recall"] == pytest.approx(points[-1]["recall"], abs=0.02)
    assert len(single["seconds"]) == 60 and single["searched"] > single["empty"] > 0


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_engine_and_a_peer_are_measured_and_everything_is_kept(
    files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("hnswlib")
    given = ["--vectors", str(files[0]), "--queries", str(files[1]), "--rounds", "1"]
    given += ["--peers", "hnswlib,faiss-flat", "--memory", "256M", "--dir", str(tmp_path / "work")]
    met = run(index_peers.main, monkeypatch, *given, "--out", str(tmp_path / "out"))
    out = capsys.readouterr().out
    for name in (ENGINE, REMOVED, HNSWLIB, "faiss-flat"):
        assert f"\n{name} " in out
    assert out.count("MISSED") + out.count(" met\n") + out.endswith(" met") == 6
    assert met == ("MISSED" not in out)
    assert list((tmp_path / "work").iterdir()) == []
    with (tmp_path / "out" / "curves.csv").open(newline="") as file:
        points = list(csv.DictReader(file))
    assert {point["index"] for point in points} == {ENGINE, HNSWLIB, "faiss-flat"}
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    jobs = [(one["index"], one["job"]) for one in map(json.loads, lines)]
    for name in (ENGINE, HNSWLIB):
        for job in ("build", "sweep", "batch", "single"):
            assert jobs.count((name, job)) == 1
    assert jobs.count((REMOVED, "single")) == 1
    medians = json.loads((tmp_path / "out" / "results.json").read_text())["indexes"]
    assert medians["faiss-flat"]["recall_at_10"] == 1
    with pytest.raises(UsageError, match="is not empty"):
        run(index_peers.main, monkeypatch, *given, "--out", str(tmp_path / "out"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--peers", "nothing"],
        ["--recall", "1", "--peers", ""],
        ["--vectors", "a.npy", "--peers", ""],
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_made(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError):
        run(index_peers.main, monkeypatch, *arguments, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_index, "find_spec", lambda name: None)
    for name in PEERS:
        with pytest.raises(UsageError, match=r"pip install -e '\.\[peers\]'"):
            INDEXES[name].check()


@pytest.mark.slow
def test_a_removed_row_that_is_found_is_an_error(files: tuple[Path, Path], tmp_path: Path) -> None:
    vectors, queries = files
    bench = index_rounds.Bench(
        vectors, queries, tmp_path, tmp_path / "log", memory=MEMORY, k=10, seed=0
    )
    gone, left = np.load(tmp_path / "gone.npy"), np.load(tmp_path / "truth-left.npy")
    assert len(gone) == 20 and left.shape == (60, 10) and not np.isin(left, gone).any()
    bench.build(ENGINE, 0.9)
    bench.make_removed()
    assert bench.batch(REMOVED, (0.9,))["recall"] > 0.8
    # The same question of the store that has them all: as if removing had done nothing.
    np.save(tmp_path / "gone.npy", np.load(tmp_path / "truth.npy")[:, 0])
    (tmp_path / REMOVED).rename(tmp_path / "away")
    (tmp_path / ENGINE).rename(tmp_path / REMOVED)
    with pytest.raises(WrongAnswerError, match="removed is found"):
        bench.batch(REMOVED, (0.9,))


def test_ratios_are_medians_of_the_rounds() -> None:
    def measured(name: str, qps: list[float], seconds: list[float]) -> Measured:
        batches = [
            {
                "qps": one,
                "cpu_s": 1e-4,
                "recall": 0.98,
                "empty": 100,
                "opened": 200,
                "searched": 600,
            }
            for one in qps
        ]
        singles = [{"seconds": [one] * 3, "cpu_s": 2e-4} for one in seconds]
        builds = [{"seconds": 2.0 * len(qps), "cpu_s": 9.0, "disk": 50}]
        return Measured(name, 10, [], (1,), builds, batches, singles)

    found = {
        ENGINE: measured(ENGINE, [10, 2, 9], [0.1, 0.9, 0.3]),
        REMOVED: measured(REMOVED, [10, 2, 9], [0.2, 0.9, 0.6]),
        HNSWLIB: measured(HNSWLIB, [10, 1, 3], [0.1, 0.3, 0.1]),
    }
    wanted = {one.what: one.measured for one in index_report.targets_of(found, 0.97)}
    assert wanted == {
        "recall at 10": 0.98,
        index_report.TARGETS["batch"][0]: 2,
        index_report.TARGETS["p50"][0]: pytest.approx(3),
        index_report.TARGETS["build"][0]: 1,
        index_report.TARGETS["memory"][0]: 50,
        index_report.TARGETS["removed"][0]: 2,
    }
    assert found[ENGINE].p99() == 300 and found[ENGINE].disk() == 5
    assert found[ENGINE].cpu_us("singles") == pytest.approx(200)
    assert "9.0" in index_report.table(found, 0.97)


def test_an_index_that_never_finds_enough_is_not_timed() -> None:
    found = {name: Measured(name, 10) for name in (ENGINE, REMOVED)}
    found[ENGINE].points = [{"setting": [0.9], "recall": 0.6, "qps": 1.0}]
    (only,) = index_report.targets_of(found, 0.97)
    assert (only.what, only.measured, only.met) == ("recall at 10", 0.6, False)
    assert "-" in index_report.table(found, 0.97)


# --- growth, cold, live ---------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_growth_is_measured_by_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vector_store, "PIECE", 800)  # so that there are several
    monkeypatch.setattr(index_growth, "_QUERIES", 520)
    given = ["--n", "500,2000", "--rounds", "1", "--memory", "256M", "--dir", str(tmp_path / "w")]
    run(index_growth.main, monkeypatch, *given, "--csv", str(tmp_path / "growth.csv"))
    out = capsys.readouterr().out
    assert "p50 at the largest / at the smallest" in out and "p50 grows as n^" in out
    assert list((tmp_path / "w").iterdir()) == []
    with (tmp_path / "growth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["n"] for row in rows] == ["500", "2000"]
    for row in rows:
        assert float(row["recall_at_10"]) > 0.9, "ids are rows + 1, over all pieces"
        assert int(row["disk_vectors_bytes"]) >= int(row["n"]) * 512
        assert float(row["ingest_s"]) > 0 and float(row["optimize_s"]) > 0
        assert float(row["peak_bytes"]) > 0


@pytest.mark.slow
def test_a_store_that_is_whole_is_not_made_again(tmp_path: Path) -> None:
    store = vector_store.VectorStore(300, 1, tmp_path)
    built = store.make(memory=MEMORY, wanted=0.9)
    assert store.make(memory=MEMORY, wanted=0.9) == built
    for other in ({"wanted": 0.8}, {"wanted": 0.9, "queries": 501}):
        with pytest.raises(BenchError, match="was made otherwise"):
            store.make(memory=MEMORY, **other)  # type: ignore[arg-type]
    np.testing.assert_array_equal(
        store.exact(),
        exact_neighbours.exact([clustered_vectors.rows(1, 0, 300)], np.load(store.queries), 10),
    )
    store.store.with_suffix(".json").unlink()
    with pytest.raises(BenchError, match="is not whole: remove it"):
        store.make(memory=MEMORY, wanted=0.9)


@pytest.mark.exhaustive
def test_cold_queries_are_asked_within_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        with memory_limit.limited(256 << 20):
            pass
    except BenchError as error:
        pytest.skip(str(error))
    given = ["--n", "4000", "--limit", "256M", "--memory", "128M", "--count", "50"]
    given += ["--rounds", "1", "--keep", "--dir", str(tmp_path)]
    met = run(index_cold.main, monkeypatch, *given)
    out = capsys.readouterr().out
    assert out.count("MISSED") + out.count(" met\n") == 4 and met == ("MISSED" not in out)
    store = vector_store.VectorStore(4_000, 0, tmp_path)
    found = index_cold.ask(store, memory=128 << 20, wanted=1.0, count=30, bound=256 << 20)
    assert len(found.seconds) == 30 and found.recall == 1
    assert 10_000_000 < found.peak < 256 << 20, "its own group's, not that of these tests"
    assert 0 < index_cold.read_disk(store, 0, 256 << 20) < 1


def test_a_limit_without_a_place_for_what_is_kept_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UsageError, match="--keep needs a --dir"):
        run(index_cold.main, monkeypatch, "--keep")


def test_cold_targets_are_medians_and_the_recall_is_the_worst() -> None:
    def cold(p50: float, recall: float) -> index_cold.Cold:
        return index_cold.Cold([p50] * 98 + [p50 * 4] * 2, 1, recall, 20, 20, 1, 1, 1)

    rounds = [cold(0.001, 0.98), cold(0.004, 0.97), cold(0.002, 0.98)]
    wanted = index_cold.targets_of(rounds, cold(1, 0.98), [0.0001, 0.0001, 0.0001], 0.97)
    assert [one.measured for one in wanted] == pytest.approx([20, 4, 0.97, 0.01])
    assert [one.met for one in wanted] == [True, True, True, False]


@pytest.mark.exhaustive
def test_lookups_go_on_beside_a_writer_and_find_what_it_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(index_live, "STEP", 100)
    given = ["--n", "1500", "--added", "300", "--idle", "0.2", "--memory", "256M"]
    run(index_live.main, monkeypatch, *given, "--dir", str(tmp_path / "w"))
    out = capsys.readouterr().out
    assert "missed, of 3 vectors just added" in out and "beside the writer" in out
    assert list((tmp_path / "w").iterdir()) == []


@pytest.mark.exhaustive
def test_an_added_vector_that_is_not_found_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = vector_store.VectorStore(500, 0, tmp_path)
    store.make(memory=MEMORY, wanted=0.9)
    # The writer, in a process of its own, adds the rows of another seed than those asked for.
    run_child = index_live_child.run_child
    monkeypatch.setattr(
        index_live_child,
        "run_child",
        lambda module, spec, done: run_child(module, spec | {"seed": 9}, done),
    )
    found = index_live_child.ask(str(store.store), MEMORY, 0, 500, 50, 100, 0.9, 0.1)
    assert (found["asked"], found["missed"]) == (2, 2)
    (_, missed) = index_live.targets_of(index_live.Live(**found))
    assert missed.measured == 2 and not missed.met


@pytest.mark.exhaustive
def test_a_writer_that_fails_ends_the_measurement(tmp_path: Path) -> None:
    store = vector_store.VectorStore(500, 0, tmp_path)
    store.make(memory=MEMORY, wanted=0.9)
    with Store.open(store.store) as other:
        other.remove(ids=[1])  # takes the lock
        with pytest.raises(BenchError, match="is being written by process"):
            index_live_child.ask(str(store.store), MEMORY, 0, 500, 50, 100, 0.9, 0.1)


def test_more_than_a_commit_is_added(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--added is at least"):
        index_live.measure(tmp_path, 10, 10, memory=MEMORY, wanted=0.9, idle_s=0, seed=0)
