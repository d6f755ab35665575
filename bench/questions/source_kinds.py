"""What do the same images cost in an archive or a table, beside the folder of them?

The images of a folder are put into each kind of source. Each source is ingested into a new store, in a
process of its own and without an encoder. There are several rounds, and each begins with another kind. A
source is compared with the folder of the same round. The same is done for bit images, which also come as
an array. A tar should reach 0.85 of the folder's speed, with at most 1.1 times its memory.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.config import parse_memory

from ..harness import script
from ..harness.errors import BenchError
from ..harness.machine import machine, versions
from ..harness.process import run_child
from ..harness.sizes import check_disk, parse_count
from ..report.tables import Target, align, targets
from .source_writers import FOLDER, TAR, WRITERS, found_images, made_images, write_all

TARGET_SPEED = 0.85  # of a folder's
TARGET_MEMORY = 1.1  # times a folder's
_EACH = 60_000  # bytes of disk an image, all kinds together


@dataclass(frozen=True, slots=True)
class Taken:
    """One ingest."""

    kind: str
    beside: str  # the folder that it is compared with
    images: int
    added: int
    seconds: float
    peak_bytes: int  # of anonymous memory, measured from outside
    reported_peak_bytes: int  # the same, by the ingest's own report

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds


def measure(
    made: Mapping[str, tuple[str, Path, int]], rounds: int, memory: int, work: Path
) -> list[Taken]:
    """Ingest every kind once a round, each round beginning with another one."""
    kinds = list(made)
    taken: list[Taken] = []
    for number in range(rounds):
        for i in range(len(kinds)):
            kind = kinds[(number + i) % len(kinds)]
            beside, source, images = made[kind]
            spec = {"source": str(source), "work": str(work), "memory_bytes": memory}
            finished = run_child("questions.source_kinds_child", spec)
            found = finished.result
            if found["seen"] != images:
                raise BenchError(f"{kind}: {found['seen']:,} of {images:,} images were seen")
            taken.append(
                Taken(
                    kind,
                    beside,
                    images,
                    found["added"],
                    found["seconds"],
                    max(finished.anonymous_peak, found["peak"]),
                    found["peak"],
                )
            )
    for one in taken:
        if one.added != of(taken, one.beside)[0].added:
            raise BenchError(f"{one.kind}: other images than in the {one.beside} were added")
    return taken


def of(taken: Sequence[Taken], kind: str) -> list[Taken]:
    """The ingests of one kind, by round."""
    return [one for one in taken if one.kind == kind]


def speed(taken: Sequence[Taken], kind: str) -> float:
    """The speed of one kind relative to its folder: the median of the rounds' ratios."""
    mine = of(taken, kind)
    other = of(taken, mine[0].beside)
    return statistics.median(a.rate / b.rate for a, b in zip(mine, other, strict=True))


def peak(taken: Sequence[Taken], kind: str) -> float:
    """The median of its peaks, in bytes."""
    return statistics.median(one.peak_bytes for one in of(taken, kind))


def targets_of(taken: Sequence[Taken]) -> list[Target]:
    """The targets and their measurements."""
    memory = peak(taken, TAR) / peak(taken, FOLDER)
    return [
        Target("tar, of the folder's images/s", TARGET_SPEED, speed(taken, TAR), True, 2),
        Target("tar, times the folder's peak memory", TARGET_MEMORY, memory, digits=2),
    ]


def table(taken: Sequence[Taken]) -> str:
    """The ingests as aligned columns: medians over the rounds; MB are 10^6 bytes."""
    lines = [("source", "images", "images/s", "slowest", "fastest", "of its folder's", "peak MB")]
    for kind in dict.fromkeys(one.kind for one in taken):
        rates = [one.rate for one in of(taken, kind)]
        lines.append(
            (
                kind,
                f"{of(taken, kind)[0].images:,}",
                f"{statistics.median(rates):,.0f}",
                f"{min(rates):,.0f}",
                f"{max(rates):,.0f}",
                f"{speed(taken, kind):.2f}",
                f"{peak(taken, kind) / 1e6:,.0f}",
            )
        )
    return align(lines, left=(0,))


def main() -> bool:
    """Measure and print; true if a tar is about as fast as a folder and takes no more memory."""
    parser = script.parser(__doc__)
    parser.add_argument("--n", default="100000", help="images  [100000]")
    parser.add_argument("--bits", default="20000", help="bit images; 0 leaves them out  [20000]")
    every = ",".join(WRITERS)
    parser.add_argument("--kinds", default=every, help=f"beside the folder; tar always  [{every}]")
    parser.add_argument("--images", type=Path, help="a folder of small images; else some are made")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds, whose medians are printed  [3]"
    )
    parser.add_argument("--memory", default="1G", help="the memory of the store  [1G]")
    parser.add_argument("--seed", type=int, default=0, help="of made images  [0]")
    parser.add_argument(
        "--dir", type=Path, help="folder for all files, which are removed at the end"
    )
    parser.add_argument("--json", action="store_true", help="every ingest, as one object")
    arguments = parser.parse_args()
    n = parse_count(arguments.n)
    bits = 0 if arguments.bits == "0" else parse_count(arguments.bits)
    check_disk(n + bits, arguments.dir, _EACH)
    images = (
        made_images(n, arguments.seed)
        if arguments.images is None
        else found_images(arguments.images, n)
    )
    with script.work_folder(arguments.dir) as folder:
        work = folder.absolute()
        kinds = {TAR, *arguments.kinds.split(",")}
        made = write_all(work, images, bits, arguments.seed, kinds)
        memory = parse_memory(arguments.memory).total
        taken = measure(made, max(1, arguments.rounds), memory, work)
    wanted = targets_of(taken)
    if arguments.json:
        about = {"machine": machine(), "versions": versions(), "memory_bytes": memory}
        print(json.dumps(about | {"ingests": [asdict(one) for one in taken]}))
    else:
        print(table(taken), end="\n\n")
        print(targets(wanted))
    return all(one.met for one in wanted)


if __name__ == "__main__":
    script.exit_with(main)
