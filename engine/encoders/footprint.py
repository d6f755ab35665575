"""Measures the memory that an encoder takes, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from engine.errors import EncoderError
from engine.memory import PeakMemory, forget_peak, give_back

_PICTURES = 5  # in the larger of two runs


def measure(folder: Path) -> dict[str, int]:
    """The field "memory" of ``encoder.json``: bytes of anonymous memory, at their peak.

    "load_bytes" is for the loaded encoder, and "picture_bytes" for each picture of a run more. It is
    empty where the system does not show a process its memory.
    """
    # Not from the current folder, whose files may have the names of modules.
    command = [sys.executable, "-P", "-m", "engine.encoders.footprint", str(folder)]
    home = str(Path(__file__).parents[2])
    path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EncoderError(f"the memory of the encoder in {folder} cannot be measured: {last}")
    found: dict[str, int] = json.loads(done.stdout)
    return found


def _measured(folder: Path) -> dict[str, int]:
    import numpy as np

    from engine.encoders import registry
    from engine.encoders.onnx import OnnxEncoder

    loading = PeakMemory()
    empty = loading.anonymous
    encoder = OnnxEncoder(registry.read(folder))
    loading.sample()
    if not empty:
        return {}
    side = encoder.preprocessing.size
    # The first run allocates what later ones have.
    encoder.encode([np.full((side, side, 3), 128, np.uint8)])
    taken = []
    for count in (1, _PICTURES):
        # Loading takes more than a run with a few pictures, and would hide it: in the peak, and in the
        # heap, which keeps what is freed.
        give_back()
        forget_peak()
        running = PeakMemory()
        encoder.encode([np.full((side, side, 3), 128, np.uint8)] * count)
        running.sample()
        taken.append(running.anonymous - empty)
    picture = max((taken[1] - taken[0]) // (_PICTURES - 1), 3 * side**2)
    load = max(loading.anonymous - empty, taken[0]) - picture
    return {"load_bytes": max(load, 1), "picture_bytes": picture}


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(_measured(Path(sys.argv[1]))))
    except EncoderError as error:
        sys.exit(str(error))
