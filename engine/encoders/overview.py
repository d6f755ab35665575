"""Lists the encoders that are there, with their speed, and the importers of others."""

from __future__ import annotations

from dataclasses import dataclass

from engine.encoders import registry, speeds
from engine.encoders.importers import cache, catalogue
from engine.encoders.registry import EncoderFiles
from engine.errors import EncoderError

SHIPPED, CACHED = "shipped", "imported"


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """One encoder that is there."""

    name: str  # as ``encoder=`` takes it, for one that ships
    origin: str  # "shipped" or "imported", into the user's cache
    model: str  # what it was imported from, such as "timm:vit_small_patch14_dinov2", or ""
    path: str  # its folder, which ``encoder=`` takes too
    dim: int
    image_size: int  # pixels a side
    precision: str  # "int8" or "fp32"
    bytes: int  # of the model
    licence: str
    takes_text: bool
    images_per_second: float | None  # on this machine's CPU; None if it was not measured


@dataclass(frozen=True, slots=True)
class ImporterInfo:
    """One way to import encoders."""

    prefix: str
    what: str
    example: str
    takes_text: bool  # whether its encoders may take texts
    missing: str  # what is needed first, in words, or ""


@dataclass(frozen=True, slots=True)
class EncoderList:
    """What there is, and what can be had."""

    encoders: tuple[EncoderInfo, ...]
    importers: tuple[ImporterInfo, ...]
    cache: str  # the folder of imported encoders


def list_encoders(*, measure: bool = True) -> EncoderList:
    """The encoders that ship, those in the user's cache, and the importers.

    ``measure``: their speed on this machine's CPU, a second or so for each; figures are kept in the
    user's cache.
    """
    shipped = [(registry.find(name), SHIPPED) for name in registry.names()]
    imported = [(files, CACHED) for files in cache.cached()]
    return EncoderList(
        tuple(_described(files, origin, measure) for files, origin in shipped + imported),
        tuple(_importer(prefix) for prefix in catalogue.prefixes()),
        str(cache.folder()),
    )


def _described(files: EncoderFiles, origin: str, measure: bool) -> EncoderInfo:
    body = files.description
    return EncoderInfo(
        name=files.name,
        origin=origin,
        model=_model(body.get("source")) if origin == CACHED else "",
        path=str(files.model.parent),
        dim=files.dim,
        image_size=files.preprocessing.size,
        precision=_word(body.get("default")) or "int8",
        bytes=len(files.content),
        licence=_word(body.get("licence")) or "unknown",
        takes_text=files.text is not None,
        images_per_second=speeds.images_per_second(files) if measure else None,
    )


def _model(source: object) -> str:
    """The spec of a model, or the name of its file, from the description of an import."""
    if not isinstance(source, dict):
        return ""
    model = source.get("model")
    if isinstance(model, dict):
        return _word(model.get("file"))
    return f"{_word(source.get('importer'))}:{_word(model)}"


def _word(value: object) -> str:
    """A text of a description in one short line, because terminals show it."""
    if not isinstance(value, str):
        return ""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value[:200])


def _importer(prefix: str) -> ImporterInfo:
    try:
        found = catalogue.find(prefix)
    except EncoderError as error:
        return ImporterInfo(prefix, "", "", False, str(error))
    assert found is not None
    missing = catalogue.how_to_get(found) or ""
    return ImporterInfo(prefix, found.what, found.example, found.text, missing)
