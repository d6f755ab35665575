"""Arrays in .npy and .npz files: every row in every block size, and nothing that is not plain pixels."""

import contextlib
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import save
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.errors import SourceError, UsageError
from engine.images.canonical import from_array, rows_from_array
from engine.images.decode import decode
from engine.records import Kind
from engine.sources.arrays import NpyArray, open_array, open_arrays
from engine.sources.items import stamp_of
from engine.sources.steady_file import steady

RNG = np.random.default_rng(7)
COLOUR = RNG.integers(0, 256, (9, 5, 6, 3), np.uint8)
GREY = COLOUR[..., 0]
BITS = RNG.integers(0, 2, (9, 5, 6, 3), np.uint8)
ARRAYS = {
    "bool": (BITS.astype(bool), Kind.BITS),
    "zero-one": (BITS, Kind.BITS),
    "8-bit": (COLOUR, Kind.U8),
    "grey": (GREY, Kind.U8),
    "one-channel": (GREY[..., None], Kind.U8),
    "narrow-bool": (BITS[:, :, :3, :1].astype(bool), Kind.BITS),
    "grey-bool": (BITS[..., 0].astype(bool), Kind.BITS),
    "grey-zero-one": (BITS[..., 0], Kind.BITS),
}


def saved(path: Path, array: np.ndarray, **options) -> NpyArray:
    np.save(path, array, **options)
    return open_array(path)


def all_rows(array: NpyArray, start: int = 0, max_rows: int = 100, max_bytes: int = 1 << 20):
    blocks = list(array.blocks(start, max_rows, max_bytes))
    return np.concatenate([block.rows for block in blocks]) if blocks else np.empty((0, 0))


def npy(header: str, data: bytes = bytes(200)) -> bytes:
    """An .npy file with any header."""
    line = header.encode()
    line += b" " * (-(len(line) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(line)) + line + data


def described(shape: str, dtype: str = "|u1", fortran: bool = False) -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': {fortran}, 'shape': {shape}, }}"


def refused(path: Path) -> str:
    """Why none of the arrays in ``path`` can be read: one line."""
    with pytest.raises(SourceError) as caught:
        for array in open_arrays(path):
            list(array.blocks(0, 100, 1 << 20))
    assert str(caught.value).strip()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARRAYS)
def test_each_row_is_the_image_it_is_as_an_array(tmp_path, name):
    array, kind = ARRAYS[name]
    found = saved(tmp_path / "a.npy", array)
    assert (found.count, found.kind) == (9, kind)
    assert np.array_equal(all_rows(found), rows_from_array(array, kind))
    for number in range(9):
        assert found.row(number).tobytes() == bytes(from_array(array[number]).canonical)


@given(
    start=st.integers(0, 9),
    max_rows=st.integers(1, 12),
    max_bytes=st.integers(1, 3000),
    name=st.sampled_from(sorted(ARRAYS)),
    packed=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_blocks_of_any_size_hold_the_same_rows(tmp_path, start, max_rows, max_bytes, name, packed):
    array, kind = ARRAYS[name]
    path = tmp_path / f"{name}.{'npz' if packed else 'npy'}"
    if not path.exists():
        np.savez_compressed(path, x=array) if packed else np.save(path, array)
    found = open_arrays(path)[0]
    at, expected = start, rows_from_array(array, kind)
    for block in found.blocks(start, max_rows, max_bytes):
        assert (block.first, block.kind) == (at, kind)
        assert 1 <= len(block.rows) <= max_rows
        assert np.array_equal(block.rows, expected[at : at + len(block.rows)])
        at += len(block.rows)
    assert at == 9


def test_bits_are_decided_for_the_whole_array_and_not_for_a_row(tmp_path):
    array = BITS.copy()
    array[8, 0, 0, 0] = 2
    found = saved(tmp_path / "a.npy", array)
    assert found.kind is Kind.U8
    assert np.array_equal(all_rows(found), rows_from_array(array, Kind.U8))


def test_the_kind_can_be_overridden(tmp_path):
    np.save(tmp_path / "a.npy", BITS)
    forced = open_array(tmp_path / "a.npy", kind="8bit")
    assert forced.kind is Kind.U8
    assert forced.name.endswith(b"a.npy?kind=8bit")
    assert np.array_equal(all_rows(forced), rows_from_array(BITS, Kind.U8))
    assert open_array(tmp_path / "a.npy", kind="bits").kind is Kind.BITS


def test_an_array_that_is_said_to_be_bits_and_is_not_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", COLOUR)
    with pytest.raises(SourceError, match="above 1"):
        list(open_array(tmp_path / "a.npy", kind="bits").blocks(0, 10, 1 << 20))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
def test_an_npz_holds_several_arrays(tmp_path, save):
    save(tmp_path / "a.npz", beta=COLOUR, alpha=BITS.astype(bool))
    alpha, beta = open_arrays(tmp_path / "a.npz")
    assert alpha.name == bytes(tmp_path / "a.npz") + b"#alpha"
    assert np.array_equal(all_rows(alpha), rows_from_array(BITS, Kind.BITS))
    assert np.array_equal(all_rows(beta), rows_from_array(COLOUR, Kind.U8))
    assert beta.row(8).tobytes() == bytes(from_array(COLOUR[8]).canonical)


def test_an_array_remembers_its_files_stamp(tmp_path):
    found = saved(tmp_path / "a.npy", COLOUR)
    status = (tmp_path / "a.npy").stat()
    assert (found.mtime_ns, found.size) == (status.st_mtime_ns, status.st_size)
    assert found.name == bytes(tmp_path / "a.npy")


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format_is_read(tmp_path, version):
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, COLOUR, version=version)
    assert len(all_rows(open_array(tmp_path / "a.npy"))) == 9


def test_an_empty_array_has_no_rows(tmp_path):
    found = saved(tmp_path / "a.npy", COLOUR[:0])
    assert found.count == 0
    assert list(found.blocks(0, 10, 1 << 20)) == []


@pytest.mark.parametrize("number", [-1, 9, 1 << 70])
def test_a_row_that_is_not_there_is_a_source_error(tmp_path, number):
    with pytest.raises(SourceError, match="rows 0 to 8"):
        saved(tmp_path / "a.npy", COLOUR).row(number)


def test_a_mask_is_its_png_if_that_is_black_and_white(tmp_path):
    mask = RNG.integers(0, 2, (1, 9, 6), np.uint8)
    row = saved(tmp_path / "a.npy", mask).row(0).tobytes()
    numbers = Image.fromarray(mask[0])  # 8-bit, of 0 and 1
    colours = Image.fromarray(mask[0]).convert("P")
    colours.putpalette([0, 0, 0, 255, 255, 255])
    other = colours.copy()
    other.putpalette([0, 0, 0, 128, 0, 0])
    for image, same in (
        (Image.fromarray(mask[0].astype(bool)), True),
        (Image.fromarray(mask[0] * np.uint8(255)), True),
        (colours, True),
        (numbers, False),
        (other, False),
    ):
        file = io.BytesIO()
        image.save(file, "PNG")
        found = decode(file.getvalue()).pixels
        assert (bytes(found.canonical) == row) == same
        assert found.kind is (Kind.BITS if same else Kind.U8)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        COLOUR.astype(np.float32),
        COLOUR.astype(np.uint16),
        COLOUR.astype(np.int8),
        COLOUR[0, 0],
        COLOUR[..., :2],
        COLOUR[None],
        np.zeros((3, 0, 4), np.uint8),
        np.zeros((), np.uint8),
        np.array([b"text"]),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_an_array_that_holds_no_images_is_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    assert refused(tmp_path / "a.npy").startswith(("has dtype", "has shape"))


@pytest.mark.parametrize("width", [3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_an_array_that_may_be_one_image_is_refused_with_what_to_do(tmp_path, width, dtype):
    one = RNG.integers(0, 2, (9, 5, width)).astype(dtype)
    np.save(tmp_path / "a.npy", one)
    assert f"has shape (9, 5, {width}), which may be one image (array[None]" in refused(
        tmp_path / "a.npy"
    )
    assert "or 9 that are" in refused(tmp_path / "a.npy")
    assert saved(tmp_path / "b.npy", one[..., None]).count == 9
    assert saved(tmp_path / "c.npy", one[None, ..., :3]).count == 1


def test_fortran_order_is_refused_with_what_to_do(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(COLOUR))
    assert "ascontiguousarray" in refused(tmp_path / "a.npy")


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return Path.mkdir, (self.folder,)


@pytest.mark.parametrize("inside", ["npy", "npz", "bare"])
def test_a_pickle_is_never_loaded(tmp_path, inside):
    marker, path = tmp_path / "executed", tmp_path / f"a.{inside.replace('bare', 'npy')}"
    objects = np.array([[[Payload(marker)]]], object)
    if inside == "bare":
        path.write_bytes(pickle.dumps(Payload(marker)))
    else:
        (np.save if inside == "npy" else np.savez)(path, objects)
    refused(path)
    assert not marker.exists()
    if inside == "npy":  # the payload works: it is the engine that does not load it
        np.load(path, allow_pickle=True)
        assert marker.exists()


def test_a_file_that_was_cut_gives_its_whole_rows_and_then_a_source_error(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, COLOUR)
    path.write_bytes(path.read_bytes()[: -2 * 90 - 1])
    found, rows = open_array(path), []
    with pytest.raises(SourceError, match="after row 6 of 9"):
        for block in found.blocks(0, 4, 1 << 20):
            rows.extend(block.rows)
    assert np.array_equal(rows, rows_from_array(COLOUR[:6], Kind.U8))
    assert found.row(5).tobytes() == bytes(from_array(COLOUR[5]).canonical)
    with pytest.raises(SourceError, match="cut short"):
        found.row(6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00",
        b"\x93NUMPY\x09\x00" + bytes(100),
        b"text, and not an array",
        b"PK\x03\x04" + bytes(100),
        npy("not a dictionary"),
        npy("{'descr': '|u1'}"),
        npy("{'descr': '|u1', 'shape': ("),
        npy("{'descr': '|u1', 'shape': (1, 2, 3), '''"),
        npy("(" * 3000),
        npy("-" * 4000 + "1"),
        npy(described("(2, 5, 5)", "|z9")),
        npy(described("(2, 5, 5)", "|O")),
        npy(described("(-2, 5, 5)")),
        npy(described("(2, -5, 5)")),
        npy(described("(2, -5, -5)")),
        npy(described("(2.0, 5, 5)")),
        npy(described("[2, 5, 5]")),
    ],
    ids=range(19),
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_what_is_not_an_array_is_refused(tmp_path, content, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(content)
    refused(tmp_path / f"a.{suffix}")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("x.npy", content)
    refused(tmp_path / "b.npz")


@pytest.mark.parametrize("dtype", ["|u1", "<f4"])
def test_a_dimension_that_no_number_holds_is_refused(tmp_path, dtype):
    for many in (1 << 63, 10**4000, 10**5000):  # Python itself reads no numbers as long as the last
        with contextlib.suppress(ValueError):
            (tmp_path / "a.npy").write_bytes(npy(described(f"({many}, 5, 5)", dtype), b"\1" * 20))
        assert "is not an .npy array" in refused(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "shape",
    ["(1000000000000, 5, 5)", "(1, 1000000, 1000000)", "(9, 1099511627776, 1099511627776)"],
)
@pytest.mark.parametrize("dtype", ["|u1", "|b1"])
def test_a_header_that_promises_more_than_there_is_costs_no_memory(tmp_path, shape, dtype):
    content = npy(described(shape, dtype), b"\1" * 20)
    (tmp_path / "a.npy").write_bytes(content)
    assert "cut short" in refused(tmp_path / "a.npy")
    with pytest.raises(SourceError, match="cut short"):
        open_array(tmp_path / "a.npy").row(0)
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    assert "cut short" in refused(tmp_path / "b.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
@given(place=st.integers(0, 10**6), value=st.integers(1, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_npz_never_raises_anything_but_a_source_error(tmp_path, save, place, value):
    file = io.BytesIO()
    save(file, x=COLOUR)
    damaged = bytearray(file.getvalue())
    damaged[place % len(damaged)] ^= value
    (tmp_path / "a.npz").write_bytes(damaged)
    try:
        for array in open_arrays(tmp_path / "a.npz"):
            list(array.blocks(0, 4, 1 << 20))
    except SourceError as error:
        assert len(str(error).splitlines()) == 1


def test_compressed_data_that_is_damaged_is_a_source_error(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=COLOUR)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[90:150] = bytes(60)
    (tmp_path / "a.npz").write_bytes(data)
    assert "damaged" in refused(tmp_path / "a.npz")


def test_an_npz_without_arrays_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    assert "no arrays" in refused(tmp_path / "a.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_npz_is_refused_whose_arrays_are_unpacked_all_at_once(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("x.npy", npy(described("(40, 100, 100)"), bytes(400_000)))
    assert f"method {method}" in refused(tmp_path / "a.npz")


@pytest.mark.parametrize("claimed", [1 << 31, 8 << 20])
def test_a_header_that_is_longer_than_any_is_not_read(tmp_path, claimed):
    start = b"\x93NUMPY\x02\x00" + struct.pack("<L", claimed)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("x.npy", start + described("(1, 4, 4)").encode() + b" " * (8 << 20))
    tracemalloc.start()
    assert "is not an .npy array" in refused(tmp_path / "a.npz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 << 20


# --- what changes or fails while it is read -------------------------------------------------------


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_an_array_that_cannot_be_opened_again_is_tried_again(tmp_path, name):
    np.savez(tmp_path / "a.npz", x=COLOUR)
    np.save(tmp_path / "a.npy", COLOUR)
    (found,) = open_arrays(tmp_path / name)
    (tmp_path / name).unlink()
    with pytest.raises(SourceError, match="cannot be read: No such file") as caught:
        all_rows(found)
    assert caught.value.retryable


@pytest.mark.parametrize("after", [0, 1], ids=["before", "within"])
@pytest.mark.parametrize("name", ["a.npy", "a.npz", "packed.npz"])
def test_an_array_that_changes_while_it_is_read_is_noticed(tmp_path, name, after):
    def write(array: np.ndarray) -> None:
        np.save(tmp_path / "a.npy", array)
        np.savez(tmp_path / "a.npz", x=array)
        np.savez_compressed(tmp_path / "packed.npz", x=array)

    write(COLOUR)
    (found,) = open_arrays(tmp_path / name)
    blocks = found.blocks(0, 4, 1 << 20)
    for _ in range(after):
        next(blocks)
    write(np.concatenate([COLOUR, COLOUR]))
    with pytest.raises(SourceError, match="changed while it was read") as caught:
        list(blocks)
    assert caught.value.retryable


def test_an_array_with_the_stamp_of_another_is_told_by_its_header(tmp_path):
    found = saved(tmp_path / "a.npy", COLOUR)
    at = (tmp_path / "a.npy").stat().st_mtime_ns
    np.save(tmp_path / "a.npy", COLOUR.transpose(0, 2, 1, 3).copy())
    os.utime(tmp_path / "a.npy", ns=(at, at))
    with pytest.raises(SourceError, match="changed while it was read"):
        all_rows(found)


@pytest.mark.parametrize(
    ("error", "says", "retryable"),
    [
        (OSError(5, "Input/output error"), "cannot be read: Input/output error", True),
        (MemoryError(), "raise memory=", True),
        (OSError("Invalid data stream"), "is damaged: Invalid data stream", False),
        (ValueError("lies"), "is damaged: lies", False),
    ],
)
def test_what_a_failing_read_says_of_a_file(tmp_path, error, says, retryable):
    path = save(tmp_path / "a.png", COLOUR[0])
    with pytest.raises(SourceError) as caught, steady(path, stamp_of(path.stat())):
        raise error
    assert says in str(caught.value)
    assert caught.value.retryable == retryable


def test_an_error_of_an_argument_is_no_damage_of_the_file(tmp_path):
    path = save(tmp_path / "a.png", COLOUR[0])
    with pytest.raises(UsageError), steady(path, stamp_of(path.stat())):
        raise UsageError("has no such column")
