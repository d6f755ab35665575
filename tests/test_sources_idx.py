"""IDX files, which MNIST comes as: rows are images, and a header that lies costs nothing."""

import gzip
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine import Store
from engine.cli.app import main
from engine.errors import SourceError
from engine.images.canonical import rows_from_array
from engine.records import Kind
from engine.sources.arrays import NpyArray, open_arrays
from engine.sources.idx import is_idx

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
DIGITS = np.random.default_rng(3).integers(0, 256, (9, 5, 6), np.uint8)
MIB = 1 << 20


def header(*sizes: int, type_: int = 8) -> bytes:
    return struct.pack(f">HBB{len(sizes)}I", 0, type_, len(sizes), *sizes)


def idx(array: np.ndarray) -> bytes:
    return header(*array.shape) + array.tobytes()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def opened(path: Path, kind: str | None = None) -> NpyArray:
    (array,) = open_arrays(path, kind)
    assert isinstance(array, NpyArray)
    return array


def rows(array: NpyArray, start: int = 0, max_rows: int = 4) -> np.ndarray:
    return np.concatenate([block.rows for block in array.blocks(start, max_rows, MIB)])


def refused(path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        list(opened(path).blocks(0, 100, MIB))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.fixture(params=["", ".gz"])
def ending(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (IMAGES, True),
        (f"{LABELS}.gz", True),
        ("emnist-letters-test-images-idx3-ubyte.GZ", True),
        ("t10k-images.idx3-ubyte", True),
        ("digits.idx3", True),
        ("pack-1234.idx", False),
        (f"._{IMAGES}", False),
        (f"{IMAGES}.txt", False),
        ("idx3-ubyte", False),
    ],
)
def test_a_name_says_what_is_an_idx_file(name: str, expected: bool) -> None:
    assert is_idx(name) is expected


def test_each_row_is_the_image_that_it_is_in_an_array(tmp_path: Path, ending: str) -> None:
    found = opened(put(tmp_path / f"{IMAGES}{ending}", idx(DIGITS)))
    assert (found.count, found.kind, found.row_bytes) == (9, Kind.U8, 5 * 6 * 3)
    expected = rows_from_array(DIGITS, Kind.U8)
    for start in (0, 1, 8):
        for max_rows in (1, 4, 100):
            assert np.array_equal(rows(found, start, max_rows), expected[start:])
    assert np.array_equal(found.row(8), expected[8])
    with pytest.raises(SourceError, match="has rows 0 to 8, not 9"):
        found.row(9)


def test_zeros_and_ones_are_bits_as_in_other_arrays(tmp_path: Path, ending: str) -> None:
    path = put(tmp_path / f"{IMAGES}{ending}", idx(DIGITS % 2))
    assert opened(path).kind is Kind.BITS
    assert np.array_equal(rows(opened(path)), rows_from_array(DIGITS % 2, Kind.BITS))
    assert opened(path, "8bit").kind is Kind.U8


def test_narrow_images_are_images(tmp_path: Path) -> None:
    narrow = DIGITS[..., :3]  # an .npy of this shape may be one image as well
    assert np.array_equal(
        rows(opened(put(tmp_path / IMAGES, idx(narrow)))), rows_from_array(narrow, Kind.U8)
    )


def test_none_at_all_are_none(tmp_path: Path, ending: str) -> None:
    found = opened(put(tmp_path / f"{IMAGES}{ending}", header(0, 28, 28)))
    assert (found.count, list(found.blocks(0, 10, MIB))) == (0, [])


def test_what_lies_behind_the_images_is_not_read(tmp_path: Path, ending: str) -> None:
    path = put(tmp_path / f"{IMAGES}{ending}", idx(DIGITS % 2) + bytes([7]) * 50)
    assert opened(path).kind is Kind.BITS
    assert len(rows(opened(path))) == 9


@pytest.mark.slow
def test_they_are_ingested_and_looked_up_as_arrays_are(
    tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(tmp_path / "mnist" / f"{IMAGES}{ending}", idx(DIGITS))
    Image.fromarray(DIGITS[4]).save(tmp_path / "four.png")
    where = tmp_path / "store"
    with Store.open(where, create=True, encoder="none") as store:
        assert store.ingest(path).added == 9
        again = store.ingest(path)
        assert (again.added, again.unchanged) == (0, 9)
        for query in (tmp_path / "four.png", f"{path}#4"):
            (hit,) = store.lookup(query, tiers=["identical"]).identical
            assert hit.sources == (f"{path}#4",)
        assert store.check().ok
    assert main(["lookup", str(path), "--exact", "--store", str(where), "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9
    with Store.open(where) as store:
        removed = store.remove(sources=[path])
        assert (removed.images, removed.sources, removed.not_found) == (9, 9, ())


@pytest.mark.slow
def test_a_folder_counts_them_and_says_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "mnist"
    put(folder / f"{IMAGES}.gz", idx(DIGITS))
    put(folder / f"{LABELS}.gz", idx(DIGITS[:, 0, 0]))
    Image.fromarray(DIGITS[4]).save(folder / "four.png")
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        report = store.ingest(folder)
        assert (report.added, report.skipped) == (1, 2)
        note = "IDX files are not read in folders: name each as a source"
        assert report.notes == {note: 2}
        (found,) = store.lookup_many([folder], tiers=["identical"])
        assert found.error is None


# --- what is not images ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is not an IDX file: it has no IDX header"),
        (b"\0\0\x08", "is not an IDX file: it has no IDX header"),
        (b"GIF89a" * 9, "is not an IDX file: it has no IDX header"),
        (b"\0\0\x07\x03" + bytes(99), "is not an IDX file: it has no IDX header"),
        (header(9, 5, 6)[:-1], "ends inside its header: it was cut short"),
        (
            header(9) + bytes(9),
            "holds labels, not images: name the file of images, such as x-idx3-ubyte",
        ),
        (
            header(1, 2, 2, type_=13) + bytes(16),
            "holds float32 in 3 dimensions: images in an IDX file are uint8 (n, H, W)",
        ),
        (
            header(*[1] * 255) + bytes(16),
            "holds uint8 in 255 dimensions: images in an IDX file are uint8 (n, H, W)",
        ),
        (header(1, 0, 6), "has shape (1, 0, 6): images are (N, H, W, 3) or (N, H, W)"),
        (idx(DIGITS)[:-1], "ends after row 8 of 9: it was cut short"),
        (header(2**32 - 1, 5, 6) + bytes(61), "ends after row 2 of 4294967295: it was cut short"),
        (header(2**32 - 1, 2**32 - 1, 2**32 - 1), "ends after row 0 of 4294967295: it was cut"),
    ],
)
def test_what_is_damaged_or_something_else_is_one_line(
    tmp_path: Path, data: bytes, reason: str, ending: str
) -> None:
    name = f"x-idx1-ubyte{ending}" if data[:4] == header(9)[:4] else f"{IMAGES}{ending}"
    assert refused(put(tmp_path / name, data)).startswith(reason)


def test_a_damaged_stream_is_one_line(tmp_path: Path) -> None:
    data = gzip.compress(idx(DIGITS))
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(data[:-30])
    assert refused(path) == "is damaged: its compressed data was cut short"
    path.write_bytes(data[:30] + bytes([data[30] ^ 255]) + data[31:])
    assert refused(path).startswith("is damaged: Error -3 while decompressing")


def test_a_file_that_changes_is_noticed(tmp_path: Path, ending: str) -> None:
    path = put(tmp_path / f"{IMAGES}{ending}", idx(DIGITS))
    found = opened(path)
    put(path, idx(DIGITS[:3]))
    with pytest.raises(SourceError, match="changed while it was read") as caught:
        rows(found)
    assert caught.value.retryable


@pytest.mark.slow
def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """64 MiB of zeros behind one image; and one image that is as large as its header says."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = packer.compress(header(1, 4, 4))
    block, packed = bytes(16 * MIB), [start]
    packed += [packer.compress(block) for _ in range(4)]
    bomb = tmp_path / f"{IMAGES}.gz"
    bomb.write_bytes(b"".join([*packed, packer.flush()]))
    tracemalloc.start()
    try:
        assert len(rows(opened(bomb))) == 1
        with Store.open(tmp_path / "store", create=True, encoder="none", memory="128M") as store:
            assert store.ingest(bomb).added == 1
            large = put(tmp_path / "large-idx3-ubyte.gz", header(1, 1 << 31, 1 << 31) + block)
            assert store.ingest(large).rejected == 1
            (found,) = store.lookup_many([f"{large}#0"], tiers=["identical"])
            assert found.error is not None and "raise memory=" in found.error
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 * MIB
