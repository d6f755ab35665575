"""Figures as people read them: three digits, and the unit that fits."""

from __future__ import annotations

from ..harness.measurement import BYTES, SECONDS

_TIMES = ((1e-6, "ns", 1e9), (1e-3, "µs", 1e6), (1.0, "ms", 1e3), (1e99, "s", 1.0))
_SIZES = ((1e3, "B", 1.0), (1e6, "kB", 1e-3), (1e9, "MB", 1e-6), (1e99, "GB", 1e-9))  # 10^3n


def show(value: float, unit: str) -> str:
    """A figure with its unit: ``0.0000123`` seconds are ``12.3 µs``; a kB is 1,000 bytes."""
    table = {SECONDS: _TIMES, BYTES: _SIZES}.get(unit)
    if table is None:
        return f"{value:.3f}"
    size = abs(value) * (1 + 0.5e-3)  # 999.6 µs are 1.00 ms when rounded
    _, name, times = next(one for one in table if size < one[0] or one is table[-1])
    return f"{digits(value * times)} {name}"


def digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
