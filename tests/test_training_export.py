# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""The exported encoder: it computes what the network computes, and says what it is."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from engine.encoders import registry
from engine.errors import TrainingError

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

import onnxruntime

from engine.encoders.importers.agreement import MIN_OVERLAP, agreement
from engine.encoders.importers.quantise import Int8
from engine.training import export as exporting
from engine.training.checkpoint import Provenance, load_checkpoint, save_checkpoint
from engine.training.export import EncoderExportReport, export
from engine.training.model import build, normalised
from engine.training.settings import TrainSettings

SETTINGS = TrainSettings(image_size=32, hidden=32, dim=16)


def images(n: int, seed: int) -> "torch.Tensor":
    """(n, 32, 32, 3) uint8: smooth blots, since a network on noise gives one answer to all."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(n, 3, 4, 4, generator=generator)
    large = torch.nn.functional.interpolate(small, size=32, mode="bilinear")
    return (large * 255).byte().permute(0, 2, 3, 1).contiguous()


def checkpoint(folder: Path) -> Path:
    network = build(SETTINGS).train()
    with torch.no_grad():
        network(normalised(images(32, 0), SETTINGS.mean, SETTINGS.std))
    data = {"count": 32, "fingerprint": "ab", "description": "blots"}
    save_checkpoint(folder, network.state_dict(), Provenance("blots", SETTINGS, 2, 0.5, data, "0"))
    return folder


def exporting_from(folder: Path) -> EncoderExportReport:
    return export(folder, images(32, 0).numpy(), images(24, 1).numpy())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> EncoderExportReport:
    return exporting_from(checkpoint(tmp_path_factory.mktemp("encoder")))


def run(path: Path, pixels: "torch.Tensor") -> "np.ndarray":
    return onnxruntime.InferenceSession(str(path)).run(["embedding"], {"pixels": pixels.numpy()})[0]


@pytest.mark.slow
def test_fp32_computes_what_the_network_computes(exported: EncoderExportReport) -> None:
    network, _ = load_checkpoint(Path(exported.out))
    pixels = images(5, 2)  # another batch size than it was traced with, and images not seen
    vectors = run(Path(exported.out, "model.onnx"), pixels)
    with torch.inference_mode():
        wanted = network(normalised(pixels, SETTINGS.mean, SETTINGS.std)).numpy()
    assert vectors.dtype == np.float32 and vectors.shape == (5, 16)
    assert (vectors * wanted).sum(1).min() >= 0.9999
    assert exported.parity["fp32_torch_min_cosine"] >= 0.9999


@pytest.mark.slow
def test_int8_agrees_and_is_a_quarter_of_the_size(exported: EncoderExportReport) -> None:
    pixels = images(7, 2)
    exact, quantised = (
        run(Path(exported.out, name), pixels) for name in ("model.onnx", "model.int8.onnx")
    )
    assert np.allclose(np.linalg.norm(quantised, axis=1), 1, atol=1e-4)
    assert (exact * quantised).sum(1).min() > 0.99
    assert exported.int8_bytes < 0.27 * exported.fp32_bytes
    assert exported.parity["int8_fp32_mean_cosine"] > 0.99
    assert 0 <= exported.parity["int8_fp32_top10_overlap"] <= 1
    assert (exported.parity["images"], exported.parity["images_from"]) == (24, "held_out")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.onnx", "model.int8.onnx"])
def test_the_graph_is_clean(exported: EncoderExportReport, name: str) -> None:
    model = onnx.load(Path(exported.out, name))
    (pixels,), (embedding,) = model.graph.input, model.graph.output
    kind = pixels.type.tensor_type
    assert (pixels.name, kind.elem_type) == ("pixels", onnx.TensorProto.UINT8)
    assert [d.dim_param or d.dim_value for d in kind.shape.dim] == ["n", 32, 32, 3]
    assert embedding.name == "embedding"
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert [opset.domain for opset in model.opset_import] == [""]
    assert model.opset_import[0].version >= 17
    assert str(Path.cwd()) not in str(model.graph.node)  # no paths of whoever trained it


@pytest.mark.slow
def test_weights_have_seven_bits(exported: EncoderExportReport) -> None:
    model = onnx.load(Path(exported.out, "model.int8.onnx"))
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.name.endswith("weight_quantized")
    ]
    assert len(weights) == 21 and all(w.dtype == np.int8 for w in weights)
    assert max(int(np.abs(w.astype(int)).max()) for w in weights) <= 64


@pytest.mark.slow
def test_the_description_says_what_it_is(exported: EncoderExportReport) -> None:
    folder = Path(exported.out)
    body = json.loads((folder / "encoder.json").read_text())
    assert (body["name"], body["dim"], body["image_size"]) == ("blots", 16, 32)
    assert body["resize"] == "squash-bilinear-antialias"
    assert body["settings"] == SETTINGS.to_dict()
    assert body["data"] == {"count": 32, "fingerprint": "ab", "description": "blots"}
    assert body["parity"] == exported.parity
    for file in body["files"].values():
        assert hashlib.sha256((folder / file["path"]).read_bytes()).hexdigest() == file["sha256"]
    assert registry.find(str(folder)).dim == 16
    assert body["default"] == exported.default


@pytest.mark.usual
@pytest.mark.slow
@pytest.mark.parametrize(("overlap", "default"), [(0.9, "int8"), (0.89, "fp32")])
def test_int8_runs_only_if_it_finds_the_same_neighbours(
    exported: EncoderExportReport,
    overlap: float,
    default: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    int8_made = Path(exported.out) / "model.int8.onnx"

    def agrees_so(fp32: Path, int8: Path, *_: object) -> Int8:
        shutil.copy(int8_made, int8)
        return Int8("minmax", 0.99, overlap, 0)

    made = Path(exported.out) / "model.onnx"  # of the same network
    monkeypatch.setattr(exporting, "write_onnx", lambda _, path, size: shutil.copy(made, path))
    monkeypatch.setattr(exporting, "write_int8", agrees_so)
    assert exporting_from(checkpoint(tmp_path)).default == default
    name = {"int8": "model.int8.onnx", "fp32": "model.onnx"}[default]
    assert registry.find(str(tmp_path)).model == tmp_path / name


@pytest.mark.parametrize("n", [4, 11, 41, 200])
def test_vectors_that_have_nothing_to_do_with_others_do_not_agree(n: int) -> None:
    exact, others = (
        np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32) for seed in (0, 1)
    )
    assert agreement(exact, others)[1] < MIN_OVERLAP
    assert agreement(exact, exact)[1] == 1


@pytest.mark.slow
def test_nothing_but_the_encoder_is_left(exported: EncoderExportReport) -> None:  # and no pictures
    assert {path.name for path in Path(exported.out).iterdir()} == {
        "checkpoint.safetensors",
        "encoder.json",
        "model.int8.onnx",
        "model.onnx",
    }


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path)
    (tmp_path / ".export-killed").mkdir()  # what an export left that was killed
    (tmp_path / ".export-killed" / "model.onnx").write_bytes(b"half")
    monkeypatch.setattr(exporting, "write_onnx", lambda *_: None)
    monkeypatch.setattr(
        exporting, "run_model", lambda _, pixels: np.eye(len(pixels), 16, dtype="f4")
    )
    with pytest.raises(TrainingError, match="disagree"):
        exporting_from(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_without_a_checkpoint_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is missing: train into"):
        exporting_from(tmp_path)
