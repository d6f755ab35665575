"""Finds an encoder however a user names it: by name, by folder, or as a model to import."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine.encoders import registry
from engine.encoders.importers import cache, specs
from engine.encoders.importers.specs import ImportSettings, ModelSpec
from engine.encoders.registry import EncoderFiles


def find(wanted: str, *, precision: str | None = None) -> EncoderFiles:
    """The encoder that ``wanted`` names; a model is imported once, into the user's cache.

    ``precision`` is for a model whose spec says none. ``EncoderError`` if there is none or it cannot be
    used, ``UsageError`` for bad settings of a model.
    """
    spec = model_named(wanted)
    if spec is None:
        return registry.find(wanted)
    if precision is not None and spec.settings.precision == ImportSettings().precision:
        spec = replace(spec, settings=replace(spec.settings, precision=precision))
    return cache.imported(spec)


def model_named(wanted: str) -> ModelSpec | None:
    """The model to import that ``wanted`` names; None if it names an encoder that is there.

    A path that exists wins over a prefix.
    """
    if wanted in registry.names() or _is_folder(wanted):
        return None
    return specs.parse(wanted)


def _is_folder(wanted: str) -> bool:
    try:
        return Path(wanted).is_dir()
    except (OSError, ValueError):
        return False
