"""The figures that stages yield, and those that several of them make alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..harness.measurement import BYTES, Measurement, Skipped

Figure = Measurement | Skipped
Advance = Callable[[float], None]  # the share of a stage that is done

RECALL = 0.95  # at 10 that is wanted of the indexes
NO_PLAIN_PICTURE = "none of its pictures is opaque, of 8 bits a channel, and can be read"


def bytes_figure(n: int, tier: str, method: str, figure: str, size: float) -> Measurement:
    """A size in bytes, measured once."""
    return Measurement(n, tier, method, figure, BYTES, (float(size),))


def memory_figure(n: int, tier: str, method: str, figure: str, size: float) -> Iterator[Figure]:
    """Memory that was taken on top; none of a set so small that it fits where other things lay."""
    if size > 0:
        yield bytes_figure(n, tier, method, figure, size)
