"""Any ONNX file of one picture input becomes an encoder, or one line says why it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import picture, save

import engine
from engine import EncoderError, ImportReport, Store, UsageError
from engine.encoders import named, registry
from engine.encoders.onnx import OnnxEncoder
from engine.evaluation.entrants import Entrant, find

pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper
from onnx import save as save_model

SIDE = 8
NODES = {
    "flat": [("Reshape", ["float", "row"], ["out"], {})],
    "as it is": [("Identity", ["float"], ["out"], {})],
    # A reshape that holds only for one picture, as exporters for one picture write it.
    "of one": [("Reshape", ["float", "row of one"], ["out"], {})],
    # Values of all pictures of a batch, so that it cannot be freed.
    "mixed": [
        ("ReduceSum", ["float", "first"], ["sum"], {"keepdims": 0}),
        ("Reshape", ["sum", "row of one"], ["out"], {}),
    ],
    # NaN for a picture of one colour.
    "contrast": [
        ("Reshape", ["float", "row"], ["rows"], {}),
        ("ReduceMean", ["rows", "second"], ["mean"], {"keepdims": 1}),
        ("Sub", ["rows", "mean"], ["centred"], {}),
        ("ReduceL2", ["centred", "second"], ["length"], {"keepdims": 1}),
        ("Div", ["centred", "length"], ["out"], {}),
    ],
}


def network(path: Path, kind: str, shape: list[int | str], how: str = "flat") -> Path:
    """An ONNX file that returns its input as floats; ``how`` is one of ``NODES``."""
    nodes = [helper.make_node("Cast", ["in"], ["float"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node(*parts, **attributes) for *parts, attributes in NODES[how]]
    rank = None if how in ("as it is",) else [shape[0], None]
    constants = {
        "row": np.array([0, -1], np.int64),
        "row of one": np.array([1, -1], np.int64),
        "first": np.array([0], np.int64),
        "second": np.array([1], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "same",
        [helper.make_tensor_value_info("in", getattr(TensorProto, kind), shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, rank or shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def imported(path: Path, **settings: object) -> tuple[ImportReport, OnnxEncoder]:
    settings = {"precision": "fp32", **settings}
    report = engine.import_encoder(path, path.with_suffix(".encoder"), **settings)  # type: ignore[arg-type]
    return report, OnnxEncoder(registry.find(report.out))


def expected(pixels: np.ndarray, kind: str, *, channels_last: bool) -> np.ndarray:
    """What the network makes of one input: its pixels, normalised as for ImageNet or not."""
    x = pixels.astype(np.float32)
    if kind != "UINT8":
        x = (x / 255 - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    x = x if channels_last else x.transpose(2, 0, 1)
    return (x / np.linalg.norm(x)).reshape(-1)


def refused(path: Path, **settings: object) -> str:
    with pytest.raises(EncoderError) as caught:
        imported(path, **settings)
    assert len(str(caught.value).splitlines()) == 1
    # Nothing is left of an import that failed.
    assert not path.with_suffix(".encoder").exists()
    assert not [each for each in path.parent.iterdir() if each.name.endswith(".partial")]
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "shape", "how"),
    [
        ("UINT8", ["n", SIDE, SIDE, 3], "flat"),
        ("UINT8", ["n", 3, SIDE, SIDE], "flat"),
        ("FLOAT", ["n", 3, SIDE, SIDE], "flat"),
        ("FLOAT", ["n", 3, SIDE, SIDE], "as it is"),
        ("FLOAT16", ["n", SIDE, SIDE, 3], "flat"),
        ("FLOAT", [1, 3, SIDE, SIDE], "flat"),
        ("FLOAT", [1, 3, SIDE, SIDE], "of one"),
        ("UINT8", ["n", "h", "w", 3], "flat"),
    ],
)
def test_any_network_of_one_picture(
    tmp_path: Path, kind: str, shape: list[int | str], how: str
) -> None:
    report, encoder = imported(network(tmp_path / "mine.onnx", kind, shape, how), image_size=SIDE)
    assert (report.name, report.precision, report.image_size) == ("mine", "fp32", SIDE)
    inputs = [encoder.preprocessing.resize(picture(seed, 30, 40)) for seed in range(3)]
    wanted = [expected(each, kind, channels_last=shape[-1] == 3) for each in inputs]
    found = encoder.encode(inputs)
    tolerance = 2e-3 if kind == "FLOAT16" else 1e-6
    assert found == pytest.approx(np.stack(wanted), abs=tolerance)
    # The batch is free, whatever it was.
    assert "batch" not in registry.find(report.out).description


@pytest.mark.slow
def test_a_network_whose_batch_cannot_be_freed_takes_one_picture_at_a_time(tmp_path: Path) -> None:
    path = network(tmp_path / "one.onnx", "FLOAT", [1, 3, SIDE, SIDE], "mixed")
    report, encoder = imported(path)
    assert registry.find(report.out).description["batch"] == 1
    assert any("one picture at a time" in note for note in report.notes)
    inputs = [picture(seed, SIDE, SIDE) for seed in range(3)]
    alone = [encoder.encode([each])[0] for each in inputs]
    assert encoder.encode(inputs) == pytest.approx(np.stack(alone))


@pytest.mark.slow
def test_an_image_for_which_the_network_returns_no_numbers_has_no_vector(tmp_path: Path) -> None:
    path = network(tmp_path / "contrast.onnx", "FLOAT", ["n", 3, SIDE, SIDE], "contrast")
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "a.png", np.zeros((20, 20, 3), np.uint8))
    save(tmp_path / "in" / "b.png", picture(1, 20, 20))
    encoder = f"{path}?precision=fp32&mean=0,0,0&std=1,1,1"
    with Store.open(tmp_path / "store", create=True, encoder=encoder) as store:
        report = store.ingest(tmp_path / "in")
        assert (report.added, report.rejected) == (2, 0)
        assert store.info().vectors == 1


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("FLOAT", ["n", SIDE, SIDE, 1]), ("INT64", ["n", 3, SIDE, SIDE]), ("FLOAT", ["n", SIDE])],
)
def test_a_network_of_something_else_is_refused(
    tmp_path: Path, kind: str, shape: list[int | str]
) -> None:
    path = network(tmp_path / "other.onnx", kind, shape, "as it is")
    assert "one input is needed" in refused(path)


def test_a_network_of_two_inputs_is_refused(tmp_path: Path) -> None:
    import onnx

    path = network(tmp_path / "two.onnx", "FLOAT", ["n", 3, SIDE, SIDE])
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    save_model(model, path)
    assert "float ['n', 3, 8, 8], float [1]: one input is needed" in refused(path)


def test_a_network_for_several_pictures_at_a_time_is_refused(tmp_path: Path) -> None:
    path = network(tmp_path / "four.onnx", "FLOAT", [4, 3, SIDE, SIDE])
    assert "takes 4 pictures at a time" in refused(path)


@pytest.mark.parametrize("shape", [["n", 8, 9, 3], ["n", 0, 0, 3], ["n", 60_000, 60_000, 3]])
def test_a_network_of_odd_sides_is_refused(tmp_path: Path, shape: list[int | str]) -> None:
    path = network(tmp_path / "odd.onnx", "UINT8", shape, "as it is")
    assert "must be square" in refused(path)


def test_a_broken_network_and_a_missing_one_are_one_line(tmp_path: Path) -> None:
    whole = network(tmp_path / "whole.onnx", "UINT8", ["n", SIDE, SIDE, 3]).read_bytes()
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "short.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder.onnx").mkdir()
    for name in ("broken", "empty", "short", "missing", "folder"):
        path = tmp_path / f"{name}.onnx"
        assert str(path) in refused(path)
        with pytest.raises(EncoderError, match=name):
            find(str(path), seed=0)


def test_a_network_larger_than_networks_can_be_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(3 << 30)
    assert "too large" in refused(path)


def external(path: Path) -> Path:
    """A network whose constants lie in the file "weights" beside it."""
    import onnx

    network(path, "FLOAT", ["n", 3, SIDE, SIDE])
    onnx.save(
        onnx.load(path),
        path,
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
        convert_attribute=True,
    )
    assert (path.parent / "weights").exists()
    return path


@pytest.mark.slow
def test_weights_in_a_file_beside_the_network_become_part_of_it(tmp_path: Path) -> None:
    path = external(tmp_path / "apart.onnx")
    report, _ = imported(path)
    assert sorted(each.name for each in Path(report.out).iterdir()) == [
        "encoder.json",
        "model.onnx",
    ]
    # Other weights are another encoder.
    first = named.find(f"{path}?precision=fp32").model
    weights = tmp_path / "weights"
    weights.write_bytes(weights.read_bytes() + b"\0")
    assert named.find(f"{path}?precision=fp32").model != first


@pytest.mark.parametrize("place", ["/etc/hostname", "../weights", "inner/weights", "link", "gone"])
def test_weights_outside_of_the_networks_folder_are_not_opened(tmp_path: Path, place: str) -> None:
    import onnx

    inside = tmp_path / "inside"
    (inside / "inner").mkdir(parents=True)
    path = external(inside / "apart.onnx")
    for other in (tmp_path / "weights", inside / "inner" / "weights"):
        other.write_bytes((inside / "weights").read_bytes())
    (inside / "link").symlink_to(tmp_path / "weights")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    path.write_bytes(model.SerializeToString())
    assert "not a file of the same folder" in refused(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("length", "1" * 30), ("length", "x"), ("offset", "999999"), ("offset", "-5")],
)
def test_weights_that_end_too_early_are_one_line(tmp_path: Path, key: str, value: str) -> None:
    import onnx

    path = external(tmp_path / "apart.onnx")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == key:
                entry.value = value
    path.write_bytes(model.SerializeToString())
    assert str(path) in refused(path)


# --- the options ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_options_are_those_of_the_file_beside_it_and_the_callers_win(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", "FLOAT", ["n", 3, "h", "w"])
    (tmp_path / "net.toml").write_text(
        "image_size = 16\nmean = [0, 0, 0]\nstd = [0.5, 1, 1]\nresize = 'crop-bicubic'\n"
        "shorter_side = 20\n"
    )
    report, encoder = imported(path, std=(1, 1, 1))
    assert encoder.preprocessing.size == report.image_size == 16
    assert encoder.preprocessing.shorter_side == 20
    assert encoder.preprocessing.interpolation == "bicubic"
    pixels = picture(0, 16, 16)
    wanted = pixels.transpose(2, 0, 1).reshape(-1).astype(np.float32)
    assert encoder.encode([pixels])[0] == pytest.approx(wanted / np.linalg.norm(wanted), abs=1e-6)


@pytest.mark.slow
def test_an_inner_value_can_be_the_output_and_be_pooled(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", "UINT8", ["n", 3, SIDE, SIDE])
    report, encoder = imported(path, layer="float:mean")
    assert report.dim == 3
    pixels = picture(0, SIDE, SIDE)
    mean = pixels.mean((0, 1))
    assert encoder.encode([pixels])[0] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


def test_an_output_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", "UINT8", ["n", 3, SIDE, SIDE])
    assert "has no output 'nothing': its outputs are out" in refused(path, layer="nothing")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not TOML"),
        ("a = " + "[" * 100_000, "is not TOML"),
        ("size = 8", "has 'size': only image_size"),
        ("image_size = 0", "image_size"),
        ("image_size = true", "image_size must be a whole number"),
        ("image_size = 16", "takes pictures of 8 pixels a side, not 16"),
        ("mean = 0.5", "mean must be three numbers"),
        ("mean = [0.5, 0.5]", "mean must be three numbers"),
        ("mean = [0.5, 0.5, nan]", "mean must be three numbers"),
        ("std = [1, 1, 0]", "std= must be three numbers above 0"),
        ("resize = 3", "resize must be text"),
    ],
)
def test_options_that_make_no_sense_are_one_line(tmp_path: Path, text: str, reason: str) -> None:
    path = network(tmp_path / "net.onnx", "FLOAT", ["n", 3, SIDE, SIDE])
    (tmp_path / "net.toml").write_text(text)
    with pytest.raises((EncoderError, UsageError), match=reason) as caught:
        imported(path)
    assert len(str(caught.value).splitlines()) == 1


def test_pixels_as_they_are_cannot_be_normalised(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", "UINT8", ["n", SIDE, SIDE, 3])
    assert "leave mean= and std= out" in refused(path, mean=(0, 0, 0))


# --- int8, and evaluation -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_network_that_gains_nothing_by_int8_stays_as_it_is(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", "FLOAT", ["n", 3, SIDE, SIDE])
    report, _ = imported(path, precision="auto")
    described = json.loads((Path(report.out) / "encoder.json").read_text())
    assert report.precision == described["default"]
    assert described["precision"] == {"asked": "auto", "reason": report.reason}
    assert described["parity"]["images_from"] == "generated"
    assert described["parity"]["images"] == 256


@pytest.mark.slow
def test_an_evaluation_takes_what_an_ingest_takes(tmp_path: Path) -> None:
    path = network(tmp_path / "mine.onnx", "FLOAT", ["n", 3, SIDE, SIDE])
    entrant = find(f"{path}?precision=fp32", seed=0)
    assert isinstance(entrant, Entrant)
    vectors = entrant.encode([picture(seed, 40, 30) for seed in range(3)])
    assert vectors.shape == (3, entrant.dim) == (3, 3 * SIDE**2)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert (entrant.name, entrant.what) == ("mine", f"{path}?precision=fp32, fp32")
