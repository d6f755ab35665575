"""The settings of a training run, checked when they are made; no torch here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import UsageError

PRECISIONS = ("fp32", "bf16")
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """SimCLR (Chen et al., 2020, arXiv:2002.05709) with a ResNet-18; the defaults are the recipe.

    Lengths are pixels, probabilities and scales fractions of one. ``UsageError`` names the first
    setting that makes no sense.
    """

    image_size: int = 224  # S: the network sees S × S
    crop_scale: tuple[float, float] = (0.2, 1.0)  # share of the picture's area that a crop covers
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)  # brightness … hue
    blur_kernel: int = 5
    flip: float = 0.5  # probability
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of ImageNet, channel values 0 to 1
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    shrink: float = 1.15  # pictures are kept with the shorter side at shrink × image_size
    temperature: float = 0.1
    batch: int = 64  # images; the network sees two views of each
    epochs: int = 30
    learning_rate: float = 1e-3  # of Adam
    schedule: str = "constant"  # "cosine" lets the rate fall to zero over the run
    hidden: int = 256  # width of the projection head's middle layer
    dim: int = 128  # length of the embedding
    seed: int = 0
    precision: str = "fp32"  # "bf16": autocast of the forward pass; weights stay fp32
    device: str = "auto"  # "auto", "cpu", "cuda" or "cuda:N"
    workers: int = 0  # threads that read and crop; 0 is one a core

    def __post_init__(self) -> None:
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
        _require(_is_number(self.flip) and 0 <= self.flip <= 1, "flip", self, "from 0 to 1")
        _require(_is_number(self.shrink) and self.shrink >= 1, "shrink", self, "≥ 1")
        for name in ("temperature", "learning_rate"):
            value = getattr(self, name)
            _require(_is_number(value) and value > 0, name, self, "above 0")
        _require(_is_int(self.seed) and 0 <= self.seed < 2**63, "seed", self, "0 to 2^63 - 1")
        _require(_is_int(self.workers) and self.workers >= 0, "workers", self, "≥ 0")
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
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _floats(value: object, count: int) -> bool:
    return isinstance(value, tuple) and len(value) == count and all(map(_is_number, value))


def _require(holds: bool, name: str, settings: TrainSettings, wanted: str) -> None:
    if not holds:
        raise UsageError(f"{name} is {getattr(settings, name)!r}: it has to be {wanted}")
