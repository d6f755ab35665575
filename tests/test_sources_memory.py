"""Images in memory are a source like any other: streamed, resumed, found again, replaced."""

from pathlib import Path

import numpy as np
import pytest

from engine import Kind, PackedBits, Store, UsageError, ingest
from engine.pixels import HEADER_BYTES, rows_from_array
from engine.sources.memory import MemoryArray


def bits(seed: int, count: int, side: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (count, side, side, 3)).astype(np.bool_)


def open_store(path: Path) -> Store:
    return Store.open(path / "store", create=True, encoder="none")


@pytest.mark.parametrize("images", [bits(0, 10), bits(0, 10)[..., 0], PackedBits.pack(bits(0, 10))])
def test_blocks_are_canonical_rows_from_any_start(images: np.ndarray | PackedBits) -> None:
    array = MemoryArray(images, "x")
    assert (array.count, array.kind, array.name) == (10, Kind.BITS, b"memory:x")
    if isinstance(images, PackedBits):
        expected = images.canonical()
    else:
        expected = rows_from_array(images, Kind.BITS)
    for start in (0, 3, 9, 10):
        blocks = list(array.blocks(start, 4, 1 << 20))
        assert [block.first for block in blocks] == list(range(start, 10, 4))
        rows = np.concatenate([expected[:0], *(block.rows for block in blocks)])
        assert np.array_equal(rows, expected[start:])
    assert [len(block.rows) for block in array.blocks(0, 4, 1)] == [1] * 10, "memory is kept to"


def test_images_in_memory_are_ingested_found_and_known_again(tmp_path: Path) -> None:
    images = bits(1, 30)
    with open_store(tmp_path) as store:
        assert store.ingest(PackedBits.pack(images), name="camera").added == 30
        again = store.ingest(PackedBits.pack(images), name="camera")
        assert (again.added, again.unchanged) == (0, 30)
        assert store.ingest(images, name="another").duplicates == 30
        hit = store.lookup(images[17]).identical[0]
        assert (hit.id, hit.verified) == (18, "bytes")
        assert hit.sources == ("memory:another#17", "memory:camera#17") or hit.sources == (
            "memory:camera#17",
            "memory:another#17",
        )
        assert store.check().problems == ()


def test_other_images_under_a_name_replace_what_it_stood_for(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.ingest(bits(2, 5), name="camera")
        store.ingest(bits(3, 6), name="camera")
        assert store.info().sources == 6
        assert store.lookup(bits(2, 5)[0]).identical[0].sources == ()
        assert store.lookup(bits(3, 6)[5]).identical[0].sources == ("memory:camera#5",)
        assert store.check().problems == ()


def test_an_interrupted_ingest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "CHUNK_ROWS", 4)
    images = PackedBits.pack(bits(4, 20))
    with open_store(tmp_path) as store:
        first = store.ingest(images, name="camera", stop=lambda: len(store) >= 8)
        assert first.added == 8
        second = store.ingest(images, name="camera")
        assert (second.unchanged, second.added) == (8, 12)
        assert store.find_identical(images).tolist() == list(range(1, 21))


def test_grey_values_are_8_bit_images(tmp_path: Path) -> None:
    grey = np.random.default_rng(5).integers(0, 256, (4, 6, 5), np.uint8)
    with open_store(tmp_path) as store:
        assert store.ingest(grey, name="grey", keep_pixels="yes").added == 4
        assert store.get(1).kind is Kind.U8
        assert store.find_identical(grey).tolist() == [1, 2, 3, 4]
        assert store.lookup(grey[2]).identical[0].verified == "bytes"


def test_nothing_is_nothing(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        assert store.ingest(PackedBits.pack(bits(0, 0)), name="empty").seen == 0
        assert store.find_identical(bits(0, 0)).shape == (0,)
        assert store.find_identical(PackedBits.pack(bits(0, 0))).dtype == np.int64


def test_what_is_wrong_is_told_before_anything_is_done(tmp_path: Path) -> None:
    images = bits(0, 2)
    with open_store(tmp_path) as store:
        with pytest.raises(UsageError, match="need a name"):
            store.ingest(images)
        with pytest.raises(UsageError, match="need a name"):
            store.ingest(images, name="a\0b")
        with pytest.raises(UsageError, match="ingested alone"):
            store.ingest(images, str(tmp_path), name="x")
        with pytest.raises(UsageError, match="a name is for images in memory"):
            store.ingest(tmp_path, name="x")
        with pytest.raises(UsageError, match="dtype float64"):
            store.ingest(images.astype(np.float64), name="x")
        with pytest.raises(UsageError, match=r"shape \(2,\)"):
            store.find_identical(np.zeros(2, np.uint8))
        assert len(store) == 0


def test_packed_bits_refuse_what_they_cannot_be() -> None:
    good = PackedBits.pack(bits(0, 3, 3))
    assert (good.height, good.width, len(good), len(good[1:])) == (3, 3, 3, 2)
    assert good.packed.shape == (3, 4)
    assert np.array_equal(good.canonical()[:, HEADER_BYTES:], good.packed)
    with pytest.raises(UsageError, match=r"for images of 4 × 3 \(n, 5\) uint8 is needed"):
        PackedBits(good.packed, 4, 3)
    with pytest.raises(UsageError, match="dtype int64"):
        PackedBits(good.packed.astype(np.int64), 3, 3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the last 5 bits"):
        PackedBits(good.packed | np.uint8(1), 3, 3)
    with pytest.raises(UsageError, match="no bit images"):
        PackedBits.pack(np.full((1, 2, 2), 255, np.uint8))
    with pytest.raises(UsageError, match="3 images, where one is needed"):
        good.only()


def test_the_same_bytes_in_another_shape_are_other_images(tmp_path: Path) -> None:
    images = bits(6, 6)[..., 0]
    with open_store(tmp_path) as store:
        store.ingest(np.ascontiguousarray(images.reshape(6, 7, 7)), name="x")
        again = store.ingest(images.reshape(6, 49, 1), name="x")
        assert (again.added, again.unchanged) == (6, 0)
        assert store.lookup(images.reshape(6, 49, 1)[5]).identical[0].sources == ("memory:x#5",)
        assert store.lookup(images[5]).identical[0].sources == ()
        assert store.check().problems == ()


def test_one_of_many_is_taken_by_its_number() -> None:
    good = PackedBits.pack(bits(0, 3, 3))
    assert np.array_equal(good[-1].packed, good.packed[2:])
    with pytest.raises(IndexError):
        good[3]


def test_what_is_no_array_is_refused_in_one_line(tmp_path: Path) -> None:
    packed = PackedBits.pack(bits(0, 1, 3)).packed
    with open_store(tmp_path) as store, pytest.raises(UsageError, match="not a list"):
        store.find_identical([[0, 1]])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not a list"):
        PackedBits([1], 3, 3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="whole numbers"):
        PackedBits(packed, -3, -3)
    with open_store(tmp_path) as store, pytest.raises(UsageError, match="need a name"):
        store.ingest(bits(0, 1), name=3)  # type: ignore[arg-type]
