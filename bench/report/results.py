"""The results of a run: its figures, and everything needed to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..harness.measurement import Measurement, Skipped

COLUMNS = (
    *("n", "tier", "method", "figure", "unit", "samples"),
    *("median", "least", "p95", "p99", "per_second", "note"),
)
_DIGITS = 6  # significant ones of a sample


@dataclass(frozen=True, slots=True)
class Results:
    """All figures of one run, and everything needed to repeat it."""

    started: str  # ISO 8601, UTC
    seconds: float
    complete: bool  # false if the run was interrupted, or failed
    settings: Mapping[str, Any]
    machine: Mapping[str, str | int]
    versions: Mapping[str, str]
    measurements: tuple[Measurement, ...]
    skipped: tuple[Skipped, ...]


def rows(results: Results) -> list[dict[str, Any]]:
    """One flat dict for each measurement, for the CSV or a DataFrame.

    ``p95`` and ``p99`` are None with fewer than 20 and 100 samples, where they would be the largest
    sample. ``per_second`` is the rate of single lookups or of a batch, and None for other figures.
    """
    return [
        {
            "n": one.n,
            "tier": one.tier,
            "method": one.method,
            "figure": one.figure,
            "unit": one.unit,
            "samples": len(one.samples),
            "median": rounded(one.median),
            "least": rounded(min(one.samples)),
            "p95": _tail(one, 0.95),
            "p99": _tail(one, 0.99),
            "per_second": rounded(one.rate) if one.rate is not None else None,
            "note": one.note,
        }
        for one in results.measurements
    ]


def left_out(results: Results) -> list[str]:
    """A line for each method that was not measured, with its sizes and the reason."""
    sizes: dict[tuple[str, str], list[int]] = {}
    for one in results.skipped:
        sizes.setdefault((one.method, one.why), []).append(one.n)
    return [
        f"{method}, {', '.join(f'{n:,}' for n in dict.fromkeys(some))}: {why}"
        for (method, why), some in sizes.items()
    ]


def _tail(one: Measurement, share: float) -> float | None:
    if len(one.samples) * (1 - share) < 1 - 1e-9:  # no sample lies above it
        return None
    return rounded(one.quantile(share))


def rounded(value: float) -> float:
    """A figure rounded for the files: six significant digits."""
    return float(f"{value:.{_DIGITS}g}")
