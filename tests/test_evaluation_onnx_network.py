"""Any ONNX file of one picture input takes part in an evaluation, or one line says why it cannot."""

import json
from pathlib import Path

import numpy as np
import pytest

from engine.errors import EncoderError
from engine.evaluation.entrants import AbsentEntrant, Entrant, find
from engine.evaluation.onnx_network import OnnxNetwork


def pictures(n: int = 3) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (n, 6, 6, 3), np.uint8)
    return [np.kron(c, np.ones((16, 16 + i, 1), np.uint8)) for i, c in enumerate(coarse)]


def check(entrant: Entrant | AbsentEntrant) -> np.ndarray:
    assert isinstance(entrant, Entrant)
    vectors = entrant.encode(pictures())
    assert vectors.shape == (3, entrant.dim)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert (vectors @ vectors.T)[0, 1] < 0.9999
    return vectors


def network(path: Path, kind: str, shape: list, *, flat: bool = True) -> Path:
    """An ONNX file that gives its input back, scaled, and flat or not."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("Cast", ["in"], ["float"], to=TensorProto.FLOAT)]
    if flat:
        nodes.append(helper.make_node("Reshape", ["float", "row"], ["out"]))
    else:
        nodes.append(helper.make_node("Identity", ["float"], ["out"]))
    size = [shape[0], None] if flat else shape
    graph = helper.make_graph(
        nodes,
        "same",
        [helper.make_tensor_value_info("in", getattr(TensorProto, kind), shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, size)],
        [numpy_helper.from_array(np.array([0, -1], np.int64), "row")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("UINT8", ["n", 8, 8, 3]),
        ("UINT8", ["n", 3, 8, 8]),
        ("FLOAT", ["n", 3, 8, 8]),
        ("FLOAT", ["n", 8, 8, 3]),
        ("FLOAT", [1, 3, 8, 8]),
        ("UINT8", ["n", "h", "w", 3]),
    ],
)
def test_any_network_of_one_picture(tmp_path, kind, shape):
    path = network(tmp_path / "mine.onnx", kind, shape)
    entrant = find(str(path), seed=0)
    vectors = check(entrant)
    assert entrant.name == "mine"
    side = 8 if 8 in shape else 224
    assert vectors.shape[1] == 3 * side * side
    assert (vectors.min() < 0) == (kind == "FLOAT")  # normalised


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("FLOAT", ["n", 8, 8, 1]), ("INT64", ["n", 3, 8, 8]), ("FLOAT", ["n", 8])],
)
def test_a_network_of_something_else_is_refused(tmp_path, kind, shape):
    path = network(tmp_path / "other.onnx", kind, shape, flat=False)
    with pytest.raises(EncoderError, match="one input is needed"):
        find(str(path), seed=0)


@pytest.mark.parametrize("shape", [["n", 8, 9, 3], ["n", 0, 0, 3], ["n", 60_000, 60_000, 3]])
def test_a_network_of_odd_sides_is_refused(tmp_path, shape):
    path = network(tmp_path / "odd.onnx", "UINT8", shape, flat=False)
    with pytest.raises(EncoderError, match=r"odd\.onnx takes pictures of .* square"):
        find(str(path), seed=0)


def test_a_broken_network_and_a_missing_one_are_one_line(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    for name in ("broken.onnx", "missing.onnx"):
        with pytest.raises(EncoderError, match=name) as error:
            find(str(tmp_path / name), seed=0)
        assert "\n" not in str(error.value)


def test_a_network_with_weights_in_another_file_is_refused(tmp_path):
    import onnx

    path = network(tmp_path / "apart.onnx", "FLOAT", ["n", 3, 8, 8])
    onnx.save(
        onnx.load(path),
        path,
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
        convert_attribute=True,
    )
    assert (tmp_path / "weights").exists()
    with pytest.raises(EncoderError, match=r"apart\.onnx keeps weights in another file"):
        find(str(path), seed=0)


# --- the options in the file beside it ------------------------------------------------------------


def grey(value: int) -> list[np.ndarray]:
    return [np.full((8, 8, 3), value, np.uint8)]


@pytest.mark.parametrize("shape", [["n", 3, 8, 8], ["n", 8, 8, 3]])
def test_mean_and_std_are_those_of_the_file_beside_it(tmp_path, shape):
    path = network(tmp_path / "net.onnx", "FLOAT", shape)
    options = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}
    (tmp_path / "net.json").write_text(json.dumps(options))
    encode = OnnxNetwork(path).encode
    assert encode(grey(255)) == pytest.approx(1, abs=1e-6)
    assert encode(grey(127)) == pytest.approx(0, abs=1e-6)


def test_without_a_file_beside_it_values_are_normalised_as_for_imagenet(tmp_path):
    path = network(tmp_path / "net.onnx", "FLOAT", ["n", 3, 8, 8])
    found = OnnxNetwork(path).encode(grey(51)).reshape(3, 64)
    expected = (0.2 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    assert found == pytest.approx(np.repeat(expected[:, None], 64, 1), abs=1e-5)


def test_the_image_size_is_that_of_the_file_beside_it(tmp_path):
    path = network(tmp_path / "net.onnx", "FLOAT", ["n", 3, "h", "w"])
    (tmp_path / "net.json").write_text('{"image_size": 16}')
    assert OnnxNetwork(path).dim == 3 * 16 * 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "JSON object of image_size, mean, std"),
        ('{"size": 8}', "JSON object of image_size, mean, std"),
        ('{"image_size": 0}', "image_size"),
        ('{"image_size": true}', "image_size"),
        ('{"image_size": 16}', "takes pictures of 8 pixels a side, not 16"),
        ('{"mean": 0.5}', "mean must be three numbers"),
        ('{"mean": [0.5, 0.5]}', "mean must be three numbers"),
        ('{"mean": [0.5, 0.5, NaN]}', "mean must be three numbers"),
        ('{"mean": [0, 0, 1' + "0" * 400 + "]}", "mean must be three numbers"),
        ('{"std": [1, 1, 0]}', "std must be three numbers above 0"),
    ],
)
def test_options_that_make_no_sense_are_one_line(tmp_path, text, reason):
    path = network(tmp_path / "net.onnx", "FLOAT", ["n", 3, 8, 8])
    (tmp_path / "net.json").write_text(text)
    with pytest.raises(EncoderError, match=reason) as error:
        find(str(path), seed=0)
    assert "\n" not in str(error.value)


def test_pixels_as_they_are_cannot_be_normalised(tmp_path):
    path = network(tmp_path / "net.onnx", "UINT8", ["n", 8, 8, 3])
    (tmp_path / "net.json").write_text('{"mean": [0, 0, 0]}')
    with pytest.raises(EncoderError, match="leave mean and std out"):
        find(str(path), seed=0)
