"""The settings of a training run, checked when they are made; no torch here."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import UsageError

METHODS = ("simclr", "moco", "supervised")
PRECISIONS = ("fp32", "bf16")
SCHEDULES = ("constant", "cosine")
QUEUE = 4096  # keys of past batches that moco keeps where no other number is given


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How a ResNet-18 is trained; the defaults are the recipe "report", which is SimCLR.

    ``method`` is "simclr" (Chen et al., 2020, arXiv:2002.05709), "moco" (a momentum encoder and a
    queue of its keys: He et al., 2020, arXiv:1911.05722; Chen et al., 2020, arXiv:2003.04297) or
    "supervised" (cross entropy on the labels of the images). Lengths are pixels, probabilities and
    scales fractions of one. ``UsageError`` names the first setting that makes no sense.
    """

    recipe: str = "report"  # the name of the recipe that the run began from, see recipes.py
    method: str = "simclr"
    queue: int = -1  # keys of past batches that are negatives too; -1: 4,096 for moco, else 0
    momentum: float = 0.99  # of moco's key encoder: the share of it that stays in a step
    hard_negatives: float = 0.0  # beta of Robinson et al., 2021: how much the nearest weigh; 0 off
    tau_plus: float = 0.0  # of the same: the share of the negatives that are thought to be none
    semi_hard: bool = False  # leave out negatives that are nearer than the positive
    image_size: int = 224  # S: the network sees S × S
    held_out: float | None = (
        None  # share to hold out where no folder is for that; 0: nothing at all
    )
    crop_scale: tuple[float, float] = (0.2, 1.0)  # share of the picture's area that a crop covers
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)  # brightness … hue
    blur_kernel: int = 5
    flip: float = 0.5  # probability
    grey: float = 0.0  # probability that a view has no colour
    turn: float = 0.0  # probability that a view is turned by up to 15°
    erase: float = 0.0  # probability that a rectangle of a view gets one colour
    bits: float = 0.0  # probability that a view is a bit image, one bit a channel
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of ImageNet, channel values 0 to 1
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    shrink: float = 1.15  # pictures are kept with the shorter side at shrink × image_size
    temperature: float = 0.1
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
    workers: int = 0  # threads that read and crop; 0 is one a core

    def __post_init__(self) -> None:
        _require(
            isinstance(self.recipe, str) and self.recipe.isidentifier(), "recipe", self, "a name"
        )
        _require(self.method in METHODS, "method", self, " or ".join(METHODS))
        _require(_is_int(self.queue) and self.queue >= -1, "queue", self, "≥ 0")
        if self.queue == -1:
            object.__setattr__(self, "queue", QUEUE if self.method == "moco" else 0)
        _require(
            self.queue == 0 or self.method == "moco", "queue", self, "0 unless the method is moco"
        )
        _require(
            _is_number(self.momentum) and 0 <= self.momentum < 1,
            "momentum",
            self,
            "at least 0 and below 1",
        )
        _require(
            _is_number(self.hard_negatives) and self.hard_negatives >= 0,
            "hard_negatives",
            self,
            "≥ 0",
        )
        _require(
            _is_number(self.tau_plus) and 0 <= self.tau_plus < 1,
            "tau_plus",
            self,
            "at least 0 and below 1",
        )
        _require(isinstance(self.semi_hard, bool), "semi_hard", self, "true or false")
        for name in ("hard_negatives", "tau_plus", "semi_hard"):
            _require(
                not getattr(self, name) or self.method != "supervised",
                name,
                self,
                "off, for the method supervised has no negatives",
            )
        for name in ("warmup", "workers"):
            _require(_is_int(getattr(self, name)) and getattr(self, name) >= 0, name, self, "≥ 0")
        _require(
            _is_number(self.weight_decay) and self.weight_decay >= 0, "weight_decay", self, "≥ 0"
        )
        for name in ("image_size", "blur_kernel", "batch", "epochs", "hidden", "dim"):
            _require(_is_int(getattr(self, name)) and getattr(self, name) >= 1, name, self, "≥ 1")
        _require(self.image_size >= 16, "image_size", self, "at least 16 pixels")
        _require(self.batch >= 2, "batch", self, "at least 2, for an image needs another to differ")
        _require(self.blur_kernel % 2 == 1, "blur_kernel", self, "an odd number")
        _require(
            self.blur_kernel // 2 < self.image_size, "blur_kernel", self, "smaller than the image"
        )
        _require(
            _floats(self.crop_scale, 2) and 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1,
            "crop_scale",
            self,
            "two numbers with 0 < first ≤ second ≤ 1",
        )
        _require(
            _floats(self.jitter, 4)
            and all(0 <= value <= 1 for value in self.jitter[:3])
            and 0 <= self.jitter[3] <= 0.5,
            "jitter",
            self,
            "brightness, contrast and saturation from 0 to 1 and hue from 0 to 0.5",
        )
        _require(_floats(self.mean, 3), "mean", self, "three numbers")
        _require(
            _floats(self.std, 3) and all(value > 0 for value in self.std),
            "std",
            self,
            "three numbers above 0",
        )
        _require(
            self.held_out is None or (_is_number(self.held_out) and 0 <= self.held_out <= 0.5),
            "held_out",
            self,
            "0 to 0.5",
        )
        for name in ("flip", "grey", "turn", "erase", "bits"):
            value = getattr(self, name)
            _require(_is_number(value) and 0 <= value <= 1, name, self, "from 0 to 1")
        _require(_is_number(self.shrink) and self.shrink >= 1, "shrink", self, "≥ 1")
        for name in ("temperature", "learning_rate"):
            value = getattr(self, name)
            _require(_is_number(value) and value > 0, name, self, "above 0")
        _require(_is_int(self.seed) and 0 <= self.seed < 2**63, "seed", self, "0 to 2^63 - 1")
        _require(self.precision in PRECISIONS, "precision", self, " or ".join(PRECISIONS))
        _require(self.schedule in SCHEDULES, "schedule", self, " or ".join(SCHEDULES))
        _require(
            isinstance(self.device, str)
            and (
                self.device in ("auto", "cpu", "cuda")
                or (self.device.startswith("cuda:") and self.device[5:].isdecimal())
            ),
            "device",
            self,
            "auto, cpu, cuda or cuda:N",
        )

    def to_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold; tuples are lists."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainSettings:
        """The settings that ``to_dict`` gave; absent ones have their default."""
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
    # torch counts with 64 bits.
    return isinstance(value, int) and not isinstance(value, bool) and value < 2**63


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # which an int may be beyond


def _floats(value: object, count: int) -> bool:
    return isinstance(value, tuple) and len(value) == count and all(map(_is_number, value))


def _require(holds: bool, name: str, settings: TrainSettings, wanted: str) -> None:
    if not holds:
        raise UsageError(f"{name} is {getattr(settings, name)!r}: it has to be {wanted}")
