# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""scripts/ship-encoder: what is put into the package can be run, and trained on."""

import importlib.machinery
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from engine.encoders import registry
from engine.encoders.onnx import OnnxEncoder
from engine.training import TrainSettings, resolve, train
from engine.training.checkpoint import CHECKPOINT, load_checkpoint

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = str(ROOT / "scripts" / "ship-encoder")
    loader = importlib.machinery.SourceFileLoader("ship_encoder", path)
    spec = importlib.util.spec_from_loader("ship_encoder", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "in").mkdir()
    for i in range(8):
        small = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((40, 40)).save(folder / "in" / f"{i}.png")
    settings = TrainSettings(image_size=32, batch=8, epochs=1, hidden=32, dim=16)
    train([str(folder / "in")], folder / "out", settings)
    # What int8 loses of so few pictures depends on the processor, and is not what is tested here.
    described = folder / "out" / "encoder.json"
    body = json.loads(described.read_text()) | {"default": "int8"}
    described.write_text(json.dumps(body))
    return folder / "out"


@pytest.mark.exhaustive
@pytest.mark.slow
def test_what_is_shipped_runs_and_has_the_weights_in_half(
    script: ModuleType, trained: Path, tmp_path: Path
) -> None:
    script.ship(trained, tmp_path / "place")
    place = tmp_path / "place"
    names = {path.name for path in place.iterdir()}
    assert names == {CHECKPOINT, "encoder.json", "model.int8.onnx"}
    one, other = (registry.find(str(folder)) for folder in (trained, place))
    assert one.sha256 == other.sha256 and OnnxEncoder(other).dim == 16
    assert (place / CHECKPOINT).stat().st_size < 0.51 * (trained / CHECKPOINT).stat().st_size
    (before, _), (after, provenance) = load_checkpoint(trained), load_checkpoint(place)
    for name, value in after.state_dict().items():
        assert value.dtype == before.state_dict()[name].dtype
        assert torch.allclose(value, before.state_dict()[name], rtol=1e-3, atol=1e-6)
    assert provenance.settings.dim == 16


@pytest.mark.exhaustive
@pytest.mark.slow
def test_an_int8_model_that_loses_neighbours_is_not_shipped(
    script: ModuleType, trained: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in trained.glob("*.*"):
        (copy / path.name).write_bytes(path.read_bytes())
    body = json.loads((copy / "encoder.json").read_text())
    (copy / "encoder.json").write_text(json.dumps(body | {"default": "fp32"}))
    with pytest.raises(SystemExit, match="loses too many neighbours"):
        script.ship(copy, tmp_path / "place")
    assert not (tmp_path / "place").exists()


def test_the_settings_of_its_stages_fit_one_another(script: ModuleType) -> None:
    stages = [resolve({}, file=ROOT / "scripts" / f"{stage}.toml") for stage in script.STAGES]
    assert all(stage.recipe == "large" and stage.bits > 0 for stage in stages)
    for name in ("image_size", "hidden", "dim"):  # the second begins with the weights of the first
        assert len({getattr(stage, name) for stage in stages}) == 1
