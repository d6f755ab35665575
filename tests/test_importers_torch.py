"""Networks of timm and torchvision: the encoder returns what the library itself returns."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import engine
from engine import EncoderError, ImportReport, UsageError
from engine.encoders import registry
from engine.encoders.importers.calibration import generated_picture
from engine.encoders.onnx import OnnxEncoder

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")
safetensors = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.slow

MIN_COSINE = 0.9999
PICTURES = [generated_picture(number) for number in (0, 1, 2, 4)]
SMALL = "mobilenetv3_small_050"


def seeded(build: Callable[[], Any]) -> Any:
    """A network with random weights, and statistics of normalisation that are not those of the start."""
    torch.manual_seed(0)
    network = build().eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("running_mean"):
                value.uniform_(-0.1, 0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.8, 1.2)
    return network


def saved(network: Any, path: Path, **more: Any) -> Path:
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    safetensors.save_file({**tensors, **more}, path)
    return path


def imported(model: str, weights: Path, **settings: Any) -> tuple[ImportReport, OnnxEncoder]:
    settings = {"precision": "fp32", **settings}
    report = engine.import_encoder(model, weights.with_suffix(".out"), weights=weights, **settings)
    return report, OnnxEncoder(registry.find(report.out))


def cosines(encoder: OnnxEncoder, wanted: Any) -> np.ndarray:
    """Of each picture: between the encoder's vector, and that of the library (n, d)."""
    found = encoder.encode([encoder.preprocessing.resize(each) for each in PICTURES])
    rows = np.asarray(wanted, np.float64)
    return (found * (rows / np.linalg.norm(rows, axis=1, keepdims=True))).sum(1)


def inputs(transform: Any) -> Any:
    return torch.stack([transform(Image.fromarray(each)) for each in PICTURES])


def refused(weights: Path, model: str = f"timm:{SMALL}") -> str:
    with pytest.raises(EncoderError) as caught:
        imported(model, weights)
    assert len(str(caught.value).splitlines()) == 1
    assert not weights.with_suffix(".out").exists()
    return str(caught.value)


# --- as the library itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        pytest.param("mobilenet_v3_small", marks=pytest.mark.exhaustive),
        pytest.param("vgg11", marks=pytest.mark.exhaustive),
        pytest.param("vit_b_32", marks=pytest.mark.exhaustive),
        pytest.param("swin_v2_t", marks=pytest.mark.exhaustive),
        pytest.param("densenet121", marks=pytest.mark.exhaustive),
        pytest.param("googlenet", marks=pytest.mark.exhaustive),
    ],
)
def test_networks_of_torchvision(tmp_path: Path, name: str) -> None:
    models = torchvision.models
    network = seeded(lambda: models.get_model(name, weights=None))
    report, encoder = imported(f"torchvision:{name}", saved(network, tmp_path / "w.safetensors"))
    assert report.notes == ()
    linear = [path for path, each in network.named_modules() if isinstance(each, torch.nn.Linear)]
    network.set_submodule(linear[-1], torch.nn.Identity())
    own = models.get_model_weights(name).DEFAULT.transforms()
    with torch.inference_mode():
        network.transform_input = name == "googlenet"
        wanted = network(inputs(own))
    assert report.dim == wanted.shape[1]
    assert cosines(encoder, wanted).min() >= MIN_COSINE


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", 96),
        pytest.param(SMALL, None, marks=pytest.mark.exhaustive),
        pytest.param("efficientnet_lite0", None, marks=pytest.mark.exhaustive),
        pytest.param("vit_small_patch14_dinov2", 112, marks=pytest.mark.exhaustive),
        pytest.param("vit_small_patch16_dinov3", 96, marks=pytest.mark.exhaustive),
        pytest.param("swin_tiny_patch4_window7_224", None, marks=pytest.mark.exhaustive),
        pytest.param("deit_tiny_distilled_patch16_224", None, marks=pytest.mark.exhaustive),
    ],
)
def test_networks_of_timm(tmp_path: Path, name: str, size: int | None) -> None:
    settings = {} if size is None else {"img_size": size}
    network = seeded(lambda: timm.create_model(name, **settings))
    weights = saved(network, tmp_path / "w.safetensors")
    report, encoder = imported(f"timm:{name}", weights, image_size=size)
    assert report.notes == ()
    described = json.loads((Path(report.out) / "encoder.json").read_text())
    assert described["source"]["weights"]["file"] == "w.safetensors"
    own = timm.data.resolve_data_config({}, model=network)
    if size is not None:
        own["input_size"] = (3, size, size)
    transform = timm.data.create_transform(**own)
    network.reset_classifier(0)
    with torch.inference_mode():
        wanted = network(inputs(transform))
    assert report.dim == wanted.shape[1]
    assert cosines(encoder, wanted).min() >= MIN_COSINE


@pytest.mark.exhaustive
@pytest.mark.parametrize("layer", ["7", "7:mean"])
def test_an_inner_layer(tmp_path: Path, layer: str) -> None:
    build = lambda: timm.create_model("vit_tiny_patch16_224", img_size=96)  # noqa: E731
    network = seeded(build)
    weights = saved(network, tmp_path / "w.safetensors")
    _, encoder = imported("timm:vit_tiny_patch16_224", weights, layer=layer, image_size=96)
    own = timm.data.resolve_data_config({}, model=network) | {"input_size": (3, 96, 96)}
    with torch.inference_mode():
        (tokens,) = network.get_intermediate_layers(
            inputs(timm.data.create_transform(**own)), n=[7], return_prefix_tokens=True, norm=True
        )
    places, prefix = tokens
    wanted = places.mean(1) if layer.endswith("mean") else prefix[:, 0]
    assert cosines(encoder, wanted).min() >= MIN_COSINE


@pytest.mark.exhaustive
@pytest.mark.parametrize("layer", ["layer3", "layer3.1.relu_1:mean"])
def test_an_inner_node_of_torchvision(tmp_path: Path, layer: str) -> None:
    network = seeded(lambda: torchvision.models.resnet18(weights=None))
    weights = saved(network, tmp_path / "w.safetensors")
    report, encoder = imported("torchvision:resnet18", weights, layer=layer)
    kept: list[Any] = []
    network.layer3.register_forward_hook(lambda _, __, out: kept.append(out.mean((2, 3))))
    with torch.inference_mode():
        network(inputs(torchvision.models.ResNet18_Weights.DEFAULT.transforms()))
    assert report.dim == 256
    assert cosines(encoder, kept[0]).min() >= MIN_COSINE


def test_a_layer_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    network = seeded(lambda: timm.create_model(SMALL))
    weights = saved(network, tmp_path / "w.safetensors")
    for layer, reason in (
        ("99", "has no layer= 99"),
        ("last", "'last' is not a number: write it like 9 or 9:mean"),
        ("1:token", "has no class token: write layer= 1:mean"),
    ):
        with pytest.raises(UsageError, match=reason) as caught:
            imported(f"timm:{SMALL}", weights, layer=layer)
        assert "\n" not in str(caught.value)


# --- weights --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tensors() -> dict[str, Any]:
    return dict(seeded(lambda: timm.create_model(SMALL, num_classes=0)).state_dict())


def test_weights_of_other_names_match_by_their_order_and_this_is_said(
    tmp_path: Path, tensors: dict[str, Any]
) -> None:
    named = {f"layer_{number:04}": value for number, value in enumerate(tensors.values())}
    torch.save(named, tmp_path / "w.pth")
    report, encoder = imported(f"timm:{SMALL}", tmp_path / "w.pth")
    (note,) = report.notes
    assert f"{len(tensors)} tensors were matched by their order" in note
    # A checkpoint of a training run, with the averaged weights under a wrapper's names.
    wrapped = {f"module.{name}": value for name, value in tensors.items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "run.ckpt")
    other, again = imported(f"timm:{SMALL}", tmp_path / "run.ckpt")
    assert other.notes == ()
    pictures = [encoder.preprocessing.resize(each) for each in PICTURES]
    assert again.encode(pictures) == pytest.approx(encoder.encode(pictures), abs=1e-6)


def test_weights_of_another_architecture_name_the_first_tensor_that_differs(
    tmp_path: Path, tensors: dict[str, Any]
) -> None:
    first, *_, last = tensors
    changed = {**tensors, first: tensors[first][:, :, :2]}
    safetensors.save_file(
        {k: v.contiguous() for k, v in changed.items()}, tmp_path / "a.safetensors"
    )
    said = refused(tmp_path / "a.safetensors")
    assert f"the tensor {first} has the shape 16 × 3 × 2 × 3" in said
    assert "the architecture wants 16 × 3 × 3 × 3" in said
    less = {name: value for name, value in tensors.items() if name != last}
    torch.save(less, tmp_path / "b.pt")
    assert f"the architecture has a tensor {last} of shape" in refused(tmp_path / "b.pt")
    torch.save({**tensors, "extra": torch.zeros(3, 4, 5)}, tmp_path / "c.pt")
    assert "the tensor extra of shape 3 × 4 × 5 has no place" in refused(tmp_path / "c.pt")
    broken = {**tensors, first: torch.full_like(tensors[first], float("nan"))}
    torch.save(broken, tmp_path / "d.pt")
    assert f"the tensor {first} holds values that are no numbers" in refused(tmp_path / "d.pt")


class Harmful:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_files_that_hold_no_weights_are_one_line(tmp_path: Path, tensors: dict[str, Any]) -> None:
    torch.save(tensors, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "short.pth").write_bytes(whole[: len(whole) // 2])
    safetensors.save_file(
        {k: v.contiguous() for k, v in tensors.items()}, tmp_path / "whole.safetensors"
    )
    content = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(content[: len(content) // 2])
    (tmp_path / "long.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.txt").write_text("weights")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "code.pkl.pt").write_bytes(pickle.dumps(Harmful(tmp_path / "touched")))
    torch.save(Harmful(tmp_path / "touched"), tmp_path / "code.pt")
    for name, reason in (
        ("short.pth", "is not a whole PyTorch checkpoint"),
        ("empty.pth", "is not a whole PyTorch checkpoint"),
        ("short.safetensors", r"is not a whole .safetensors file"),
        ("long.safetensors", r"is not a whole .safetensors file"),
        ("text.txt", "must end in .safetensors, or in .pt"),
        ("list.pt", "holds no tensors by name"),
        ("code.pkl.pt", "holds code or objects other than tensors"),
        ("code.pt", "holds code or objects other than tensors"),
        ("gone.pt", "no such file"),
    ):
        assert reason in refused(tmp_path / name), name
    assert not (tmp_path / "touched").exists()
    with (tmp_path / "huge.safetensors").open("wb") as file:
        file.truncate(9 << 30)
    assert "is too large: files of weights of up to 8 GiB" in refused(tmp_path / "huge.safetensors")


# --- what is missing ------------------------------------------------------------------------------


def test_a_network_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for model, reason in (
        ("timm:vit_smal_patch14_dinov2", "did you mean vit_small_patch14_dinov2"),
        ("torchvision:resnet19", "did you mean resnet18|did you mean resnet1"),
        ("torchvision:resnet18@NOTHING", "choose one of IMAGENET1K_V1"),
    ):
        with pytest.raises(EncoderError, match=reason) as caught:
            engine.import_encoder(model, tmp_path / "out")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [f"timm:{SMALL}", "torchvision:squeezenet1_1"])
def test_without_a_network_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    # Nothing listens there, and the caches of the libraries are empty.
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    code = (
        "import engine\n"
        "try:\n"
        f"    engine.import_encoder({model!r}, {str(tmp_path / 'out')!r})\n"
        "except engine.EncoderError as error:\n"
        "    print(error)\n"
    )
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = ran.stdout.splitlines()
    assert f"the weights of {model} cannot be downloaded" in line
    assert "connect to the network, or give a file of weights with weights=" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "library"), [("timm:x", "timm"), ("torchvision:x", "torch"), ("x.onnx", "onnx")]
)
def test_a_library_that_is_not_installed_is_one_line(
    tmp_path: Path, model: str, library: str
) -> None:
    code = (
        "import sys, importlib.util\n"
        # A library that is not there: neither found nor imported.
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {library!r}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from engine.cli.app import main\n"
        f"sys.exit(main(['import-encoder', {model!r}, '--out', {str(tmp_path / 'out')!r}]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert f"needs {library}: pip install 'image-index-engine[import]'" in line


# --- int8 -----------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_a_transformer_in_int8_finds_the_same_neighbours_or_stays_float(tmp_path: Path) -> None:
    network = seeded(lambda: timm.create_model("vit_tiny_patch16_224", img_size=96))
    weights = saved(network, tmp_path / "w.safetensors")
    report, _ = imported("timm:vit_tiny_patch16_224", weights, image_size=96, precision="auto")
    overlap = report.parity["int8_fp32_top10_overlap"]
    faster = report.parity["int8_images_per_second"] > report.parity["fp32_images_per_second"]  # type: ignore[operator]
    assert report.precision == ("int8" if overlap >= 0.9 and faster else "fp32")  # type: ignore[operator]
    assert "int8 finds" in report.reason
    import onnx

    if report.precision == "int8":
        kinds = {
            node.op_type for node in onnx.load(Path(report.out) / "model.int8.onnx").graph.node
        }
        assert {"QuantizeLinear", "LayerNormalization", "Softmax"} <= kinds
