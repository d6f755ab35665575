"""Seeded, clustered vectors of 128 dimensions and unit length, in any number, made in blocks.

Row r of a set depends on its seed and r only. The sizes of the 500 clusters follow Zipf's law, flattened
at its head, like the frequencies of words. Around the middle of its cluster a vector varies in 13
directions that its neighbours share, and a little in all others. One vector in fifty lies between two
clusters. So neighbours are spread over several cells of an index, as in real data, and over about as
many at each size.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .arrays import Vectors

DIM = 128
CLUSTERS = 500
_BLOCK = 1 << 14  # rows made from one seed: what a row depends on must not depend on n
_HEAD = 50  # ranks by which Zipf's law is flattened: the largest cluster has 0.8 % of all
_WIDE = 13  # directions in which a cluster is wide
_WIDTHS = 64  # different shapes of clusters
_SPREAD, _NOISE = 0.32, 0.03  # standard deviations in those directions, and in the others
_BETWEEN = 0.02  # of the vectors
_ROWS, _QUERIES = 0, 1  # streams


class _Clusters(NamedTuple):
    """The clusters of a seed: middles (c, 128), widths (w, 128), cumulative shares of rows (c,)."""

    middles: Vectors
    widths: Vectors
    shares: npt.NDArray[np.float64]
    turned: Vectors  # (128, 128): a rotation, so that no direction is one of the axes


def rows(seed: int, first: int, count: int) -> Vectors:
    """Rows ``[first, first + count)`` of the set: (count, 128) float32, unit length."""
    return _stream(seed, _ROWS, first, count)


def queries(seed: int, count: int) -> Vectors:
    """``count`` vectors of the same distribution that are not in the set: (count, 128) float32."""
    return _stream(seed, _QUERIES, 0, count)


def blocks(seed: int, first: int, count: int) -> Iterator[Vectors]:
    """The rows ``[first, first + count)``, block by block."""
    for at in range(first, first + count, _BLOCK):
        yield rows(seed, at, min(_BLOCK, first + count - at))


def _stream(seed: int, stream: int, first: int, count: int) -> Vectors:
    made = np.empty((count, DIM), np.float32)
    end = first + count
    for block in range(first // _BLOCK, -(-end // _BLOCK)):
        start = block * _BLOCK
        low, high = max(first, start), min(end, start + _BLOCK)
        made[low - first : high - first] = _block(seed, stream, block)[low - start : high - start]
    return made


def _block(seed: int, stream: int, block: int) -> Vectors:
    """All rows of a block."""
    clusters = _clusters(seed)
    draw = np.random.Generator(np.random.SFC64([seed, stream, block]))
    own, other = np.searchsorted(clusters.shares, draw.random((2, _BLOCK)))
    part = np.where(draw.random(_BLOCK) < _BETWEEN, draw.random(_BLOCK) / 2, 0)
    part = part.astype(np.float32)[:, None]
    made = draw.standard_normal((_BLOCK, DIM), np.float32)
    made *= clusters.widths[own % _WIDTHS]
    made += clusters.middles[own] * (1 - part)
    made += clusters.middles[other] * part
    made = made @ clusters.turned
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


@cache
def _clusters(seed: int) -> _Clusters:
    draw = np.random.Generator(np.random.SFC64([seed, CLUSTERS]))
    # Middles vary more in some directions than in others, like those of learned vectors.
    scale = np.linspace(1.5, 0.5, DIM, dtype=np.float32)
    middles = draw.standard_normal((CLUSTERS, DIM), np.float32) * scale
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    widths = np.full((_WIDTHS, DIM), _NOISE, np.float32)
    for one in widths:
        one[draw.permutation(DIM)[:_WIDE]] = _SPREAD * draw.uniform(0.5, 1.5, _WIDE)
    sizes = 1 / (np.arange(CLUSTERS) + _HEAD)
    shares = np.cumsum(sizes) / sizes.sum()
    shares[-1] = 1.0
    turned, _ = np.linalg.qr(draw.standard_normal((DIM, DIM)))
    return _Clusters(middles, widths, shares, turned.astype(np.float32))
