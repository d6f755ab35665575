"""Writes an encoder folder from an ONNX model: the better of int8 and fp32, and its description."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from engine.encoders import footprint, registry
from engine.encoders.importers.agreement import (
    MIN_OVERLAP,
    Vectors,
    run_model,
    speeds,
)
from engine.encoders.importers.calibration import calibration_images, compared_images
from engine.encoders.importers.quantise import write_int8
from engine.encoders.importers.request import ImportReport, ImportRequest
from engine.errors import EncoderError
from engine.images.preprocessing import Preprocessing

FP32 = "model.onnx"
INT8 = "model.int8.onnx"
# First layers that stay float in int8, tried in order until the model agrees well enough.
_FLOAT_LAYERS = (0, 3, 8)
WORK = ".work"  # a folder inside the new one, for files that do not stay


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What ``encoder.json`` says of a model beside what was measured.

    ``source``: a JSON object about its origin, such as the library and the weights. ``batch``: 1 if the
    model takes exactly one picture at a time, 0 if it takes any number. ``notes``: what a user should
    know. ``more``: further fields of ``encoder.json``. ``files``: further files, by their names in the
    folder; fields that name them belong to ``more``.
    """

    name: str
    preprocessing: Preprocessing
    source: dict[str, Any]
    licence: str
    batch: int = 0
    notes: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Chosen:
    precision: str
    reason: str
    parity: dict[str, float | int | str]


def work_folder(out: Path) -> Path:
    """A folder for temporary files inside ``out``; ``write_folder`` removes it."""
    work = out / WORK
    work.mkdir(exist_ok=True)
    return work


def write_folder(
    request: ImportRequest, fp32: Path, facts: ModelFacts, parity: Mapping[str, float]
) -> ImportReport:
    """Write the encoder of the model ``fp32`` into ``request.out``.

    ``fp32``: ``pixels`` (n, S, S, 3) uint8 → ``embedding`` (n, d) float32 of any length, a file that may
    be moved. ``parity``: how well it agrees with the original model, for ``encoder.json``.
    ``EncoderError`` if the model cannot be used as an encoder, or has no int8 form that was asked for.
    """
    work = work_folder(request.out)
    # Without int8, a few pictures show whether the model runs.
    compares = request.precision != "fp32"
    images, images_from = (
        calibration_images(request.calibration, facts.preprocessing)
        if compares
        else (compared_images(facts.preprocessing), "")
    )
    batch = facts.batch or None
    vectors = _vectors(request, fp32, images, batch)
    dim = vectors.shape[1]
    if not 1 <= dim <= registry.MAX_DIM:
        raise EncoderError(
            f"{request.spec} makes vectors of {dim:,} numbers, and at most {registry.MAX_DIM:,} can be "
            f"used: choose another output with layer="
        )
    kept = {"images": len(images), "images_from": images_from} if compares else {}
    chosen = _choose(request, fp32, work / INT8, images, vectors, batch)
    model = request.out / (INT8 if chosen.precision == "int8" else FP32)
    (work / INT8 if chosen.precision == "int8" else fp32).replace(model)
    data = model.read_bytes()
    described = {
        "name": facts.name,
        "dim": dim,
        **registry.described(facts.preprocessing),
        **({"batch": facts.batch} if facts.batch else {}),
        "files": {
            chosen.precision: {"path": model.name, "sha256": hashlib.sha256(data).hexdigest()}
        },
        "default": chosen.precision,
        "precision": {"asked": request.precision, "reason": chosen.reason},
        "parity": {**parity, **chosen.parity, **kept},
        "source": facts.source,
        "licence": facts.licence,
        "notes": list(facts.notes),
        **facts.more,
        "engine_version": _version(),
        "created": datetime.now(UTC).date().isoformat(),
    }
    for name, path in facts.files.items():
        path.replace(request.out / name)
    shutil.rmtree(work)
    _describe(request.out, described)
    described["memory"] = footprint.measure(request.out)
    _describe(request.out, described)
    return ImportReport(
        out=str(request.out),
        name=facts.name,
        dim=dim,
        image_size=facts.preprocessing.size,
        precision=chosen.precision,
        reason=chosen.reason,
        bytes=len(data),
        licence=facts.licence,
        parity=described["parity"],
        notes=facts.notes,
    )


def _vectors(request: ImportRequest, fp32: Path, images: Any, batch: int | None) -> Vectors:
    size = fp32.stat().st_size
    if size > registry.MAX_MODEL:
        raise EncoderError(
            f"{request.spec} is a model of {size:,} bytes, and an ONNX file has at most "
            f"{registry.MAX_MODEL:,}: use a smaller one"
        )
    try:
        vectors = run_model(fp32, images, batch)
    # ONNX Runtime has no error class of its own.
    except Exception as error:
        raise EncoderError(
            f"{request.spec} was exported, but cannot be run: {' '.join(str(error).split())}"
        ) from None
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise EncoderError(
            f"{request.spec} does not return numbers for ordinary pictures: its weights may be damaged"
        )
    return vectors


def _choose(
    request: ImportRequest,
    fp32: Path,
    int8: Path,
    images: Any,
    vectors: Vectors,
    batch: int | None,
) -> _Chosen:
    """Quantise if it is asked for, and decide which model the encoder has."""
    if request.precision == "fp32":
        return _Chosen("fp32", "asked for", {})
    try:
        made = write_int8(
            fp32, int8, images, images, vectors, batch=batch or 0, float_layers=_FLOAT_LAYERS
        )
    # The quantizer raises errors of many kinds for graphs that it does not know.
    except Exception as error:
        why = f"it cannot be quantised: {' '.join(str(error).split())[:200]}"
        if request.precision == "int8":
            raise EncoderError(f"{request.spec}: {why}; import it with precision= fp32") from None
        return _Chosen("fp32", why, {})
    slow, fast = speeds([fp32, int8], images, batch)
    parity: dict[str, float | int | str] = {
        "int8_fp32_mean_cosine": made.mean_cosine,
        "int8_fp32_top10_overlap": made.overlap,
        "calibration": made.method,
        "int8_float_layers": made.float_layers,
        "calibration_images": len(images),
        "fp32_images_per_second": round(slow, 1),
        "int8_images_per_second": round(fast, 1),
    }
    figures = (
        f"int8 finds {made.overlap:.0%} of the ten nearest, at {fast / slow:.1f} times the speed"
    )
    if request.precision == "int8":
        return _Chosen("int8", f"asked for; {figures}", parity)
    good = made.overlap >= MIN_OVERLAP and fast > slow
    return _Chosen("int8" if good else "fp32", figures, parity)


def _describe(folder: Path, described: dict[str, Any]) -> None:
    path = folder / registry.DESCRIPTION
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _version() -> str:
    # Imported late, because the top package imports every other.
    from engine import __version__

    return __version__
