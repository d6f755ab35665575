"""Finds the lists whose centroids are nearest to a query."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.index.inner_product import Block, Numbers, of_one
from engine.index.probe import ProbeRadius

_COARSE_LISTS = 512  # with fewer lists, comparing all centroids takes no longer
_COARSE_SHARE = 2  # one in so many lists of centroids is searched
_ALL_OF_ONE = 4096  # up to so many lists, a single query is compared with all centroids
_ROUNDING = 1e-6
_COARSE_SAME, _COARSE_WORST = 0.99, 0.8  # share of right lists, on average and for the worst query
_COARSE_LEAST = 8  # nlist must be at least so many times nprobe


class Centroids:
    """The centroids of all lists, (nlist, width) float32."""

    def __init__(self, centroids: Block, padding: int) -> None:
        """``padding`` is how many more dimensions queries have than centroids."""
        import faiss

        self.nlist, self.width = centroids.shape
        self.block = centroids
        self.flat = faiss.IndexFlatIP(self.width + padding)
        self.flat.add(np.pad(centroids, ((0, 0), (0, padding))))
        self._coarse: Any = None  # an index of the centroids, made by ``speed_up``
        self._plain = False  # whether that index was tried and not used

    def nearest(
        self, queries: Block, nprobe: int, radius: ProbeRadius | None = None
    ) -> tuple[Block, Numbers]:
        """The ``nprobe`` nearest lists of each query: inner products and numbers, (n, nprobe) each.

        Best first. Lists outside the ``radius`` are -1; columns with no other lists are left out.
        """
        if len(queries) == 1 and (self._coarse is None or self.nlist <= _ALL_OF_ONE):
            return self._nearest_of_one(queries, nprobe, radius)
        coarse = self._coarse if nprobe * _COARSE_LEAST <= self.nlist else None
        close, lists = (coarse or self.flat).search(queries, nprobe)
        if coarse:
            few = np.flatnonzero(lists[:, -1] < 0)  # queries with fewer than nprobe lists
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
        """``nearest`` of one query, in two thirds of the time of FAISS's heap."""
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
        # The centroids are damaged.
        if not len(at):
            found: tuple[Block, Numbers] = self.flat.search(query, nprobe)
            return found
        order = np.argsort(-some)
        return some[order][None], at[order][None]

    def closeness(self, queries: Block) -> Block:
        """The inner products of (n, width) fitted queries with all centroids: (n, nlist)."""
        found: Block = queries[:, : self.width] @ self.block.T
        return found

    def speed_up(self) -> None:
        """Index the centroids, so that ``nearest`` compares a query with half of them.

        That takes two thirds of the time, and finds other lists in fewer than one case in a hundred,
        for queries distributed like the centroids. Where a test finds it to be more, nothing changes.
        Making the index pays off after many searches.
        """
        import faiss

        if self._coarse is not None or self._plain or self.nlist < _COARSE_LISTS:
            return
        # The dimensions of the corrections are 0 in all centroids, so inner products do not change.
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
        # A found centroid is right if it is no farther than the last of the true nearest.
        farthest = self.flat.search(some, near)[0][:, -1:]
        same = (coarse.search(some, near)[0] >= farthest - _ROUNDING).mean(axis=1)
        self._plain = same.mean() < _COARSE_SAME or same.min() < _COARSE_WORST
        if not self._plain:
            self._coarse = coarse
