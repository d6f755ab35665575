"""The settings of a training run."""

import json
import subprocess
import sys

import pytest

from engine.errors import UsageError

pytest.importorskip("torch")

from engine.training.settings import TrainSettings


def test_the_defaults_are_the_recipe() -> None:
    settings = TrainSettings()
    assert (settings.image_size, settings.batch, settings.epochs) == (224, 64, 30)
    assert (settings.temperature, settings.learning_rate) == (0.1, 1e-3)
    assert (settings.hidden, settings.dim) == (256, 128)
    assert settings.crop_scale == (0.2, 1.0)
    assert (settings.method, settings.queue, settings.hard_negatives) == ("simclr", 0, 0)
    assert (settings.warmup, settings.weight_decay, settings.held_out) == (0, 0, None)
    assert settings.jitter == (0.4, 0.4, 0.4, 0.1)
    assert (settings.blur_kernel, settings.precision, settings.schedule) == (5, "fp32", "constant")


def test_a_dict_of_it_survives_json() -> None:
    settings = TrainSettings(image_size=96, crop_scale=(0.5, 0.9), precision="bf16")
    assert TrainSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert TrainSettings.from_dict({}) == TrainSettings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 8),
        ("image_size", 128.0),
        ("batch", 1),
        ("epochs", 0),
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.5, 1.5)),
        ("crop_scale", (0.5,)),
        ("jitter", (0.4, 0.4, 0.4, 0.6)),
        ("blur_kernel", 4),
        ("flip", 1.5),
        ("std", (0.2, 0.0, 0.2)),
        ("shrink", 0.5),
        ("temperature", 0.0),
        ("learning_rate", float("nan")),
        ("seed", -1),
        ("workers", True),
        ("precision", "fp16"),
        ("schedule", "linear"),
        ("device", "cuda:"),
        ("method", "byol"),
        ("method", ["moco"]),
        ("queue", -2),
        ("queue", 64),  # of simclr, which has none
        ("momentum", 1.0),
        ("hard_negatives", -0.1),
        ("tau_plus", 1.0),
        ("semi_hard", 1),
        ("warmup", 0.5),
        ("weight_decay", float("inf")),
        ("recipe", ""),
        ("held_out", 0.6),
        ("held_out", False),
        pytest.param("learning_rate", 10**400, id="learning_rate-beyond-float"),
        ("epochs", 10**30),
        ("queue", 10**30),
    ],
)
def test_nonsense_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"^{name} is .*: it must be ") as caught:
        TrainSettings.from_dict({name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("hard_negatives", 1.0), ("tau_plus", 0.1), ("semi_hard", True)]
)
def test_labels_have_no_negatives(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"^{name} is .*supervised has no negatives"):
        TrainSettings.from_dict({"method": "supervised", name: value})


def test_only_moco_has_a_queue() -> None:
    assert TrainSettings().queue == 0 and TrainSettings(method="supervised").queue == 0
    assert TrainSettings(method="moco").queue == 4096
    assert TrainSettings(method="moco", queue=0).queue == 0


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown training setting 'lr'"):
        TrainSettings.from_dict({"lr": 0.1})


def test_the_engine_does_not_import_torch() -> None:
    code = "import sys, engine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
