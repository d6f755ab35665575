"""Arrays of vectors that people bring, from the file to every command that meets them."""

import csv
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from children import report_commits
from helpers import sized
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from engine import Kind, Store, UsageError
from engine.cli.app import app
from engine.config import Limits
from engine.ingest.checked_vectors import checked
from engine.sources.items import VectorBlock
from engine.storage.changeset import Chunk
from engine.storage.writer import Writer

RNG = np.random.default_rng(5)
DIM = 12
ROWS = RNG.standard_normal((500, DIM)).astype(np.float32)


def saved(path: Path, rows: np.ndarray) -> Path:
    np.save(path, rows)
    return path


def limits(rows: int = 37) -> Limits:
    """Commits and extents of a few rows, fewer of which are checked at a time: all edges are met."""
    few = 5 * DIM
    return Limits(chunk_vectors=rows, removal_batch=11, extent_rows=100, checked_numbers=few)


def with_store(path: Path, rows: int = 37, **options) -> Store:
    return Store.open(path, create=True, encoder="none", limits=limits(rows), **options)


def vectors_of(store: Store) -> dict[str, np.ndarray]:
    """The vector of each row by its name, read out of an export."""
    folder = store.path.parent / f"export-{os.urandom(4).hex()}"
    store.export(folder)
    if not (folder / "vectors.npy").exists():
        return {}
    rows, ids = np.load(folder / "vectors.npy"), np.load(folder / "vector_ids.npy")
    found = {}
    for row, id_ in zip(rows, ids.tolist(), strict=True):
        (name,) = store.sources(id_)
        found[name] = row
    shutil.rmtree(folder)
    return found


def is_whole(store: Store) -> bool:
    report = store.check()
    assert report.problems == ()
    assert report.leftover_bytes == 0
    return report.ok


def best(rows: np.ndarray, query: np.ndarray, k: int) -> np.ndarray:
    return np.sort(rows @ query)[::-1][:k]


# --- what goes in ---------------------------------------------------------------------------------


def test_each_row_is_an_id_in_order_and_named_by_its_row(tmp_path):
    doubled = np.concatenate([ROWS, ROWS[:50]])  # equal rows are not one
    path = saved(tmp_path / "v.npy", doubled)
    with with_store(tmp_path / "store") as store:
        report = store.ingest(path)
        assert (report.seen, report.added, report.rejected) == (550, 550, 0)
        info = store.info()
        assert (info.images, info.vectors, info.sources) == (550, 550, 550)
        assert info.encoder is not None
        assert (info.encoder["name"], info.encoder["dim"]) == ("vectors", DIM)
        records = list(store.records())
        assert [record.id for record in records] == list(range(1, 551))
        for row in (0, 36, 37, 99, 100, 549):
            assert store.sources(row + 1) == [f"{path}#{row}"]
            found = store.get(row + 1)
            assert (found.kind, found.height, found.width) == (Kind.VECTOR, 1, DIM)
            assert (found.key, found.proof, found.place) == (b"", b"", None)
        assert found == records[-1]
        assert store.has_given_vectors
        assert not store.has_encoder
        assert is_whole(store)


def test_what_was_ingested_is_not_read_again(tmp_path):
    path = saved(tmp_path / "v.npy", ROWS)
    with with_store(tmp_path / "store") as store:
        store.ingest(path)
        commit = store.session.snapshot.state.commit
        report = store.ingest(path)
        assert (report.added, report.unchanged, report.seen) == (0, 500, 500)
        assert store.session.snapshot.state.commit == commit


@pytest.mark.slow
@given(
    n=st.integers(0, 60),
    dim=st.integers(1, 9),
    bad=st.sets(st.integers(0, 59)),
    zero=st.sets(st.integers(0, 59)),
    rows=st.integers(1, 70),
    normalize=st.booleans(),
    wide=st.booleans(),
)
@settings(max_examples=sized(15, 50), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_array_in_any_pieces_is_found_again(tmp_path, n, dim, bad, zero, rows, normalize, wide):
    array = np.random.default_rng(n).standard_normal((n, dim))
    for at in zero:
        array[at : at + 1] = 0
    for at in bad:
        array[at : at + 1] = np.nan if at % 2 else -np.inf
    array = array if wide else array.astype(np.float32)
    folder = tmp_path / os.urandom(6).hex()
    folder.mkdir()
    path = saved(folder / "v.npy", array)
    finite = np.isfinite(array).all(axis=1)
    good = finite & (array != 0).any(axis=1) if normalize else finite
    with with_store(folder / "store", rows) as store:
        report = store.ingest(path, normalize=normalize)
        assert (report.seen, report.added, report.rejected) == (n, good.sum(), (~good).sum())
        expected = array.astype(np.float32)[good]
        if normalize:
            expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        found = vectors_of(store)
        assert list(found) == [f"{path}#{row}" for row in np.flatnonzero(good)]
        if len(expected):
            assert np.allclose(np.array(list(found.values())), expected, atol=1e-6)
            queries = np.random.default_rng(9).standard_normal((3, dim)).astype(np.float32)
            scores, ids = store.search_vectors(queries, k=5, recall=1)
            if normalize:
                queries /= np.linalg.norm(queries, axis=1, keepdims=True)
            for query, mine, of in zip(queries, scores, ids, strict=True):
                there = of > 0
                assert there.sum() == min(5, len(expected))
                assert np.allclose(mine[there], best(expected, query, 5), atol=1e-4)
                assert np.allclose(expected[of[there] - 1] @ query, mine[there], atol=1e-4)
        again = store.ingest(path, normalize=normalize)
        assert (again.added, again.unchanged, again.rejected) == (0, good.sum(), (~good).sum())
        assert is_whole(store)


@pytest.mark.slow
def test_rows_that_are_no_vectors_are_told_as_stretches(tmp_path):
    array = ROWS.copy()
    array[17:30, 3] = np.nan
    array[60] = np.inf
    array[70:75] = 0
    path = saved(tmp_path / "v.npy", array)
    with with_store(tmp_path / "store") as store:
        report = store.ingest(path, normalize=True)
        assert (report.added, report.rejected) == (481, 19)
        told = [json.loads(line) for line in (tmp_path / "store/rejects.jsonl").open()]
        assert [line["source"] for line in told] == [
            f"{path}#{which}" for which in ("17-29", "60", "70-73", "74")
        ]
        assert "NaN, infinite" in told[0]["reason"]
        assert "length zero" in told[2]["reason"]
        assert store.info().rejects == 4
        array[17:30] = array[60] = array[70:75] = 1  # mended
        saved(path, array)
        assert store.ingest(path).added == 19
        assert store.info().rejects == 0
        assert is_whole(store)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["<f8", "<f2", ">f4", ">f8"])
def test_other_floats_are_converted(tmp_path, dtype):
    path = saved(tmp_path / "v.npy", ROWS.astype(dtype))
    with with_store(tmp_path / "store") as store:
        assert store.ingest(path).added == 500
        found = np.array(list(vectors_of(store).values()))
        assert np.array_equal(found, ROWS.astype(dtype).astype(np.float32))


def test_what_is_too_large_for_float32_is_rejected(tmp_path):
    array = ROWS.astype(np.float64)
    array[7, 0] = 1e300
    with with_store(tmp_path / "store") as store:
        assert store.ingest(saved(tmp_path / "v.npy", array)).rejected == 1
        assert store.get(8).width == DIM
        assert store.sources(8) == [f"{tmp_path}/v.npy#8"]


REFUSED = {
    "flat": (ROWS[0], "images are uint8 or bool, vectors are"),
    "deep": (np.zeros((2, 3, 4), np.float32), "images are uint8 or bool, vectors are"),
    "no-numbers": (np.zeros((5, 0), np.float32), "with d from 1"),
    "long": (np.zeros((2, 65_537), np.float32), "with d from 1 to 65,536"),
    "fortran": (np.asfortranarray(ROWS), "Fortran order"),
    "objects": (np.array([[1.5, None]], object), "Python objects"),
    "complex": (ROWS.astype(np.complex64), "dtype complex64"),
    "whole": (ROWS.astype(np.int32), "dtype int32"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_an_array_that_is_none_of_vectors_is_a_problem_and_no_more(tmp_path, name):
    array, reason = REFUSED[name]
    path = saved(tmp_path / "v.npy", array)
    with with_store(tmp_path / "store") as store:
        report = store.ingest(path)
        assert (report.added, report.rejected) == (0, 1)
        assert reason in (tmp_path / "store/rejects.jsonl").read_text()
        assert store.info().encoder is None


@pytest.mark.slow
def test_a_kind_is_for_images(tmp_path):
    path = saved(tmp_path / "v.npy", ROWS)
    with with_store(tmp_path / "store") as store:
        assert store.ingest(f"{path}?kind=8bit").rejected == 1
        assert "leave ?kind=8bit out" in (tmp_path / "store/rejects.jsonl").read_text()


@pytest.mark.slow
def test_an_empty_array_decides_nothing(tmp_path, tiny_encoder):
    with Store.open(tmp_path / "store", create=True, encoder=str(tiny_encoder)) as store:
        report = store.ingest(saved(tmp_path / "v.npy", ROWS[:0]))
        assert (report.seen, report.rejected) == (0, 0)
        nothing = np.full((4, DIM), np.nan, np.float32)
        assert store.ingest(saved(tmp_path / "w.npy", nothing)).rejected == 4
        assert store.has_encoder


@pytest.mark.slow
def test_a_file_that_was_cut_short_gives_what_it_has(tmp_path):
    path = saved(tmp_path / "v.npy", ROWS)
    data = path.read_bytes()
    path.write_bytes(data[: 128 + 4 * DIM * 100 + 5])
    with with_store(tmp_path / "store") as store:
        report = store.ingest(path)
        assert (report.added, report.rejected) == (100, 1)
        again = store.ingest(path)
        assert (again.added, again.unchanged, again.rejected) == (0, 100, 1)
        path.write_bytes(data)
        whole = store.ingest(path)
        assert (whole.added, whole.unchanged, whole.rejected) == (400, 100, 0)
        assert list(vectors_of(store)) == [f"{path}#{row}" for row in range(500)]
        assert is_whole(store)


def test_a_header_that_lies_costs_nothing(tmp_path):
    path = saved(tmp_path / "v.npy", ROWS[:4])
    data = path.read_bytes()
    path.write_bytes(data.replace(b"(4, 12)", b"(4000000000000, 12)")[:128] + data[128:])
    with with_store(tmp_path / "store", memory="128M") as store:
        report = store.ingest(path)
        assert report.rejected == 1
        assert report.added <= 4


def test_members_of_an_archive(tmp_path):
    np.savez_compressed(tmp_path / "v.npz", a=ROWS[:200], b=ROWS[200:])
    with with_store(tmp_path / "store") as store:
        assert store.ingest(tmp_path / "v.npz").added == 500
        found = vectors_of(store)
        assert np.array_equal(np.array(list(found.values())), ROWS)
        assert list(found)[199:201] == [f"{tmp_path}/v.npz#a#199", f"{tmp_path}/v.npz#b#0"]


# --- in memory ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "lies",
    [
        ROWS,
        np.asfortranarray(ROWS),
        np.repeat(ROWS, 2, axis=1)[:, ::2],
        ROWS.astype(">f4"),
        ROWS.astype(np.float64),
    ],
)
def test_an_array_in_memory_however_it_lies(tmp_path, lies):
    with with_store(tmp_path / "store") as store:
        assert store.ingest(lies, name="emb").added == 500
        assert store.sources(18) == ["memory:emb#17"]
        assert np.array_equal(np.array(list(vectors_of(store).values())), ROWS)
        again = store.ingest(np.ascontiguousarray(lies), name="emb")
        assert again.unchanged == 500
        changed = ROWS.copy()
        changed[400] = 2
        assert store.ingest(changed, name="emb").added == 1
        assert store.ingest(changed[:10], name="other").added == 10


def test_what_is_wrong_with_one_in_memory_is_told_at_once(tmp_path):
    with with_store(tmp_path / "store") as store:
        for bad, reason in (
            (ROWS[0], "shape"),
            (ROWS[:, :0], "from 1"),
            (ROWS.astype(np.longdouble), "float32 is needed"),
        ):
            with pytest.raises(UsageError, match=reason):
                store.ingest(bad, name="emb")
        with pytest.raises(UsageError, match="need a name"):
            store.ingest(ROWS)


# --- one d, one kind ------------------------------------------------------------------------------


def test_a_store_holds_one_length(tmp_path):
    with with_store(tmp_path / "store") as store:
        store.ingest(ROWS, name="a")
        with pytest.raises(UsageError, match=r"of 11 dimensions .* of 12 dimensions"):
            store.ingest(ROWS[:, :11], name="b")
        assert store.info().images == 500


def test_an_array_of_another_length_ends_no_run_that_has_begun(tmp_path):
    paths = [
        saved(tmp_path / "a.npy", ROWS[:4]),
        saved(tmp_path / "b.npy", ROWS[4:8, :11]),
        saved(tmp_path / "c.npy", ROWS[8:12]),
    ]
    with with_store(tmp_path / "store") as store:
        for at in range(2):
            report = store.ingest(*paths)
            assert (report.added, report.unchanged) == ((8, 0), (0, 8))[at]
            assert report.rejected == 1
            plan = Store.plan(tmp_path / "store", *paths)
            assert (plan.images, plan.unchanged, plan.rejected) == (0, 8, 1)
        assert "of 11 dimensions" in (tmp_path / "store/rejects.jsonl").read_text()
        for ask in (store.ingest, functools.partial(Store.plan, tmp_path / "store")):
            with pytest.raises(UsageError, match="of 11 dimensions"):
                ask(paths[1])
        assert is_whole(store)


@pytest.mark.slow
def test_given_vectors_are_not_mixed_with_those_of_an_encoder(tmp_path, tiny_encoder):
    Image.fromarray(RNG.integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    with Store.open(tmp_path / "store", create=True, encoder=str(tiny_encoder)) as store:
        store.ingest(tmp_path / "a.png")
        with pytest.raises(UsageError, match="the encoder tiny") as caught:
            store.ingest(ROWS, name="b")
        assert len(str(caught.value).splitlines()) == 1
        assert store.info().images == 1
    with Store.open(tmp_path / "given", create=True, encoder=str(tiny_encoder)) as store:
        store.ingest(ROWS, name="b")  # it had no vectors yet
        assert not (tmp_path / "given/encoder/1").exists()
        with pytest.raises(UsageError, match="holds imported vectors"):
            store.ingest(tmp_path / "a.png", encoder=str(tiny_encoder))
        report = store.ingest(tmp_path / "a.png")  # without a vector
        assert report.added == 1
        info = store.info()
        assert (info.images, info.vectors) == (501, 500)
        assert is_whole(store)


def test_one_call_may_mix_sources(tmp_path):
    for i in range(5):
        Image.fromarray(RNG.integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / f"{i}.png")
    path = saved(tmp_path / "v.npy", ROWS[:60])
    sources = [tmp_path / "0.png", path, tmp_path / "1.png", "synthetic:bits?n=30&seed=1"]
    with with_store(tmp_path / "store") as store:
        assert store.ingest(*sources, normalize=True).added == 92
        assert store.ingest(*sources).unchanged == 92
        kinds = [record.kind for record in store.records()]
        assert kinds == [Kind.U8] + [Kind.VECTOR] * 60 + [Kind.U8] + [Kind.BITS] * 30
        assert store.ingest(ROWS[60:], name="more").added == 440
        _, ids = store.search_vectors(ROWS[[0, 59, 60]], k=1, recall=1)
        assert ids[:, 0].tolist() == [2, 61, 93]
        assert is_whole(store)


def test_images_behind_the_first_vectors_of_a_call_get_none(tmp_path, tiny_encoder):
    Image.fromarray(RNG.integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    path = saved(tmp_path / "v.npy", ROWS[:60])
    with Store.open(tmp_path / "store", create=True, encoder=str(tiny_encoder)) as store:
        assert store.ingest(path, tmp_path / "a.png").added == 61
        assert (store.info().images, store.info().vectors) == (61, 60)
        assert np.array_equal(np.array(list(vectors_of(store).values())), ROWS[:60])
        assert is_whole(store)


@pytest.mark.slow
def test_normalizing_is_fixed_with_the_first_vectors(tmp_path):
    with with_store(tmp_path / "plain") as store:
        store.ingest(ROWS, name="a")
        with pytest.raises(UsageError, match="not normalized"):
            store.ingest(ROWS[:5], name="b", normalize=True)
    with with_store(tmp_path / "unit") as store:
        store.ingest(ROWS * 7, name="a", normalize=True)
        store.ingest(ROWS[:5] * 3, name="b")
        assert np.allclose(np.linalg.norm(list(vectors_of(store).values()), axis=1), 1, atol=1e-6)
        scores, ids = store.search_vectors(ROWS[:1] * 100, k=2, recall=1)
        assert ids.tolist() == [[1, 501]]
        assert np.allclose(scores, 1)
        assert store.info().encoder["normalized"]


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1, 1e30, 3e38])
def test_lengths_may_be_any_that_float32_holds(scale):
    rows = np.full((3, 9), scale, np.float32)
    rows[1] = 0
    found = checked(VectorBlock(5, rows), normalize=True)
    assert found.wrong.tolist() == [0, 2, 0]
    assert np.allclose(found.rows[[0, 2]], 1 / 3, atol=1e-6)


# --- searching ------------------------------------------------------------------------------------


def test_what_queries_may_be(tmp_path):
    with with_store(tmp_path / "store") as store:
        store.ingest(ROWS, name="a", normalize=True)
        expected = store.search_vectors(ROWS[:3], k=4)
        for queries in (
            ROWS[:3].astype(np.float64),
            ROWS[:3].tolist(),
            np.asfortranarray(ROWS[:3]),
            np.repeat(ROWS[:3], 2, axis=1)[:, ::2],
        ):
            found = store.search_vectors(queries, k=4)
            assert np.array_equal(found[1], expected[1])
            assert np.allclose(found[0], expected[0])
        scores, ids = store.search_vectors(ROWS[:2], k=600)
        assert scores.shape == ids.shape == (2, 600)
        assert (ids[:, :500] > 0).all()
        assert (ids[:, 500:] == -1).all()
        assert np.isneginf(scores[:, 500:]).all()
        bad = {
            r"\(1, d\)": ROWS[0],
            r"\(n, 12\)": ROWS[:2, :11],
            "NaN": ROWS[:1] * np.nan,
            "infinite": [[1e300] * DIM],
            "query 1 has length zero": np.stack([ROWS[0], ROWS[0] * 0]),
            "must be an array of numbers": [["a"] * DIM],
            "must be an array": [[1.0], [1.0, 2.0]],
        }
        for reason, queries in bad.items():
            with pytest.raises(UsageError, match=reason) as caught:
                store.search_vectors(queries)
            assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_a_vector_is_looked_up_in_the_similar_tier(tmp_path):
    path = saved(tmp_path / "v.npy", ROWS)
    picture = tmp_path / "a.png"
    Image.fromarray(RNG.integers(0, 256, (90, 90, 3), np.uint8)).save(picture)
    with with_store(tmp_path / "store") as store:
        store.ingest(path, picture)
        result = store.lookup(f"{path}#17", k=3)
        assert result.searched == ("similar",)
        assert result.similar[0].sources == (f"{path}#17",)
        expected = store.search_vectors(ROWS[17:18], k=3)
        assert [hit.id for hit in result.similar] == expected[1][0].tolist()
        assert np.allclose([hit.score for hit in result.similar], expected[0][0], atol=1e-5)
        every = list(store.lookup_many([str(path)], k=1))
        assert len(every) == 500
        (least,) = [store.lookup(f"{path}#17", k=3, min_score=expected[0][0, 1] - 1e-4)]
        assert len(least.similar) == 2
        for tiers in (["identical"], ["near"]):
            with pytest.raises(UsageError, match="only the similar tier takes vectors"):
                store.lookup(f"{path}#17", tiers=tiers)
        # Images are not compared with what was given.
        found = store.lookup(picture)
        assert found.searched == ("identical", "near")
        assert found.identical[0].id == 501
        with pytest.raises(UsageError, match="holds imported vectors") as caught:
            store.lookup(picture, tiers=["similar"])
        assert len(str(caught.value).splitlines()) == 1
        np.save(tmp_path / "q.npy", ROWS[:1, :5])
        with pytest.raises(UsageError, match="has 5 dimensions"):
            store.lookup(f"{tmp_path}/q.npy#0")
        np.save(tmp_path / "q.npy", np.full((1, DIM), np.nan, np.float32))
        (result,) = store.lookup_many([f"{tmp_path}/q.npy"])
        assert result.error == "holds NaN or infinite values"


@pytest.mark.slow
def test_a_vector_is_compared_with_an_encoders_too(tmp_path, tiny_encoder):
    picture = tmp_path / "a.png"
    Image.fromarray(RNG.integers(0, 256, (90, 90, 3), np.uint8)).save(picture)
    with Store.open(tmp_path / "store", create=True, encoder=str(tiny_encoder)) as store:
        store.ingest(picture)
        (own,) = vectors_of(store).values()
        np.save(tmp_path / "q.npy", own[None] * 5)
        (hit,) = store.lookup(f"{tmp_path}/q.npy#0").similar
        assert hit.score == pytest.approx(1)
    with with_store(tmp_path / "none") as store:
        store.ingest(picture)
        with pytest.raises(UsageError, match="has no vectors"):
            store.lookup(f"{tmp_path}/q.npy#0")


@pytest.mark.slow
def test_vectors_are_near_to_nothing(tmp_path):
    """Their fingerprints are zeros, and so are those of images that are nearly blank."""
    blank = np.zeros((40, 40, 3), np.bool_)
    dots = [blank.copy() for _ in range(4)]
    for i, dot in enumerate(dots):
        dot[3 : 12 + i, 3:12] = True
    with with_store(tmp_path / "with") as store, with_store(tmp_path / "without") as plain:
        for at, image in enumerate([blank, *dots]):
            store.ingest(ROWS[at * 90 : at * 90 + 90], name=f"v{at}")
            for each in (store, plain):
                each.ingest([(f"{at}", image)])
        for query in (blank, *dots):
            for most in (31, 120, 256):
                found = store.lookup(query, tiers=["near"], max_distance=most).near
                expected = plain.lookup(query, tiers=["near"], max_distance=most).near
                assert [(hit.sources, hit.distance) for hit in found] == [
                    (hit.sources, hit.distance) for hit in expected
                ]
        assert len(store.lookup(dots[0], tiers=["near"]).near) > 1


# --- files that change, and runs that end early ---------------------------------------------------


@pytest.mark.slow
def test_a_changed_file_keeps_the_ids_of_rows_that_are_the_same(tmp_path):
    path = saved(tmp_path / "v.npy", ROWS)
    with with_store(tmp_path / "store") as store:
        store.ingest(path)
        os.utime(path, ns=(1, 1))
        report = store.ingest(path)
        assert (report.added, report.unchanged) == (0, 500)
        assert store.info().removed == 0
        changed = ROWS[:450].copy()
        changed[[0, 7, 8, 99, 100, 200]] = 3
        changed[300] = np.nan
        saved(path, changed)
        report = store.ingest(path)
        assert (report.added, report.unchanged, report.rejected) == (6, 443, 1)
        info = store.info()
        assert (info.images, info.vectors, info.sources, info.removed) == (449, 449, 449, 57)
        found = vectors_of(store)
        assert set(found) == {f"{path}#{row}" for row in range(450) if row != 300}
        for name, row in found.items():
            assert np.array_equal(row, changed[int(name.rpartition("#")[2])])
        assert store.sources(2) == [f"{path}#1"]
        with pytest.raises(UsageError, match="no image 1"):
            store.get(1)
        assert is_whole(store)
        assert store.ingest(path).unchanged == 449
        saved(path, ROWS[:0])
        store.ingest(path)
        assert store.info().images == 0
        assert is_whole(store)


@pytest.mark.slow
@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 40),  # rows of the file
            st.sets(st.integers(0, 39)),  # that are another vector
            st.sets(st.integers(0, 39), max_size=4),  # that are none
            st.sets(st.integers(0, 39), max_size=4),  # that are removed from the store first
        ),
        min_size=1,
        max_size=4,
    ),
    rows=st.integers(1, 17),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_whatever_becomes_of_a_file_the_store_has_what_it_holds(tmp_path, steps, rows):
    folder = tmp_path / os.urandom(6).hex()
    folder.mkdir()
    path = folder / "v.npy"
    array = ROWS[:40].copy()
    with with_store(folder / "store", rows) as store:
        for number, (n, other, bad, gone) in enumerate(steps):
            for at in other:
                array[at] = number + at
            written = array[:n].copy()
            for at in bad:
                written[at : at + 1] = np.nan
            saved(path, written)
            os.utime(path, ns=(number, number))
            names = [f"{path}#{row}" for row in gone]
            if names:
                store.remove(sources=names)
            store.ingest(path)
            good = np.isfinite(written).all(axis=1)
            found = vectors_of(store)
            assert set(found) == {f"{path}#{row}" for row in np.flatnonzero(good)}
            for name, row in found.items():
                assert np.array_equal(row, written[int(name.rpartition("#")[2])])
            info = store.info()
            assert info.images == info.vectors == info.sources == good.sum()
            assert is_whole(store)


@pytest.mark.slow
def test_an_array_that_becomes_one_of_images_and_back(tmp_path):
    path = saved(tmp_path / "v.npy", ROWS)
    with with_store(tmp_path / "store") as store:
        store.ingest(path)
        saved(path, RNG.integers(0, 256, (20, 8, 8, 3), np.uint8))
        assert store.ingest(path).added == 20
        assert store.lookup(f"{path}#3").identical[0].id == 504
        assert (store.info().images, store.info().vectors) == (20, 0)
        assert is_whole(store)
        saved(path, ROWS)
        assert store.ingest(path).added == 500
        assert store.info().vectors == 500
        assert is_whole(store)


def test_an_array_of_images_with_the_stamp_of_one_of_vectors(tmp_path):
    path = saved(tmp_path / "v.npy", ROWS[:100])
    with with_store(tmp_path / "store") as store:
        store.ingest(path)
        before = path.stat()
        saved(path, RNG.integers(0, 256, (100, 4, 4, 3), np.uint8))  # as many bytes
        assert path.stat().st_size == before.st_size
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert store.ingest(path).added == 100
        assert {record.kind for record in store.records()} == {Kind.U8}
        assert is_whole(store)


def child(store: str, source: str) -> None:
    """Ingest, and tell of each commit."""

    def report(files: Writer, chunk: Chunk) -> None:
        for _, array in chunk.arrays:
            print(array.rows, flush=True)

    report_commits(report)
    with Store.open(store, limits=limits(100)) as opened:
        opened.ingest(source)


@pytest.mark.slow
def test_an_ingest_that_was_killed_goes_on_where_it_was(tmp_path):
    rows = np.concatenate([ROWS] * 10)
    rows[::7] = np.nan
    good = np.isfinite(rows).all(axis=1)
    path = saved(tmp_path / "v.npy", rows)
    with_store(tmp_path / "store").close()
    at = 0
    for kill_after in sized((3,), (1, 3, 7)):
        command = [sys.executable, __file__, str(tmp_path / "store"), str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            for _ in range(kill_after):
                at = int(run.stdout.readline())
            run.kill()
        with Store.open(tmp_path / "store", read_only=True) as reader:
            assert reader.check().problems == ()
            assert len(reader) >= good[:at].sum()
            assert reader.info().vectors == len(reader)
    with Store.open(tmp_path / "store", limits=limits()) as store:
        report = store.ingest(path)
        assert report.unchanged >= good[:at].sum()
        assert report.added + report.unchanged == good.sum() == len(store)
        expected = np.flatnonzero(good)
        for id_ in (1, 2, at, len(store)):
            assert store.sources(id_) == [f"{path}#{expected[id_ - 1]}"]
        assert np.array_equal(np.array(list(vectors_of(store).values())), rows[good])
        assert is_whole(store)


# --- everything else that meets a record ----------------------------------------------------------


@pytest.mark.slow
def test_removing_by_id_and_by_source(tmp_path):
    path = saved(tmp_path / "v.npy", ROWS)
    with with_store(tmp_path / "store") as store:
        store.ingest(path)
        report = store.remove(ids=[1, 38, 500], sources=[f"{path}#10"])
        assert (report.images, report.sources, report.not_found) == (4, 4, ())
        assert [r.id for r in store.records()][:3] == [2, 3, 4]
        assert is_whole(store)
        _, ids = store.search_vectors(ROWS[[0, 10]], k=500)
        assert not np.isin(ids, [1, 11, 38, 500]).any()
        assert (ids[:, :496] > 0).all()
        store.optimize()
        assert is_whole(store)
        # What is removed and still in the file comes back, alone.
        report = store.ingest(path)
        assert (report.added, report.unchanged) == (4, 496)
        assert store.sources(501) == [f"{path}#0"]
        assert is_whole(store)
        assert store.remove(sources=[path]).images == 500
        assert store.info().images == store.info().vectors == 0
        assert is_whole(store)


@pytest.mark.slow
def test_what_is_missing_goes(tmp_path):
    path = saved(tmp_path / "v.npy", ROWS)
    with with_store(tmp_path / "store") as store:
        store.ingest(path)
        store.ingest(ROWS, name="kept")
        path.unlink()
        assert store.remove(missing=True, yes=True).images == 500
        assert store.sources(501) == ["memory:kept#0"]
        assert is_whole(store)


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["csv", "parquet"])
def test_an_export_has_them(tmp_path, format_):
    with with_store(tmp_path / "store") as store:
        store.ingest(ROWS[:60], name="a")
        store.ingest([("b", np.zeros((8, 8, 3), np.uint8))])
        report = store.export(tmp_path / "out", format=format_)
    assert (report.images, report.sources, report.vectors) == (61, 61, 60)
    assert np.array_equal(np.load(tmp_path / "out/vectors.npy"), ROWS[:60])
    if format_ == "csv":
        rows = list(csv.DictReader((tmp_path / "out/images.csv").open()))
        empty = ""
    else:
        from pyarrow import parquet

        rows = parquet.read_table(tmp_path / "out/images.parquet").to_pylist()
        empty = None
    assert [row["kind"] for row in rows] == ["vector"] * 60 + ["bits"]
    for column in ("key", "proof", "fingerprint", "file_hash"):
        assert rows[0][column] == empty
    assert rows[60]["key"]
    assert str(rows[0]["width"]) == str(DIM)


@pytest.mark.slow
def test_a_backup_is_the_same_and_as_small(tmp_path):
    with with_store(tmp_path / "store") as store:
        store.ingest(ROWS, name="a")
        store.backup(tmp_path / "copy")
        with Store.open(tmp_path / "copy") as copy:
            assert is_whole(copy)
            assert np.array_equal(
                copy.search_vectors(ROWS[:9], k=3)[1], store.search_vectors(ROWS[:9], k=3)[1]
            )
            assert copy.ingest(ROWS, name="a").unchanged == 500
            assert copy.info().bytes["fingerprints"] == store.info().bytes["fingerprints"]


@pytest.mark.slow
def test_their_fingerprints_take_no_room(tmp_path):
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(np.ones((60_000, 1), np.float32), name="a")
        assert store.session.snapshot.state.extents["fingerprints.pdq"] == [[1, 60_000 * 32]]
        assert store.info().bytes["fingerprints"] < 100_000
        assert is_whole(store)


@pytest.mark.slow
def test_a_dry_run_counts_them(tmp_path):
    path = saved(tmp_path / "v.npy", ROWS)
    plan = Store.plan(tmp_path / "store", path)
    assert (plan.images, plan.unchanged, plan.rejected) == (500, 0, 0)
    assert plan.bytes_to_read >= ROWS.nbytes
    with with_store(tmp_path / "store") as store:
        store.ingest(path)
    plan = Store.plan(tmp_path / "store", path)
    assert (plan.images, plan.unchanged, plan.disk_bytes) == (0, 500, 0)
    saved(path, ROWS[:, 1:])
    with pytest.raises(UsageError, match="of 11 dimensions"):
        Store.plan(tmp_path / "store", path)


def test_an_engine_that_knows_of_no_vectors_is_told_so(tmp_path):
    with with_store(tmp_path / "store") as store:
        store.ingest(ROWS, name="a")
    assert json.loads((tmp_path / "store/MANIFEST.json").read_text())["features"] == ["vectors"]


# --- damage ---------------------------------------------------------------------------------------


def damage(store: Path, pattern: str, at: int, length: int = 1) -> None:
    (path,) = store.glob(pattern)
    with path.open("r+b") as file:
        file.seek(4096 + at)
        data = file.read(length)
        file.seek(4096 + at)
        file.write(bytes(byte ^ 0xFF for byte in data))


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [False, True])
def test_damaged_vectors_are_read_again_from_their_array(tmp_path, normalize):
    path = saved(tmp_path / "v.npy", ROWS)
    with with_store(tmp_path / "store") as store:
        store.ingest(path, normalize=normalize)
        store.remove(ids=[12])
        before = vectors_of(store)
    damage(tmp_path / "store", "vectors/*/00000001.f32", 0, 48 * 60)
    damage(tmp_path / "store", "vectors/*/00000002.ids", 8)
    damage(tmp_path / "store", "fingerprints/00000001.pdq", 77)
    with Store.open(tmp_path / "store", limits=limits()) as store:
        assert not store.check().ok
        report = store.check(fix=True)
        assert report.ok
        assert not any("may be wrong" in problem.what for problem in report.problems)
        assert is_whole(store)
        after = vectors_of(store)
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_what_cannot_be_read_again_is_told(tmp_path):
    path = saved(tmp_path / "v.npy", ROWS)
    with with_store(tmp_path / "store") as store:
        store.ingest(path)
        store.ingest(ROWS, name="m")
    changed = ROWS.copy()
    changed[3] = 9
    saved(path, changed)
    damage(tmp_path / "store", "vectors/*/00000001.f32", 0, 48 * 3)
    (extent,) = (tmp_path / "store").glob("vectors/*/00000007.f32")
    with extent.open("r+b") as file:
        file.seek(4096)
        file.write(np.full(DIM, np.nan, np.float32).tobytes())
    with Store.open(tmp_path / "store", limits=limits()) as store:
        report = store.check(fix=True)
        assert report.ok
        told = " ".join(problem.what for problem in report.problems)
        assert "images 1 to 37: a vector may be wrong" in told
        assert "image 601: no vector is left" in told
        assert is_whole(store)
        assert np.array_equal(vectors_of(store)["memory:m#100"], np.zeros(DIM, np.float32))


@pytest.mark.slow
def test_a_lost_manifest_is_made_anew(tmp_path):
    with with_store(tmp_path / "store") as store:
        store.ingest(ROWS, name="a", normalize=True)
        encoder = store.info().encoder
    (tmp_path / "store/MANIFEST.json").unlink()
    assert Store.salvage(tmp_path / "store")
    with Store.open(tmp_path / "store", limits=limits()) as store:
        assert is_whole(store)
        assert store.info().encoder == encoder


# --- the command ----------------------------------------------------------------------------------


def command(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.stdout


@pytest.mark.slow
def test_the_command(tmp_path):
    path, store = saved(tmp_path / "v.npy", ROWS), tmp_path / "store"
    code, out = command("ingest", path, "--normalize", "--store", store, "--json")
    assert (code, json.loads(out)["added"]) == (0, 500)
    code, out = command("lookup", path, "-k", 2, "--store", store, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["similar"][0]["id"] for line in lines] == list(range(1, 501))
    assert [line["query"] for line in lines][:2] == [f"{path}#0", f"{path}#1"]
    assert command("check", "--store", store)[0] == 0
    code, out = command("info", "--store", store)
    assert "vectors, 12 dimensions" in out
    assert not list(store.glob("encoder/*"))


if __name__ == "__main__":
    child(*sys.argv[1:])
