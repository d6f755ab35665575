"""Does memory grow with the set? Ingests sets of bit images of growing size, each in its own process.

No encoder is used. A set ten times as large should take no more memory: the largest peak may be at most
1.25 times the smallest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.config import parse_memory

from ..harness import script
from ..harness.process import run_child
from ..harness.sizes import check_disk, parse_count
from ..peers.methods import ENGINE
from ..report.tables import align

TARGET_RATIO = 1.25


@dataclass(frozen=True, slots=True)
class Growth:
    """One ingest: its length in seconds, its peaks in bytes."""

    n: int
    seconds: float
    resident: int  # VmHWM: mapped pages included
    anonymous: int  # RssAnon: cannot be reclaimed without swap
    empty: int  # RssAnon before the store was opened, all modules imported
    disk: int


def measure(n: int, *, memory: int, seed: int = 0, folder: Path | None = None) -> Growth:
    """Ingest ``n`` bit images into a new store in a temporary folder (within ``folder``)."""
    check_disk(n, folder)
    with script.work_folder(folder) as work:
        spec = {
            "method": ENGINE,
            "n": n,
            "images": {"seed": seed},
            "folder": str(work.absolute() / "bits.store"),
            "memory_bytes": memory,
            "lookups": False,
        }
        finished = run_child("peers.method_child", spec)
    found = finished.result
    return Growth(
        n=n,
        seconds=found["build_s"],
        resident=found["peak_resident"],
        anonymous=max(finished.anonymous_peak, found["final"]),
        empty=found["baseline"],
        disk=found["disk"],
    )


def main() -> bool:
    """Measure and print; true if the growth of the peak is within its target."""
    parser = script.parser(__doc__)
    parser.add_argument("--n", default="1e5,1e6", help="numbers of images  [1e5,1e6]")
    parser.add_argument("--memory", default="1G", help="the memory of the store  [1G]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--dir", type=Path, help="folder for the stores, which are removed at the end"
    )
    arguments = parser.parse_args()
    budget = parse_memory(arguments.memory).total
    grown = [
        measure(n, memory=budget, seed=arguments.seed, folder=arguments.dir)
        for n in [parse_count(text) for text in arguments.n.split(",")]
    ]
    print(table(grown))
    peaks = [one.resident for one in grown]
    ratio = max(peaks) / min(peaks) if min(peaks) else float("nan")
    met = ratio <= TARGET_RATIO
    print(
        f"largest peak RSS / smallest: {ratio:.2f}; at most {TARGET_RATIO} is wanted: "
        f"{'met' if met else 'MISSED'}"
    )
    return met


def table(grown: list[Growth]) -> str:
    """The ingests as aligned columns; MB are 10^6 bytes."""
    head = ("n", "seconds", "images/s", "peak RSS MB", "anonymous MB", "disk MB", "bytes/image")
    lines = [head]
    for one in grown:
        lines.append(
            (
                f"{one.n:,}",
                f"{one.seconds:.1f}",
                f"{one.n / one.seconds:,.0f}",
                f"{one.resident / 1e6:,.1f}",
                f"{one.anonymous / 1e6:,.1f}",
                f"{one.disk / 1e6:,.1f}",
                f"{one.disk / one.n:,.0f}",
            )
        )
    return align(lines)


if __name__ == "__main__":
    script.exit_with(main)
