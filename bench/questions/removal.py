"""How fast are images removed, and how much disk comes back? One store of bit images, some at random.

Images of 100×100 RGB bits are ingested with their pixels. A random share of them is removed by id,
and the store is optimized. Then a sample of the remaining images has to be found, verified byte for
byte, and no removed image may be found.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from engine import PackedBits, Store
from engine.config import parse_memory
from engine.errors import UsageError
from engine.storage.durable import tree_bytes

from ..data import bit_images
from ..harness import memory, script
from ..harness.errors import WrongAnswerError
from ..harness.sizes import STORE_BYTES, check_disk, parse_count
from ..report.tables import Target, align, targets

T = TypeVar("T")
SAMPLE = 2_000  # images looked up afterwards, of each kind
TARGET_SECONDS = 60.0  # to remove 300,000
TARGET_IMAGES = 300_000
_ROOM = 1.8  # an optimize copies before it deletes


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its time, bytes of disk, and the peak of resident memory so far."""

    what: str
    images: int  # that it worked on
    seconds: float
    bytes_before: int
    bytes_after: int
    peak: int


@dataclass(frozen=True, slots=True)
class Removed:
    """All steps over one store of ``n`` images."""

    n: int
    share: float
    steps: tuple[Step, ...]


def measure(n: int, share: float, *, budget: int, seed: int, folder: Path | None) -> Removed:
    """Ingest ``n``, remove a ``share`` of them, optimize; in a temporary folder (within ``folder``)."""
    if not 0 < share <= 1:
        raise UsageError(f"share is a part of the images, above 0 and at most 1, not {share}")
    check_disk(n, folder, int(STORE_BYTES * _ROOM))
    draw = np.random.default_rng([seed, n, 2])
    gone = np.sort(draw.choice(n, max(1, int(n * share)), replace=False)).astype(np.int64)
    with script.work_folder(folder) as work:
        path = work / "bits.store"
        steps: list[Step] = []

        def step(what: str, images: int, work_: Callable[[Store], object], *, new: bool) -> None:
            before = tree_bytes(path) if path.exists() else 0
            started = time.perf_counter()
            with Store.open(path, create=new, encoder="none" if new else None, memory=budget) as it:
                work_(it)
            seconds = time.perf_counter() - started
            steps.append(
                Step(what, images, seconds, before, tree_bytes(path), memory.peak_resident())
            )

        source = f"synthetic:bits?n={n}&seed={seed}"
        ids = (gone + 1).tolist()
        step("ingest", n, lambda store: store.ingest(source), new=True)
        step("remove", len(ids), lambda store: store.remove(ids=ids), new=False)
        step("optimize", n - len(ids), lambda store: store.optimize(), new=False)
        with Store.open(path, read_only=True, memory=budget) as store:
            _ask(store, n, seed, gone, draw)
    return Removed(n, share, tuple(steps))


def _ask(store: Store, n: int, seed: int, gone: np.ndarray, draw: np.random.Generator) -> None:
    """``WrongAnswerError`` if a remaining image is not found, or a removed one is found."""
    left = np.setdiff1d(np.arange(n, dtype=np.int64), gone, assume_unique=True)
    for rows, there in ((left, True), (gone, False)):
        some = draw.choice(rows, min(SAMPLE, len(rows)), replace=False) if len(rows) else rows
        found = store.find_identical(
            PackedBits(bit_images.packed_rows(seed, some), *bit_images.SHAPE[:2])
        )
        wrong = found != (some + 1 if there else -1)
        if wrong.any():
            row = int(some[wrong][0])
            raise WrongAnswerError(f"row {row} is {'not found' if there else 'still found'}")


def table(removed: Removed) -> str:
    """The steps as aligned columns; MB are 10^6 bytes."""
    lines: list[Sequence[str]] = [
        ("step", "images", "seconds", "images/s", "before MB", "after MB", "peak RSS MB")
    ]
    for one in removed.steps:
        lines.append(
            (
                one.what,
                f"{one.images:,}",
                f"{one.seconds:.1f}",
                f"{one.images / one.seconds:,.0f}",
                f"{one.bytes_before / 1e6:,.1f}",
                f"{one.bytes_after / 1e6:,.1f}",
                f"{one.peak / 1e6:,.1f}",
            )
        )
    return align(lines, left=(0,))


def targets_of(removed: Removed) -> list[Target]:
    """The targets and their measurements."""
    _, remove, optimize = removed.steps
    most = TARGET_SECONDS * max(remove.images / TARGET_IMAGES, 0.1)
    left = (1 - removed.share) * 1.1
    ratio = optimize.bytes_after / optimize.bytes_before
    return [
        Target(f"remove {remove.images:,} images", most, remove.seconds, unit=" s"),
        Target("disk after / before optimize", max(left, 0.1), ratio, digits=2),
    ]


def main() -> bool:
    """Measure and print; true if the targets are met."""
    parser = script.parser(__doc__)
    parser.add_argument("--n", default="1e6", help="images  [1e6]")
    parser.add_argument("--share", type=float, default=0.3, help="of them to remove  [0.3]")
    parser.add_argument("--memory", default="1G", help="the memory of the store  [1G]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--dir", type=Path, help="folder for the store, which is removed at the end"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    budget = parse_memory(arguments.memory).total
    n = parse_count(arguments.n)
    removed = measure(n, arguments.share, budget=budget, seed=arguments.seed, folder=arguments.dir)
    wanted = targets_of(removed)
    if arguments.json:
        print(json.dumps(asdict(removed)))
    else:
        print(table(removed), end="\n\n")
        print(targets(wanted))
    return all(one.met for one in wanted)


if __name__ == "__main__":
    script.exit_with(main)
