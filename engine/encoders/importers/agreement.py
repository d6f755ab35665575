"""How well two models agree: runs ONNX files on the same images, and compares the vectors."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.config import cpu_count
from engine.encoders.importers.request import Images

INPUT = "pixels"
OUTPUT = "embedding"
MIN_COSINE = 0.9999  # between an fp32 ONNX file and the original network
# Overlap of the ten nearest by int8 and by fp32. Below it, the fp32 file is used.
MIN_OVERLAP = 0.9
_NEIGHBOURS = 10
# Pixels of the images that run at a time: the activations of a large network take some hundred bytes
# for each.
_BATCH_PIXELS = 32 * 96**2
_TIMED = 2  # images in a run that is timed
_ROUNDS = 6

Vectors = npt.NDArray[np.float32]


def batch_of(size: int) -> int:
    """How many images of ``size`` pixels a side are run at a time."""
    return max(1, min(32, _BATCH_PIXELS // size**2))


def in_batches(images: Images, batch: int | None = None) -> list[Images]:
    """The images, (n, S, S, 3), in batches."""
    step = batch or batch_of(images.shape[1])
    return [images[start : start + step] for start in range(0, len(images), step)]


def open_model(path: Path, *, threads: int | None = None) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU, on all cores by default."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cpu_count()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_model(path: Path, images: Images, batch: int | None = None) -> Vectors:
    """(n, S, S, 3) uint8 → (n, dim) float32 of unit length, by ONNX Runtime."""
    session = open_model(path)
    parts = [session.run([OUTPUT], {INPUT: part})[0] for part in in_batches(images, batch)]
    return unit(np.concatenate(parts))


def unit(vectors: npt.NDArray[Any]) -> Vectors:
    """Each row (n, dim) divided by its length; a row that is zero or not finite stays as it is."""
    found = np.asarray(vectors, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        return np.where(
            np.isfinite(norms) & (norms > 0), found / np.where(norms > 0, norms, 1), found
        )


def min_cosine(a: Vectors, b: Vectors) -> float:
    """The least cosine between rows of the same number, of unit vectors (n, dim)."""
    return float((a.astype(np.float64) * b).sum(1).min())


def agreement(exact: Vectors, other: Vectors) -> tuple[float, float]:
    """Mean cosine, and the mean share of the ten nearest others that stay among the ten nearest.

    With few images it is the nearest quarter of the others, because all others would always be found.
    """
    n, _ = exact.shape
    cosine = float((exact.astype(np.float64) * other).sum(1).mean())
    k = min(_NEIGHBOURS, max(1, (n - 1) // 4))
    nearest = []
    for vectors in (exact, other):
        scores = vectors @ vectors.T
        np.fill_diagonal(scores, -np.inf)
        nearest.append(np.argpartition(-scores, k - 1, axis=1)[:, :k])
    shared = [len(np.intersect1d(*rows)) / k for rows in zip(*nearest, strict=True)]
    return cosine, float(np.mean(shared))


def speeds(paths: list[Path], images: Images, batch: int | None = None) -> list[float]:
    """Images a second of each model on one core: the best of a few rounds, in which they take turns.

    With several threads, other work on the machine would decide which one waits.
    """
    sessions = [open_model(path, threads=1) for path in paths]
    some = images[: batch or _TIMED]
    best = [float("inf")] * len(paths)
    for _ in range(_ROUNDS):
        for number, session in enumerate(sessions):
            began = time.perf_counter()
            session.run([OUTPUT], {INPUT: some})
            best[number] = min(best[number], time.perf_counter() - began)
    return [len(some) / max(seconds, 1e-9) for seconds in best]
