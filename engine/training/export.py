"""Exports a checkpoint as an encoder: ONNX files in fp32 and int8, checked against the network.

The encoder's input is ``pixels``, (n, S, S, 3) uint8: the whole RGB picture squashed to S × S with
Pillow's antialiased bilinear resize. Its output is ``embedding``, (n, dim) float32 of unit length.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.encoders.importers.agreement import (
    MIN_COSINE,
    MIN_OVERLAP,
    Vectors,
    in_batches,
    min_cosine,
    run_model,
)
from engine.encoders.importers.quantise import write_int8
from engine.encoders.importers.request import Images
from engine.encoders.importers.tower import write_onnx
from engine.encoders.registry import described
from engine.errors import TrainingError
from engine.images.preprocessing import Preprocessing
from engine.training.checkpoint import Provenance, load_checkpoint, replace
from engine.training.model import Deployed, SimCLR, normalised
from engine.training.settings import TrainSettings

FP32 = "model.onnx"
INT8 = "model.int8.onnx"
ENCODER = "encoder.json"

CALIBRATION_IMAGES = 256
_WORK = ".export-"  # prefix of the temporary folder


@dataclass(frozen=True, slots=True)
class EncoderExportReport:
    """What an export wrote. ``parity`` is how well the files agree, as in ``encoder.json``.

    ``default`` is the file that runs: "int8", or "fp32" if int8 loses too many neighbours.
    """

    out: str
    fp32_bytes: int
    int8_bytes: int
    parity: dict[str, float | int | str]
    default: str


def export(
    checkpoint_dir: str | Path, calibration: Images, held_out: Images | None = None
) -> EncoderExportReport:
    """Write the encoder of the checkpoint in ``checkpoint_dir`` into the same folder.

    ``calibration`` and ``held_out`` are squashed images, (n, S, S, 3) uint8. int8 takes its ranges from
    ``calibration``. The files are compared on ``held_out``, or on ``calibration`` if it is None.
    ``TrainingError`` if the fp32 file and the network disagree; the files of an earlier export then
    remain.
    """
    folder = Path(checkpoint_dir)
    network, provenance = load_checkpoint(folder)
    settings = provenance.settings
    test = calibration if held_out is None else held_out
    deployed = Deployed(network, settings.mean, settings.std)

    # Remove what a killed export left behind.
    for left in folder.glob(f"{_WORK}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_WORK) as name:
        work = Path(name)
        write_onnx(deployed, work / FP32, settings.image_size)
        reference = run_model(work / FP32, test)
        cosine = min_cosine(reference, _run_torch(network, settings, test))
        if not cosine >= MIN_COSINE:
            raise TrainingError(
                f"the ONNX file and the network disagree (cosine {cosine:.5f}, {MIN_COSINE} is "
                f"needed): do not use it, and report the versions of torch and onnxruntime"
            )
        int8 = write_int8(work / FP32, work / INT8, calibration, test, reference)
        parity: dict[str, float | int | str] = {
            "fp32_torch_min_cosine": cosine,
            "int8_fp32_mean_cosine": int8.mean_cosine,
            "int8_fp32_top10_overlap": int8.overlap,
            "images": len(test),
            "images_from": "train" if held_out is None else "held_out",
            "calibration_images": len(calibration),
            "calibration": int8.method,
        }
        default = "int8" if int8.overlap >= MIN_OVERLAP else "fp32"
        described = _described(work, provenance, parity, default)
        (work / ENCODER).write_text(json.dumps(described, indent=2) + "\n")
        # encoder.json comes last, because it names the other files.
        for file in (FP32, INT8, ENCODER):
            replace(work / file, folder / file)
    return EncoderExportReport(
        out=str(folder),
        fp32_bytes=(folder / FP32).stat().st_size,
        int8_bytes=(folder / INT8).stat().st_size,
        parity=parity,
        default=default,
    )


def _described(
    work: Path, provenance: Provenance, parity: dict[str, float | int | str], default: str
) -> dict[str, Any]:
    files = {
        kind: {"path": name, "sha256": hashlib.sha256((work / name).read_bytes()).hexdigest()}
        for kind, name in (("fp32", FP32), ("int8", INT8))
    }
    return {
        "name": provenance.name,
        "dim": provenance.settings.dim,
        **described(Preprocessing(provenance.settings.image_size)),
        "files": files,
        "default": default,
        "settings": provenance.settings.to_dict(),
        "epoch": provenance.epoch,
        "data": provenance.data,
        "engine_version": provenance.engine_version,
        "licence": provenance.licence,
        "parity": parity,
        "created": datetime.now(UTC).date().isoformat(),
    }


def _run_torch(network: SimCLR, settings: TrainSettings, images: Images) -> Vectors:
    """(n, S, S, 3) uint8 → (n, dim) float32 by the trained network, with nothing folded."""
    with torch.inference_mode():
        vectors = [
            network(normalised(torch.from_numpy(batch), settings.mean, settings.std))
            for batch in in_batches(images)
        ]
    return np.asarray(torch.cat(vectors).numpy(), np.float32)
