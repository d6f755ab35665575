"""How pictures become the input of an imported model: its own way, unless a user says otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.encoders import registry
from engine.encoders.importers.request import ImportRequest
from engine.encoders.importers.specs import Three, three
from engine.errors import UsageError
from engine.images.preprocessing import INTERPOLATIONS, Preprocessing

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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


def _resize(text: str) -> tuple[str, str]:
    way, _, rest = text.partition("-")
    interpolation = rest.removesuffix("-antialias")
    if way not in ("squash", "crop") or interpolation not in INTERPOLATIONS:
        raise UsageError(
            f"resize= {text!r:.60} must be squash or crop, a dash, and one of "
            f"{', '.join(INTERPOLATIONS)}: such as crop-bicubic"
        )
    return way, interpolation
