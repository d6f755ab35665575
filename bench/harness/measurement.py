"""A measurement: one figure with every sample behind it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SECONDS, BYTES, SHARE = "s", "B", ""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure of one method at one n; all metrics are computed from ``samples``.

    ``tier`` is the part of the engine: "images", "ingest", "identical", "near", "similar", "disk", or
    "run" for figures of the whole run.
    ``unit`` is "s", "B", or "" for a share from 0 to 1.
    """

    n: int  # images or vectors in the set
    tier: str
    method: str
    figure: str
    unit: str
    samples: tuple[float, ...]  # at least one; in the order they were taken
    note: str = ""

    @property
    def rate(self) -> float | None:
        """Lookups a second, one after the other or in batches; None if the figure is not of lookups."""
        asks = self.tier in ("identical", "near", "similar") and self.figure != "build"
        took = sum(self.samples)
        return len(self.samples) / took if asks and self.unit == SECONDS and took > 0 else None

    @property
    def median(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)

    def quantile(self, share: float) -> float:
        """The smallest sample that at least ``share`` (0 to 1) of the samples do not exceed."""
        ordered = sorted(self.samples)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A figure that was not measured, with the reason."""

    n: int
    tier: str
    method: str
    why: str


def quantiles(seconds: Sequence[float]) -> tuple[float, float]:
    """The median, and the smallest value that 99 % do not exceed."""
    ordered = sorted(seconds)
    return statistics.median(ordered), ordered[math.ceil(0.99 * len(ordered)) - 1]
