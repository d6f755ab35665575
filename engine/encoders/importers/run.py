"""Imports one model into a folder: finds the importer, checks its libraries, publishes the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine.encoders.importers import catalogue
from engine.encoders.importers.request import Calibration, Importer, ImportReport, ImportRequest
from engine.encoders.importers.specs import ModelSpec
from engine.encoders.publish import published
from engine.errors import EncoderError


def import_model(
    spec: ModelSpec, out: Path, calibration: Calibration | None = None
) -> ImportReport:
    """Import a model into ``out``, a new or empty folder; ``EncoderError`` if it is neither.

    The folder appears when it is complete. Nothing is left of an import that fails.
    """
    # A link to a folder stays a link.
    out = out.resolve()
    if _is_taken(out):
        raise EncoderError(f"{out} exists and is not an empty folder: name another with out=")
    with published(out, _is_taken) as folder:
        if folder is None:
            raise EncoderError(f"another process has just filled {out}: name another with out=")
        report = import_into(spec, folder, calibration)
    return replace(report, out=str(out))


def _is_taken(out: Path) -> bool:
    try:
        return out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise EncoderError(f"{out} cannot be read: {error.strerror}") from None


def importer_of(spec: ModelSpec) -> Importer:
    """The importer of a model; ``EncoderError`` if there is none."""
    importer = catalogue.find(spec.prefix)
    if importer is None:
        raise EncoderError(f"there is no importer {spec.prefix}: 'engine encoders' lists them")
    return importer


def import_into(spec: ModelSpec, folder: Path, calibration: Calibration | None) -> ImportReport:
    """Import a model into an empty folder, which is there."""
    importer = importer_of(spec)
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
