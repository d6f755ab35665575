"""``Store`` as a container: what it is called, what is in it, and pictures of that."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import encoded, mask, picture, save
from PIL import Image

from engine import (
    EngineError,
    ImageError,
    ImageRecord,
    PackedBits,
    Store,
    UnknownImageError,
    UsageError,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, and a store of them."""
    for i in range(3):
        save(tmp_path / f"{i}.png", picture(i, 8, 12))
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(*(tmp_path / f"{i}.png" for i in range(3)))
    return tmp_path


# --- what it is called ----------------------------------------------------------------------------


def test_a_store_says_in_a_line_what_it_is(folder: Path) -> None:
    path = str(folder / "store")
    with Store.open(path, read_only=True) as store:
        assert repr(store) == f"<Store {path!r}: 3 images, 0 vectors, read-only>"
    with Store.open(path) as store:
        assert repr(store) == f"<Store {path!r}: 3 images, 0 vectors, reading>"
        store.ingest("synthetic:bits?n=1200")
        assert repr(store) == f"<Store {path!r}: 1,203 images, 0 vectors, writing>"
    assert repr(store) == f"<Store {path!r}: closed>"


def test_a_strange_path_stays_in_that_line(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a\nb", create=True, encoder="none") as store:
        assert len(repr(store).splitlines()) == 1


# --- what is in it --------------------------------------------------------------------------------


def test_an_id_is_in_a_store_that_has_such_an_image(folder: Path) -> None:
    with Store.open(folder / "store") as store:
        store.remove(ids=[2])
        for id_, there in ((1, True), (2, False), (3, True), (4, False), (0, False), (-1, False)):
            assert (id_ in store) is there
        assert 1 << 70 not in store
        assert np.int64(3) in store


def test_an_id_may_be_typed_as_the_command_takes_it(folder: Path) -> None:
    with Store.open(folder / "store", read_only=True) as store:
        first = next(iter(store)).id
        assert f"#{first}" in store and "#4711" not in store


def test_an_image_is_in_a_store_that_has_this_very_image(folder: Path) -> None:
    array, path = picture(1, 8, 12), folder / "1.png"
    save(folder / "other.png", picture(7, 8, 12))
    with Store.open(folder / "store", read_only=True) as store:
        queries: list[Any] = [path, str(path), path.read_bytes(), array, Image.fromarray(array)]
        queries += [encoded(array, "TIFF"), "#2", f"{folder}/store/../1.png"]
        for query in queries:
            assert query in store
        near = array.copy()
        near[0, 0, 0] ^= 1
        for query in (near, folder / "other.png", PackedBits.pack(mask(0)[None])):
            assert query not in store


def test_a_record_is_in_the_store_it_is_of(folder: Path) -> None:
    with Store.open(folder / "store") as store:
        records = list(store)
        assert all(record in store for record in records)
        store.update(1, metadata={"a": 1})
        assert records[0] in store
        store.remove(ids=[1])
        assert records[0] not in store
        assert records[1] in store


def test_what_cannot_be_looked_up_is_no_no(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with Store.open(folder / "store", read_only=True) as store:
        for query in (folder / "gone.png", folder / "broken.png", b"no image"):
            with pytest.raises(ImageError):
                _ = query in store
        wrong: list[Any] = [True, None, 1.5, [folder / "1.png"]]
        for query in wrong:
            with pytest.raises(UsageError):
                _ = query in store


def test_an_index_is_an_id(folder: Path) -> None:
    with Store.open(folder / "store", read_only=True) as store:
        assert store[2] == store.get(2)
        assert isinstance(store[np.int64(3)], ImageRecord)
        for wrong in ("1", slice(1, 3), 1.0, True):
            with pytest.raises(UsageError, match="an id must be a whole number"):
                _ = store[wrong]  # type: ignore[index]


@pytest.mark.parametrize("id_", [99, 0, -1, 1 << 70])
@pytest.mark.parametrize("kind", [KeyError, LookupError, UsageError, ValueError, EngineError])
def test_an_id_that_is_not_there_is_a_key_error_and_a_usage_error(
    folder: Path, id_: int, kind: type[Exception]
) -> None:
    with Store.open(folder / "store", read_only=True) as store:
        for call in (store.__getitem__, store.get, store.sources, store.thumbnail):
            with pytest.raises(kind) as caught:
                call(id_)
            assert type(caught.value) is UnknownImageError
            assert str(caught.value) == f"{folder / 'store'} has no image {id_}"


def test_a_store_is_gone_through_record_by_record(folder: Path) -> None:
    with Store.open(folder / "store", read_only=True) as store:
        assert list(store) == list(store.records())
        assert [record.id for record in store] == [1, 2, 3]
        assert len(list(store)) == len(store)


# --- pictures -------------------------------------------------------------------------------------


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return image


def test_a_thumbnail_is_made_of_kept_pixels(tmp_path: Path) -> None:
    bits = mask(0, 10, 20)
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest([("a", bits), ("b", picture(1, 300, 100))], keep_pixels="yes")
        assert np.array_equal(np.asarray(opened(store.thumbnail(1))), bits * np.uint8(255))
        assert opened(store.thumbnail(1, size=10)).size == (10, 5)


def test_a_thumbnail_is_made_of_a_source_that_still_holds_the_image(folder: Path) -> None:
    with Store.open(folder / "store") as store:
        save(folder / "copy.png", picture(0, 8, 12))
        store.ingest(folder / "copy.png")
        for name in ("0.png", "copy.png"):
            assert np.array_equal(np.asarray(opened(store.thumbnail(1))), picture(0, 8, 12))
            save(folder / name, picture(9, 8, 12))  # another image from now on
        with pytest.raises(ImageError, match="all of its sources are gone or have changed"):
            store.thumbnail(1)
        assert opened(store.thumbnail(2)).size == (12, 8)


def test_a_thumbnail_has_the_size_that_was_asked(tmp_path: Path) -> None:
    save(tmp_path / "wide.png", picture(0, 100, 300))
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(tmp_path / "wide.png")
        assert opened(store.thumbnail(1)).size == (128, 43)
        assert opened(store.thumbnail(1, size=30)).size == (30, 10)
        assert opened(store.thumbnail(1, 1000)).size == (300, 100)
        wrong: list[Any] = [0, -1, 4097, 1.5, "small", None]
        for size in wrong:
            with pytest.raises(UsageError, match="size="):
                store.thumbnail(1, size)


def test_a_vector_has_no_thumbnail(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(np.ones((2, 4), np.float32), name="v")
        with pytest.raises(ImageError, match="#1: it is a vector, and has no pixels"):
            store.thumbnail(1)
