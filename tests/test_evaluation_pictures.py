"""Pictures of a source as a numbered stream, and pictures with classes."""

import gzip
import io
import os
import struct
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from engine.errors import EngineError, SourceError, UsageError
from engine.evaluation.labelled import TEST, TRAIN, open_labelled
from engine.evaluation.pictures import SIDE, Stream, choose, shrunk


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


def noise(seed: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(seed)).save(file, "PNG")
    return file.getvalue()


def put(path, data: bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_pictures_have_the_same_numbers_each_time_and_only_wanted_ones_are_read(tmp_path, pool):
    for number in range(100):
        put(tmp_path / "in" / f"{number:03d}.png", png(number) if number != 50 else b"nothing")
    stream = Stream([str(tmp_path / "in")], pool)
    names = dict(stream.names())
    assert sorted(names) == list(range(100))
    everything = list(stream())
    assert [picture.number for picture in everything] == list(range(100))
    assert all(picture.name == names[picture.number] for picture in everything)
    assert everything[50].rgb is None
    assert "not an image" in everything[50].reason
    assert np.array_equal(everything[7].rgb, noise(7))
    some = list(stream({3, 50, 99}.__contains__))
    assert [picture.number for picture in some] == [3, 50, 99]
    assert np.array_equal(some[2].rgb, noise(99))


def test_a_list_that_is_piped_can_be_gone_through_again(tmp_path, pool):
    for number in range(3):
        put(tmp_path / f"{number}.png", png(number))
    reading, writing = os.pipe()
    os.write(writing, b"".join(b"%b/%d.png\n" % (os.fsencode(tmp_path), i) for i in range(2)))
    os.close(writing)
    before = os.dup(0)
    try:
        os.dup2(reading, 0)
        stream = Stream([str(tmp_path / "2.png"), "-"], pool)
        assert [number for number, _ in stream.names()] == [0, 1, 2]
        for _ in range(2):
            assert [picture.name[-5:] for picture in stream()] == ["2.png", "0.png", "1.png"]
    finally:
        os.dup2(before, 0)
        for file in (before, reading):
            os.close(file)


def test_a_class_is_the_first_folder_below_the_source(tmp_path, pool):
    for name in ("in/cats/a.png", "in/cats/deep/b.png", "in/dogs/c.png", "in/d.png"):
        put(tmp_path / name, png(1))
    found = {picture.name[-5:]: picture.label for picture in Stream([str(tmp_path / "in")], pool)()}
    assert found == {"a.png": "cats", "b.png": "cats", "c.png": "dogs", "d.png": None}


def test_a_shard_says_labels(tmp_path, pool):
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(3):
            for suffix, data in (("png", png(number)), ("cls", str(number % 2).encode())):
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    found = list(Stream([str(path)], pool)())
    assert [picture.label for picture in found] == ["0", "1", "0"]
    assert np.array_equal(found[2].rgb, noise(2))


def test_a_table_says_labels(tmp_path, pool):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "some.parquet"
    parquet.write_table(pyarrow.table({"image": [png(0), png(1)], "label": [4, 7]}), path)
    assert [picture.label for picture in open_labelled(str(path), TRAIN, pool)()] == ["4", "7"]


def test_rows_of_an_array_are_pictures_and_vectors_are_none(tmp_path, pool):
    np.save(tmp_path / "images.npy", np.stack([noise(0), noise(1)]))
    np.save(tmp_path / "vectors.npy", np.zeros((2, 4), np.float32))
    images, vectors = (
        list(Stream([str(tmp_path / name)], pool)()) for name in ("images.npy", "vectors.npy")
    )
    assert np.array_equal(images[1].rgb, noise(1))
    assert [picture.rgb for picture in vectors] == [None]
    assert "vectors" in vectors[0].reason


def test_an_archive_that_breaks_off_is_told_and_what_was_before_is_good(tmp_path, pool):
    path = tmp_path / "cut.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(2):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(png(number))
            tar.addfile(info, io.BytesIO(png(number)))
    data = path.read_bytes()
    path.write_bytes(data[: 512 + (len(png(0)) + 511) // 512 * 512 + 600])
    found = list(Stream([str(path)], pool)())
    assert np.array_equal(found[0].rgb, noise(0))
    assert [picture.rgb for picture in found[1:]] == [None]


def test_a_draw_is_the_same_each_time_and_another_by_another_seed():
    names = [(number, f"/somewhere/{number}.png") for number in range(1000)]
    elsewhere = [(number, f"/elsewhere/{number}.png") for number in range(1000)]
    drawn = choose(names, 100, 0)
    assert len(drawn) == 100
    assert choose(elsewhere, 100, 0) == drawn
    assert choose(names, 100, 1) != drawn
    assert choose(names, 10, 0) < drawn
    assert choose(names, 5000, 0) == set(range(1000))


@pytest.mark.parametrize("shape", [(SIDE, 10), (2000, 10), (600, 5000), (1, 9000)])
def test_the_longer_side_is_bounded(shape):
    small = shrunk(np.zeros((*shape, 3), np.uint8))
    assert max(small.shape[:2]) <= SIDE
    assert min(small.shape[:2]) >= 1


# --- labelled arrays ------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_of_idx_files(tmp_path, pool, zipped):
    parts = {"train": 6, "t10k": 4}
    pictures = {stem: noise(count, 5, 7)[..., :1] for stem, count in parts.items()}
    for stem, count in parts.items():
        images = np.stack([pictures[stem][..., 0] + np.uint8(i) for i in range(count)])
        labels = np.arange(count, dtype=np.uint8) % 3
        for what, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx(array)
            name = f"{stem}-{what}-ubyte" + (".gz" if zipped else "")
            put(tmp_path / name, gzip.compress(data) if zipped else data)
    for split, stem in ((TRAIN, "train"), (TEST, "t10k")):
        found = list(open_labelled(str(tmp_path), split, pool)())
        assert [p.label for p in found] == [str(i % 3) for i in range(parts[stem])]
        assert np.array_equal(found[3].rgb, np.repeat(pictures[stem] + np.uint8(3), 3, -1))
    one = open_labelled(str(tmp_path / f"t10k-images-idx3-ubyte{'.gz' * zipped}"), TRAIN, pool)
    assert len(list(one.names())) == 4
    assert [p.number for p in one({1, 2}.__contains__)] == [1, 2]


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (b"", idx(np.zeros(3, np.uint8)), "not an IDX file"),
        (idx(np.zeros((3, 4, 4), np.uint8)), idx(np.zeros(2, np.uint8)), "3 pictures"),
        (idx(np.zeros((3, 4, 4), np.uint8))[:-1], idx(np.zeros(3, np.uint8)), "cut short"),
        (idx(np.zeros((3, 4, 4), np.uint8)), idx(np.zeros(3, np.uint8))[:-1], "cut short"),
        (idx(np.zeros((3, 0, 4), np.uint8)), idx(np.zeros(3, np.uint8)), "pictures of 0"),
        (
            gzip.compress(bytes(1000), mtime=0)[:-12],
            idx(np.zeros(3, np.uint8)),
            "damaged|not an IDX",
        ),
        (b"\0\0\x08\3" + b"\xff" * 12, idx(np.zeros(3, np.uint8)), "cut short"),
        (idx(np.zeros((3, 4, 4), np.uint8)), b"\0\0\x08\1" + b"\xff" * 4, "cut short"),
    ],
)
def test_damaged_idx_files_are_one_line(tmp_path, pool, images, labels, said):
    put(tmp_path / "train-images-idx3-ubyte", images)
    put(tmp_path / "train-labels-idx1-ubyte", labels)
    with pytest.raises(SourceError, match=said) as error:
        list(open_labelled(str(tmp_path), TRAIN, pool)())
    assert "\n" not in str(error.value)


def test_an_npz_of_both_parts(tmp_path, pool):
    arrays = {f"x_{part}": np.stack([noise(i) for i in range(n)]) for part, n in PARTS.items()}
    arrays |= {f"y_{part}": np.arange(n)[:, None] for part, n in PARTS.items()}
    np.savez(tmp_path / "both.npz", **arrays)
    for split, n in PARTS.items():
        found = list(open_labelled(str(tmp_path / "both.npz"), split, pool)())
        assert [p.label for p in found] == [str(i) for i in range(n)]
        assert np.array_equal(found[2].rgb, noise(2))


PARTS = {TRAIN: 5, TEST: 3}


def test_an_npy_with_labels_beside_it(tmp_path, pool):
    np.save(tmp_path / "x_mine.npy", np.stack([noise(0), noise(1)]))
    np.save(tmp_path / "y_mine.npy", np.array([3, -1], np.int8))
    found = open_labelled(str(tmp_path / "x_mine.npy"), TEST, pool)
    assert [p.label for p in found()] == ["3", "-1"]
    np.save(tmp_path / "others.npy", np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(UsageError, match="no labels"):
        open_labelled(str(tmp_path / "others.npy"), TEST, pool)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"x_train": np.zeros((3, 4, 4), np.uint8)},
        {"x_train": np.zeros((3, 4, 4), np.uint8), "y_train": np.zeros(2, np.int64)},
        {"x_train": np.zeros((3, 4, 4), np.uint8), "y_train": np.zeros(3)},
        {"x_train": np.zeros((3, 4), np.float32), "y_train": np.zeros(3, np.int64)},
        {"x_train": np.zeros((3, 4, 4), np.uint8), "y_train": np.array(["a", "b", "c"], object)},
    ],
)
def test_arrays_that_are_not_labelled_pictures_are_one_line(tmp_path, pool, arrays):
    np.savez(tmp_path / "some.npz", **arrays)
    with pytest.raises(EngineError) as error:
        open_labelled(str(tmp_path / "some.npz"), TRAIN, pool)
    assert "\n" not in str(error.value)
    assert "some.npz" in str(error.value)
