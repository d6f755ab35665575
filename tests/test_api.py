"""``Store``: what the command does and a little more, one call each."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine import ImageRecord, Kind, Store, UsageError, digest, pixels


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """Six pictures, and a store of them with their vectors."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(6):
        Image.fromarray(picture(i)).save(folder / f"{i}.png")
    with Store.open(folder / "store", create=True, encoder=str(tiny_encoder)) as store:
        store.ingest(folder)
    return folder


# --- opening --------------------------------------------------------------------------------------


def test_a_store_is_opened_by_a_str_or_a_path(photos: Path) -> None:
    for path in (photos / "store", str(photos / "store")):
        with Store.open(path) as store:
            assert store.path == photos / "store"
            assert len(store) == 6


def test_creating_a_store_that_is_there_opens_it(photos: Path) -> None:
    with Store.open(photos / "store", create=True, encoder="none") as store:
        assert len(store) == 6


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
    canonical = pixels.from_array(picture(3)).canonical
    with Store.open(photos / "store") as store:
        record = store.get(4)
    assert isinstance(record, ImageRecord)
    assert (record.id, record.kind, record.height, record.width) == (4, Kind.U8, 8, 12)
    assert (record.channels, record.frames, record.container) == (3, 1, "png")
    assert (record.file_bytes, record.file_hash) == (len(data), digest.file_hash(data))
    assert (record.proof, record.decoder) == (digest.proof(canonical), pixels.DECODER)
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


def test_the_places_of_an_image_may_be_capped(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.stack([picture(0)] * 25))
    Image.fromarray(picture(0)).save(tmp_path / "0.png")
    with Store.open(tmp_path / "a", create=True, encoder="none") as store:
        store.ingest(tmp_path / "0.png", tmp_path / "rows.npy")
        every = store.sources(1)
        assert every == [str(tmp_path / "0.png"), *(f"{tmp_path}/rows.npy#{i}" for i in range(25))]
        for most in (0, 1, 3, 30):
            assert store.sources(1, most=most) == every[:most]


def test_info_counts(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").touch()
    np.save(tmp_path / "rows.npy", np.stack([picture(0), picture(1), picture(1)]))
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


def test_vectors_are_searched_as_faiss_does_it(photos: Path) -> None:
    queries = np.random.default_rng(0).standard_normal((3, 16))
    with Store.open(photos / "store") as store:
        scores, ids = store.search_vectors(queries, k=4)
        assert (scores.shape, scores.dtype) == ((3, 4), np.float32)
        assert (ids.shape, ids.dtype) == ((3, 4), np.int64)
        assert (np.diff(scores, axis=1) <= 0).all()
        again = store.search_vectors(queries.tolist(), k=4, exact=True)
        assert np.array_equal(again[1], ids)
        scores, ids = store.search_vectors(queries, k=8)
        assert (ids[:, :6] > 0).all()
        assert (ids[:, 6:] == -1).all()
        assert np.isneginf(scores[:, 6:]).all()
        scores, ids = store.search_vectors(np.empty((0, 16)), k=4)
        assert scores.shape == ids.shape == (0, 4)


@pytest.mark.parametrize(
    ("queries", "k", "says"),
    [
        (np.zeros(16), 1, "shape"),
        (np.zeros((1, 15)), 1, "shape"),
        (np.full((1, 16), np.nan), 1, "NaN"),
        (np.full((1, 16), np.inf), 1, "infinite"),
        (np.zeros((1, 16)), 0, "k must be 1 or more"),
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
