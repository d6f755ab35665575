"""Preparing an image needs no store: it may be done in another process, and gives the same there."""

import ast
import io
import multiprocessing
import pickle
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine import Kind
from engine.errors import ImageError
from engine.images import canonical, decode, hashing
from engine.images.preprocessing import Preprocessing
from engine.ingest import prepare as prepare_module
from engine.ingest import prepare_rows as prepare_rows_module
from engine.ingest.prepare import PreparedImage, PrepareSettings, prepare, prepare_decoded
from engine.ingest.prepare_rows import PreparedRows, joined, prepare_rows
from engine.records import Decoded
from engine.sources.items import RowBlock

SETTINGS = PrepareSettings(
    hash_seed=7, keep_pixels="auto", max_decoding_bytes=1 << 28, preprocessing=Preprocessing(16)
)
DATA_FIELDS = [one.name for one in fields(PreparedRows) if one.name != "block"]


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (24, 20, 3), np.uint8)


def mask(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (9, 9, 3)).astype(np.bool_)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    shown = image.astype(np.uint8) * 255 if image.dtype == np.bool_ else image
    Image.fromarray(shown).save(file, "PNG")
    return file.getvalue()


def prepared(image: np.ndarray, **changes: object) -> PreparedImage:
    values = {name: getattr(SETTINGS, name) for name in SETTINGS.__dataclass_fields__}
    data = png(image)
    return prepare(data, hashing.file_hash(data), PrepareSettings(**{**values, **changes}))


def same(one: PreparedImage, other: PreparedImage) -> bool:
    pictures = np.array_equal(one.picture, other.picture)
    return one.image == other.image and pictures


def block(images: list[np.ndarray], kind: Kind) -> RowBlock:
    rows = [np.frombuffer(canonical.from_array(image).canonical, np.uint8) for image in images]
    return RowBlock(5, np.stack(rows), kind)


def test_an_image_has_what_a_store_keeps_of_it() -> None:
    data, pixels = png(picture(1)), canonical.from_array(picture(1))
    found = prepare(data, b"h" * 32, SETTINGS)
    image = found.image
    assert image.key == hashing.key(pixels.canonical, SETTINGS.hash_seed)
    assert image.proof == hashing.proof(pixels.canonical)
    assert (image.container, image.decoder) == ("png", decode.DECODER)
    assert (image.file_bytes, image.file_hash) == (len(data), b"h" * 32)
    assert image.pixels == pixels._replace(canonical=b""), "the pixels are let go"
    assert found.picture is not None and found.picture.shape == (16, 16, 3)
    assert prepared(picture(1), preprocessing=None).picture is None


@pytest.mark.parametrize(
    ("image", "keep_pixels", "kept"),
    [
        (mask(1), "auto", "pixels"),
        (mask(1), "yes", "pixels"),
        (mask(1), "no", None),
        (picture(1), "auto", None),
        (picture(1), "yes", "file"),
        (picture(1), "no", None),
    ],
)
def test_what_is_kept(image: np.ndarray, keep_pixels: str, kept: str | None) -> None:
    found = prepared(image, keep_pixels=keep_pixels).image
    expected = {"pixels": canonical.from_array(image).canonical, "file": png(image), None: None}
    assert found.keep == expected[kept]


def test_an_image_without_a_file_is_kept_by_its_pixels() -> None:
    pixels = canonical.from_array(picture(3))
    settings = PrepareSettings(7, "yes", 1 << 28, None)
    form = memoryview(pixels.canonical)
    found = prepare_decoded(Decoded(pixels._replace(canonical=form), "array"), settings).image
    assert found.keep == pixels.canonical
    assert (found.file_bytes, found.file_hash, found.decoder) == (0, b"", "")
    assert pickle.loads(pickle.dumps(found)) == found


def test_what_cannot_be_decoded_is_an_image_error() -> None:
    with pytest.raises(ImageError):
        prepare(b"\x89PNG\r\n\x1a\n and no more", b"", SETTINGS)


@pytest.mark.parametrize("image", [mask(2), picture(2)])
def test_all_that_goes_in_and_comes_out_can_be_pickled(image: np.ndarray) -> None:
    found = prepared(image, keep_pixels="yes")
    assert same(pickle.loads(pickle.dumps(found)), found)
    assert pickle.loads(pickle.dumps(SETTINGS)) == SETTINGS
    kind = Kind.BITS if image.dtype == np.bool_ else Kind.U8
    rows = prepare_rows(block([image] * 3, kind), 0, 1, hash_seed=7, keep_pixels="auto")
    again = pickle.loads(pickle.dumps(rows))
    for name in DATA_FIELDS:
        assert np.array_equal(getattr(again, name), getattr(rows, name))
    assert np.array_equal(again.block.rows, rows.block.rows)


@pytest.mark.slow
def test_another_process_prepares_the_same() -> None:
    images = [mask(1), picture(1), picture(2)]
    data = [png(image) for image in images]
    jobs = [(one, hashing.file_hash(one), SETTINGS) for one in data]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.starmap(prepare, jobs)
    for job, found in zip(jobs, there, strict=True):
        assert same(found, prepare(*job))


@pytest.mark.parametrize("kind", [Kind.BITS, Kind.U8])
def test_parts_of_a_block_are_joined_to_what_the_whole_is(kind: Kind) -> None:
    images = [(mask if kind is Kind.BITS else picture)(seed) for seed in range(7)]
    whole = block(images, kind)
    one = prepare_rows(whole, 0, 1, hash_seed=7, keep_pixels="auto")
    parts = [prepare_rows(whole, part, 3, hash_seed=7, keep_pixels="auto") for part in range(3)]
    found = joined(parts)
    assert found is not None and found.block is whole
    for name in DATA_FIELDS:
        assert np.array_equal(getattr(found, name), getattr(one, name))
    assert joined([None, None]) is None
    half = one.part(2, 5)
    assert (half.block.first, len(half.block.rows), half.keys) == (7, 3, one.keys[2:5])


@pytest.mark.parametrize("module", [prepare_module, prepare_rows_module])
def test_preparing_knows_of_no_store(module: object) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text())  # type: ignore[attr-defined]
    named = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    # A chunk is data; how it is written is none of its business.
    assert {name for name in named if name and ".storage" in name} <= {"engine.storage.changeset"}
