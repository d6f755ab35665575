"""The figures that stages yield, and helpers for those that several stages share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..harness.measurement import BYTES, Measurement, Skipped

Figure = Measurement | Skipped
Advance = Callable[[float], None]  # gets the finished share of a stage

RECALL = 0.95  # at 10, wanted from the indexes
NO_PLAIN_PICTURE = "none of its pictures is opaque, of 8 bits a channel, and can be read"


def bytes_figure(n: int, tier: str, method: str, figure: str, size: float) -> Measurement:
    """A size in bytes, measured once."""
    return Measurement(n, tier, method, figure, BYTES, (float(size),))


def memory_figure(n: int, tier: str, method: str, figure: str, size: float) -> Iterator[Figure]:
    """The added memory; no figure if the set is so small that it fits into freed memory."""
    if size > 0:
        yield bytes_figure(n, tier, method, figure, size)
