"""``Store``: what the command does and a little more, one call each."""

import ast
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers import picture, save
from PIL import Image

import engine.cli.app
from engine import ImageRecord, Kind, PackedBits, Store, StoreDamagedError, UsageError
from engine.api import reading
from engine.config import Limits
from engine.images import canonical, hashing
from engine.images.decode import DECODER


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """Six pictures, and a store of them with their vectors."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(6):
        save(folder / f"{i}.png", picture(i, 8, 12))
    with Store.open(folder / "store", create=True, encoder=str(tiny_encoder)) as store:
        store.ingest(folder)
    return folder


# --- opening --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_store_is_opened_by_a_str_or_a_path(photos: Path) -> None:
    for path in (photos / "store", str(photos / "store")):
        with Store.open(path) as store:
            assert store.path == photos / "store"
            assert len(store) == 6


def test_creating_a_store_that_is_there_opens_it(photos: Path) -> None:
    with Store.open(photos / "store", create=True, encoder="none") as store:
        assert len(store) == 6


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["128M", "2G", " 1.5 GiB ", "300mb", 1 << 28, None])
def test_memory_is_a_size(photos: Path, memory: str | int | None) -> None:
    with Store.open(photos / "store", memory=memory) as store:
        assert store.lookup(photos / "1.png").identical


@pytest.mark.parametrize("memory", ["127M", "0", "-1G", "much", "", 5, "1e9", "nan"])
def test_a_memory_that_is_none_or_too_little_is_refused(photos: Path, memory: str | int) -> None:
    with pytest.raises(UsageError, match="memory"):
        Store.open(photos / "store", memory=memory)


# --- records and counts ---------------------------------------------------------------------------


def test_a_record_says_what_is_known_of_an_image(photos: Path) -> None:
    data = (photos / "3.png").read_bytes()
    form = canonical.from_array(picture(3, 8, 12)).canonical
    with Store.open(photos / "store") as store:
        record = store.get(4)
    assert isinstance(record, ImageRecord)
    assert (record.id, record.kind, record.height, record.width) == (4, Kind.U8, 8, 12)
    assert (record.channels, record.frames, record.container) == (3, 1, "png")
    assert (record.file_bytes, record.file_hash) == (len(data), hashing.file_hash(data))
    assert (record.proof, record.decoder) == (hashing.proof(form), DECODER)
    assert (record.place, record.metadata) == (None, None)


def test_the_record_of_a_row_has_no_file(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a", create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=1")
        record = store.get(1)
        assert (record.container, record.file_bytes, record.file_hash) == ("array", 0, b"")
        assert (record.kind, record.height, record.width) == (Kind.BITS, 100, 100)
        assert record.place is not None
        assert record.place.length == 16 + 3750


@pytest.mark.parametrize("id_", [0, -1, 7, 1 << 62, 1 << 63, 1 << 70])
def test_an_id_that_is_not_there_is_a_usage_error(photos: Path, id_: int) -> None:
    with Store.open(photos / "store") as store:
        with pytest.raises(UsageError, match=f"has no image {id_}"):
            store.get(id_)
        with pytest.raises(UsageError, match=f"has no image {id_}"):
            store.sources(id_)


class _Whole:
    """An integer of another library."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


INTEGERS = [2, np.int64(2), np.uint8(2), np.array(2), np.array([[2, 3]])[0, 0], _Whole(2)]


@pytest.mark.slow
@pytest.mark.parametrize("id_", INTEGERS, ids=lambda id_: type(id_).__name__)
def test_whatever_is_an_integer_is_an_id(photos: Path, tmp_path: Path, id_: Any) -> None:
    with Store.open(photos / "store", read_only=True, memory=np.int64(1 << 28)) as store:
        assert store.get(id_).id == 2
        assert store.sources(id_, most=id_) == [str(photos / "1.png")]
        assert next(store.records(id_)).id == 2
        found = store.lookup(photos / "1.png", k=id_, max_distance=id_, ids=[id_])
        assert [hit.id for hit in found.identical] == [2]
        vector = np.ones((1, 16), np.float32)
        scores, ids = store.search_vectors(vector, k=id_, ids=[id_], recall=np.float32(1))
        assert scores.shape == (1, 2) and ids.tolist() == [[2, -1]]
        assert store.get(ids[0, 0]) == store.get(2)
    with Store.open(tmp_path / "s", create=True, encoder="none") as store:
        store.ingest([(str(i), picture(i, 8, 12)) for i in range(3)])
        assert store.remove(ids=[id_]).images == 1
        assert [record.id for record in store.records()] == [1, 3]
        bits = PackedBits(np.zeros((2, 2), np.uint8), id_, id_)
        assert (bits.height, bits.width) == (2, 2)


NO_IDS = [True, np.True_, 2.0, np.float64(2), "2", None, [2], np.array([2, 3]), 1j, b"2"]


@pytest.mark.slow
@pytest.mark.parametrize("id_", NO_IDS, ids=repr)
def test_what_is_no_integer_is_no_id(photos: Path, id_: Any) -> None:
    with Store.open(photos / "store") as store:
        for call in (
            lambda: store.get(id_),
            lambda: store.sources(id_),
            lambda: store.records(id_),
            lambda: store.remove(ids=[id_]),
            lambda: store.lookup(photos / "1.png", ids=[id_]),
            lambda: store.lookup(photos / "1.png", k=id_),
            lambda: store.lookup(photos / "1.png", max_distance=id_),
            lambda: store.search_vectors(np.ones((1, 16)), k=id_),
            lambda: store.search_vectors(np.ones((1, 16)), ids=[id_]),
        ):
            with pytest.raises(UsageError) as caught:
                call()
            assert len(str(caught.value).splitlines()) == 1
        assert len(store) == 6


@pytest.mark.parametrize("id_", [0, -1, 7, 1 << 62, 1 << 63, 1 << 64, -(1 << 70)])
def test_an_integer_that_no_image_has_is_said_to_be_none(photos: Path, id_: int) -> None:
    with Store.open(photos / "store", read_only=True) as store:
        for call in (store.get, store.sources):
            with pytest.raises(UsageError, match=f"has no image {id_}$"):
                call(id_)


class _ArrayLike:
    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return picture(1, 8, 12)


_Tensor = type("Tensor", (_ArrayLike,), {"__module__": "torch"})


def test_arrays_of_other_libraries_are_refused_with_what_to_pass(photos: Path) -> None:
    with Store.open(photos / "store") as store:
        for value, why in (
            (_Tensor(), r"not a torch tensor: pass tensor\.detach\(\)\.cpu\(\)\.numpy\(\)$"),
            (_ArrayLike(), r"not a _ArrayLike: pass numpy\.asarray\(it\)$"),
        ):
            for call in (
                lambda value=value: store.ingest(value, name="a"),
                lambda value=value: store.ingest([("a", value)]),
                lambda value=value: store.find_identical(value),
            ):
                with pytest.raises(UsageError, match=why):
                    call()
        # A question stores nothing: what is an array is taken for one.
        assert store.lookup(_Tensor()).identical[0].id == 2


def test_a_files_bytes_may_be_of_any_type(photos: Path) -> None:
    data = (photos / "1.png").read_bytes()
    with Store.open(photos / "store", read_only=True) as store:
        for query in (data, bytearray(data), memoryview(data)):
            assert [hit.id for hit in store.lookup(query).identical] == [2]


def test_a_query_and_queries_are_told_apart(photos: Path) -> None:
    paths = [photos / "1.png", str(photos / "2.png")]
    with Store.open(photos / "store", read_only=True) as store:
        for queries in (paths, tuple(paths), [b"bytes"], [Image.new("L", (1, 1))]):
            with pytest.raises(UsageError, match="queries: use lookup_many"):
                store.lookup(queries)
        for query in paths:
            with pytest.raises(UsageError, match="use lookup for one"):
                list(store.lookup_many(query))
        found = [result.identical[0].id for result in store.lookup_many(paths)]
        assert found == [2, 3]
    with pytest.raises(UsageError, match="a source must be a path"):
        Store.plan(photos / "store", picture(1, 8, 12))  # type: ignore[arg-type]


def test_the_places_of_an_image_may_be_capped(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.stack([picture(0, 8, 12)] * 25))
    Image.fromarray(picture(0, 8, 12)).save(tmp_path / "0.png")
    with Store.open(tmp_path / "a", create=True, encoder="none") as store:
        store.ingest(tmp_path / "0.png", tmp_path / "rows.npy")
        every = store.sources(1)
        assert every == [str(tmp_path / "0.png"), *(f"{tmp_path}/rows.npy#{i}" for i in range(25))]
        for most in (0, 1, 3, 30):
            assert store.sources(1, most=most) == every[:most]


def test_info_counts(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").touch()
    np.save(
        tmp_path / "rows.npy", np.stack([picture(0, 8, 12), picture(1, 8, 12), picture(1, 8, 12)])
    )
    with Store.open(tmp_path / "a", create=True, encoder="none") as store:
        store.ingest(photos / "0.png", tmp_path / "broken.png", tmp_path / "rows.npy")
        info = store.info()
    assert (info.images, info.sources, info.vectors) == (2, 4, 0)
    assert (info.rejects, info.removed, info.encoder, info.segments) == (1, 0, None, [])
    assert info.path == str(tmp_path / "a")
    assert set(info.bytes) >= {"keys", "pixels", "fingerprints", "vectors", "index"}
    assert info.bytes["keys"] > 0
    assert info.bytes["vectors"] == 0


def test_info_names_the_encoder(photos: Path) -> None:
    with Store.open(photos / "store") as store:
        info = store.info()
    assert info.encoder is not None
    assert (info.encoder["name"], info.encoder["dim"], info.encoder["generation"]) == (
        "tiny",
        16,
        1,
    )
    assert (info.images, info.vectors) == (6, 6)


# --- vectors --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_vectors_are_searched_as_faiss_does_it(photos: Path) -> None:
    queries = np.random.default_rng(0).standard_normal((3, 16))
    with Store.open(photos / "store") as store:
        scores, ids = store.search_vectors(queries, k=4)
        assert (scores.shape, scores.dtype) == ((3, 4), np.float32)
        assert (ids.shape, ids.dtype) == ((3, 4), np.int64)
        assert (np.diff(scores, axis=1) <= 0).all()
        again = store.search_vectors(queries.tolist(), k=4, recall=1)
        assert np.array_equal(again[1], ids)
        scores, ids = store.search_vectors(queries, k=8)
        assert (ids[:, :6] > 0).all()
        assert (ids[:, 6:] == -1).all()
        assert np.isneginf(scores[:, 6:]).all()
        many, padded = store.search_vectors(queries, k=10**6)  # takes what the answer takes
        assert np.array_equal(many[:, :8], scores)
        assert np.array_equal(padded[:, :8], ids)
        assert (padded[:, 8:] == -1).all()
        scores, ids = store.search_vectors(np.empty((0, 16)), k=4)
        assert scores.shape == ids.shape == (0, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("queries", "k", "says"),
    [
        (np.zeros(16), 1, "shape"),
        (np.zeros((1, 15)), 1, "shape"),
        (np.full((1, 16), np.nan), 1, "NaN"),
        (np.full((1, 16), np.inf), 1, "infinite"),
        (np.full((1, 16), 1e300), 1, "too large for float32"),
        (np.zeros((1, 16)), 0, "k must be 1 or more"),
        (np.zeros((1, 16)), 10**12, "more than memory= allows"),
        (np.zeros((1000, 16)), 10**6, "more than memory= allows"),
    ],
)
def test_queries_that_make_no_sense_are_refused(
    photos: Path, queries: np.ndarray, k: int, says: str
) -> None:
    with Store.open(photos / "store") as store, pytest.raises(UsageError, match=says):
        store.search_vectors(queries, k)


def test_a_store_without_an_encoder_has_no_vectors(tmp_path: Path) -> None:
    with (
        Store.open(tmp_path / "a", create=True, encoder="none") as store,
        pytest.raises(UsageError, match="has no vectors"),
    ):
        store.search_vectors(np.zeros((1, 16)))


# --- all records ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """Files, then rows that share their records, then files."""
    path = tmp_path_factory.mktemp("mixed") / "store"
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest(photos / "0.png", photos / "1.png")
        store.ingest("synthetic:bits?n=300")
        store.ingest(photos)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 100, 1000])
def test_records_are_all_images_in_their_order(mixed: Path, most: int) -> None:
    with Store.open(mixed, limits=Limits(read_records=most)) as store:
        every = list(store.records())
        assert every == [store.get(id_) for id_ in range(1, 307)]
        for start in (1, 2, 3, 57, 130, 131, 302, 303, 306, 307, 10**6, 1 << 62):
            assert list(store.records(start)) == every[start - 1 :]
        for start in (0, -1):
            with pytest.raises(UsageError, match="ids begin at 1"):
                store.records(start)


@pytest.mark.slow
def test_records_go_on_beside_other_work(tmp_path: Path) -> None:
    few, path = Limits(read_records=10), tmp_path / "store"
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=200")
    with Store.open(path, limits=few) as reader, Store.open(path, limits=few) as writer:
        ids = []
        for count, record in enumerate(reader.records()):
            ids.append(record.id)
            if count == 50:
                writer.ingest("synthetic:bits?n=400")
                assert reader.get(400).id == 400  # the reader has gone over to the new commit
        assert ids == list(range(1, 401))
        own = []
        for record in writer.records():
            own.append(record.id)
            if len(own) == 100:
                writer.ingest("synthetic:bits?n=500")
        assert own == list(range(1, 501))


def test_records_are_read_by_the_block(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = reading.records_from

    def counted(files: object, start: int, most: int) -> list[ImageRecord]:
        found = real(files, start, most)  # type: ignore[arg-type]
        calls.append(len(found))
        return found

    monkeypatch.setattr(reading, "records_from", counted)
    with Store.open(mixed, limits=Limits(read_records=10)) as store:
        next(store.records())
        assert len(calls) == 1 and calls[0] < 10 + 128


@pytest.mark.slow
def test_records_with_much_metadata_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    said = {"a": [[]] * 4000}
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest((f"{i}", picture(i, 8, 12), said) for i in range(100))
        first = reading.records_from(store.session.snapshot, 1, 1000)
        assert 50 < len(first) < 90, "a MiB of JSON"
        assert [record.id for record in store.records()] == list(range(1, 101))


def test_a_record_without_its_key_is_damage(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=3")
        batch = store.session.snapshot.keys.batch()
        batch.delete("images", store.get(2).key)
        store.session.snapshot.keys.commit(batch)
        with pytest.raises(StoreDamagedError, match="image 2 has a record and no key"):
            list(store.records())


def test_ids_may_have_gaps(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest((f"{i}", picture(i, 8, 12)) for i in range(30))
        store.remove(ids=[1, 10, 11, 30])
        ids = [record.id for record in store.records()]
        assert ids == sorted(set(range(1, 31)) - {1, 10, 11, 30})
        assert next(store.records(10)).id == 12


# --- the command is one call ----------------------------------------------------------------------

CALLS = {
    "ingest": {"open", "ingest", "plan", "has_encoder", "has_given_vectors"},
    "lookup": {"open", "lookup_many", "has_given_vectors"},
    "info": {"open", "info"},
    "check": {"check_at"},
    "remove": {"open", "remove"},
    "optimize": {"open", "optimize"},
    "backup": {"open", "backup"},
    "export": {"open", "export"},
    "encoders": set(),
    "import_encoder": set(),
    "train": set(),
    "reembed": {"open", "reembed", "discard_reembed"},
    "evaluate": set(),
    "bench": set(),
}
"""What each command takes of ``Store``; those about encoders call functions of their own."""

PYTHON_ONLY = {
    "check": "check_at opens the store too",
    "salvage": "a part of check_at",
    "close": "a command ends",
    "encode": "arrays",
    "encode_text": "arrays",
    "find_identical": "arrays",
    "index": "what lies below, for tools that look inside",
    "get": "records of images, one by one",
    "lookup": "lookup_many of one",
    "path": "which the command was told",
    "records": "export",
    "refresh": "a command sees the newest commit",
    "search_vectors": "arrays",
    "session": "what lies below, for tools that look inside",
    "sources": "export, and lookup",
    "thumbnail": "bytes for a page or a notebook",
    "update": "metadata is an object",
    "vectors": "arrays; export writes them",
}


def calls_of(function: ast.FunctionDef) -> set[str]:
    """The attributes of ``Store`` and of stores that a command uses."""
    return {
        node.attr
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("Store", "opened")
    }


def test_what_a_command_does_is_a_call_of_store_and_the_other_way_round() -> None:
    found: dict[str, set[str]] = {}
    modules = {command.callback.__module__ for command in engine.cli.app.app.registered_commands}  # type: ignore[union-attr]
    for name in modules:
        module: ModuleType = __import__(name, fromlist=["x"])
        functions = [
            node
            for node in ast.parse(inspect.getsource(module)).body
            if isinstance(node, ast.FunctionDef)
        ]
        # With what its own functions call.
        calls = set[str]().union(*map(calls_of, functions))
        found |= {node.name: calls for node in functions if not node.name.startswith("_")}
    names = {command.callback.__name__ for command in engine.cli.app.app.registered_commands}  # type: ignore[union-attr]
    assert names == set(CALLS)
    assert {name: found[name] for name in names} == CALLS
    public = {name for name, _ in inspect.getmembers(Store) if not name.startswith("_")}
    used = set().union(*CALLS.values())
    assert used <= public
    assert public - used == set(PYTHON_ONLY)
