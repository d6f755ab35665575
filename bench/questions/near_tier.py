"""Helpers for lookups in the near tier: the tier, and their times as cells of a table."""

from __future__ import annotations

from collections.abc import Sequence

from ..harness.measurement import quantiles

NEAR = ("near",)  # the tier


def milliseconds_of(times: Sequence[float]) -> tuple[str, str]:
    """Median and 99th percentile of milliseconds, as text."""
    p50, p99 = quantiles(times)
    return f"{p50:.2f}", f"{p99:.2f}"
