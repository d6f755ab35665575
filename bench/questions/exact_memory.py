"""Does an ingest stay within its memory? Two sets of bit images, each in its own process.

The images are made during the ingest. The peak of anonymous memory counts above that of the process
before it opened the store. It may be at most ``--memory`` and 64 MB, and about the same for both sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.config import parse_memory

from ..harness import script
from ..harness.errors import BenchError
from ..harness.sizes import parse_count
from ..report.tables import Target, align, targets
from .memory_growth import Growth, measure

SLACK = 64_000_000  # bytes above ``--memory``: interpreter, libraries, freed heap
TARGET_RATIO = 1.1


def main() -> bool:
    """Measure and print; true if every peak is within its limit and they are about equal."""
    parser = script.parser(__doc__)
    parser.add_argument("--n", default="1e6,2e6", help="numbers of images  [1e6,2e6]")
    parser.add_argument("--memory", default="256M", help="the memory of the store  [256M]")
    parser.add_argument("--seed", type=int, default=0, help="of the images  [0]")
    parser.add_argument(
        "--dir", type=Path, help="folder for the stores, which are removed at the end"
    )
    arguments = parser.parse_args()
    budget = parse_memory(arguments.memory).total
    sizes = [parse_count(text) for text in arguments.n.split(",")]
    grown = [measure(n, memory=budget, seed=arguments.seed, folder=arguments.dir) for n in sizes]
    print(table(grown), end="\n\n")
    wanted = targets_of(grown, budget)
    print(targets(wanted))
    return all(one.met for one in wanted)


def above(grown: Growth) -> int:
    """Peak anonymous memory above that of the empty process, in bytes."""
    if not grown.empty:
        raise BenchError("anonymous memory is counted on Linux only (/proc)")
    return grown.anonymous - grown.empty


def targets_of(grown: Sequence[Growth], budget: int) -> list[Target]:
    """The targets and their measurements."""
    peaks = [above(one) for one in grown]
    most = (budget + SLACK) / 1e6
    wanted = [
        Target(f"above the empty process, {one.n:,} images", most, peak / 1e6, unit=" MB")
        for one, peak in zip(grown, peaks, strict=True)
    ]
    ratio = max(peaks) / min(peaks)
    return [*wanted, Target("largest / smallest of these", TARGET_RATIO, ratio, digits=2)]


def table(grown: Sequence[Growth]) -> str:
    """The ingests as aligned columns; MB are 10^6 bytes."""
    lines = [("n", "seconds", "images/s", "empty MB", "peak MB", "above MB", "peak RSS MB")]
    for one in grown:
        lines.append(
            (
                f"{one.n:,}",
                f"{one.seconds:.1f}",
                f"{one.n / one.seconds:,.0f}",
                f"{one.empty / 1e6:,.1f}",
                f"{one.anonymous / 1e6:,.1f}",
                f"{above(one) / 1e6:,.1f}",
                f"{one.resident / 1e6:,.1f}",
            )
        )
    return align(lines)


if __name__ == "__main__":
    script.exit_with(main)
