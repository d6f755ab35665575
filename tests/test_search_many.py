"""Many queries at once: of any kind, in batches, with the answers that each has alone."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import pytest
from helpers import encoded, mask, picture, save
from PIL import Image

from engine import LookupResult, PackedBits, Store, UsageError
from engine.config import MemoryBudget
from engine.errors import ImageError
from engine.images.preprocessing import Preprocessing
from engine.records import Decoded
from engine.search.ahead import BatchesAhead
from engine.search.batch_work import BatchWork
from engine.search.batches import MAX_BATCH, batches
from engine.search.query_work import QueryWork
from engine.sources.query import Query
from engine.storage.vector_space import NO_VECTORS

COUNT = 50


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """A folder with pictures, and a store of them with vectors."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        save(folder / f"in/{number:02}.png", picture(number, 24, 32))
    with Store.open(folder / "store", create=True, encoder=str(tiny_encoder)) as store:
        store.ingest(folder / "in")
    return folder


@pytest.fixture
def store(photos: Path) -> Iterator[Store]:
    with Store.open(photos / "store", read_only=True) as opened:
        yield opened


def untimed(result: LookupResult, query: str = "") -> LookupResult:
    """A result without its times, and without its name if ``query`` is given."""
    return dataclasses.replace(result, milliseconds={}, query=query or result.query)


def test_in_a_batch_each_has_the_answer_that_it_has_alone(photos: Path, store: Store) -> None:
    paths = sorted((photos / "in").iterdir())
    many = list(store.lookup_many(paths))
    assert [result.query for result in many] == [str(path) for path in paths]
    assert [untimed(result) for result in many] == [untimed(store.lookup(path)) for path in paths]
    assert all(result.similar and result.identical for result in many)
    assert set(many[-1].milliseconds) >= {"decode", "identical", "near", "encode", "similar"}


def test_queries_may_be_of_any_kind(photos: Path, store: Store) -> None:
    path = photos / "in/03.png"
    image = picture(3, 24, 32)
    queries = [path, str(path), path.read_bytes(), image, Image.fromarray(image), 4, "#4"]
    found = list(store.lookup_many(queries))
    assert {result.identical[0].id for result in found} == {4}
    names = [str(path), str(path), "image 2", "image 3", "image 4", "#4", "#4"]
    assert [result.query for result in found] == names
    for other in found[3:]:
        assert untimed(other, "q").similar == found[2].similar


def test_arrays_and_packed_bits_are_many_queries(tmp_path: Path) -> None:
    rows = np.stack([mask(seed) for seed in range(40)])
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(rows, name="masks")
        for queries in (rows, PackedBits.pack(rows)):
            found = list(store.lookup_many(queries))
            assert [result.identical[0].id for result in found] == list(range(1, 41))
        for one in (rows[0], rows[0][..., 0]):
            with pytest.raises(UsageError, match="is one image: use lookup"):
                store.lookup_many(one)


def test_an_array_is_of_one_kind_as_a_whole(tmp_path: Path) -> None:
    """As an ingest takes it: alone, a black picture would be one of bits."""
    rows = np.stack([picture(1), np.zeros((8, 8, 3), np.uint8), picture(2)])
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(rows, name="rows")
        found = [result.identical[0].id for result in store.lookup_many(rows)]
        assert found == store.find_identical(rows).tolist() == [1, 2, 3]


def test_a_folder_is_all_of_its_images(photos: Path, store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    (copy / "sub").mkdir(parents=True)
    for name in ("01.png", "02.png"):
        (copy / "sub" / name).write_bytes((photos / "in" / name).read_bytes())
    (copy / "notes.txt").write_text("not an image")
    (copy / "photo.heic").write_bytes(bytes(100))
    (copy / "broken.png").write_bytes(b"\x89PNG")
    found = {Path(result.query).name: result for result in store.lookup_many([copy])}
    assert set(found) == {"01.png", "02.png", "photo.heic", "broken.png"}
    assert [found[name].identical[0].id for name in ("01.png", "02.png")] == [2, 3]
    assert found["photo.heic"].error == "HEIC is not read yet: convert it to TIFF, PNG or JPEG"
    assert found["broken.png"].error
    with pytest.raises(UsageError, match=r"more than one image: use lookup_many\(\["):
        store.lookup(copy)


def test_what_cannot_be_read_is_a_result_among_others(photos: Path, store: Store) -> None:
    queries = [photos / "in/01.png", b"no image", "#4711", np.zeros((0, 5, 3), np.uint8)]
    good, *bad = store.lookup_many(queries)
    assert good.error is None and all(one.error for one in bad)
    assert [one.query for one in bad] == ["image 1", "#4711", "image 3"]
    (wrong,) = store.lookup_many([None])  # type: ignore[list-item]
    assert "not NoneType" in str(wrong.error)


def test_what_no_file_can_be_called_is_an_error_and_numbers_are_ids_unless_true(
    store: Store,
) -> None:
    nowhere = "\ud800.png"  # no encoding of a file system has half a surrogate pair
    with pytest.raises(ImageError, match=r"a file cannot be named '\\ud800.png'"):
        store.lookup(nowhere)
    results = list(store.lookup_many([nowhere, Path(nowhere), True, np.int64(4711), 4711]))
    assert [one.query for one in results] == ["image 0", "image 1", "image 2", "#4711", "#4711"]
    assert all(one.error for one in results)


def test_of_an_iterator_each_answer_comes_before_the_next_query(photos: Path, store: Store) -> None:
    asked: list[int] = []

    def one_by_one() -> Iterator[Path]:
        for number in range(3):
            asked.append(number)
            yield photos / f"in/{number:02}.png"

    answers = store.lookup_many(one_by_one())
    for number in range(3):
        assert next(answers).identical[0].id == number + 1
        assert asked == list(range(number + 1))


def test_an_image_of_the_store_is_a_query_while_its_file_is_there(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", picture(1))
    bits = save(tmp_path / "b.png", mask(2))
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(path, bits)
        ids = [store.lookup(one).identical[0].id for one in (path, bits)]
        assert [store.lookup(id_).identical[0].id for id_ in ids] == ids
        save(path, picture(9))
        bits.unlink()
        assert store.lookup(f"#{ids[1]}").identical[0].id == ids[1]  # its pixels are kept
        with pytest.raises(ImageError, match="its pixels are not kept, and all of its sources"):
            store.lookup(ids[0])
        with pytest.raises(ImageError, match="image 99"):
            store.lookup(99)


def test_where_no_pixels_are_left_an_image_is_looked_up_by_its_vector(
    tmp_path: Path, tiny_encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Store.open(tmp_path / "store", create=True, encoder=str(tiny_encoder)) as store:
        store.ingest((f"frame-{n}", picture(n, 20, 20)) for n in range(4))
        found = store.lookup(3, k=2)
        assert found.searched == ("similar",) and found.similar[0].id == 3
        assert "#3: only its vector was looked up: its pixels are not kept" in caplog.text
        assert store.lookup("#3", tiers=["similar"]).similar[0].score > 0.9999
        for tiers in (["near"], ["identical", "near"]):
            with pytest.raises(ImageError, match=r"^#3: its pixels are not kept"):
                store.lookup(3, tiers=tiers)
        for call in (lambda: store.thumbnail(3), lambda: store.encode([3])):
            with pytest.raises(ImageError, match=r"^#3: its pixels are not kept"):
                call()
        with pytest.raises(UsageError, match="search_vectors takes vectors"):
            store.lookup(np.zeros(16, np.float32))


def test_a_vector_of_the_store_is_a_query(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(vectors, name="v", normalize=True)
        assert [store.lookup(id_, k=1).similar[0].id for id_ in (1, 17, 50)] == [1, 17, 50]


def test_a_file_whose_name_is_like_an_id_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png", picture(1))
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest("a.png")
        assert store.lookup("#1").query == "#1" and store.lookup("#1").identical
        Path("#1").write_bytes(encoded(picture(5)))
        assert not store.lookup("#1").identical


def test_a_batch_takes_no_more_memory_than_there_is_for_decoding() -> None:
    memory = MemoryBudget(128 << 20)
    small = [Query("q", encoded(picture(1)), None) for _ in range(70)]
    assert [len(batch) for batch in batches(small, memory)] == [MAX_BATCH, MAX_BATCH, 6]
    page = encoded(np.zeros((2500, 2500, 3), np.uint8))
    large = [Query("q", page, None) for _ in range(6)]
    sizes = [len(batch) for batch in batches(large, memory)]
    assert sum(sizes) == 6 and max(sizes) < 6


def test_the_work_ahead_is_done_by_other_threads(
    photos: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()
    decode = Query.decode

    def noted(query: Query, max_bytes: int) -> Decoded:
        threads.add(threading.current_thread().name)
        return decode(query, max_bytes)

    monkeypatch.setattr(Query, "decode", noted)
    list(store.lookup_many(sorted((photos / "in").iterdir())))
    assert threads and all(name.startswith("engine-lookup") for name in threads)


def test_ahead_keeps_what_goes_wrong_for_whoever_asks() -> None:
    work = QueryWork(
        Query("q", b"no image", None),
        max_decoding=1 << 30,
        max_distance=31,
        preprocessing=Preprocessing(16),
    )
    work.ahead()
    assert not work.has_picture
    with pytest.raises(ImageError):
        work.decoded()


# --- ahead ----------------------------------------------------------------------------------------


class SpiedWork(BatchWork):
    """Notes when its work is begun."""

    def __init__(self, names: list[str], begun: list[list[str]]) -> None:
        super().__init__([], [], None, NO_VECTORS)
        self._names, self._begun = names, begun

    def start(self, workers: Executor) -> None:
        if self._names not in self._begun:
            self._begun.append(self._names)
        super().start(workers)


def sized(name: str, size: int) -> Query:
    """A query that counts as ``size`` bytes of memory."""
    return Query(name, None, None, np.zeros(size // 4, np.float32))


def test_the_next_batch_is_begun_with_the_one_before_it_and_no_other() -> None:
    begun: list[list[str]] = []
    read: list[str] = []

    def queries() -> Iterator[Query]:
        for number in range(5 * MAX_BATCH):
            read.append(str(number))
            yield sized(str(number), 400)

    def prepare(some: Sequence[Query]) -> BatchWork:
        return SpiedWork([query.name for query in some], begun)

    with BatchesAhead(queries(), MemoryBudget(1 << 30), prepare) as ahead:
        names = []
        for number in range(1, 6):
            batch = ahead.next()
            assert batch is not None
            names += [query.name for query in batch.queries if isinstance(query, Query)]
            assert len(begun) == min(number + 1, 5)
            assert len(read) == MAX_BATCH * min(number + 1, 5)
        assert ahead.next() is None
    assert names == [str(number) for number in range(5 * MAX_BATCH)]


def test_batches_in_memory_fit_it_together() -> None:
    memory = MemoryBudget(1 << 30)
    half = memory.decoding // 2
    begun: list[list[str]] = []
    big = sized("big", half + 4)
    queries = [sized("a", half // 2), sized("b", half // 2), big, sized("c", 4), sized("d", 4)]

    def prepare(some: Sequence[Query]) -> BatchWork:
        return SpiedWork([query.name for query in some], begun)

    with BatchesAhead(queries, memory, prepare) as ahead:
        found = []
        while (batch := ahead.next()) is not None:
            found.append([query.name for query in batch.queries if isinstance(query, Query)])
            # The large one is begun by nobody but its caller, and nothing is begun beside it.
            assert ["big"] not in begun
            assert begun == ([["a", "b"]] if found[-1] != ["c", "d"] else [["a", "b"], ["c", "d"]])
    assert found == [["a", "b"], ["big"], ["c", "d"]]


@pytest.mark.slow
def test_a_commit_between_two_batches_is_seen_by_the_second(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{number}.png", picture(number)) for number in range(2 * MAX_BATCH)]
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        found = store.lookup_many(files, tiers=["identical"])
        first = [next(found) for _ in range(MAX_BATCH)]
        store.ingest(*files)
        rest = list(found)
    assert not any(result.identical for result in first)
    assert [result.identical[0].id for result in rest] == list(
        range(MAX_BATCH + 1, 2 * MAX_BATCH + 1)
    )


@pytest.mark.slow
def test_a_lookup_that_is_given_up_leaves_a_store_that_can_be_used(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{number}.png", picture(number)) for number in range(3 * MAX_BATCH)]
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(*files)
        found = store.lookup_many(files)
        next(found)
        found.close()  # type: ignore[attr-defined]
        assert store.lookup(files[0]).identical[0].id == 1
