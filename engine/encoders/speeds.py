"""Measures how many pictures an encoder encodes in a second, and keeps the figures in the cache."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from engine.config import MemoryBudget, cpu_count
from engine.encoders.importers import cache
from engine.encoders.onnx import OnnxEncoder
from engine.encoders.registry import EncoderFiles
from engine.errors import EncoderError

_SECONDS = 0.6  # of measuring, for an encoder that does not take longer for two runs
_PICTURES = 8  # in a run
_FILE = "speeds.json"
_MAX_BYTES = 1 << 20  # of the file
_MAX_KEPT = 200  # figures


def images_per_second(files: EncoderFiles) -> float | None:
    """The speed on this machine's CPU: as it was measured before, or now. None if it cannot be run."""
    import onnxruntime

    path = cache.folder().parent / _FILE
    key = f"{files.sha256} {onnxruntime.__version__} {cpu_count()}"
    kept = _kept(path)
    if key not in kept:
        try:
            kept[key] = _measured(files)
        except EncoderError:
            return None
        _keep(path, kept)
    return kept[key]


def _measured(files: EncoderFiles) -> float:
    needs, side = files.needs, files.preprocessing.size
    encoder = OnnxEncoder(files)
    # No more than what an ingest would run at a time with the default memory.
    room = MemoryBudget().total // 2
    count = max(1, min(_PICTURES, room // needs.picture_bytes))
    rng = np.random.default_rng(0)
    pictures = list(rng.integers(0, 256, (count, side, side, 3), np.uint8))
    best, began = math.inf, time.perf_counter()
    # The first run is slower, because it allocates.
    for number in range(100):
        start = time.perf_counter()
        encoder.encode(pictures)
        now = time.perf_counter()
        best = min(best, now - start)
        if number and now - began > _SECONDS:
            break
    return round(count / max(best, 1e-9), 1)


def _kept(path: Path) -> dict[str, float]:
    """The figures of earlier measurements; none if the file is damaged."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            return {}
        body = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(body, dict):
        return {}
    return {
        key: float(value)
        for key, value in body.items()
        if isinstance(value, int | float) and 0 < value < math.inf
    }


def _keep(path: Path, figures: dict[str, float]) -> None:
    """Write the figures, the newest ones if there are many. A disk that refuses changes nothing."""
    newest = dict(list(figures.items())[-_MAX_KEPT:])
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{_FILE}.")
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(newest, file)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
