"""Encoders: found by name or folder, checked against their description, giving unit vectors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.encoders import registry
from engine.encoders.onnx import OnnxEncoder
from engine.errors import EncoderError
from engine.pixels import squash

RNG = np.random.default_rng(5)
PICTURES = [RNG.integers(0, 256, (20 + i, 31, 3), np.uint8) for i in range(7)]


@pytest.fixture
def folder(tiny_encoder, tmp_path) -> Path:
    """A copy of the tiny encoder, to be spoiled."""
    return shutil.copytree(tiny_encoder, tmp_path / "encoder")


@pytest.fixture(scope="module")
def encoder(tiny_encoder) -> OnnxEncoder:
    return OnnxEncoder(registry.find(str(tiny_encoder)), threads=1)


def describe(folder: Path, **changes) -> None:
    path = folder / registry.DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path | str) -> str:
    with pytest.raises(EncoderError) as caught:
        OnnxEncoder(registry.find(str(folder)))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# --- finding one ----------------------------------------------------------------------------------


def test_an_encoder_is_found_by_its_folder_or_its_description(tiny_encoder):
    found = registry.find(str(tiny_encoder))
    assert (found.name, found.dim, found.image_size) == ("tiny", 16, 16)
    assert found.model == tiny_encoder / "model.onnx"
    assert registry.find(str(tiny_encoder / "encoder.json")) == found


def test_the_encoders_that_come_along_are_found_by_name():
    for name in registry.names():
        assert registry.find(name).name == name


def test_the_int8_model_is_taken_where_there_is_one(folder):
    shutil.copy(folder / "model.onnx", folder / "small.onnx")
    files = registry.read(folder).description["files"]
    describe(folder, files=files | {"int8": files["fp32"] | {"path": "small.onnx"}})
    assert registry.read(folder).model == folder / "small.onnx"
    describe(folder, default="fp32")
    assert registry.read(folder).model == folder / "model.onnx"
    describe(folder, default="fp8")
    assert "fp8" in refused(folder)


@pytest.mark.parametrize("name", ["no-such-encoder", "", "none", "/nowhere", "nul\0byte"])
def test_an_unknown_name_is_refused_with_what_to_give_instead(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(name)
    assert "none" in message
    assert "engine train" in message


def test_a_folder_without_a_description_is_refused(tmp_path):
    assert "engine train" in refused(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"files": {}}',
        '{"files": []}',
        '{"files": {"fp32": "a"}}',
        "\xff",
    ],
)
def test_a_description_that_makes_no_sense_is_refused(folder, text):
    (folder / "encoder.json").write_text(text, encoding="latin-1")
    assert "encoder.json" in refused(folder)


@pytest.mark.parametrize("key", ["name", "dim", "image_size", "files"])
def test_a_description_that_lacks_something_is_refused(folder, key):
    body = json.loads((folder / "encoder.json").read_text())
    del body[key]
    (folder / "encoder.json").write_text(json.dumps(body))
    assert key in refused(folder)


def test_a_model_that_is_not_the_one_described_is_refused(folder):
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")
    assert "model.onnx" in refused(folder)
    (folder / "model.onnx").unlink()
    assert "model.onnx" in refused(folder)


def test_a_model_outside_of_the_folder_is_never_read(folder, tmp_path):
    (folder / "model.onnx").rename(tmp_path / "model.onnx")
    files = json.loads((folder / "encoder.json").read_text())["files"]
    describe(folder, files={"fp32": files["fp32"] | {"path": "../model.onnx"}})
    refused(folder)


# --- running one ----------------------------------------------------------------------------------


def test_pictures_of_any_size_become_unit_vectors(encoder):
    vectors = encoder.encode(PICTURES)
    assert (vectors.shape, vectors.dtype) == ((7, 16), np.float32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_batch_gives_what_its_pictures_give_alone(encoder):
    alone = np.concatenate([encoder.encode([picture]) for picture in PICTURES])
    assert np.allclose(encoder.encode(PICTURES), alone, atol=1e-6)


def test_no_pictures_give_no_vectors(encoder):
    assert encoder.encode([]).shape == (0, 16)


def test_a_picture_is_closer_to_its_copy_than_to_another(encoder):
    noise = RNG.integers(-5, 6, PICTURES[0].shape)
    copy = np.clip(PICTURES[0] + noise, 0, 255).astype(np.uint8)
    original, near, *others = encoder.encode([PICTURES[0], copy, *PICTURES[1:]])
    assert original @ near > max(original @ other for other in others)


def test_a_picture_is_squashed_whole():
    picture = np.asarray(Image.fromarray(PICTURES[0]).resize((64, 32)))
    small = squash(picture, 16)
    assert small.shape == (16, 16, 3)
    assert abs(float(small.mean()) - float(picture.mean())) < 2
    assert squash(small, 16) is small


def test_a_model_of_another_dimension_is_refused(folder):
    describe(folder, dim=17)
    assert "17" in refused(folder)


def test_a_model_that_is_no_onnx_is_refused(folder):
    (folder / "model.onnx").write_bytes(b"not a model")
    sha256 = registry.digest.file_hash(b"not a model").hex()
    describe(folder, files={"fp32": {"path": "model.onnx", "sha256": sha256}})
    assert "cannot be loaded" in refused(folder)
