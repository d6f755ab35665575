"""The measurements of one index of vectors, as medians over the rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..harness.measurement import quantiles
from ..peers.vector_index import Setting


@dataclass(slots=True)
class Measured:
    """One index; medians are over ``builds``, ``batches`` and ``singles``, one of each a round."""

    name: str
    n: int
    points: list[dict[str, Any]] = field(default_factory=list)  # of the sweep
    setting: Setting | None = None  # the cheapest with enough recall; None if there is none
    builds: list[dict[str, Any]] = field(default_factory=list)
    batches: list[dict[str, Any]] = field(default_factory=list)
    singles: list[dict[str, Any]] = field(default_factory=list)

    def build_s(self) -> float | None:
        """Seconds of a build."""
        return median([one["seconds"] for one in self.builds])

    def disk(self) -> float | None:
        """Bytes of disk a vector."""
        return median([one["disk"] / self.n for one in self.builds])

    def anonymous(self, when: str = "searched") -> float | None:
        """Bytes of anonymous memory a vector, above the empty process; ``when``: opened or searched."""
        return median([(one[when] - one["empty"]) / self.n for one in self.batches])

    def recall(self) -> float | None:
        """The recall of the batches."""
        return median([one["recall"] for one in self.batches])

    def qps(self) -> float | None:
        """Queries a second, in batches."""
        return median([one["qps"] for one in self.batches])

    def cpu_us(self, of: str) -> float | None:
        """µs of CPU a query, of all threads, in batches or singles; hardly changed by other load."""
        return median([one["cpu_s"] * 1e6 for one in getattr(self, of)])

    def p50(self) -> float | None:
        """Milliseconds of a single query."""
        return median([quantiles(one["seconds"])[0] * 1e3 for one in self.singles])

    def p99(self) -> float | None:
        """The 99th percentile of the milliseconds of a single query."""
        return median([quantiles(one["seconds"])[1] * 1e3 for one in self.singles])


def median(values: Sequence[float]) -> float | None:
    """The median; None if there are no values."""
    return statistics.median(values) if values else None
