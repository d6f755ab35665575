"""Finds the lists whose centroids are nearest to a query."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.index.inner_product import Block, Numbers, of_one
from engine.index.probe import ProbeRadius

_COARSE_LISTS = 512  # of which looking at all centroids takes no longer
_COARSE_SHARE = 2  # one in so many lists of centroids is looked at
_ALL_OF_ONE = 4096  # lists, up to which one query is compared with all of them all the same
_ROUNDING = 1e-6
_COARSE_SAME, _COARSE_WORST = 0.99, 0.8  # of the nearest lists, on average and for any query
_COARSE_LEAST = 8  # times as many lists as are wanted, at least


class Centroids:
    """The centroids of all lists, (nlist, width) float32."""

    def __init__(self, centroids: Block, padding: int) -> None:
        """``padding``: how many dimensions queries have behind those of the centroids."""
        import faiss

        self.nlist, self.width = centroids.shape
        self.block = centroids
        self.flat = faiss.IndexFlatIP(self.width + padding)
        self.flat.add(np.pad(centroids, ((0, 0), (0, padding))))
        self._coarse: Any = None  # made by ``speed_up``
        self._plain = False  # whether that is left alone

    def nearest(
        self, queries: Block, nprobe: int, radius: ProbeRadius | None = None
    ) -> tuple[Block, Numbers]:
        """The ``nprobe`` nearest lists of each: inner products and numbers, (n, nprobe), best first.

        Those out of the ``radius`` are -1, and left out altogether where they are so for all queries.
        """
        if len(queries) == 1 and (self._coarse is None or self.nlist <= _ALL_OF_ONE):
            return self._nearest_of_one(queries, nprobe, radius)
        coarse = self._coarse if nprobe * _COARSE_LEAST <= self.nlist else None
        close, lists = (coarse or self.flat).search(queries, nprobe)
        if coarse:
            few = np.flatnonzero(lists[:, -1] < 0)  # those looked at were not as many
            if len(few):
                close[few], lists[few] = self.flat.search(queries[few], nprobe)
        if radius is None:
            return close, lists
        near = radius.distances(close, close[:, :1]) <= radius.times
        most = int(near.sum(axis=1).max(initial=1))
        return np.ascontiguousarray(close[:, :most]), np.where(near, lists, -1)[:, :most].copy()

    def _nearest_of_one(
        self, query: Block, nprobe: int, radius: ProbeRadius | None
    ) -> tuple[Block, Numbers]:
        """``nearest`` of one query, which takes two thirds of the time of FAISS's heap."""
        close = np.empty(self.nlist, np.float32)
        of_one(query, self.block, close)
        if radius is not None:
            at = np.flatnonzero(close >= radius.min_close(float(close.max())))
            some = close[at]
        else:
            at, some = np.arange(self.nlist), close
        if len(at) > nprobe:
            best = np.argpartition(some, -nprobe)[-nprobe:]
            at, some = at[best], some[best]
        if not len(at):  # of centroids that are damaged
            found: tuple[Block, Numbers] = self.flat.search(query, nprobe)
            return found
        order = np.argsort(-some)
        return some[order][None], at[order][None]

    def closeness(self, queries: Block) -> Block:
        """The inner products of (n, width) fitted queries with all centroids: (n, nlist)."""
        found: Block = queries[:, : self.width] @ self.block.T
        return found

    def speed_up(self) -> None:
        """Have ``nearest`` look at half of the centroids, by lists of their own.

        It takes two thirds of the time then, and fewer than one in a hundred of the lists are others
        (for queries that lie as centroids do; where these lie so that it is more, it is left alone).
        Many searches later it has paid for itself.
        """
        import faiss

        if self._coarse is not None or self._plain or self.nlist < _COARSE_LISTS:
            return
        # The corrections' dimensions are 0 in all centroids, so that inner products stay what they are.
        centroids = np.pad(self.block, ((0, 0), (0, self.flat.d - self.width)))
        lists = int(self.nlist**0.5)
        coarse: Any = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(self.flat.d), self.flat.d, lists, faiss.METRIC_INNER_PRODUCT
        )
        coarse.cp.min_points_per_centroid = 1
        coarse.cp.spherical = True
        coarse.train(centroids)
        coarse.add(centroids)
        coarse.nprobe = -(-lists // _COARSE_SHARE)
        near = self.nlist // _COARSE_LEAST
        some = centroids[::_COARSE_LEAST]
        # As many of the nearest are among those looked at as are no farther than the last of them.
        farthest = self.flat.search(some, near)[0][:, -1:]
        same = (coarse.search(some, near)[0] >= farthest - _ROUNDING).mean(axis=1)
        self._plain = same.mean() < _COARSE_SAME or same.min() < _COARSE_WORST
        if not self._plain:
            self._coarse = coarse
