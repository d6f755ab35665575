"""Says which of the nearest lists are worth a look for one query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.index.inner_product import Block


@dataclass(frozen=True, slots=True)
class ProbeRadius:
    """Which of the nearest lists are probed: those at most ``times`` as far off as the nearest one.

    How far off is half the squared distance of query and centroid, both of length 1. Among its
    neighbours a query has more lists within the radius the less clear it is in which one it lies (as in
    SPANN, Chen et al., 2021). ``min_distance``: what is nearer counts as so far off, since a query that
    is all but a centroid has its neighbours around it as others have.
    """

    times: float
    min_distance: float

    def distances(self, close: Block, closest: Block) -> Block:
        """How many times as far off as the nearest list: from inner products, (n, m) and (n, 1)."""
        found: Any = (1 - close) / np.maximum(1 - closest, np.float32(self.min_distance))
        return found  # type: ignore[no-any-return]

    def min_close(self, closest: float) -> float:
        """The least inner product that is within the radius."""
        return 1 - self.times * max(1 - closest, self.min_distance)
