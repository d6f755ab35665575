"""How fast does training go beside the plain recipe, and does it ever wait for its images?

Both train a ResNet-18 with SimCLR on the same images and the same cores, with the same augmentation:

- engine: pictures decoded and shrunk once into a mapped cache, augmented in batches, bf16 autocast,
  channels last, convolutions of small maps as products, memory kept from step to step; as ``engine
  train --precision bf16`` does it
- plain: a folder of files through torchvision's PIL transforms, a DataLoader with a worker a core,
  fp32, eager

Each has a process of its own, stopped while the other one works. They take turns, a few steps a round.
Medians over the rounds are printed. "waiting" is the share of a step before its batch is ready. On a CPU
the engine makes the batch in that time, because network and augmentation would only take cores from each
other.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from engine.errors import UsageError

from ..data import photographs
from ..harness import script
from ..harness.errors import BenchError
from ..harness.machine import machine, versions
from ..harness.process import PACKAGE, environment, python
from ..report.tables import Target, align, targets
from .train_speed_child import ENGINE, PLAIN

TARGET_RATIO = 3.0
_WARM_UP = 2  # steps of each that are not counted


@dataclass(frozen=True, slots=True)
class Round:
    """A few steps of one of them."""

    seconds: float
    waiting: float  # seconds of these until batches were ready
    images: int

    @property
    def rate(self) -> float:
        """Images a second; the network sees two views of each."""
        return self.images / self.seconds

    @property
    def share(self) -> float:
        """The share of the time spent waiting."""
        return self.waiting / self.seconds


@dataclass(frozen=True, slots=True)
class Measured:
    """Rounds of both at one image size."""

    image_size: int
    batch: int
    read_seconds: float  # for the engine to decode and shrink the pictures before it begins
    pictures: int
    engine: list[Round]
    plain: list[Round]

    @property
    def ratio(self) -> float:
        """How many times faster the engine is: the median over rounds."""
        return statistics.median(
            a.rate / b.rate for a, b in zip(self.engine, self.plain, strict=True)
        )


def main() -> bool:
    """Measure and print; true if the engine is fast enough at every size."""
    parser = script.parser(__doc__)
    parser.add_argument("images", type=Path, help="a folder of photographs")
    parser.add_argument(
        "--image-size", type=_sizes, default="96,128", help="pixels a side  [96,128]"
    )
    parser.add_argument("--batch", type=_at_least(2), default=64, help="images a step  [64]")
    parser.add_argument("--steps", type=_at_least(1), default=12, help="a round  [12]")
    parser.add_argument(
        "--rounds", type=_at_least(1), default=3, help="rounds, whose medians are printed  [3]"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    found = [
        measure(arguments.images, size, arguments.batch, arguments.steps, arguments.rounds)
        for size in arguments.image_size
    ]
    wanted = [
        Target(
            f"engine / plain at {one.image_size}", TARGET_RATIO, one.ratio, digits=2, at_least=True
        )
        for one in found
    ]
    if arguments.json:
        said = {
            "machine": machine(),
            "versions": versions(),
            "measured": [{**asdict(one), "ratio": one.ratio} for one in found],
        }
        print(json.dumps(said, indent=1))
    else:
        print(table(found), end="\n\n")
        print(targets(wanted))
    return all(one.met for one in wanted)


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"it has to be at least {least}")
        return int(text)

    return number


def _sizes(text: str) -> list[int]:
    return [_at_least(16)(size) for size in text.split(",")]


def measure(folder: Path, size: int, batch: int, steps: int, rounds: int) -> Measured:
    """Rounds of both in turn, each beginning with another one."""
    files = photographs.listed(folder)
    if len(files) < batch:
        raise UsageError(f"{len(files)} images in {folder} are fewer than a batch of {batch}")
    with ExitStack() as stack:
        ways = [stack.enter_context(_Way(way, folder, size, batch)) for way in (ENGINE, PLAIN)]
        read_seconds, _ = (way.said()["ready"] for way in ways)
        for way in ways:
            way.round(_WARM_UP)
        results: list[list[Round]] = [[], []]
        for number in range(rounds):
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                results[which].append(ways[which].round(steps))
    return Measured(size, batch, read_seconds, len(files), *results)


class _Way:
    """One of the two in a process of its own, which does a round on request.

    Between rounds it is stopped with the processes that load for it: what they would read ahead is work
    that the other one's round would pay for.
    """

    def __init__(self, way: str, folder: Path, size: int, batch: int) -> None:
        self._spec = {"way": way, "folder": str(folder), "size": size, "batch": batch}

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile()
        self._child = subprocess.Popen(
            python(f"{PACKAGE}.questions.train_speed_child", json.dumps(self._spec)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(),
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._signal(signal.SIGKILL)
        self._child.communicate()
        self._errors.close()

    def round(self, steps: int) -> Round:
        """Have it do some steps."""
        assert self._child.stdin is not None
        self._signal(signal.SIGCONT)
        with suppress(BrokenPipeError):  # it has ended, and ``said`` says why
            print(steps, file=self._child.stdin, flush=True)
        found = self.said()
        self._signal(signal.SIGSTOP)
        return Round(found["seconds"], found["waiting"], steps * int(str(self._spec["batch"])))

    def _signal(self, number: signal.Signals) -> None:
        """To it and to all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, number)

    def said(self) -> dict[str, float]:
        """What it tells next; ``BenchError`` if that is nothing more."""
        assert self._child.stdout is not None
        message: dict[str, Any] = json.loads(self._child.stdout.readline() or "{}")
        if "error" in message:
            raise BenchError(message["error"])
        if not message:
            status = self._child.wait()
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            how = f"signal {-status}" if status < 0 else f"status {status}"
            raise BenchError(f"a measurement ended with {how}: {last or 'out of memory?'}")
        return message


def table(found: list[Measured]) -> str:
    """Both at each size as aligned columns: medians over the rounds."""
    lines = [("size", "what", "images/s", "slowest", "fastest", "ms a step", "waiting %", "times")]
    for one in found:
        for name, rounds in (("engine", one.engine), ("plain", one.plain)):
            rates = [each.rate for each in rounds]
            middle = statistics.median(rates)
            lines.append(
                (
                    str(one.image_size),
                    name,
                    f"{middle:.1f}",
                    f"{min(rates):.1f}",
                    f"{max(rates):.1f}",
                    f"{1e3 * one.batch / middle:.0f}",
                    f"{100 * statistics.median(each.share for each in rounds):.0f}",
                    f"{one.ratio:.2f}" if name == "engine" else "",
                )
            )
    return align(lines, left=(1,))


if __name__ == "__main__":
    script.exit_with(main)
