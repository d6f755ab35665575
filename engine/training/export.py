"""Exports a checkpoint as an encoder: ONNX files in fp32 and int8, checked against the network.

The encoder's input is ``pixels``, (n, S, S, 3) uint8: the whole RGB picture squashed to S × S with
Pillow's antialiased bilinear resize. Its output is ``embedding``, (n, dim) float32 of unit length.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import shape_inference

from engine.encoders.registry import described
from engine.errors import TrainingError
from engine.images.preprocessing import Preprocessing
from engine.training.checkpoint import Provenance, load_checkpoint, replace
from engine.training.model import Deployed, SimCLR, normalised
from engine.training.quantise import Images, in_batches, quantise
from engine.training.settings import TrainSettings

FP32 = "model.onnx"
INT8 = "model.int8.onnx"
ENCODER = "encoder.json"
INPUT = "pixels"
OUTPUT = "embedding"
OPSET = 18

CALIBRATION_IMAGES = 256
MIN_COSINE = 0.9999  # between the outputs of the fp32 ONNX file and of the network
# Overlap of the ten nearest by int8 and by fp32. Below it, the fp32 file is the default.
MIN_OVERLAP = 0.9
_WORK = ".export-"  # prefix of the temporary folder
_NEIGHBOURS = 10

Vectors = npt.NDArray[np.float32]


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
        _write_fp32(deployed, work / FP32, settings.image_size)
        reference = _run(work / FP32, test)
        cosine = _min_cosine(reference, _run_torch(network, settings, test))
        if not cosine >= MIN_COSINE:
            raise TrainingError(
                f"the ONNX file and the network disagree (cosine {cosine:.5f}, {MIN_COSINE} is "
                f"needed): do not use it, and report the versions of torch and onnxruntime"
            )
        method, agreement = _write_int8(work, calibration, test, reference)
        parity: dict[str, float | int | str] = {
            "fp32_torch_min_cosine": cosine,
            "int8_fp32_mean_cosine": agreement[0],
            "int8_fp32_top10_overlap": agreement[1],
            "images": len(test),
            "images_from": "train" if held_out is None else "held_out",
            "calibration_images": len(calibration),
            "calibration": method,
        }
        default = "int8" if agreement[1] >= MIN_OVERLAP else "fp32"
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


def _write_fp32(deployed: Deployed, path: Path, size: int) -> None:
    pixels = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            deployed,
            (pixels,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise TrainingError("torch exported nothing: update torch and onnxscript")
    model = program.model_proto
    # Remove the Python source lines from the nodes.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _write_int8(
    work: Path, calibration: Images, test: Images, reference: Vectors
) -> tuple[str, tuple[float, float]]:
    """Quantise with both methods of finding ranges, and keep the one that agrees better with fp32."""
    prepared = work / "prepared.onnx"
    shape_inference.quant_pre_process(str(work / FP32), str(prepared), skip_symbolic_shape=True)
    best: tuple[str, tuple[float, float]] | None = None
    for method in ("MinMax", "Percentile"):
        path = work / f"{method}.onnx"
        quantise(prepared, path, calibration, method, input_name=INPUT)
        agreement = _agreement(reference, _run(path, test))
        if best is None or agreement > best[1]:
            best = (method.lower(), agreement)
            path.replace(work / INT8)
    assert best is not None
    return best


def _run(path: Path, images: Images) -> Vectors:
    """(n, S, S, 3) uint8 → (n, dim) float32 by ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    vectors = [session.run([OUTPUT], {INPUT: batch})[0] for batch in in_batches(images)]
    return np.concatenate(vectors)


def _run_torch(network: SimCLR, settings: TrainSettings, images: Images) -> Vectors:
    """(n, S, S, 3) uint8 → (n, dim) float32 by the trained network, with nothing folded."""
    with torch.inference_mode():
        vectors = [
            network(normalised(torch.from_numpy(batch), settings.mean, settings.std))
            for batch in in_batches(images)
        ]
    return np.asarray(torch.cat(vectors).numpy(), np.float32)


def _min_cosine(a: Vectors, b: Vectors) -> float:
    return float((a.astype(np.float64) * b).sum(1).min())


def _agreement(exact: Vectors, quantised: Vectors) -> tuple[float, float]:
    """Mean cosine, and the mean share of the ten nearest others that stay among the ten nearest.

    With few images it is the nearest quarter of the others, because all others would always be found.
    """
    n, _ = exact.shape
    cosine = float((exact.astype(np.float64) * quantised).sum(1).mean())
    k = min(_NEIGHBOURS, max(1, (n - 1) // 4))
    nearest = []
    for vectors in (exact, quantised):
        scores = vectors @ vectors.T
        np.fill_diagonal(scores, -np.inf)
        nearest.append(np.argpartition(-scores, k - 1, axis=1)[:, :k])
    shared = [len(np.intersect1d(*rows)) / k for rows in zip(*nearest, strict=True)]
    return cosine, float(np.mean(shared))
