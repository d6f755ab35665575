"""Images in memory are a source like any other: streamed, resumed, found again, replaced."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import encoded, picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine import ImageError, Kind, PackedBits, Store, UsageError
from engine.config import Limits
from engine.images import canonical, hashing
from engine.images.canonical import HEADER_BYTES, rows_from_array
from engine.sources.in_memory import MemoryArray, member, members
from engine.sources.items import Member, Reject
from engine.sources.metadata import METADATA_LIMIT, checked_metadata


def bits(seed: int, count: int, side: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (count, side, side, 3)).astype(np.bool_)


def open_store(path: Path, limits: Limits | None = None) -> Store:
    return Store.open(path / "store", create=True, encoder="none", limits=limits)


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


def test_an_interrupted_ingest_goes_on(tmp_path: Path) -> None:
    images = PackedBits.pack(bits(4, 20))
    with open_store(tmp_path, Limits(chunk_rows=4)) as store:
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


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.uint8, bool])
@pytest.mark.parametrize("width", [3, 4])
def test_an_array_that_may_be_one_image_is_not_taken_for_many(
    tmp_path: Path, width: int, dtype: type
) -> None:
    one = np.random.default_rng(0).integers(0, 2, (8, 6, width)).astype(dtype)
    with Store.open(tmp_path / "s", create=True, encoder="none") as store:
        for call in (lambda: store.ingest(one, name="a"), lambda: store.find_identical(one)):
            with pytest.raises(UsageError, match=r"may be one image \(array\[None\]"):
                call()
        with pytest.raises(UsageError, match="or 8 that are"):
            PackedBits.pack(one)
        assert store.ingest([("one", one)]).added == 1
        assert [hit.sources for hit in store.lookup(one).identical] == [("memory:one",)]
        colours = one[None, ..., :3]
        store.ingest(colours, name="colours")
        assert store.sources(int(store.find_identical(colours)[0]))[-1] == "memory:colours#0"
        masks = one[..., None]
        assert store.ingest(masks, name="masks").seen == 8
        ids = store.find_identical(masks)
        assert f"memory:masks#{5}" in store.sources(int(ids[5]))
        assert store.lookup(masks[5]).identical[0].id == ids[5]


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
        with pytest.raises(UsageError, match="name= is for images in memory"):
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
    for which in (np.array([True, False, True]), np.array([0, 2])):
        assert np.array_equal(good[which].packed, good.packed[[0, 2]])
    with pytest.raises(UsageError, match=r"for images of 4 × 3 \(n, 5\) uint8 is needed"):
        PackedBits(good.packed, 4, 3)
    with pytest.raises(UsageError, match="dtype int64"):
        PackedBits(good.packed.astype(np.int64), 3, 3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the last 5 bits"):
        PackedBits(good.packed | np.uint8(1), 3, 3)
    with pytest.raises(UsageError, match="not bit images"):
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


def test_an_array_is_stamped_as_it_is_however_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """And without a copy of all of it."""
    images = bits(8, 40, 9)
    stamp = MemoryArray(images, "x").mtime_ns
    wide = np.zeros((40, 9, 18, 3), np.bool_)
    wide[:, :, ::2] = images
    backwards = np.ascontiguousarray(images[::-1])
    for other in (wide[:, :, ::2], backwards[::-1], np.asfortranarray(images)):
        assert not other.flags.c_contiguous
        assert MemoryArray(other, "x").mtime_ns == stamp
    most: list[int] = []
    real = np.ascontiguousarray

    def measured(array: np.ndarray) -> np.ndarray:
        most.append(array.nbytes)
        return real(array)

    monkeypatch.setattr(np, "ascontiguousarray", measured)
    assert MemoryArray(wide[:, :, ::2], "x", stamp_bytes=1000).mtime_ns == stamp
    assert max(most) <= 1000
    assert MemoryArray(backwards[::-1], "x").mtime_ns == stamp
    packed = PackedBits.pack(images)
    padded = np.zeros((40, packed.packed.shape[1] * 2), np.uint8)
    padded[:, ::2] = packed.packed
    again = PackedBits(padded[:, ::2], 9, 9)
    assert MemoryArray(again, "x").mtime_ns == MemoryArray(packed, "x").mtime_ns


# --- one image, and streams of them ---------------------------------------------------------------

MOST = 1 << 30


def test_one_image_in_memory_is_ingested_under_its_name(tmp_path: Path) -> None:
    data = encoded(picture(0))
    with open_store(tmp_path) as store:
        assert store.ingest(data, name="a.png", metadata={"label": "cat"}).added == 1
        assert store.ingest(Image.fromarray(picture(1)), name="b").added == 1
        assert store.ingest(Image.fromarray(picture(0)), name="c").duplicates == 1
        assert store.ingest(data, name="d.png").duplicates == 1
        first, second = store.get(1), store.get(2)
        assert (first.container, first.file_bytes) == ("png", len(data))
        assert first.file_hash == hashing.file_hash(data)
        assert first.metadata == {"label": "cat"}
        assert (second.container, second.file_bytes, second.file_hash) == ("image", 0, b"")
        assert (second.metadata, second.decoder) == (None, "")
        assert sorted(store.sources(1)) == ["memory:a.png", "memory:c", "memory:d.png"]
        assert store.lookup(picture(1)).identical[0].sources == ("memory:b",)
        again = store.ingest(data, name="a.png", metadata={"label": "cat"})
        assert (again.unchanged, again.added, again.duplicates) == (1, 0, 0)
        assert store.ingest(encoded(picture(5)), name="a.png").added == 1, (
            "another one of that name"
        )
        assert sorted(store.sources(1)) == ["memory:c", "memory:d.png"]
        assert store.check().problems == ()


def test_an_opened_file_is_the_same_image_as_its_path(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, moving = tmp_path / "turned.jpg", tmp_path / "moving.gif"
    Image.fromarray(picture(0)).resize((80, 60)).save(turned, exif=exif)
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("orange", "navy")]
    frames[0].save(moving, save_all=True, append_images=frames[1:])
    with open_store(tmp_path) as store:
        assert store.ingest(str(turned), str(moving)).added == 2
        for number, path in enumerate((turned, moving), 1):
            with Image.open(path) as image:
                assert [hit.id for hit in store.lookup(image).identical] == [number]
                assert store.ingest(image, name=f"unread {number}").duplicates == 1
                image.load()
                assert [hit.id for hit in store.lookup(image).identical] == [number]
                assert store.ingest(image, name=f"loaded {number}").duplicates == 1


def test_a_stream_is_of_all_kinds_of_images(tmp_path: Path) -> None:
    rgba = picture(2, 4)
    deep = picture(3).astype(np.uint16) * 200
    mask = bits(0, 1)[0]
    elements: list[Any] = [
        ("file.png", encoded(picture(0))),
        ["listed", bytearray(encoded(picture(1)))],
        ("rgba", rgba, {"n": 1}),
        ("deep", deep, None),
        ("mask", mask),
        ("grey", picture(4)[..., 0]),
        ("pil", Image.fromarray(picture(5))),
        ("packed", PackedBits.pack(bits(9, 3))[1]),
    ]
    with open_store(tmp_path) as store:
        report = store.ingest(iter(elements), keep_pixels="yes")
        assert (report.added, report.rejected) == (8, 0)
        kinds = [store.get(id_).kind for id_ in range(1, 9)]
        u8, u16, bit = Kind.U8, Kind.U16, Kind.BITS
        assert kinds == [u8, u8, u8, u16, bit, u8, u8, bit]
        assert store.get(3).metadata == {"n": 1}
        for query, name in (
            (encoded(picture(1)), "listed"),
            (rgba, "rgba"),
            (deep, "deep"),
            (mask, "mask"),
            (picture(4)[..., 0], "grey"),
            (picture(5), "pil"),
            (bits(9, 3)[1], "packed"),
        ):
            (hit,) = store.lookup(query).identical
            how = "digest" if name == "listed" else "bytes"  # of that one the file is kept
            assert (hit.sources, hit.verified) == ((f"memory:{name}",), how)
        again = store.ingest(elements)
        assert (again.unchanged, again.added) == (8, 0)
        assert store.check().problems == ()


def test_what_is_wrong_in_a_stream_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    cut = Image.open(io.BytesIO(encoded(picture(7))[:-30]))
    elements: list[Any] = [
        ("good", encoded(picture(0))),
        ("broken", b"\x89PNG\r\n\x1a\n"),
        ("cut", cut),
        ("float", np.zeros((3, 3))),
        ("flat", np.zeros(3, np.uint8)),
        ("many", np.zeros((2, 3, 3, 3), np.uint8)),
        ("none", np.zeros((0, 3), np.uint8)),
        ("two", PackedBits.pack(bits(0, 2))),
        ("mode", Image.new("F", (2, 2))),
        ("text", "photo.jpg"),
        ("nothing", None),
        ("", encoded(picture(1))),
        ("a\0b", encoded(picture(1))),
        ("\ud800", encoded(picture(1))),
        ("x" * 5000, encoded(picture(1))),
        (7, encoded(picture(1))),
        ("said", encoded(picture(1)), {"x": float("nan")}),
        ("long", encoded(picture(1)), {"x": "y" * METADATA_LIMIT}),
        ("odd", encoded(picture(1)), [1]),
        ("pair",),
        "photo.jpg",
        None,
        ("last", picture(2)),
    ]
    with open_store(tmp_path) as store:
        report = store.ingest(element for element in elements)
        assert (report.added, report.rejected) == (2, len(elements) - 2)
        assert store.sources(2) == ["memory:last"]
        told = (tmp_path / "store" / "rejects.jsonl").read_text().splitlines()
        reasons = {line["source"]: line["reason"] for line in map(json.loads, told)}
        assert len(reasons) == len(elements) - 2
        assert "dtype float64" in reasons["memory:float"]
        assert "not a str" in reasons["memory:text"]
        assert "need a name" in reasons["memory:(11)"]
        assert "not valid text" in reasons["memory:(13)"]
        assert "5,000 bytes" in reasons["memory:(14)"]
        assert "not JSON compliant" in reasons["memory:said"]
        assert "over the limit of 16,384" in reasons["memory:long"]
        assert "not a tuple of 1" in reasons["memory:(19)"]
        assert "not a str" in reasons["memory:(20)"]
        assert all("\n" not in reason for reason in reasons.values())
        assert store.check().problems == ()
        assert store.ingest([("cut", encoded(picture(7)))]).added == 1
        assert store.info().rejects == len(elements) - 3, "what is mended is no reject any more"


@pytest.mark.slow
def test_a_stream_is_read_as_it_is_needed(tmp_path: Path) -> None:
    ahead: list[int] = []
    with open_store(tmp_path, Limits(chunk_files=10)) as store:

        def endless() -> Iterator[tuple[str, Any]]:
            number = 0
            frame = np.zeros((4, 4), np.uint8)
            buffer = bytearray()
            while True:
                ahead.append(number - len(store))
                frame[:] = np.random.default_rng(number).integers(0, 256, (4, 4))
                buffer[:] = encoded(frame)
                # The same array and the same buffer again and again.
                yield f"frame-{number}", frame if number % 2 else buffer
                number += 1

        report = store.ingest(endless(), stop=lambda: len(store) >= 200)
        assert report.interrupted
        assert 200 <= report.added == len(store) <= 230
        assert max(ahead) <= 40, "a few chunks"
        for number in (0, 57, 199):
            frame = np.random.default_rng(number).integers(0, 256, (4, 4)).astype(np.uint8)
            assert store.lookup(frame).identical[0].sources == (f"memory:frame-{number}",)
        total: list[int | None] = []
        store.ingest([("x", picture(0))], progress=lambda done, all_: total.append(all_))
        assert set(total) == {None}


def test_an_error_of_the_streams_own_is_the_callers(tmp_path: Path) -> None:

    def breaks() -> Iterator[tuple[str, np.ndarray]]:
        for number in range(9):
            yield f"{number}", picture(number)
        raise KeyError("camera")

    with open_store(tmp_path, Limits(chunk_files=2)) as store:
        with pytest.raises(KeyError, match="camera"):
            store.ingest(breaks())
        assert len(store) >= 6, "what was committed stays"
        assert store.ingest((f"{n}", picture(n)) for n in range(9)).seen == 9
        assert len(store) == 9
        assert store.check().problems == ()


def test_the_last_of_one_name_in_a_stream_counts(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.ingest([("x", picture(0)), ("x", picture(1)), ("x", picture(1))])
        assert store.sources(2) == ["memory:x"]
        assert store.sources(1) == []
        assert store.check().problems == ()


def test_what_is_said_later_of_an_image_is_kept(tmp_path: Path) -> None:
    data = encoded(picture(0))
    with open_store(tmp_path) as store:
        store.ingest(data, name="x")
        assert store.ingest(data, name="x", metadata={}).unchanged == 1
        assert store.ingest(data, name="x", metadata={"label": "é"}).duplicates == 1
        assert store.get(1).metadata == {"label": "é"}
        assert store.info().sources == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sources", "named", "says"),
    [
        ((b"x",), {}, "need a name"),
        ((b"x",), {"name": ""}, "need a name"),
        ((b"x", b"y"), {"name": "x"}, "ingested alone"),
        ((b"x",), {"name": "x", "files_from": "y"}, "ingested alone"),
        ((b"x",), {"name": "x", "metadata": [1]}, "not a JSON object"),
        ((b"x",), {"name": "x", "metadata": {"a": object()}}, "not JSON serializable"),
        ((Image.new("F", (2, 2)),), {"name": "x"}, "mode F"),
        (([("a", b"x")],), {"name": "x"}, "images of a stream have their own"),
        (([("a", b"x")],), {"metadata": {"a": 1}}, "images of a stream have their own"),
        ((bits(0, 2),), {"name": "x", "metadata": {"a": 1}}, "metadata= is for one image"),
        (("photos",), {"metadata": {"a": 1}}, "metadata= is for one image"),
        ((["a.jpg", "b.jpg"],), {}, "each its own argument"),
        (({"a": b"x"},), {}, "not a dict"),
        ((io.BytesIO(b"x"),), {}, "not a BytesIO"),
        ((7,), {}, "not a int"),
        (("photos", [("a", b"x")]), {}, "ingested alone"),
    ],
)
def test_a_call_that_makes_no_sense_is_told_before_anything_is_done(
    tmp_path: Path, sources: tuple[Any, ...], named: dict[str, Any], says: str
) -> None:
    with open_store(tmp_path) as store:
        with pytest.raises(UsageError, match=says) as error:
            store.ingest(*sources, **named)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "store" / "rejects.jsonl").exists()


def test_one_image_that_cannot_be_read_is_rejected(tmp_path: Path) -> None:
    cut = Image.open(io.BytesIO(encoded(picture(7))[:-30]))
    with open_store(tmp_path) as store:
        assert store.ingest(b"no image", name="x").rejected == 1
        assert store.ingest(cut, name="y").rejected == 1
        assert len(store) == 0


def test_a_pil_image_that_is_too_large_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.new("RGB", (100, 100))
    with pytest.raises(ImageError, match="raise memory="):
        member("x", image, None, 100_000)
    monkeypatch.setattr("engine.images.decode.MAX_PIXELS", 9999)  # of callers that name no memory
    assert member("x", image, None, MOST).decoded is not None


def test_members_say_what_they_are() -> None:
    data = encoded(picture(0))
    found = list(members([("x", data), ("y", picture(1)), ("z", 0)], MOST))
    assert found[0] == Member(b"memory:x", hashing.stamp(data), len(data), data)
    other = found[1]
    assert isinstance(other, Member) and other.decoded is not None
    form = other.decoded.pixels.canonical
    assert form == canonical.from_array(picture(1)).canonical
    assert (other.mtime_ns, other.size, other.data) == (
        hashing.stamp(form),
        len(form),
        b"",
    )
    assert isinstance(found[2], Reject)


# --- metadata -------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(), inside, max_size=4),
    max_leaves=20,
)  # fmt: skip


@pytest.mark.slow
@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_metadata_is_kept_as_it_is(value: dict[str, Any]) -> None:
    found = checked_metadata(value)
    assert found == (value or None)
    assert json.loads(json.dumps(found)) == found


def test_numpy_numbers_are_metadata_as_those_of_python_are() -> None:
    given = {"n": np.int64(3), "x": [np.float32(0.5)], "is": np.bool_(True)}
    assert checked_metadata(given) == {"n": 3, "x": [0.5], "is": True}


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (7, "not a JSON object"),
        ([], "not a JSON object"),
        ("{}", "not a JSON object"),
        ({1: 2}, "text for keys"),
        ({"a": float("inf")}, "not JSON compliant"),
        ({"a": [{"b": float("nan")}]}, "not JSON compliant"),
        ({"a": b"x"}, "not JSON serializable"),
        ({"a": np.ones(2)}, "not JSON serializable"),
        ({"a": np.float32("nan")}, "not JSON compliant"),
        ({"a": 10**5000}, "not a JSON object"),
        ({"a": "x" * METADATA_LIMIT}, "over the limit of 16,384"),
        ({"a": "\ud800"}, "surrogates not allowed"),
        (nested(33), "more than 32 levels"),
        (nested(5000), "not a JSON object|levels"),
    ],
)
def test_metadata_that_is_none_is_refused(value: object, says: str) -> None:
    with pytest.raises(ImageError, match=says) as error:
        checked_metadata(value)
    assert "\n" not in str(error.value)


def test_metadata_has_limits_that_are_kept_to() -> None:
    assert checked_metadata(nested(32)) == nested(32)
    assert checked_metadata(None) is None
    assert checked_metadata({}) is None
    room = METADATA_LIMIT - len(json.dumps({"a": ""}))
    assert checked_metadata({"a": "x" * room}) is not None
    with pytest.raises(ImageError):
        checked_metadata({"a": "x" * (room + 1)})
    around: dict[str, Any] = {}
    around["a"] = around
    with pytest.raises(ImageError, match="Circular"):
        checked_metadata(around)


# --- what a stream may do to its store ------------------------------------------------------------


def test_a_stream_that_fails_loses_nothing_that_came_before(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[str, np.ndarray]]:
        for i in range(5):
            yield f"{i}", picture(i)
        raise LookupError("the camera is gone")

    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        with pytest.raises(LookupError, match="the camera is gone"):
            store.ingest(failing())
        assert [store.lookup(picture(i)).identical[0].id for i in range(5)] == [1, 2, 3, 4, 5]
        assert store.check().ok


@pytest.mark.slow
@pytest.mark.parametrize("call", ["ingest", "remove", "optimize"])
def test_a_stream_cannot_change_its_store(tmp_path: Path, call: str) -> None:
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest([("one", picture(1))])

        def meddling() -> Iterator[tuple[str, np.ndarray]]:
            yield "two", picture(1)
            if call == "remove":
                store.remove(ids=[1])
            elif call == "optimize":
                store.optimize()
            else:
                store.ingest([("three", picture(3))])

        with pytest.raises(UsageError, match=f"{call} was called during ingest"):
            store.ingest(meddling())
        assert sorted(store.sources(1)) == ["memory:one", "memory:two"]
        assert store.remove(ids=[1]).images == 1  # afterwards it may
        assert store.check().ok


def test_a_name_that_is_that_of_a_row_is_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        with pytest.raises(UsageError, match="a row of an array"):
            store.ingest(encoded(picture(1)), name="x#17")
        assert store.ingest(encoded(picture(1)), name="x#seventeen").added == 1


@pytest.mark.slow
@pytest.mark.parametrize("first", ["a.png", ("a.png",), (picture(1), "a"), 7])
def test_what_is_no_stream_of_pairs_is_told_at_once(tmp_path: Path, first: object) -> None:
    with (
        Store.open(tmp_path / "store", create=True, encoder="none") as store,
        pytest.raises(UsageError),
    ):
        store.ingest(one for one in [first, first])
