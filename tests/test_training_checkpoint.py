# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""Checkpoints: what they say of themselves, and that nothing in them is a pickle."""

import json
from pathlib import Path

import pytest

from engine.errors import TrainingError

torch = pytest.importorskip("torch")

from safetensors import safe_open

from engine import __version__
from engine.training import checkpoint
from engine.training.model import build
from engine.training.settings import TrainSettings

SETTINGS = TrainSettings(image_size=32, hidden=32, dim=16)
PROVENANCE = checkpoint.Provenance(
    name="tiny",
    settings=SETTINGS,
    epoch=3,
    loss=1.5,
    data={"count": 20, "fingerprint": "00ff", "description": "made up"},
    engine_version=checkpoint.engine_version(),
)


@pytest.mark.slow
def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    network = build(SETTINGS).to(memory_format=torch.channels_last)
    checkpoint.save_checkpoint(tmp_path, network.state_dict(), PROVENANCE)
    again, provenance = checkpoint.load_checkpoint(tmp_path)
    assert provenance == PROVENANCE
    assert not again.training
    before = network.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in again.state_dict().items())


def test_its_metadata_is_json_that_anyone_can_read(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(tmp_path, build(SETTINGS).state_dict(), PROVENANCE)
    with safe_open(tmp_path / checkpoint.CHECKPOINT, framework="np") as file:
        fields = {key: json.loads(value) for key, value in file.metadata().items()}
    assert fields["settings"] == SETTINGS.to_dict()
    assert fields["engine_version"] == __version__
    assert (fields["epoch"], fields["data"]["count"]) == (3, 20)


@pytest.mark.slow
def test_it_is_replaced_whole(tmp_path: Path) -> None:
    for _ in range(2):
        checkpoint.save_checkpoint(tmp_path, build(SETTINGS).state_dict(), PROVENANCE)
    path = tmp_path / checkpoint.CHECKPOINT
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644
    assert not path.read_bytes().startswith((b"PK", b"\x80"))  # neither a zip nor a pickle


@pytest.mark.slow
def test_a_failed_write_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save_checkpoint(tmp_path, build(SETTINGS).state_dict(), PROVENANCE)
    path = tmp_path / checkpoint.CHECKPOINT
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(TrainingError, match="No space left"):
        checkpoint.save_checkpoint(tmp_path, build(SETTINGS).state_dict(), PROVENANCE)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", ["absent", "garbage", "foreign"])
def test_what_is_no_checkpoint_is_said_in_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / checkpoint.CHECKPOINT
    if damage == "garbage":
        path.write_bytes(b"\x80\x04garbage" * 10)
    elif damage == "foreign":
        checkpoint.write_tensors(path, {"x": torch.zeros(1)}, {})
    with pytest.raises(TrainingError) as caught:
        checkpoint.load_checkpoint(tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
