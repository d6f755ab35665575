"""Imports each model once, into the user's cache, and finds it there from then on.

An encoder lies in a folder named by its key: the spec, the contents of the files that it is made of, and
the versions of the libraries. It appears there in one rename, and is verified each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict
from pathlib import Path

from engine.encoders import registry
from engine.encoders.importers import catalogue
from engine.encoders.importers.request import Importer
from engine.encoders.importers.run import import_into, importer_of
from engine.encoders.importers.specs import ModelSpec
from engine.encoders.publish import published
from engine.encoders.registry import EncoderFiles
from engine.errors import EncoderError

VARIABLE = "ENGINE_CACHE"
"""The environment variable for another folder than the user's cache."""

_ENCODERS = "encoders"
_FORMAT = 1  # raised when importers make other encoders of the same models
_KEY = 24  # hex digits
_MAX_SLUG = 60  # characters


def folder() -> Path:
    """The folder of cached encoders, which need not exist."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named) / _ENCODERS
    import platformdirs

    return platformdirs.user_cache_path("image-index-engine") / _ENCODERS


def imported(spec: ModelSpec) -> EncoderFiles:
    """The encoder of a model: from the cache, or imported into it first.

    If another process imports the same model, this one waits for it. ``EncoderError`` if the model
    cannot be imported.
    """
    importer = importer_of(spec)
    place = folder() / _name(spec, importer)
    found = _whole(place)
    if found is not None:
        return found
    catalogue.require_libraries(str(spec), importer)
    with published(place, lambda path: _whole(path) is not None, replaces=True) as empty:
        if empty is not None:
            import_into(spec, empty, None)
    return registry.read(place)


def cached() -> list[EncoderFiles]:
    """The whole encoders of the cache, by name."""
    try:
        places = sorted(path for path in folder().iterdir() if not path.name.startswith("."))
    except OSError:
        return []
    return [found for place in places if (found := _whole(place)) is not None]


def _whole(place: Path) -> EncoderFiles | None:
    """The encoder in a folder; None if there is none, or if a file of it is damaged."""
    try:
        found = registry.read(place)
        if found.text is not None:
            found.text.read_model()
            found.text.read_tokenizer()
    except EncoderError:
        return None
    return found


def _name(spec: ModelSpec, importer: Importer) -> str:
    """The name of a model's folder: readable, and another for whatever makes another encoder."""
    inputs = [] if importer.inputs is None else list(importer.inputs(spec.model))
    # A file counts by its name and content, wherever it lies.
    model = Path(spec.model).name if inputs else spec.model
    settings = asdict(spec.settings)
    if spec.settings.weights is not None:
        weights = Path(spec.settings.weights)
        settings["weights"] = weights.name
        inputs.append(weights)
    key = {
        "format": _FORMAT,
        "spec": [spec.prefix, model, settings],
        "inputs": [(path.name, _sha256(path)) for path in inputs],
        "libraries": catalogue.versions(importer),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode("utf-8", "surrogateescape"))
    readable = re.sub(r"[^a-zA-Z0-9_.-]+", "-", Path(spec.model).name).strip("-.")[:_MAX_SLUG]
    return f"{spec.prefix}-{readable}-{digest.hexdigest()[:_KEY]}"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        # Do not open a pipe, which would wait for a writer.
        if not path.is_file():
            raise EncoderError(f"{path}: no such file")
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from None
    return digest.hexdigest()
