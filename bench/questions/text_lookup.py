"""How long does one text lookup take from a cold start? Runs ``engine lookup --text`` as a new process.

The encoder is a ViT-B-32 of open_clip with seeded weights: its answers mean nothing, and its cost is
that of a trained one. One more run lists what the process imports, among which torch must not be.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from pathlib import Path

from ..data import photographs
from ..harness import script
from ..harness.errors import BenchError
from ..harness.process import environment, python
from ..report.tables import align
from .cold_lookup import make_store, run_engine

TARGET_SECONDS = 1.5
TEXTS = ("a red bicycle", "two dogs on a beach", "a city at night", "a bowl of fruit", "snow")


def main() -> bool:
    """Measure and print; true if the median meets its target and no process imported torch."""
    parser = script.parser(__doc__)
    parser.add_argument("--photos", type=Path, default=photographs.PHOTOS, help="what is searched")
    parser.add_argument(
        "--encoder",
        type=Path,
        help="a folder with a text tower; made if not given (1.5 GB, extra import)",
    )
    parser.add_argument("--runs", type=int, default=5, help="processes started  [5]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as work:
        encoder, store = arguments.encoder, Path(work) / "photos.store"
        if encoder is None:
            encoder = Path(work) / "encoder"
            _call(python("bench.questions.text_lookup_child", str(encoder)))
        make_store(arguments.photos, store, str(encoder))
        rows = [("text", "seconds", "CPU s", "peak RSS MB", "lookup ms")]
        took = []
        for number in range(max(1, arguments.runs)):
            text = TEXTS[number % len(TEXTS)]
            given = ("lookup", "--text", text, "--store", str(store), "--json")
            seconds, cpu, resident, output = run_engine(*given)
            inside = sum(json.loads(output)["milliseconds"].values())
            took.append(seconds)
            rows.append(
                (text, f"{seconds:.3f}", f"{cpu:.3f}", f"{resident / 1e6:.1f}", f"{inside:.1f}")
            )
        has_torch = "torch" in imports(store)
    print(align(rows, left=(0,)))
    median = statistics.median(took)
    met = median <= TARGET_SECONDS and not has_torch
    print(
        f"median {median:.2f} s, torch {'imported' if has_torch else 'not imported'}; at most "
        f"{TARGET_SECONDS} s without torch is wanted: {'met' if met else 'MISSED'}"
    )
    return met


def imports(store: Path) -> set[str]:
    """The top-level packages that a text lookup imports."""
    command = python("engine", "lookup", "--text", TEXTS[0], "--store", str(store), "--json")
    said = _call([command[0], "-X", "importtime", *command[1:]])
    lines = [line for line in said.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def _call(command: list[str]) -> str:
    """Run a command; returns its standard error. ``BenchError`` if it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), check=False, timeout=900
    )
    if done.returncode:
        why = done.stderr.strip().rpartition("\n")[2]
        raise BenchError(f"{command[-1]} could not be made or looked up: {why}")
    return done.stderr


if __name__ == "__main__":
    script.exit_with(main)
