"""How long does one lookup take from a cold start? Runs ``engine lookup PHOTO`` as a new process.

Wall time and peak memory are those of the whole process: interpreter, imports, store, encoder,
every tier that the store has. Each run looks up another photograph.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..data import photographs
from ..harness import script
from ..harness.errors import BenchError
from ..harness.process import environment, python
from ..report.tables import align

TARGET_SECONDS = 1.0
TARGET_BYTES = 180_000_000


@dataclass(frozen=True, slots=True)
class ColdLookup:
    """One process: wall and CPU seconds, peak resident bytes, its answer."""

    photo: Path
    seconds: float
    cpu_seconds: float  # of all threads; far below ``seconds`` if the machine was busy
    resident: int
    searched: tuple[str, ...]
    inside_ms: float  # of the lookup itself, as the engine reports it


def measure(photo: Path, store: Path) -> ColdLookup:
    """Look up one photograph in a process of its own; ``BenchError`` if that fails."""
    seconds, cpu, resident, output = run_engine(
        "lookup", str(photo), "--store", str(store), "--json"
    )
    found = json.loads(output)
    inside = sum(found["milliseconds"].values())
    return ColdLookup(photo, seconds, cpu, resident, tuple(found["searched"]), inside)


def make_store(folder: Path, store: Path, encoder: str) -> None:
    """Ingest a folder of photographs, in a process of its own too."""
    run_engine("ingest", str(folder), "--store", str(store), "--encoder", encoder, "--json")


def main() -> bool:
    """Measure and print; true if the median time and the largest peak meet their targets."""
    parser = script.parser(__doc__)
    parser.add_argument(
        "--store", type=Path, help="a store; made from the photographs if not given"
    )
    parser.add_argument("--photos", type=Path, default=photographs.PHOTOS, help="what is looked up")
    parser.add_argument("--encoder", default="simclr", help="of the store that is made  [simclr]")
    parser.add_argument("--runs", type=int, default=5, help="processes started  [5]")
    arguments = parser.parse_args()
    found = photographs.listed(arguments.photos)
    with ExitStack() as stack:
        store = arguments.store
        if store is None:
            work = stack.enter_context(tempfile.TemporaryDirectory(prefix="engine-bench-"))
            store = Path(work) / "photos.store"
            make_store(arguments.photos, store, arguments.encoder)
        runs = [measure(found[i % len(found)], store) for i in range(max(1, arguments.runs))]
    print(table(runs))
    seconds = statistics.median(run.seconds for run in runs)
    peak = max(run.resident for run in runs)
    met = seconds <= TARGET_SECONDS and peak <= TARGET_BYTES
    print(
        f"median {seconds:.2f} s, peak {peak / 1e6:.0f} MB; at most {TARGET_SECONDS} s and "
        f"{TARGET_BYTES / 1e6:.0f} MB are wanted: {'met' if met else 'MISSED'}"
    )
    return met


def table(runs: list[ColdLookup]) -> str:
    """The runs as aligned columns; MB are 10^6 bytes."""
    lines = [("photo", "seconds", "CPU s", "peak RSS MB", "lookup ms", "tiers")]
    for run in runs:
        lines.append(
            (
                run.photo.name,
                f"{run.seconds:.3f}",
                f"{run.cpu_seconds:.3f}",
                f"{run.resident / 1e6:.1f}",
                f"{run.inside_ms:.1f}",
                ", ".join(run.searched),
            )
        )
    return align(lines, left=(0, 5))


def run_engine(*arguments: str) -> tuple[float, float, int, str]:
    """Wall and CPU seconds, peak resident bytes and standard output of one ``engine`` command.

    The peak is the kernel's (``wait4``). It includes the child's memory before it became Python, a copy
    of this process, so it is never less than this process's own memory. It is meaningful because the
    command imports everything that this module imports, and more.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        child = subprocess.Popen(
            python("engine", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=environment(),
        )
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if child.returncode:
            said = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise BenchError(f"'engine {arguments[0]}' ended with {child.returncode}: {said}")
        unit = 1 if sys.platform == "darwin" else 1024
        cpu = usage.ru_utime + usage.ru_stime
        return seconds, cpu, usage.ru_maxrss * unit, output.read().decode(errors="replace")


if __name__ == "__main__":
    script.exit_with(main)
