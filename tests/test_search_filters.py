"""Searches among some images only: nothing else is found, and nothing among them is lost."""

import io
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import encoded, mask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import Store, UsageError
from engine.config import Limits
from engine.index.open import OpenIndex
from engine.search import filters
from engine.search.filters import ids_within
from engine.storage.bitmap import IdSet
from engine.storage.extent_reader import MovedError
from engine.storage.source_names import bases

COUNT = 3000  # vectors
GONE = (1, 2, 3, 700, 1500, 2999)  # of images that are removed
DIM = 16


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# --- vectors --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Iterator[Store]:
    """A store of many vectors in segments, some in none, and some of removed images."""
    folder = tmp_path_factory.mktemp("vectors")
    draw = np.random.default_rng(5)
    limits, encoder = Limits(exact_rows=1000), str(tiny_encoder)
    with Store.open(folder / "store", create=True, encoder=encoder, limits=limits) as store:
        for part in (2500, 500):
            images = draw.integers(0, 256, (part, 16, 16, 3), np.uint8)
            store.ingest(images, name=f"part{part}")
        store.remove(ids=GONE)
        assert store.session.snapshot.manifest.segments
        yield store


def closest(
    store: Store, queries: np.ndarray, k: int, wanted: set[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The truth: all inner products, sorted."""
    index = store.index.current
    assert index is not None
    rows = np.arange(COUNT, dtype=np.int64)
    ids = index.vectors.ids(rows)
    scores = queries @ index.vectors.gather(rows).T
    scores[:, ~np.isin(ids, sorted(wanted - set(GONE)))] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, 1)
    found = np.where(np.isinf(best), -1, ids[order])
    pad = ((0, 0), (0, max(k - COUNT, 0)))
    return np.pad(best, pad, constant_values=-np.inf), np.pad(found, pad, constant_values=-1)


def queries_of(count: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def expect(store: Store, queries: np.ndarray, k: int, wanted: set[int], ids: Any) -> None:
    scores, found = store.search_vectors(queries, k, ids=ids, recall=1)
    best, truth = closest(store, queries, k, wanted)
    assert (scores.dtype, scores.shape) == (np.float32, (len(queries), k))
    assert (found.dtype, found.shape) == (np.int64, (len(queries), k))
    np.testing.assert_allclose(scores, best, atol=1e-5)
    assert found.tolist() == truth.tolist()


@pytest.mark.usual
@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 10, 200, 5000])
@pytest.mark.parametrize("some", [1, 10, COUNT // 100, COUNT // 2, COUNT])
def test_the_closest_among_some_are_those_of_all_products(
    vectors: Store, some: int, k: int
) -> None:
    ids = np.random.default_rng(some).permutation(np.arange(1, COUNT + 1))[:some]
    expect(vectors, queries_of(7), k, set(ids.tolist()), ids)


@pytest.mark.slow
@pytest.mark.parametrize("some", [1, 10, COUNT // 100, COUNT // 2, COUNT])
def test_what_is_found_by_the_index_is_among_them_too(vectors: Store, some: int) -> None:
    wanted = np.random.default_rng(some).permutation(np.arange(1, COUNT + 1))[:some]
    queries, k = queries_of(20), 10
    scores, found = vectors.search_vectors(queries, k, ids=wanted)
    best, truth = closest(vectors, queries, k, set(wanted.tolist()))
    assert np.isin(found, [-1, *wanted]).all() and not np.isin(found, GONE).any()
    assert ((found >= 0).sum(axis=1) == (truth >= 0).sum(axis=1)).all()
    shared = [len(set(mine) & set(true)) for mine, true in zip(found, truth, strict=True)]
    assert sum(shared) >= 0.85 * sum(len(set(true.tolist())) for true in truth)
    assert (scores <= best + 1e-5).all()


@pytest.mark.slow
def test_ids_that_can_be_read_once_do_for_a_question_that_is_asked_again(
    vectors: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, moved = OpenIndex.to_search, []

    def late(index: OpenIndex, wanted: IdSet | None) -> Any:
        if not moved:
            moved.append(True)
            raise MovedError("it is elsewhere by now")
        return real(index, wanted)

    monkeypatch.setattr(OpenIndex, "to_search", late)
    expect(vectors, queries_of(3), 4, {5, 9}, (id_ for id_ in (9, 5)))
    assert moved


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.sets(st.integers(-5, COUNT + 5) | st.sampled_from(GONE), max_size=50),
    k=st.integers(1, 60),
    seed=st.integers(0, 5),
)
def test_any_ids_leave_what_they_say(vectors: Store, ids: set[int], k: int, seed: int) -> None:
    expect(vectors, queries_of(2, seed), k, ids, ids)


@pytest.mark.slow
@pytest.mark.parametrize(
    "ids",
    [
        [5, 9, 9, 700],
        (5, 9),
        {5: "five", 9: "nine"},
        range(5, 10, 4),
        pytest.param((id_ for id_ in (9, 5)), id="a generator"),
        [np.int64(5), np.uint8(9)],
        np.array([5, 9], np.uint8),
        np.array([[5, -1], [9, 0]]),
        np.array([5, 9, (1 << 64) - 1, 1 << 63], np.uint64),
        [5, 9, 1 << 62, 1 << 63, 1 << 64, -1, -(1 << 70), 0, COUNT + 1],
    ],
    ids=repr,
)
def test_ids_are_any_integers_and_what_is_not_there_is_ignored(vectors: Store, ids: Any) -> None:
    expect(vectors, queries_of(3), 4, {5, 9}, ids)


@pytest.mark.slow
@pytest.mark.parametrize("ids", [[], (), np.array([]), np.empty(0, np.int64), [700], [COUNT + 1]])
def test_no_ids_find_nothing(vectors: Store, ids: Any) -> None:
    expect(vectors, queries_of(3), 4, set(), ids)
    query = np.full((16, 16, 3), 7, np.uint8)
    result = vectors.lookup(query, ids=ids)
    assert (result.identical, result.near, result.similar) == ((), (), ())
    assert result.searched == ("identical", "near", "similar")


@pytest.mark.slow
@pytest.mark.parametrize(
    "ids",
    [7, "57", b"57", [1.5], ["7"], [None], np.array([1.0]), np.array([True]), np.array("a"), 1.5],
    ids=repr,
)
def test_what_are_no_ids_is_refused(vectors: Store, ids: Any) -> None:
    for ask in (
        lambda: vectors.search_vectors(queries_of(1), 3, ids=ids),
        lambda: vectors.lookup(mask(0), ids=ids),
        lambda: list(vectors.lookup_many([], ids=ids)),
    ):
        with pytest.raises(UsageError, match="ids are whole numbers in a list") as caught:
            ask()
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_ids_and_sources_leave_what_is_in_both(vectors: Store) -> None:
    _, found = vectors.search_vectors(
        queries_of(1), 5, ids=[4, 5, 2499, 2501, 2502], source="memory:part500"
    )
    assert sorted(found[0].tolist()) == [-1, -1, -1, 2501, 2502]
    _, found = vectors.search_vectors(
        queries_of(1), 5, source=["memory:part500#3", "memory:part2500#9"]
    )
    assert sorted(found[0].tolist()) == [-1, -1, -1, 10, 2504]


# --- names ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of every kind of source, with names that begin like each other, and a store of them."""
    folder = tmp_path_factory.mktemp("shelf")
    for seed in range(6):
        write(folder / "p" / f"{seed}.png", encoded(mask(seed)))
    write(folder / "p" / "deep" / "er" / "6.png", encoded(mask(6)))
    write(folder / "p" / "copy of 0.png", encoded(mask(0)))
    write(folder / "p2" / "7.png", encoded(mask(7)))
    write(folder / "p#" / "8.png", encoded(mask(8)))
    write(folder / "p#9.png", encoded(mask(9)))
    write(folder / "bad" / "bad.png", b"\x89PNG\r\n\x1a\n")
    np.save(folder / "a.npy", np.stack([mask(seed) for seed in (0, 20, 21, 21, 21, 22, 23)]))
    write(folder / "a.npy#5", encoded(mask(30))).rename(folder / "a.npy#5.png")
    np.save(folder / "p" / "b.npy", np.stack([mask(seed) for seed in (22, 24)]))
    np.save(folder / "d.npy", np.stack([mask(0)] * 3))
    np.savez(folder / "c.npz", left=mask(25)[None], right=np.stack([mask(26), mask(27)]))
    with tarfile.open(folder / "t.tar", "w") as tar:
        for name, seed in (("x/1.png", 40), ("x/2.png", 1), ("y.png", 41)):
            info = tarfile.TarInfo(name)
            info.size = len(encoded(mask(seed)))
            tar.addfile(info, io.BytesIO(encoded(mask(seed))))
    with zipfile.ZipFile(folder / "p" / "z.zip", "w") as zipped:
        zipped.writestr("m.png", encoded(mask(42)))
    cells = [{"bytes": encoded(mask(seed)), "path": None} for seed in (50, 51, 2)]
    pq.write_table(pa.table({"image": cells}), folder / "q.parquet")
    with Store.open(folder / "store", create=True, encoder="none") as store:
        inside = sorted(path for path in folder.iterdir() if path.name != "store")
        store.ingest(*inside, folder / "p" / "b.npy", folder / "p" / "z.zip")
        store.ingest(f"{folder / 'q.parquet'}?image=image", f"{folder / 'a.npy'}?kind=8bit")
        store.ingest("synthetic:bits?n=9&seed=3", "synthetic:bits?n=4&seed=31")
        store.ingest(np.stack([mask(60), mask(3)]), name="camera/3")
        store.ingest(encoded(mask(61)), name="camera/4")
        gone = [store.lookup(mask(seed)).identical[0].id for seed in (23, 41, 5)]
        store.remove(ids=gone)
        assert store.check().ok
    return folder


NAMES = [
    "p",
    "p/",
    "./p2/../p//",
    "p/0.png",
    "p/copy of 0.png",
    "p/deep",
    "p2",
    "p#",
    "p#9.png",
    "a.npy",
    "a.npy#0",
    "a.npy#3",
    "a.npy#5",
    "a.npy#5.png",
    "a.npy?kind=8bit",
    "a.npy?kind=8bit#1",
    "p/b.npy",
    "d.npy",
    "c.npz",
    "c.npz#right",
    "c.npz#right#1",
    "t.tar",
    "t.tar#x/2.png",
    "p/z.zip",
    "p/z.zip#m.png",
    "q.parquet",
    "q.parquet#2",
    "synthetic:bits?seed=3",
    "synthetic:bits?n=2&seed=3",
    "synthetic:bits?seed=3#4",
    "memory:camera/3",
    "memory:camera/3#1",
    "memory:camera/4",
    "memory:camera",
    ".",
    "/",
]


def is_inside(source: str, name: str, folder: Path) -> bool:
    """Whether a source of an image is what ``name`` stands for, by its text alone."""
    base = name
    if not name.startswith(("memory:", "synthetic:")):
        head, mark, row = name.partition("#")
        base = os.path.normpath(folder / head) + mark + row
    elif "n=" in name:
        base = "synthetic:bits?seed=3"
    if base == "/":
        return source.startswith("/")
    if source == base or source.startswith(base + "/"):
        return True
    path = folder / name.partition("#")[0].partition("?")[0]
    behind = "#" if not path.is_dir() and path != folder / "p" else ""
    return bool(behind) and source.startswith((base + "#", base + "?"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_name_stands_for_the_images_seen_in_it(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(shelf)
    with Store.open(shelf / "store", read_only=True) as store:
        listed = {record.id: store.sources(record.id) for record in store.records()}
        wanted = {
            id_
            for id_, sources in listed.items()
            if any(is_inside(source, name, shelf) for source in sources)
        }
        assert wanted
        found = ids_within(store.session, [(name, tuple(bases(name)))])
        assert set(found.ids().tolist()) == wanted
        for seed in (0, 1, 2, 3, 21, 22, 24, 26, 40, 42, 51, 60):
            every = store.lookup(mask(seed), max_distance=0)
            some = store.lookup(mask(seed), max_distance=0, source=name)
            assert some.identical == tuple(hit for hit in every.identical if hit.id in wanted)
            wide, narrow = (
                store.lookup(mask(seed), tiers=["near"], max_distance=100, source=source)
                for source in (None, [name])
            )
            assert narrow.near == tuple(hit for hit in wide.near if hit.id in wanted)
            assert wide.near


@pytest.mark.slow
def test_what_a_name_stands_for_is_what_goes_with_it(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shelf)
    with Store.open(shelf / "store", read_only=True) as opened:
        opened.backup(tmp_path / "copy")
    with Store.open(tmp_path / "copy") as store:
        for name in NAMES:
            before = {record.id: len(store.sources(record.id)) for record in store.records()}
            try:
                found = set(ids_within(store.session, [(name, tuple(bases(name)))]).ids().tolist())
            except UsageError:  # it went with another
                found = set()
            store.remove(sources=[name])
            after = {record.id: len(store.sources(record.id)) for record in store.records()}
            assert found == {id_ for id_, count in before.items() if after.get(id_, 0) < count}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "P",
        "p/9.png",
        "a.np",
        "a.npy#6",  # removed
        "a.npy#7",
        "t.tar#y.png",  # removed
        "bad",  # nothing but a file that could not be read
        "bad/bad.png",
        "synthetic:bits?seed=4",
        "synthetic:bits?seed=3#9",
        "memory:cam",
        "p/0.png/",
        "q.parquet?metadata=label",
        "store",
        "\x00",
    ],
)
def test_a_name_that_stands_for_nothing_is_a_usage_error(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(shelf)
    with Store.open(shelf / "store", read_only=True) as store:
        if name == "p/0.png/":  # a slash too many is none too few
            assert store.lookup(mask(0), source=name).identical
            return
        for source in (name, ["p", name]):
            with pytest.raises(UsageError, match="has no image of the source") as caught:
                store.lookup(mask(0), source=source)
            assert "\n" not in str(caught.value)
            with pytest.raises(UsageError, match="has no image of the source"):
                next(store.lookup_many(["p/0.png"], source=source))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "says"),
    [
        ([], "name at least one source"),
        ("", "a source has a name"),
        (["p", ""], "a source has a name"),
        (b"p", "a source is a path"),
        ([b"p"], "a source is a path"),
        ([7], "a source is a path"),
        (7, "a source is a path"),
        ([["p"]], "a source is a path"),
    ],
    ids=repr,
)
def test_what_is_no_source_is_refused(shelf: Path, source: Any, says: str) -> None:
    with Store.open(shelf / "store", read_only=True) as store:
        with pytest.raises(UsageError, match=says):
            store.lookup(mask(0), source=source)
        with pytest.raises(UsageError, match=says):
            list(store.lookup_many([], source=source))


@pytest.mark.slow
def test_several_sources_are_one(shelf: Path) -> None:
    with Store.open(shelf / "store", read_only=True) as store:
        named: list[str | Path] = [shelf / "p2", f"{shelf}/t.tar"]
        for seed, there in ((7, True), (40, True), (1, True), (0, False), (20, False)):
            for sources in (named, iter(named), named[::-1]):
                assert bool(store.lookup(mask(seed), source=sources).identical) == there


def test_a_hit_names_its_sources_outside_too(shelf: Path) -> None:
    with Store.open(shelf / "store", read_only=True) as store:
        (every,) = store.lookup(mask(0)).identical
        (hit,) = store.lookup(mask(0), source=shelf / "a.npy").identical
        assert hit == every
        assert (hit.source_count, len(hit.sources)) == (6, 6)
        (hit,) = store.lookup(
            shelf / "p" / "0.png", source=shelf / "a.npy"
        ).identical  # by its bytes
        assert hit.id == every.id
        assert not store.lookup(shelf / "p" / "0.png", source=shelf / "p2").identical


def test_a_relative_name_is_of_the_folder_that_the_process_is_in(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(shelf / "store", read_only=True) as store:
        monkeypatch.chdir(shelf)
        assert store.lookup(mask(0), source="p").identical
        monkeypatch.chdir(shelf / "p")
        with pytest.raises(UsageError):
            store.lookup(mask(0), source="p")
        assert store.lookup(mask(6), source="deep").identical


# --- commits --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_comes_and_goes_is_seen_at_once(tmp_path: Path) -> None:
    for seed in range(3):
        write(tmp_path / "p" / f"{seed}.png", encoded(mask(seed)))
    asked: dict[str, Any] = {"source": tmp_path / "p", "tiers": ["identical"]}
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(tmp_path / "p")
        with Store.open(tmp_path / "store", read_only=True) as reader:
            assert not reader.lookup(mask(3), **asked).identical
            write(tmp_path / "p" / "3.png", encoded(mask(3)))
            write(tmp_path / "q" / "4.png", encoded(mask(4)))
            store.ingest(tmp_path)
            assert [len(opened.session.snapshot.removed_ids()) for opened in (store, reader)] == [
                0,
                0,
            ]
            many = reader.lookup_many(iter([str(tmp_path / "p" / "0.png")] * 2), **asked)
            assert next(many).identical
            store.remove(ids=[1])
            for opened in (store, reader):
                found = [bool(opened.lookup(mask(i), **asked).identical) for i in range(5)]
                assert found == [False, True, True, True, False]
                ids = [opened.lookup(mask(i), ids=[1, 2, 9]).identical for i in range(3)]
                assert [bool(hits) for hits in ids] == [False, True, False]
                assert opened.session.snapshot.removed_ids().ids().tolist() == [1]
            assert not next(many).identical
            store.remove(sources=[tmp_path / "p"])
            for opened in (store, reader):
                with pytest.raises(UsageError, match="has no image of the source"):
                    opened.lookup(mask(3), **asked)


def test_the_same_sources_are_looked_for_once_a_commit(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def counted(store: Any, names: Any) -> Any:
        asked.append([name for name, _ in names])
        return ids_within(store, names)

    monkeypatch.setattr(filters, "ids_within", counted)
    with Store.open(shelf / "store", read_only=True) as store:
        for _ in range(3):
            store.lookup(mask(0), source=str(shelf / "p"))
            store.lookup(mask(0), source=[shelf / "p"], ids=[1, 2, 3])
        list(store.lookup_many([str(shelf / "p" / "0.png")] * 3, source=[shelf / "p"]))
        assert asked == [[str(shelf / "p")]]
        store.lookup(mask(0), source=shelf / "p2")
        assert len(asked) == 2


def test_names_are_read_a_few_at_a_time(shelf: Path) -> None:
    with Store.open(shelf / "store", read_only=True) as store:
        asked = [("", tuple(bases(str(shelf))))]
        every = ids_within(store.session, asked).ids().tolist()
    with Store.open(shelf / "store", read_only=True, limits=Limits(read_names=3)) as store:
        assert ids_within(store.session, asked).ids().tolist() == every
