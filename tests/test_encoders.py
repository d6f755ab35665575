"""Encoders: found by name or folder, checked against their description, giving unit vectors."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine import Store
from engine.encoders import registry
from engine.encoders.external_data import has_external_data
from engine.encoders.onnx import OnnxEncoder
from engine.errors import EncoderError, ImageError
from engine.images import hashing
from engine.images.preprocessing import Preprocessing, squash

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


def encode(encoder: OnnxEncoder, pictures: list[np.ndarray]) -> np.ndarray:
    return encoder.encode([encoder.preprocessing.resize(each) for each in pictures])


def refused(folder: Path | str) -> str:
    with pytest.raises(EncoderError) as caught:
        OnnxEncoder(registry.find(str(folder)))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# --- finding one ----------------------------------------------------------------------------------


def test_an_encoder_is_found_by_its_folder_or_its_description(tiny_encoder):
    found = registry.find(str(tiny_encoder))
    assert (found.name, found.dim, found.preprocessing) == ("tiny", 16, Preprocessing(16))
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
    vectors = encode(encoder, PICTURES)
    assert (vectors.shape, vectors.dtype) == ((7, 16), np.float32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_batch_gives_what_its_pictures_give_alone(encoder):
    alone = np.concatenate([encode(encoder, [picture]) for picture in PICTURES])
    assert np.allclose(encode(encoder, PICTURES), alone, atol=1e-6)


def test_no_pictures_give_no_vectors(encoder):
    assert encoder.encode([]).shape == (0, 16)


def test_a_picture_is_closer_to_its_copy_than_to_another(encoder):
    noise = RNG.integers(-5, 6, PICTURES[0].shape)
    copy = np.clip(PICTURES[0] + noise, 0, 255).astype(np.uint8)
    original, near, *others = encode(encoder, [PICTURES[0], copy, *PICTURES[1:]])
    assert original @ near > max(original @ other for other in others)


def test_a_picture_is_squashed_whole():
    picture = np.asarray(Image.fromarray(PICTURES[0]).resize((64, 32)))
    small = squash(picture, 16)
    assert small.shape == (16, 16, 3)
    assert abs(float(small.mean()) - float(picture.mean())) < 2
    assert squash(small, 16) is small


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("height", "width"), [(37, 61), (61, 37), (24, 24), (24, 31), (16, 400)])
def test_the_middle_of_a_picture_is_that_of_a_resized_and_cropped_one(interpolation, height, width):
    rough = Image.fromarray(RNG.integers(0, 256, (6, 6, 3), np.uint8))
    picture = np.asarray(rough.resize((width, height), Image.Resampling.BICUBIC))
    found = Preprocessing(16, 24, interpolation).resize(picture)
    scale = 24 / min(height, width)
    size = int(width * scale + 1e-9), int(height * scale + 1e-9)
    whole = Image.fromarray(picture).resize(size, getattr(Image.Resampling, interpolation.upper()))
    left, top = round((size[0] - 16) / 2), round((size[1] - 16) / 2)
    wanted = np.asarray(whole.crop((left, top, left + 16, top + 16)))
    assert found.shape == (16, 16, 3)
    # Pillow rounds coordinates to 24 bits where only a part is resized.
    assert np.abs(found.astype(int) - wanted).max() <= 2


def test_a_very_long_picture_is_cropped_before_it_is_resized():
    picture = np.zeros((3, 200_000, 3), np.uint8)
    picture[:, 99_990:100_010] = 255
    assert Preprocessing(16, 1000).resize(picture).min() == 255


def test_a_description_says_how_pictures_are_resized(folder):
    describe(folder, resize="crop-bicubic-antialias", shorter_side=20)
    found = registry.find(str(folder)).preprocessing
    assert found == Preprocessing(16, 20, "bicubic")
    assert registry.described(found) == {
        "image_size": 16,
        "resize": "crop-bicubic-antialias",
        "shorter_side": 20,
    }


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"resize": "stretch-bilinear-antialias"}, "resize"),
        ({"resize": "squash-magic-antialias"}, "interpolation"),
        ({"resize": 7}, "resize"),
        ({"resize": "crop-bilinear-antialias"}, "shorter_side"),
        ({"resize": "crop-bilinear-antialias", "shorter_side": 15}, "shorter_side"),
        ({"resize": "crop-bilinear-antialias", "shorter_side": 10**9}, "shorter_side"),
    ],
)
def test_a_resize_that_is_none_is_refused(folder, changes, what):
    describe(folder, **changes)
    assert what in refused(folder)


def test_a_model_of_another_dimension_is_refused(folder):
    describe(folder, dim=17)
    assert "17" in refused(folder)


def test_a_model_that_is_no_onnx_is_refused(folder):
    (folder / "model.onnx").write_bytes(b"not a model")
    sha256 = hashing.file_hash(b"not a model").hex()
    describe(folder, files={"fp32": {"path": "model.onnx", "sha256": sha256}})
    assert "cannot be loaded" in refused(folder)


def with_external_data(folder: Path, location: str) -> None:
    """Let the encoder in a folder keep its weights in another file."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(folder / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "weights":
            raw = numpy_helper.to_array(tensor).tobytes()
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", location), ("length", str(len(raw)))):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
    data = model.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    body = json.loads((folder / "encoder.json").read_text())
    body["files"]["fp32"]["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "encoder.json").write_text(json.dumps(body))


@pytest.mark.parametrize(
    "location", ["weights.bin", "../weights.bin", "link", "/etc/passwd", "pipe"]
)
def test_weights_in_another_file_are_refused_and_the_file_is_not_opened(
    tiny_encoder: Path, tmp_path: Path, location: str
) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, folder)
    (folder / "weights.bin").write_bytes(bytes(48 * 16 * 4))
    (tmp_path / "weights.bin").write_bytes(bytes(48 * 16 * 4))
    (folder / "link").symlink_to(tmp_path / "weights.bin")
    os.mkfifo(folder / "pipe")
    with_external_data(folder, location)
    with pytest.raises(EncoderError, match="keeps weights in another file"):
        OnnxEncoder(registry.find(str(folder)))


def test_other_data_is_found_wherever_tensors_may_be() -> None:
    from onnx import TensorProto, helper

    other = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    other.data_location = TensorProto.EXTERNAL
    inner = helper.make_graph([], "inner", [], [], [other])
    sparse = helper.make_sparse_tensor(other, other, [1])
    constant = helper.make_node("Constant", [], ["c"], value=other)
    branch = helper.make_node("If", ["x"], ["c"], then_branch=inner)
    where = {
        "initializer": helper.make_graph([], "g", [], [], [other]),
        "sparse": helper.make_graph([], "g", [], [], [], sparse_initializer=[sparse]),
        "constant": helper.make_graph([constant], "g", [], []),
        "subgraph": helper.make_graph([branch], "g", [], []),
    }
    for name, graph in where.items():
        assert has_external_data(helper.make_model(graph).SerializeToString()), name
    model = helper.make_model(helper.make_graph([], "g", [], []))
    assert not has_external_data(model.SerializeToString())
    model.functions.append(helper.make_function("d", "f", [], ["c"], [constant], []))
    assert has_external_data(model.SerializeToString())


@pytest.mark.parametrize(
    "data", [b"\x3a", b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 30, b"\x3f", b"\x3a\x02\x0a"]
)
def test_bytes_that_are_no_model_are_told_from_one(data: bytes) -> None:
    with pytest.raises(EncoderError, match="not an ONNX model"):
        has_external_data(data)


@pytest.mark.slow
def test_nothing_is_reported_and_nothing_is_left_in_other_folders(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    for name in ("temporary", "home"):
        (tmp_path / name).mkdir()
    code = (
        "import sys, numpy as np; from engine.encoders import registry; "
        "from engine.encoders.onnx import OnnxEncoder; "
        "OnnxEncoder(registry.find(sys.argv[1])).encode([np.zeros((16, 16, 3), np.uint8)])"
    )
    places = {"TMPDIR": str(tmp_path / "temporary"), "HOME": str(tmp_path / "home")}
    quiet = {"ORT_DISABLE_TELEMETRY": "", "XDG_CACHE_HOME": ""}
    inherited = {name: value for name, value in os.environ.items() if name not in quiet}
    subprocess.run(
        [sys.executable, "-c", code, str(tiny_encoder)], env=inherited | places, check=True
    )
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# --- hostile ones ---------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["dim", "image_size"])
@pytest.mark.parametrize("value", [0, -1, 10**9, 10**400, True, 16.0, "16", None, [16], {}])
def test_a_size_that_is_none_is_refused(folder, key, value):
    describe(folder, **{key: value})
    assert key in refused(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, " " * (2 << 20)])
def test_a_description_that_is_too_much_is_refused(folder, text):
    (folder / "encoder.json").write_text(text)
    assert "encoder.json" in refused(folder)


def test_a_model_larger_than_models_can_be_is_not_read(folder, tmp_path):
    Store.open(tmp_path / "store", create=True, encoder=str(folder)).close()
    for model in (folder / "model.onnx", tmp_path / "store" / "encoder" / "1" / "model.onnx"):
        with model.open("r+b") as file:
            file.truncate(1 << 40)
    assert "File too large" in refused(folder)
    with Store.open(tmp_path / "store", read_only=True) as store:
        (problem,) = store.check().problems
        assert "File too large" in problem.what


def test_what_is_no_file_is_not_waited_for(folder):
    for name in ("model.onnx", "encoder.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        refused(folder)


def test_control_characters_in_a_name_are_shown_harmlessly(folder):
    describe(folder, name="a\x1b[2J\nb\u202ec" + "d" * 1000)
    name = registry.read(folder).name
    assert name.startswith(r"a\x1b[2J\nb\u202ecd") and len(name) < 200
    describe(folder, name=7)
    assert "name" in refused(folder)


def change(folder: Path, alter: Callable[[Any], None]) -> Path:
    """Alter the graph of an encoder's model."""
    import onnx

    model = onnx.load(folder / "model.onnx")
    alter(model.graph)
    data = model.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    sha256 = hashing.file_hash(data).hex()
    describe(folder, files={"fp32": {"path": "model.onnx", "sha256": sha256}})
    return folder


def last(graph: Any, *nodes: tuple[Any, ...], **outputs: Any) -> None:
    """Append nodes to a graph. The old embedding is renamed "was"; the last node makes the new one."""
    from onnx import helper

    next(node for node in graph.node if node.output[0] == "embedding").output[0] = "was"
    for operator, inputs, output, attributes in nodes:
        graph.node.append(helper.make_node(operator, inputs, [output], **attributes))
    if outputs:
        graph.output[0].CopyFrom(helper.make_tensor_value_info("embedding", **outputs))


def twice(graph):
    last(graph, ("Concat", ["was", "was"], "embedding", {"axis": 0}))


def one_of_them(graph):
    last(
        graph,
        ("ReduceMean", ["was"], "embedding", {"keepdims": 1}),
        elem_type=1,
        shape=["n", "d"],
    )


def doubles(graph):
    last(graph, ("Cast", ["was"], "embedding", {"to": 11}), elem_type=11, shape=["n", 16])


def more_dimensions(graph):
    last(
        graph,
        ("Unsqueeze", ["was", "across"], "embedding", {}),
        elem_type=1,
        shape=["n", 1, 16],
    )


def one_at_a_time(graph):
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def floats_in(graph):
    graph.input[0].type.tensor_type.elem_type = 1


def fails(graph):
    last(graph, ("Reshape", ["was", "inside_a_cell"], "embedding", {}))  # to (2, 4)


def others_beside(graph):
    """A weight in a file of its own, which the checksum does not cover."""
    from onnx import TensorProto

    weight = next(each for each in graph.initializer if each.name == "weights")
    data = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", "length": str(len(data))}.items():
        weight.external_data.add(key=key, value=value)
    others_beside.data = data


def no_number_for_white(graph):
    """The vector of a white picture is not a number, that of a black one is zero."""
    from onnx import helper, numpy_helper

    graph.initializer.append(numpy_helper.from_array(np.array(0.49, np.float32), "nearly"))
    graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3], np.int64), "inside"))
    for node in (
        helper.make_node("ReduceMean", ["scaled", "inside"], ["brightness"], keepdims=0),
        helper.make_node("Sub", ["nearly", "brightness"], ["darker"]),
        helper.make_node("Sqrt", ["darker"], ["number"]),
        helper.make_node("Add", ["brightness", "nearly"], ["lighter"]),
        helper.make_node("Relu", ["lighter"], ["none_of_black"]),
        helper.make_node("Mul", ["number", "none_of_black"], ["factor"]),
        helper.make_node("Unsqueeze", ["factor", "across"], ["factors"]),
    ):
        graph.node.append(node)
    last(graph, ("Mul", ["was", "factors"], "embedding", {}))


BAD = [
    twice,
    one_of_them,
    doubles,
    more_dimensions,
    one_at_a_time,
    floats_in,
    fails,
    others_beside,
]


@pytest.mark.slow
@pytest.mark.parametrize("alter", BAD, ids=[alter.__name__ for alter in BAD])
def test_an_encoder_that_cannot_be_used_leaves_no_store_behind(folder, tmp_path, alter):
    change(folder, alter)
    if alter is others_beside:
        (folder / "weights.bin").write_bytes(others_beside.data)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(EncoderError) as caught:
        Store.open(tmp_path / "store", create=True, encoder=str(folder))
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
    # A store that has none yet goes on without.
    with Store.open(tmp_path / "bits", create=True, encoder="none") as store:
        with pytest.raises(EncoderError):
            store.ingest("synthetic:bits?n=3", encoder=str(folder))
        assert not store.has_encoder and not list((tmp_path / "bits/encoder").glob("*"))
        assert store.ingest("synthetic:bits?n=3", encoder="none").added == 3
        assert store.check().problems == ()


def test_an_encoder_that_cannot_be_used_takes_no_files_of_others_away(folder, tmp_path):
    change(folder, fails)
    with Store.open(tmp_path / "bits", create=True, encoder="none") as store:
        notes = tmp_path / "bits/encoder/1/notes.txt"
        notes.parent.mkdir(parents=True)
        notes.write_text("somebody else's")
        with pytest.raises(EncoderError):
            store.ingest("synthetic:bits?n=3", encoder=str(folder))
        assert [file.name for file in notes.parent.iterdir()] == ["notes.txt"]
        assert not store.has_encoder


def test_a_batch_of_a_wrong_shape_is_an_error_that_names_the_encoder(folder):
    encoder = OnnxEncoder(registry.read(change(folder, twice)), threads=1)
    for pictures in (PICTURES, PICTURES[:1]):
        with pytest.raises(EncoderError, match=r"'tiny'|'encoder'") as caught:
            encode(encoder, pictures)
        assert f"({2 * len(pictures)}, 16) float32" in str(caught.value)


@pytest.mark.slow
def test_an_image_for_which_the_encoder_gives_nothing_has_no_vector(folder, tmp_path, caplog):
    change(folder, no_number_for_white)
    white = np.full((20, 20, 3), 255, np.uint8)
    grey = [np.full((20, 20, 3), 100 + i, np.uint8) for i in range(3)]
    loaded = OnnxEncoder(registry.read(folder), threads=1)
    found = encode(loaded, [grey[0], white, 0 * white])
    assert found.any(axis=1).tolist() == [True, False, False]
    assert np.isfinite(found).all()
    with Store.open(tmp_path / "store", create=True, encoder=str(folder)) as store:
        rows = [("a", grey[0]), ("white", white), ("b", grey[1]), ("black", 0 * white)]
        assert store.ingest(iter(rows)).added == 4
        assert "no vector for 2 of the images (ids 2, 4)" in caplog.text
        caplog.clear()
        info = store.info()
        assert (info.images, info.vectors) == (4, 2)
        assert store.check().problems == ()
        # It is found as what it is, and as similar to nothing.
        result = store.lookup(white)
        assert [hit.id for hit in result.identical] == [2] and result.similar == ()
        assert "similar" not in result.searched and "no vector" in caplog.text
        with pytest.raises(ImageError, match="no vector"):
            store.lookup(white, tiers=["similar"])
        result = store.lookup(grey[2], k=10, tiers=["similar"])
        assert sorted(hit.id for hit in result.similar) == [1, 3]
        assert sorted(store.search_vectors(found[:1], k=4)[1][0].tolist()) == [-1, -1, 1, 3]
        assert store.ingest(iter([("c", grey[2])])).added == 1
        assert store.remove(ids=[2, 3]).images == 2
        store.optimize()
        assert store.check().problems == ()
        assert (store.info().images, store.info().vectors) == (3, 2)
        assert sorted(store.search_vectors(found[:1], k=4)[1][0].tolist()) == [-1, -1, 1, 5]
