"""How pictures become the input of an imported model: its own way, unless a user says otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.encoders import registry
from engine.encoders.importers.request import ImportRequest
from engine.errors import UsageError
from engine.images.preprocessing import INTERPOLATIONS, Preprocessing

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_LARGEST = 1e6  # of a mean or a deviation, for channel values from 0 to 1

Three = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Defaults:
    """The model's own preprocessing. ``shorter_side`` is None if it squashes the whole picture."""

    size: int
    shorter_side: int | None
    interpolation: str
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD


def chosen(request: ImportRequest, own: Defaults) -> tuple[Preprocessing, Three, Three]:
    """The preprocessing, mean and deviation of an import; ``UsageError`` for values out of range.

    If only the size is given, the shorter side keeps its ratio to it.
    """
    size = request.image_size or own.size
    shorter = own.shorter_side
    if shorter is not None and size != own.size:
        shorter = max(size, math.floor(shorter * size / own.size))
    interpolation = own.interpolation
    if request.resize is not None:
        way, interpolation = _resize(request.resize)
        shorter = (shorter or size) if way == "crop" else None
    if request.shorter_side is not None:
        if shorter is None:
            raise UsageError("shorter_side= is for a cropped input: give resize= crop-… too")
        shorter = request.shorter_side
    if interpolation not in INTERPOLATIONS:
        interpolation = "bicubic"
    for value, name, most in (
        (size, "image_size=", registry.MAX_SIDE),
        (shorter or size, "shorter_side=", 2 * registry.MAX_SIDE),
    ):
        if not 1 <= value <= most:
            raise UsageError(f"{name} must be from 1 to {most:,}, not {value:,}")
    try:
        preprocessing = Preprocessing(size, shorter, interpolation)
    except ValueError as error:
        raise UsageError(str(error).replace("shorter_side", "shorter_side=", 1)) from None
    mean = three(request.mean or own.mean, "mean=")
    std = three(request.std or own.std, "std=")
    if min(std) <= 0:
        raise UsageError("std= must be three numbers above 0")
    return preprocessing, mean, std


def three(values: object, name: str) -> Three:
    """Three numbers; ``UsageError`` if they are not."""
    good = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == 3
    if not good or not all(_is_number(each) for each in values):  # type: ignore[attr-defined]
        raise UsageError(f"{name} must be three numbers")
    red, green, blue = map(float, values)  # type: ignore[call-overload]
    return red, green, blue


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    # NaN is not below the limit.
    return abs(value) <= _LARGEST


def _resize(text: str) -> tuple[str, str]:
    way, _, rest = text.partition("-")
    interpolation = rest.removesuffix("-antialias")
    if way not in ("squash", "crop") or interpolation not in INTERPOLATIONS:
        raise UsageError(
            f"resize= {text!r:.60} must be squash or crop, a dash, and one of "
            f"{', '.join(INTERPOLATIONS)}: such as crop-bicubic"
        )
    return way, interpolation
