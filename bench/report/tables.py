"""Figures for people: aligned columns, and targets with what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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
