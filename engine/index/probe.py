"""Decides which of the nearest lists are worth probing for one query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.index.inner_product import Block


@dataclass(frozen=True, slots=True)
class ProbeRadius:
    """The lists to probe: those at most ``times`` as far from the query as the nearest one.

    The distance is half the squared distance of query and centroid, both of length 1. A query between
    several centroids has more lists within the radius (as in SPANN, Chen et al., 2021). A smaller
    distance than ``min_distance`` counts as ``min_distance``, since a query very close to a centroid
    has its neighbours around it like any other.
    """

    times: float
    min_distance: float

    def distances(self, close: Block, closest: Block) -> Block:
        """Distances as multiples of the nearest list's (n, m), from inner products (n, m) and (n, 1)."""
        found: Any = (1 - close) / np.maximum(1 - closest, np.float32(self.min_distance))
        return found  # type: ignore[no-any-return]

    def min_close(self, closest: float) -> float:
        """The smallest inner product within the radius."""
        return 1 - self.times * max(1 - closest, self.min_distance)
