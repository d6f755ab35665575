"""Figures for people: aligned columns, and targets with their measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def align(lines: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """Rows of cells as text: columns aligned right, those numbered in ``left`` aligned left."""
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
    """One figure that a script measured, and its target."""

    what: str
    wanted: float
    measured: float
    at_least: bool = False  # whether ``wanted`` is the minimum; else it is the maximum
    digits: int = 1
    unit: str = ""  # with the space between the number and the unit

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted

    def show(self, value: float) -> str:
        """A figure of this target as text."""
        return f"{value:,.{self.digits}f}{self.unit}"


def targets(wanted: Sequence[Target]) -> str:
    """Targets, measurements and verdicts, as aligned columns."""
    lines = [("target", "wanted", "measured", "")]
    for one in wanted:
        sign = "≥" if one.at_least else "≤"
        verdict = "met" if one.met else "MISSED"
        lines.append((one.what, f"{sign} {one.show(one.wanted)}", one.show(one.measured), verdict))
    return align(lines, left=(0, 3))
