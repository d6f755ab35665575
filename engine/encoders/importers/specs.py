"""What a MODEL is: ``PREFIX:NAME``, or a file that ends in .onnx; with settings after a ``?``.

For instance ``timm:vit_small_patch14_dinov2?weights=dinov2.safetensors&layer=9:mean``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from urllib.parse import parse_qsl

from engine.encoders.importers import catalogue
from engine.encoders.importers.request import PRECISIONS
from engine.errors import UsageError

_PREFIXED = re.compile(r"([a-z][a-z0-9-]*):(.+)", re.DOTALL)
_ONNX = "onnx"

_LARGEST = 1e6  # of a mean or a deviation, for channel values from 0 to 1

Three = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class ImportSettings:
    """How a model is imported; None is the model's own setting. See ``engine.import_encoder``."""

    weights: str | None = None
    layer: str | None = None
    precision: str = "auto"
    image_size: int | None = None
    mean: Three | None = None
    std: Three | None = None
    resize: str | None = None
    shorter_side: int | None = None
    name: str | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"precision= is one of {', '.join(PRECISIONS)}, not {self.precision!r:.60}"
            )
        for name in ("image_size", "shorter_side"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise UsageError(f"{name}= must be a whole number from 1, not {value!r:.60}")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to import: the importer's prefix, the model's name, and the settings in the spec."""

    prefix: str
    model: str
    settings: ImportSettings

    def __str__(self) -> str:
        return self.model if self.prefix == _ONNX else f"{self.prefix}:{self.model}"


def parse(text: str) -> ModelSpec | None:
    """The model that ``text`` names; None if it is not such a name. ``UsageError`` for bad settings."""
    body, _, query = text.partition("?")
    found = _PREFIXED.fullmatch(body)
    if found is not None and found[1] in catalogue.prefixes():
        prefix, model = found[1], found[2]
    elif body.lower().endswith(".onnx"):
        prefix, model = _ONNX, body
    else:
        return None
    if prefix == _ONNX:
        model = os.path.abspath(model)  # noqa: PTH100
    return ModelSpec(prefix, model, _settings(text, query))


def merged(spec: ModelSpec, settings: ImportSettings) -> ModelSpec:
    """The spec with the settings of a caller, which win."""
    default = ImportSettings()
    told = {
        each.name: getattr(settings, each.name)
        for each in fields(settings)
        if getattr(settings, each.name) != getattr(default, each.name)
    }
    return replace(spec, settings=replace(spec.settings, **told))


def _settings(text: str, query: str) -> ImportSettings:
    known = {each.name for each in fields(ImportSettings)}
    found: dict[str, object] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise UsageError(
                f"{text!r:.80} has a setting {name!r:.30}: the known ones are {', '.join(sorted(known))}"
            )
        found[name] = _value(name, value)
    return ImportSettings(**found)  # type: ignore[arg-type]


def _value(name: str, value: str) -> object:
    if name in ("image_size", "shorter_side"):
        if not value.isdecimal() or len(value) > 9:
            raise UsageError(f"{name}= must be a whole number, not {value!r:.60}")
        return int(value)
    if name in ("mean", "std"):
        return three_numbers(name, value)
    if name == "weights":
        return str(Path(os.path.abspath(value)))  # noqa: PTH100
    return value


def three_numbers(name: str, text: str) -> Three:
    """Three numbers with commas between them; ``UsageError`` for anything else."""
    try:
        red, green, blue = map(float, text.split(","))
    except ValueError:
        raise UsageError(
            f"{name}= must be three numbers, such as 0.5,0.5,0.5, not {text!r:.60}"
        ) from None
    return red, green, blue


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
