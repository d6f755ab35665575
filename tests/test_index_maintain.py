"""What is built when: segments as a store grows, quantizers as it changes, recall as both do."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from indexed import (
    DIM,
    clustered,
    leftovers,
    nearest,
    new_store,
    recall_of,
    small_limits,
)

from engine import Store
from engine.cli.render import recall_text
from engine.index import calibrate, segment_layout
from engine.storage import manifest

LEAST = 100
LIMITS = small_limits(LEAST, recall_sample=50)
pytestmark = pytest.mark.usefixtures("one_thread")


def quantizers(store: Store) -> list[tuple[int, int]]:
    return [(q.number, q.trained_on) for q in store.session.snapshot.manifest.quantizers]


def expect_all(store: Store, block: np.ndarray, recall: float | None = None) -> None:
    """Vector i has id i + 1, and is what is nearest to itself."""
    scores, ids = store.search_vectors(block, 1, recall=recall)
    assert np.array_equal(ids[:, 0], np.arange(1, len(block) + 1))
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-5)


@pytest.mark.slow
def test_a_store_that_grows_by_little_has_few_segments_and_finds_every_vector(
    tmp_path: Path,
) -> None:
    block = clustered(3000)
    most = 0
    with (
        new_store(tmp_path / "s", LIMITS) as store,
        Store.open(tmp_path / "s", read_only=True) as reader,
    ):
        for at in range(0, 3000, LEAST):
            store.ingest(block[at : at + LEAST], name=f"{at}")
            new = block[at : at + LEAST]
            for opened in (store, reader):
                ids = opened.search_vectors(new, 1)[1]
                assert np.array_equal(ids[:, 0], np.arange(at + 1, at + LEAST + 1))
            segments = store.info().segments
            most = max(most, len(segments))
            assert sum(segment["rows"] for segment in segments) == at + LEAST
            assert leftovers(store.path) == []
        assert 1 < most <= 1 + np.log2(3000 / LEAST)
        expect_all(store, block)
        assert store.check().problems == ()


def test_vectors_are_compared_exactly_until_there_are_enough_of_them(tmp_path: Path) -> None:
    block = clustered(2 * LEAST)
    with new_store(tmp_path / "s", LIMITS) as store:
        store.ingest(block[: LEAST - 1], name="a")
        assert store.info().segments == []
        expect_all(store, block[: LEAST - 1])
        store.ingest(block[LEAST - 1 : LEAST], name="b")
        assert [segment["rows"] for segment in store.info().segments] == [LEAST]
        store.ingest(block[LEAST:-1], name="c")  # too few for another
        assert [segment["rows"] for segment in store.info().segments] == [LEAST]
        expect_all(store, block[:-1])


@pytest.mark.slow
def test_the_quantizer_is_trained_anew_at_four_times_as_many_vectors(tmp_path: Path) -> None:
    block = clustered(10 * LEAST)
    with new_store(tmp_path / "s", LIMITS) as store:
        trained = []
        for at in range(0, len(block), LEAST):
            store.ingest(block[at : at + LEAST], name=f"{at}")
            ((_, rows),) = quantizers(store)
            trained.append(rows // LEAST)
        assert trained == [1, 1, 1, 4, 4, 4, 4, 4, 4, 4]
        expect_all(store, block)


@pytest.mark.slow
def test_recall_is_measured_again_at_twice_as_many_vectors_and_with_a_new_quantizer(
    tmp_path: Path,
) -> None:
    block = clustered(10 * LEAST)
    # So few vectors are never quite like others.
    with new_store(tmp_path / "s", replace(LIMITS, moved_ratio=10)) as store:
        measured = []
        for at in range(0, len(block), LEAST):
            store.ingest(block[at : at + LEAST], name=f"{at}")
            found = store.session.snapshot.manifest.measured
            assert found is not None
            assert found.quantizer == quantizers(store)[0][0]
            measured.append(found.rows // LEAST)
        assert measured == [1, 2, 2, 4, 4, 4, 4, 8, 8, 8]  # at 4 it is trained anew, too


@pytest.mark.slow
def test_a_wanted_recall_is_kept_as_the_store_grows(tmp_path: Path) -> None:
    block = clustered(9 * LEAST)
    with new_store(tmp_path / "s", LIMITS) as store:
        store.ingest(block[:LEAST], name="a")
        assert store.optimize(recall=0.5).recall["target"] == 0.5
        store.ingest(block[LEAST:], name="b")
        info = store.info().recall
        assert info["target"] == 0.5
        assert info["vectors"] == 9 * LEAST
    with Store.open(tmp_path / "s", read_only=True) as store:
        assert store.info().recall == info


@pytest.mark.slow
def test_vectors_of_another_kind_are_noticed_and_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Trained in a plane, and then there are others in all directions."""
    rng = np.random.default_rng(3)
    dim = 64
    flat = np.zeros((1500, dim), np.float32)
    flat[:, :4] = rng.standard_normal((1500, 4))
    round_ = rng.standard_normal((4000, dim)).astype(np.float32)
    with new_store(tmp_path / "s", LIMITS) as store:
        with caplog.at_level(logging.WARNING, "engine"):
            store.ingest(flat, name="flat", normalize=True)
            store.ingest(flat[:200] + np.float32(1e-3), name="more", normalize=True)
            before = store.session.snapshot.manifest.measured
            assert "drifted" not in caplog.text
            store.ingest(round_, name="round", normalize=True)
        assert "drifted" in caplog.text
        after = store.session.snapshot.manifest.measured
        assert before.quantizer == after.quantizer
        assert after.rows == 5700
        report = store.optimize()
        assert report.laid_out == 5700
        assert quantizers(store)[0][0] != before.quantizer
        assert store.optimize().laid_out == 0


@pytest.mark.slow
def test_what_is_built_and_measured_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    block = clustered(3 * LEAST)
    with new_store(tmp_path / "s", LIMITS) as store, caplog.at_level(logging.INFO, "engine.index"):
        store.ingest(block[:LEAST], name="a")
        assert "trained a quantizer" in caplog.text
        assert f"over {LEAST} vectors" in caplog.text
        assert f"with 50 of {LEAST} vectors" in caplog.text
        store.ingest(block[LEAST : 2 * LEAST], name="b")
        assert "merged 2 segments" in caplog.text
    assert {record.levelname for record in caplog.records} == {"INFO"}


@pytest.mark.slow
def test_what_was_removed_is_never_found(tmp_path: Path) -> None:
    block = clustered(8 * LEAST)
    gone = np.random.default_rng(0).permutation(len(block))[: 3 * LEAST] + 1
    with new_store(tmp_path / "s", LIMITS) as store:
        store.ingest(block, name="a")
        with Store.open(tmp_path / "s", read_only=True) as reader:
            expect_all(reader, block)
            store.remove(ids=gone.tolist())
            left = np.setdiff1d(np.arange(1, len(block) + 1), gone)
            for opened in (store, reader):
                for recall in (None, 1, 0.01):
                    scores, ids = opened.search_vectors(block, 20, recall=recall)
                    assert not np.isin(ids, gone).any()
                    assert (ids > 0).all()
                truth = left[nearest(block[left - 1], block, 10)[1]]
                assert recall_of(opened.search_vectors(block, 10)[1], truth) > 0.9
            scores, ids = reader.search_vectors(block[:3], len(block))
            assert (ids[:, : len(left)] > 0).all()
            assert (ids[:, len(left) :] == -1).all()
            assert np.isneginf(scores[:, len(left) :]).all()


@pytest.mark.slow
def test_recall_one_is_numpys(tmp_path: Path) -> None:
    block, queries = clustered(5 * LEAST), clustered(50, seed=1)
    with new_store(tmp_path / "s", LIMITS) as store:
        store.ingest(block, name="a")
        for k in (1, 7, 5 * LEAST, 6 * LEAST):
            scores, ids = store.search_vectors(queries, k, recall=1)
            expected, rows = nearest(block, queries, k)
            most = expected.shape[1]
            np.testing.assert_allclose(scores[:, :most], expected, atol=1e-5)
            assert recall_of(ids[:, :most], rows + 1) == 1
            assert (ids[:, most:] == -1).all()
        assert len(store.info().segments) == 1


@pytest.mark.slow
@pytest.mark.parametrize("recall", [None, 0.3, 1])
def test_where_there_are_fewer_than_k_the_answer_is_padded(
    tmp_path: Path, recall: float | None
) -> None:
    block = clustered(3 * LEAST)
    with new_store(tmp_path / "s", LIMITS) as store:
        store.ingest(block, name="a")
        scores, ids = store.search_vectors(block[:5], 4 * LEAST, recall=recall)
        assert [sorted(line) for line in ids[:, : 3 * LEAST].tolist()] == [
            list(range(1, 3 * LEAST + 1))
        ] * 5
        assert (ids[:, 3 * LEAST :] == -1).all()
        assert np.isneginf(scores[:, 3 * LEAST :]).all()


@pytest.mark.slow
def test_ten_thousand_equal_vectors_are_no_matter(tmp_path: Path) -> None:
    same = clustered(1, seed=9)
    block = np.concatenate([clustered(2000), np.repeat(same, 10_000, axis=0)])
    with new_store(tmp_path / "s", LIMITS) as store:
        store.ingest(block, name="a")
        scores, ids = store.search_vectors(same, 300)
        assert len(set(ids[0].tolist())) == 300
        np.testing.assert_allclose(scores, 1, atol=1e-5)
        ids = store.search_vectors(block[:500], 1)[1]
        assert np.mean(ids[:, 0] == np.arange(1, 501)) > 0.95
        assert store.check().problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("value", [0, 1, 1e20, 1e-20, 3e38])
def test_where_all_vectors_are_the_same_there_is_an_index_too(tmp_path: Path, value: float) -> None:
    block = np.full((5 * LEAST, DIM), value, np.float32)
    with new_store(tmp_path / "s", LIMITS) as store:
        store.ingest(block[:LEAST], name="a")
        store.ingest(block[LEAST:], name="b")
        assert sum(segment["rows"] for segment in store.info().segments) == 5 * LEAST
        ids = store.search_vectors(block[:1], 5 * LEAST)[1]
        assert sorted(ids[0].tolist()) == list(range(1, 5 * LEAST + 1))
        store.optimize()
        assert store.optimize().laid_out == 0, "nothing has changed"
        assert store.check().problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("length", [1e-30, 1e-20, 1e20, 1e30])
def test_how_long_queries_are_changes_nothing_of_what_is_found(
    tmp_path: Path, length: float
) -> None:
    block, queries = clustered(20 * LEAST, dim=32), clustered(50, dim=32, seed=1)
    with new_store(tmp_path / "s", LIMITS) as store:
        store.ingest(block, name="a")
        point = store.index.current.point(10, None)
        assert point is not None
        ids = store.search_vectors(queries * np.float32(length), 10)[1]
        assert recall_of(ids, store.search_vectors(queries, 10)[1]) > 0.95


@pytest.mark.slow
def test_what_is_measured_of_a_store_whose_sample_is_removed_harms_nothing(tmp_path: Path) -> None:
    """All that can be looked for are zeros, of which none is a query."""
    block = np.zeros((3 * LEAST, DIM), np.float32)
    block[: 2 * LEAST] = clustered(2 * LEAST)
    with new_store(tmp_path / "s", LIMITS) as store:
        store.ingest(block, name="a")
        store.remove(ids=range(1, 2 * LEAST + 1))
        index = store.index.current
        found = calibrate.measure(index, store.session.snapshot.alive(), 0.9, sample=1000)
        assert found.sample == 0
        assert sorted(store.search_vectors(block[:1], LEAST)[1][0]) == list(
            range(2 * LEAST + 1, 3 * LEAST + 1)
        )


@pytest.mark.slow
def test_damaged_vectors_do_not_keep_others_from_being_ingested(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    block = clustered(2 * LEAST)
    with new_store(tmp_path / "s", LIMITS) as store:
        store.ingest(block[: LEAST - 1], name="a")
    (path,) = (tmp_path / "s" / "vectors").rglob("*.f32")
    data = bytearray(path.read_bytes())
    data[4096:] = np.full((LEAST - 1) * DIM, np.nan, np.float32).tobytes()
    path.write_bytes(data)
    with Store.open(tmp_path / "s", limits=LIMITS) as store:
        assert store.ingest(block[LEAST - 1 : LEAST + 1], name="b").added == 2
        assert "the index was not built" in caplog.text
        assert leftovers(store.path) == []


def test_where_faiss_arranges_codes_otherwise_rows_are_searched_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_layout, "is_layout_of_faiss", lambda: False)
    block = clustered(2 * LEAST)
    with new_store(tmp_path / "s", LIMITS) as store:
        assert store.ingest(block, name="a").added == 2 * LEAST
        ids = store.search_vectors(block[:20], 1)[1][:, 0]
        assert ids.tolist() == list(range(1, 21))
        assert "arranges codes differently" in store.optimize(recall=0.9).skipped[0]


@pytest.mark.slow
def test_an_index_that_another_faiss_cannot_search_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    block = clustered(3 * LEAST)
    with new_store(tmp_path / "s", LIMITS) as store:
        store.ingest(block[: 2 * LEAST], name="a")
        before = store.session.snapshot.manifest
        assert before.segments and before.measured
    monkeypatch.setattr(segment_layout, "is_layout_of_faiss", lambda: False)
    with Store.open(tmp_path / "s", limits=LIMITS) as store:
        store.ingest(block[2 * LEAST :], name="b")
        assert "the index was not built: FAISS" in caplog.text
        store.optimize(recall=0.5)
        expect_all(store, block)
        assert "check --fix" not in caplog.text
        now = store.session.snapshot.manifest
        assert (now.segments, now.quantizers, now.measured) == (
            before.segments,
            before.quantizers,
            before.measured,
        )


@pytest.mark.slow
def test_an_index_that_could_not_be_named_is_built_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, failed = manifest.Manifest.save, []

    def full(self: manifest.Manifest, path: Path) -> None:
        if self.segments and not failed:
            failed.append(1)
            raise OSError(28, "No space left on device")
        save(self, path)

    monkeypatch.setattr(manifest.Manifest, "save", full)
    block = clustered(4 * LEAST)
    with new_store(tmp_path / "s", LIMITS) as store:
        store.ingest(block[: 2 * LEAST], name="a")
        assert failed
        assert store.session.snapshot.manifest == manifest.load(store.path)
        store.ingest(block[2 * LEAST :], name="b")
        assert store.session.snapshot.manifest == manifest.load(store.path)
        assert (
            sum(segment.rows for segment in store.session.snapshot.manifest.segments) == 4 * LEAST
        )


@pytest.mark.slow
def test_what_info_says_of_recall_is_what_searches_do(tmp_path: Path) -> None:
    same = np.repeat(clustered(4, DIM), 500, axis=0)
    with Store.open(tmp_path / "same", create=True, limits=LIMITS) as opened:
        opened.ingest(same, name="same")
        recall = opened.info().recall
        assert (
            recall is not None
            and opened.info().segments
            and recall["exact"]
            and recall["measured"] is None
        )
        queries = clustered(50, DIM, seed=3)
        found = opened.search_vectors(queries, 10)[0]
        assert np.allclose(found, nearest(same, queries, 10)[0], atol=1e-4)
        assert "all vectors are compared" in recall_text(recall)
        index = opened.session
        before = index.snapshot.manifest.measured
        assert before is not None
        index.snapshot.manifest = replace(
            index.snapshot.manifest, measured=replace(before, quantizer=0)
        )
        recall = opened.info().recall  # as after a kill between building and measuring
        assert recall is not None
        assert not recall["exact"] and recall["measured"] is None
        assert "not measured yet" in recall_text(recall)
