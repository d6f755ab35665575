"""``Store.vectors`` and ``Store.encode``: the numbers behind the similar tier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import mask, picture, save
from PIL import Image

from engine import ImageError, Store, StoreError, UnknownImageError, UsageError


@pytest.fixture
def store(tmp_path: Path, tiny_encoder: Path) -> Iterator[Store]:
    """Images 1 to 5 have vectors, images 6 to 8 have none."""
    for number in range(5):
        save(tmp_path / f"in/{number}.png", picture(number, 20, 30))
    with Store.open(tmp_path / "store", create=True, encoder=str(tiny_encoder)) as opened:
        opened.ingest(tmp_path / "in")
        opened.ingest(np.stack([mask(seed) for seed in range(3)]), name="masks", encoder="none")
        yield opened


def test_vectors_come_in_the_order_asked_for_and_are_nan_where_there_is_none(store: Store) -> None:
    ids = [3, 7, 1, 3]
    found = store.vectors(ids)
    assert found.shape == (4, store.info().encoder["dim"])  # type: ignore[index]
    assert found.dtype == np.float32
    assert np.isnan(found[1]).all() and np.array_equal(found[0], found[3])
    scores, best = store.search_vectors(found[[0, 2]], k=1)
    assert best[:, 0].tolist() == [3, 1] and np.allclose(scores, 1, atol=1e-5)
    assert store.vectors(iter(range(1, 6))).shape[0] == 5
    assert store.vectors([]).shape == (0, found.shape[1])


def test_what_has_no_vectors_is_an_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UnknownImageError, match="has no image 9"):
        store.vectors([1, 9])
    for unknown in (0, -1, 1 << 63, 1 << 70):
        with pytest.raises(UnknownImageError, match=f"has no image {unknown}"):
            store.vectors([unknown])
    with pytest.raises(UsageError, match="an id"):
        store.vectors(["1"])  # type: ignore[list-item]
    store.remove(ids=[2])
    with pytest.raises(UnknownImageError, match="has no image 2"):
        store.vectors([2])
    with Store.open(tmp_path / "none", create=True, encoder="none") as without:
        without.ingest(tmp_path / "in")
        with pytest.raises(UsageError, match="has no vectors"):
            without.vectors([1])
        with pytest.raises(UsageError, match="has no encoder"):
            without.encode([tmp_path / "in/0.png"])
    with pytest.raises(StoreError, match="closed"):
        without.vectors([1])


def test_given_vectors_come_back(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    with Store.open(tmp_path / "given", create=True) as store:
        store.ingest(rows, name="rows")
        assert np.array_equal(store.vectors([50, 1, 7]), rows[[49, 0, 6]])
        with pytest.raises(UsageError, match="has no encoder"):
            store.encode([picture(1)])


def test_images_are_encoded_as_an_ingest_does_it(store: Store, tmp_path: Path) -> None:
    made = picture(1, 20, 30)
    queries = [tmp_path / "in/1.png", made, Image.fromarray(made), "#2", 2]
    found = store.encode([*queries, *(tmp_path / f"in/{number % 5}.png" for number in range(70))])
    assert found.shape[0] == 75
    assert np.allclose(found[:5], store.vectors([2] * 5), atol=1e-5)
    assert np.allclose(found[5:10], store.vectors(range(1, 6)), atol=1e-5)
    assert len(store) == 8


def test_images_that_cannot_be_encoded_are_named(store: Store, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    with pytest.raises(ImageError, match=r"broken.png: broken image"):
        store.encode([tmp_path / "in/0.png", broken])
    with pytest.raises(ImageError, match=r"gone.png: no such file"):
        store.encode([tmp_path / "gone.png"])
    with pytest.raises(UsageError, match="holds several images"):
        store.encode([tmp_path / "in"])
    with pytest.raises(UsageError, match="come in a list"):
        store.encode(tmp_path / "in/0.png")  # type: ignore[arg-type]
