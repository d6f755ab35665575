"""Vectors, their segments and the search over both: exact where it says so, never wrong elsewhere."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from damage import FailingDisk
from indexed import few_files, nearest, recall_of, write

from engine import Store
from engine.config import Limits, MemoryBudget
from engine.index import build
from engine.index.background import BackgroundWork
from engine.index.calibrate import measure
from engine.index.row_filter import COMPARED_ROWS
from engine.index.search import VectorIndex
from engine.index.train import train_quantizer
from engine.storage.bitmap import IdSet
from engine.storage.disk import using
from engine.storage.durable import UnreadableError
from engine.storage.index_files import file_problem, quantizer_path, segment_path
from engine.storage.manifest import OperatingPoint, QuantizerEntry, SegmentEntry
from engine.storage.vectors import Vectors

pytestmark = pytest.mark.usefixtures("one_thread")


def clustered(n: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    """(n, dim) unit vectors in a hundred clusters."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((100, dim))
    found = centres[rng.integers(0, 100, n)] + 0.3 * rng.standard_normal((n, dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def built(
    store: Path, found: Vectors, *spans: tuple[int, int], compared_rows: int = COMPARED_ROWS
) -> VectorIndex:
    """An index with a segment over each of some spans of rows."""
    work = BackgroundWork(MemoryBudget())
    entry, quantizer = train_quantizer(store, 1, 1, found, found.rows, work)
    made = [
        build.build_segment(store, 1 + 100 * i, entry, quantizer, found, [span], work)[0]
        for i, span in enumerate(spans, 1)
    ]
    return VectorIndex(store, found, [entry], made, compared_rows=compared_rows)


def reopened(
    store: Path, found: Vectors, quantizers: list[QuantizerEntry], made: list[SegmentEntry]
) -> VectorIndex:
    return VectorIndex(store, found, quantizers, made)


# --- vectors --------------------------------------------------------------------------------------


def test_vectors_are_addressed_by_one_row_number_over_all_extents(tmp_path: Path) -> None:
    block = clustered(37)
    found = write(tmp_path, block, each=10)
    assert len(list(tmp_path.rglob("*.f32"))) == 4
    rows = np.array([36, 0, 9, 10, 10, 29, 30], np.int64)
    assert np.array_equal(found.gather(rows), block[rows])
    assert found.ids(np.array([[36, -1], [9, 10]], np.int64)).tolist() == [[360, -1], [90, 100]]
    pieces = list(found.blocks(5, 34, 8))
    assert np.array_equal(np.concatenate(pieces), block[5:34])
    assert max(map(len, pieces)) <= 8
    assert found.gather(np.empty(0, np.int64)).shape == (0, 16)


# --- search ---------------------------------------------------------------------------------------


def test_exact_search_is_numpys(tmp_path: Path) -> None:
    block, queries = clustered(500), clustered(20, seed=1)
    index = VectorIndex(tmp_path, write(tmp_path, block))
    for recall in (None, 1.0):
        scores, rows = index.search(queries, 7, recall=recall)
        expected_scores, expected_rows = nearest(block, queries, 7)
        assert np.array_equal(rows, expected_rows)
        np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)


def test_scores_below_every_number_are_padding(tmp_path: Path) -> None:
    block = np.full((40, 12), 3e38, np.float32)
    block[:10] *= -1
    index = VectorIndex(tmp_path, write(tmp_path, block))
    for queries in (1, 3):
        scores, rows = index.search(np.full((queries, 12), 3e38, np.float32), 40)
        assert (np.isneginf(scores) == (scores < 0)).all()
        assert (np.sort(rows[:, :30]) == np.arange(10, 40)).all()
        assert (rows[:, 30:] == -1).all() or (np.sort(rows[:, 30:]) == np.arange(10)).all()


@pytest.mark.slow
def test_lists_out_of_reach_are_left_out(tmp_path: Path) -> None:
    block, queries = clustered(3000), clustered(40, seed=1)
    found = write(tmp_path, block)
    index = built(tmp_path, found, (0, 1000), (1200, 3000))
    far = index.scan.list_distances(queries)
    assert far.shape == (40, index.quantizer.nlist)
    assert far.min() <= 1
    rows = np.arange(3000)
    lists = index.scan.lists_of(rows)
    indexed = index.is_indexed(rows)
    assert (lists[~indexed] == -1).all()
    assert np.array_equal(lists[indexed], index.quantizer.encode(block[indexed])[0])
    assert index.scan.lists_of(np.array([2999, -1, 5])).tolist() == [lists[2999], -1, lists[5]]
    nlist = index.quantizer.nlist
    truth = nearest(block, queries, 10)[1]
    for times in (1.2, 2.0, 1e9):
        point = OperatingPoint(nlist, 3000, 1, 1, times)
        rows = index.search(queries, 10, point=point)[1]
        inside = np.take_along_axis(far, np.maximum(lists, 0)[truth], axis=1) <= times * 0.9999
        inside |= lists[truth] < 0
        for mine, true, there in zip(rows, truth, inside, strict=True):
            assert set(true[there]) <= set(mine)
        for at in range(40):  # one alone finds the same
            one = index.search(queries[at : at + 1], 10, point=point)[1]
            assert len({*one[0]} & {*rows[at]}) >= 9
    assert np.array_equal(rows, truth)


@pytest.fixture(scope="module")
def sorted_by_cluster(
    tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> tuple[np.ndarray, VectorIndex]:
    """Vectors whose neighbours have neighbouring rows, and a measured index over them."""
    folder = tmp_path_factory.mktemp("sorted")
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((25, 16))
    of = np.sort(rng.integers(0, 25, 6000))
    made = centres[of] + 0.5 * rng.standard_normal((6000, 16))
    block = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    index = built(folder, write(folder, block), (0, 3000), (3000, 6000), compared_rows=100)
    index.measured = measure(index, None, 0.95)
    return block, index


@pytest.mark.usual
@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.8, 0.97])
def test_what_is_not_wanted_may_lie_together(
    sorted_by_cluster: tuple[np.ndarray, VectorIndex], share: float
) -> None:
    """The nearest rows are not wanted: the wanted ones lie in lists further from the query."""
    block, index = sorted_by_cluster
    rng = np.random.default_rng(1)
    kept = np.arange(6000) >= (1 - share) * 6000
    queries = block[~kept][rng.permutation((~kept).sum())[:100]]
    wanted = IdSet.of(np.flatnonzero(kept) * 10)
    truth = np.flatnonzero(kept)[nearest(block[kept], queries, 10)[1]]
    for asked in (0.9, 0.99):
        rows = index.search(queries, 10, recall=asked, wanted=wanted)[1]
        assert kept[rows].all()
        assert recall_of(rows, truth) > asked - 0.03
        one = [
            index.search(queries[i : i + 1], 10, recall=asked, wanted=wanted)[1] for i in range(40)
        ]
        assert recall_of(np.concatenate(one), truth[:40]) > asked - 0.05


@pytest.mark.parametrize("indexed", [False, True])
def test_where_there_are_fewer_than_k_the_answer_is_padded(tmp_path: Path, indexed: bool) -> None:
    block = clustered(30)
    found = write(tmp_path, block)
    index = built(tmp_path, found, (0, 30)) if indexed else VectorIndex(tmp_path, found)
    scores, rows = index.search(block[:2], 50)
    assert scores.shape == rows.shape == (2, 50)
    assert [sorted(line) for line in rows[:, :30].tolist()] == [list(range(30))] * 2
    assert (rows[:, 30:] == -1).all()
    assert np.isneginf(scores[:, 30:]).all()


@pytest.mark.slow
@pytest.mark.parametrize("dim", [16, 15, 67])
def test_segments_find_nearly_all_and_score_them_in_full(tmp_path: Path, dim: int) -> None:
    block, queries = clustered(6000, dim), clustered(50, dim, seed=1)
    found = write(tmp_path, block)
    index = built(tmp_path, found, (0, 6000))
    scores, rows = index.search(queries, 10)
    expected_scores, expected_rows = nearest(block, queries, 10)
    assert recall_of(rows, expected_rows) >= 0.9
    assert np.isclose(scores[:, 0], expected_scores[:, 0], atol=1e-5).mean() >= 0.95
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", queries, block[rows]), atol=1e-5)
    assert np.array_equal(index.search(queries, 10, recall=1.0)[1], expected_rows)


def test_rows_between_and_behind_segments_are_searched_too(tmp_path: Path) -> None:
    block = clustered(900)
    found = write(tmp_path, block)
    index = built(tmp_path, found, (100, 400), (600, 800))
    scores, rows = index.search(block, 1)
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-5)
    assert np.array_equal(rows[:, 0], np.arange(900))


@pytest.mark.slow
def test_equal_vectors_by_the_thousand_are_no_matter(tmp_path: Path) -> None:
    block = np.concatenate([clustered(500), np.repeat(clustered(1, seed=9), 4000, axis=0)])
    found = write(tmp_path, block)
    index = built(tmp_path, found, (0, len(block)))
    scores, rows = index.search(block[[-1, 3]], 20)
    np.testing.assert_allclose(scores[0], 1, atol=1e-5)
    assert len(set(rows[0])) == 20
    assert rows[0].min() >= 500
    assert rows[1, 0] == 3


def test_building_again_gives_the_same_segment(tmp_path: Path) -> None:
    found = write(tmp_path, clustered(1000))
    first, again = (built(tmp_path, found, (0, 1000)) for _ in range(2))
    assert first.quantizer_entry == again.quantizer_entry
    assert first.segments[0].entry == again.segments[0].entry


# --- damage ---------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip_its_last_byte(path: Path) -> None:
    """Of a quantizer, this is in the codebook; of a segment, only ``check`` finds it."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_damaged_codebook_is_not_searched_by(tmp_path: Path) -> None:
    before = built(tmp_path, write(tmp_path, clustered(800)), (0, 800))
    entry = before.quantizer_entry
    assert entry is not None
    flip_its_last_byte(quantizer_path(tmp_path, entry.number))
    index = reopened(tmp_path, before.vectors, [entry], [one.entry for one in before.segments])
    assert index.segments == []
    assert "checksum" in index.problems[0]


def flip_its_kind(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut, empty, Path.unlink, flip_its_kind])
@pytest.mark.parametrize("part", ["quantizer", "segment"])
def test_an_index_that_cannot_be_opened_is_searched_exactly(
    tmp_path: Path,
    damage: Callable[[Path], None],
    part: str,
) -> None:
    block = clustered(800)
    found = write(tmp_path, block)
    before = built(tmp_path, found, (0, 800))
    assert before.quantizer_entry is not None
    entry: QuantizerEntry | SegmentEntry = before.segments[0].entry
    path = segment_path(tmp_path, entry.number)
    if part == "quantizer":
        entry = before.quantizer_entry
        path = quantizer_path(tmp_path, entry.number)
    damage(path)
    assert file_problem(path, entry.bytes, entry.xxh64) is not None
    index = reopened(
        tmp_path, found, [before.quantizer_entry], [one.entry for one in before.segments]
    )
    assert index.segments == []
    (problem,) = index.problems
    assert "engine check --fix" in problem
    assert np.array_equal(index.search(block, 3)[1], nearest(block, block, 3)[1])


@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc")
def test_what_cannot_be_opened_now_is_not_taken_for_damaged(tmp_path: Path) -> None:
    """A writer names again the segments that are open, and deletes the others."""
    found = write(tmp_path, clustered(400))
    before = built(tmp_path, found, (0, 200), (200, 400))
    assert before.quantizer_entry is not None
    failed = 0
    for free in range(10):
        with few_files(free):
            try:
                index = reopened(
                    tmp_path,
                    found,
                    [before.quantizer_entry],
                    [one.entry for one in before.segments],
                )
            except UnreadableError as error:
                assert "raise the limit of open files" in str(error)
                failed += 1
            else:
                assert len(index.segments) == 2
                break
    assert 0 < failed < 10


@pytest.mark.slow
@pytest.mark.parametrize("queries", [1, 20])
def test_a_flipped_byte_in_a_segment_makes_no_wrong_score(tmp_path: Path, queries: int) -> None:
    block = clustered(1000)
    found = write(tmp_path, block)
    before = built(tmp_path, found, (0, 1000))
    assert before.quantizer_entry is not None
    entry = before.segments[0].entry
    path = segment_path(tmp_path, entry.number)
    whole = path.read_bytes()
    # In the codes and labels of the lists, which FAISS reads without looking at them.
    for at in np.linspace(5000, len(whole) - 16, 40).astype(int).tolist():
        data = bytearray(whole)
        data[at : at + 16] = bytes(value ^ 0xA0 for value in data[at : at + 16])
        path.unlink()  # mapped files are replaced, never changed
        path.write_bytes(data)
        changed = replace(entry, xxh64=at)  # or codes that are in memory would be used
        index = reopened(tmp_path, found, [before.quantizer_entry], [changed])
        scores, rows = index.search(block[:queries], 5)
        there = rows >= 0
        assert (rows < 1000).all()
        assert all(len(set(line[line >= 0])) == (line >= 0).sum() for line in rows)
        exact = np.einsum("qd,qkd->qk", block[:queries], block[rows])
        np.testing.assert_allclose(scores[there], exact[there], atol=1e-5)
        assert file_problem(path, entry.bytes, entry.xxh64) == "its checksum is wrong"


# --- segments of a store --------------------------------------------------------------------------


LIMITS = Limits(exact_rows=30, unindexed_rows=480)


def colours(first: int, count: int) -> np.ndarray:
    """(count, 4, 4, 3) pictures whose mean colours differ."""
    return np.stack(
        [
            np.random.default_rng(i).integers(0, 256, (4, 4, 3), np.uint8)
            for i in range(first, first + count)
        ]
    )


@pytest.mark.slow
def test_a_growing_store_has_few_segments_and_finds_every_row(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    with Store.open(
        tmp_path / "store", create=True, encoder=str(tiny_encoder), limits=LIMITS
    ) as store:
        for at in range(0, 400, 40):
            np.save(tmp_path / f"{at}.npy", colours(at, 40))
            store.ingest(tmp_path / f"{at}.npy")
        np.save(tmp_path / "rest.npy", colours(400, 20))  # too few to be indexed
        store.ingest(tmp_path / "rest.npy")
        rows = [s["rows"] for s in store.info().segments]
        assert len(rows) <= 5
        assert sum(rows) == 400
        assert len(list((tmp_path / "store" / "index").iterdir())) == len(rows) + 1
        index = store.index.current
        assert index is not None
        assert index.bare == [(400, 420)]
        queries = index.vectors.gather(np.arange(420, dtype=np.int64))
        scores, ids = store.search_vectors(queries, 1)
        np.testing.assert_allclose(scores[:, 0], 1, atol=1e-4)
        assert np.array_equal(ids[:, 0], np.arange(1, 421))
    with Store.open(
        tmp_path / "store", limits=LIMITS
    ) as store:  # the next writer leaves them where they are
        store.ingest("synthetic:bits?n=1")
        assert store.check().problems == ()


@pytest.mark.slow
def test_a_reader_goes_on_while_the_writer_merges_the_segments_that_it_uses(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, query = tmp_path / "store", colours(7, 1)[0]
    with Store.open(where, create=True, encoder=str(tiny_encoder), limits=LIMITS) as writer:
        np.save(tmp_path / "a.npy", colours(0, 40))
        writer.ingest(tmp_path / "a.npy")
        mapped, unmapped = (Store.open(where, read_only=True) for _ in range(2))
        with mapped, unmapped:
            mapped.lookup(query)
            np.save(tmp_path / "b.npy", colours(40, 40))
            writer.ingest(tmp_path / "b.npy")
            assert len(writer.info().segments) == 1
            for reader in (mapped, unmapped):
                # As if in the middle of a call, before it looks whether there is anything new.
                monkeypatch.setattr(reader.session, "follow", lambda: None)
                result = reader.lookup(query, tiers=["similar"], k=100)
                assert len(result.similar) == 40
                assert result.similar[0].id == 8
                assert reader.check().problems == ()
                reader.refresh()
                assert len(reader.lookup(query, tiers=["similar"], k=100).similar) == 80


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut, Path.unlink, flip_its_kind])
def test_check_finds_a_damaged_segment_and_builds_it_anew(
    tmp_path: Path,
    tiny_encoder: Path,
    damage: Callable[[Path], None],
) -> None:
    where, query = tmp_path / "store", colours(7, 1)[0]
    np.save(tmp_path / "a.npy", colours(0, 60))
    with Store.open(where, create=True, encoder=str(tiny_encoder), limits=LIMITS) as store:
        store.ingest(tmp_path / "a.npy")
    (path,) = (where / "index").glob("*.ivf")
    damage(path)
    with Store.open(where, limits=LIMITS) as store:
        assert store.lookup(query, tiers=["similar"], k=1).similar[0].id == 8
        report = store.check()
        assert not report.ok
        assert [problem.part for problem in report.problems] == ["index/00000002.ivf"]
        report = store.check(fix=True)
        assert report.ok
        assert [problem.fixed for problem in report.problems] == [True]
    with Store.open(where, read_only=True) as store:
        assert store.check().problems == ()
        assert store.lookup(query, tiers=["similar"], k=1).similar[0].id == 8
        assert len(store.info().segments) == 1


@pytest.mark.slow
def test_an_index_that_cannot_be_written_is_left_for_later(
    tmp_path: Path,
    tiny_encoder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    np.save(tmp_path / "a.npy", colours(0, 40))
    with Store.open(
        tmp_path / "store", create=True, encoder=str(tiny_encoder), limits=LIMITS
    ) as store:
        with using(FailingDisk("pwrite", only=r"\.ivf")):
            assert store.ingest(tmp_path / "a.npy").added == 40
        assert "the index was not built" in caplog.text
        assert store.info().segments == []
        assert store.lookup(colours(7, 1)[0], tiers=["similar"], k=1).similar[0].id == 8
        store.ingest(tmp_path / "a.npy")
        assert len(store.info().segments) == 1
        assert store.check().problems == ()
