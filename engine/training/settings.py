"""The settings of a training run, checked on construction; no torch here."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from engine.errors import UsageError

METHODS = ("simclr", "moco", "supervised")
PRECISIONS = ("fp32", "bf16")
SCHEDULES = ("constant", "cosine")
QUEUE = 4096  # default number of keys of past batches that moco keeps


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How a ResNet-18 is trained; the defaults are the recipe "report", which is SimCLR.

    ``method`` is "simclr" (Chen et al., 2020, arXiv:2002.05709), "moco" (a momentum encoder and a
    queue of its keys: He et al., 2020, arXiv:1911.05722; Chen et al., 2020, arXiv:2003.04297) or
    "supervised" (cross entropy on the labels of the images). Lengths are in pixels, probabilities and
    scales from 0 to 1. ``UsageError`` names the first invalid setting.
    """

    recipe: str = "report"  # the recipe that the run began from, see recipes.py
    method: str = "simclr"
    queue: int = -1  # keys of past batches that are negatives too; -1: 4,096 for moco, else 0
    momentum: float = 0.99  # of moco's key encoder: the share of it that a step keeps
    hard_negatives: float = 0.0  # beta of Robinson et al., 2021: how much near ones weigh; 0: off
    tau_plus: float = 0.0  # assumed share of false negatives (the same paper)
    semi_hard: bool = False  # ignore negatives that are nearer than the positive
    image_size: int = 224  # S: the network sees S × S pixels
    # Share to hold out if no folder is for that. None: only those folders; 0: nothing.
    held_out: float | None = None
    crop_scale: tuple[float, float] = (0.2, 1.0)  # share of the picture's area that a crop covers
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)  # brightness … hue
    blur_kernel: int = 5
    flip: float = 0.5  # probability
    grey: float = 0.0  # probability that a view has no colour
    whole: float = 0.0  # probability that a view is the whole picture, squashed, instead of a crop
    turn: float = 0.0  # probability that a view is turned by up to 15°
    erase: float = 0.0  # probability that a rectangle of a view gets one colour
    bits: float = 0.0  # probability that a view has one bit per channel
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of ImageNet, channel values 0 to 1
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    shrink: float = 1.15  # pictures are kept with the shorter side at shrink × image_size
    temperature: float = 0.1
    # Share of the loss that follows a teacher, if there is one; 1: one view of each image, no contrast.
    teacher_weight: float = 0.5
    batch: int = 64  # images; the network sees two views of each
    epochs: int = 30
    learning_rate: float = 1e-3  # of Adam
    schedule: str = "constant"  # "cosine" lets the rate fall to zero over the run
    warmup: int = 0  # epochs over which the rate rises from zero; at most half of the run
    weight_decay: float = 0.0  # decoupled (AdamW), of the weights of convolutions and layers
    hidden: int = 256  # width of the projection head's middle layer
    dim: int = 128  # length of the embedding
    seed: int = 0
    precision: str = "fp32"  # "bf16": autocast of the forward pass; weights stay fp32
    device: str = "auto"  # "auto", "cpu", "cuda" or "cuda:N"
    workers: int = 0  # threads that read and crop; 0 means one per core

    def __post_init__(self) -> None:
        for names, wanted, holds in _CHECKS:
            for name in names.split():
                if not holds(getattr(self, name), self):
                    raise UsageError(f"{name} is {getattr(self, name)!r}: it must be {wanted}")
        if self.queue == -1:
            object.__setattr__(self, "queue", QUEUE if self.method == "moco" else 0)

    def to_dict(self) -> dict[str, Any]:
        """The settings as a dict for JSON, with tuples as lists."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainSettings:
        """The settings from a dict of ``to_dict``; missing ones get their defaults."""
        known = {setting.name for setting in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UsageError(
                f"unknown training setting {unknown[0]!r}: known are {', '.join(sorted(known))}"
            )
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**given)


def _is_int(value: object) -> bool:
    # torch uses 64-bit integers.
    return isinstance(value, int) and not isinstance(value, bool) and value < 2**63


def _is_number(value: object) -> TypeGuard[int | float]:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    # An int may exceed the range of a float.
    return abs(value) <= sys.float_info.max


def _floats(value: object, count: int) -> bool:
    return isinstance(value, tuple) and len(value) == count and all(map(_is_number, value))


def _is_share(value: object) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_device(value: object) -> bool:
    if not isinstance(value, str):
        return False
    return value in ("auto", "cpu", "cuda") or (value.startswith("cuda:") and value[5:].isdecimal())


# Names of settings, the requirement in words, and its check. The checks run in this order, so a later
# one may rely on an earlier one.
_CHECKS: tuple[tuple[str, str, Callable[[Any, TrainSettings], bool]], ...] = (
    ("recipe", "a name", lambda value, _: isinstance(value, str) and value.isidentifier()),
    ("method", " or ".join(METHODS), lambda value, _: value in METHODS),
    ("queue", "≥ 0", lambda value, _: _is_int(value) and value >= -1),
    (
        "queue",
        "0 unless the method is moco",
        lambda value, settings: value in (0, -1) or settings.method == "moco",
    ),
    (
        "momentum tau_plus",
        "at least 0 and below 1",
        lambda value, _: _is_number(value) and 0 <= value < 1,
    ),
    ("hard_negatives weight_decay", "≥ 0", lambda value, _: _is_number(value) and value >= 0),
    ("semi_hard", "true or false", lambda value, _: isinstance(value, bool)),
    (
        "hard_negatives tau_plus semi_hard",
        "off, because the method supervised has no negatives",
        lambda value, settings: not value or settings.method != "supervised",
    ),
    ("warmup workers", "≥ 0", lambda value, _: _is_int(value) and value >= 0),
    (
        "image_size blur_kernel batch epochs hidden dim",
        "≥ 1",
        lambda value, _: _is_int(value) and value >= 1,
    ),
    ("image_size", "at least 16 pixels", lambda value, _: value >= 16),
    ("batch", "at least 2, because the loss compares images", lambda value, _: value >= 2),
    ("blur_kernel", "an odd number", lambda value, _: value % 2 == 1),
    (
        "blur_kernel",
        "smaller than the image",
        lambda value, settings: value // 2 < settings.image_size,
    ),
    (
        "crop_scale",
        "two numbers with 0 < first ≤ second ≤ 1",
        lambda value, _: _floats(value, 2) and 0 < value[0] <= value[1] <= 1,
    ),
    (
        "jitter",
        "brightness, contrast and saturation from 0 to 1 and hue from 0 to 0.5",
        lambda value, _: (
            _floats(value, 4) and all(0 <= each <= 1 for each in value[:3]) and 0 <= value[3] <= 0.5
        ),
    ),
    ("mean", "three numbers", lambda value, _: _floats(value, 3)),
    ("std", "three numbers above 0", lambda value, _: _floats(value, 3) and min(value) > 0),
    (
        "held_out",
        "0 to 0.5",
        lambda value, _: value is None or (_is_number(value) and 0 <= value <= 0.5),
    ),
    (
        "flip grey whole turn erase bits teacher_weight",
        "from 0 to 1",
        lambda value, _: _is_share(value),
    ),
    ("shrink", "≥ 1", lambda value, _: _is_number(value) and value >= 1),
    ("temperature learning_rate", "above 0", lambda value, _: _is_number(value) and value > 0),
    ("seed", "0 to 2^63 - 1", lambda value, _: _is_int(value) and 0 <= value < 2**63),
    ("precision", " or ".join(PRECISIONS), lambda value, _: value in PRECISIONS),
    ("schedule", " or ".join(SCHEDULES), lambda value, _: value in SCHEDULES),
    ("device", "auto, cpu, cuda or cuda:N", lambda value, _: _is_device(value)),
)
