"""Imports one model into a folder: finds the importer, checks its libraries, publishes the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine.encoders.importers import catalogue
from engine.encoders.importers.request import Calibration, ImportReport, ImportRequest
from engine.encoders.importers.specs import ModelSpec
from engine.encoders.publish import published
from engine.errors import EncoderError


def import_model(
    spec: ModelSpec, out: Path, calibration: Calibration | None = None
) -> ImportReport:
    """Import a model into ``out``, a new or empty folder; ``EncoderError`` if it is neither.

    The folder appears when it is complete. Nothing is left of an import that fails.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EncoderError(f"{out} exists and is not an empty folder: name another with out=")
    with published(out, lambda _: False) as folder:
        assert folder is not None
        report = import_into(spec, folder, calibration)
    return replace(report, out=str(out))


def import_into(spec: ModelSpec, folder: Path, calibration: Calibration | None) -> ImportReport:
    """Import a model into an empty folder, which is there."""
    importer = catalogue.find(spec.prefix)
    if importer is None:
        raise EncoderError(f"there is no importer {spec.prefix}: 'engine encoders' lists them")
    catalogue.require_libraries(str(spec), importer)
    settings = spec.settings
    request = ImportRequest(
        spec=str(spec),
        model=spec.model,
        out=folder,
        weights=Path(settings.weights) if settings.weights is not None else None,
        layer=settings.layer,
        precision=settings.precision,
        calibration=calibration,
        image_size=settings.image_size,
        mean=settings.mean,
        std=settings.std,
        resize=settings.resize,
        shorter_side=settings.shorter_side,
        name=settings.name,
        licence=settings.licence,
    )
    return importer.load()(request)
