"""What was measured: rows, a table for people, and files for programs."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

CSV_NAME = "results.csv"
JSON_NAME = "results.json"


@dataclass(frozen=True, slots=True)
class Row:
    """One method at one n, a line of the CSV; what was not measured is None, and ``note`` says why."""

    n: int
    method: str
    generate_s: float | None = None  # to make the images, in the form that the method takes
    build_s: float | None = None  # to take them in
    hit_median_us: float | None = None  # a lookup of an image that is there
    hit_p95_us: float | None = None
    hits: int = 0  # lookups timed
    miss_median_us: float | None = None  # a lookup of one that is not
    miss_p95_us: float | None = None
    misses: int = 0
    memory_bytes: int | None = None  # peak growth of anonymous memory, lookups included
    disk_bytes: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Everything that ``run`` measured, and what is needed to measure it again."""

    n: int
    steps: int
    seed: int
    memory: int  # bytes: the store's bound, and what a method in memory may need
    started: str  # ISO 8601, UTC
    seconds: float
    machine: dict[str, str | int]
    versions: dict[str, str]
    settings: dict[str, float]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Lookups:
    """Every lookup behind one row, in µs: kept, so that other figures can be had of them later."""

    n: int
    method: str
    hit_us: list[float]
    miss_us: list[float]


def table(report: BenchReport) -> str:
    """The report as aligned columns; MB are 10^6 bytes, µs are medians, - was not measured."""
    head = ("n", "method", "generate s", "build s", "hit µs", "miss µs", "memory MB", "disk MB")
    lines = [(*head, "note")]
    for row in report.rows:
        lines.append(
            (
                f"{row.n:,}",
                row.method,
                _number(row.generate_s, 2),
                _number(row.build_s, 2),
                _number(row.hit_median_us, 1),
                _number(row.miss_median_us, 1),
                _number(row.memory_bytes, 1, 1e6),
                _number(row.disk_bytes, 1, 1e6),
                row.note,
            )
        )
    return align(lines, left=(1, 8))


def align(lines: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """Rows of cells as text: columns to the right, those numbered in ``left`` to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


@dataclass(frozen=True, slots=True)
class Target:
    """One figure that a script measured, and what it should be."""

    what: str
    wanted: float
    measured: float
    at_least: bool = False  # what is wanted is the least; else the most
    digits: int = 1
    unit: str = ""  # with what stands between it and the number

    @property
    def met(self) -> bool:
        """Whether it is what it should be."""
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted

    def show(self, value: float) -> str:
        """A figure of this target as text."""
        return f"{value:,.{self.digits}f}{self.unit}"


def targets(wanted: Sequence[Target]) -> str:
    """What was wanted, what was measured, and whether it was met, as aligned columns."""
    lines = [("target", "wanted", "measured", "")]
    for one in wanted:
        sign = "≥" if one.at_least else "≤"
        verdict = "met" if one.met else "MISSED"
        lines.append((one.what, f"{sign} {one.show(one.wanted)}", one.show(one.measured), verdict))
    return align(lines, left=(0, 3))


def write(report: BenchReport, lookups: Sequence[Lookups], folder: Path) -> None:
    """``results.csv``, a line for each n and method, and ``results.json``, with every lookup."""
    with (folder / CSV_NAME).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [column.name for column in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in report.rows)
    values = asdict(report) | {"lookups": [asdict(timed) for timed in lookups]}
    (folder / JSON_NAME).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def median(values: Sequence[float]) -> float | None:
    """The median, to a thousandth; None of nothing."""
    return round(statistics.median(values), 3) if values else None


def p95(values: Sequence[float]) -> float | None:
    """The smallest value that 95 % are no larger than, to a thousandth; None of nothing."""
    return round(sorted(values)[math.ceil(0.95 * len(values)) - 1], 3) if values else None


def _number(value: float | None, digits: int, unit: float = 1) -> str:
    return "-" if value is None else f"{value / unit:,.{digits}f}"
