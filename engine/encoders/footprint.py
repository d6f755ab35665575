"""Measures the memory that an encoder takes, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from engine.errors import EncoderError

_PICTURES = 5  # in the larger of two runs


def measure(folder: Path) -> dict[str, int]:
    """The field "memory" of ``encoder.json``: bytes of anonymous memory, at their peak.

    "load_bytes" is for the loaded encoder, and "picture_bytes" for each picture of a run more. It is
    empty where the system does not show a process its memory.
    """
    command = [sys.executable, "-m", "engine.encoders.footprint", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EncoderError(f"the memory of the encoder in {folder} cannot be measured: {last}")
    found: dict[str, int] = json.loads(done.stdout)
    return found


def _measured(folder: Path) -> dict[str, int]:
    import numpy as np
    import onnxruntime  # noqa: F401  (its own memory is not the encoder's)

    from engine.encoders import registry
    from engine.encoders.onnx import OnnxEncoder
    from engine.memory import PeakMemory

    peak = PeakMemory()
    empty = peak.anonymous
    encoder = OnnxEncoder(registry.read(folder))
    side = encoder.preprocessing.size
    taken = []
    for count in (1, _PICTURES):
        encoder.encode([np.full((side, side, 3), 128, np.uint8)] * count)
        peak.sample()
        taken.append(peak.anonymous - empty)
    if not empty:
        return {}
    picture = max((taken[1] - taken[0]) // (_PICTURES - 1), 3 * side**2)
    return {"load_bytes": max(taken[0] - picture, 1), "picture_bytes": picture}


if __name__ == "__main__":
    try:
        print(json.dumps(_measured(Path(sys.argv[1]))))
    except EncoderError as error:
        sys.exit(str(error))
