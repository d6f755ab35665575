"""How alike random pairs of a store's vectors are, which says how much a score is worth."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.index.train import sample_of
from engine.storage.manifest import RandomPairs
from engine.storage.vectors import Vectors

SAMPLE = 2048  # vectors whose pairs are measured with recall
FEW = 384  # vectors whose pairs are measured at a lookup, in a store without measured ones
_MIN_VECTORS = 16  # fewer have too few pairs to say anything
_SEED = 21
_SAMPLE_BYTES = 32 << 20  # bytes of sampled vectors, at most
_STEPS = 10  # quantiles for each tenth that the share above them shrinks to
# From this share on, a hit is no stranger in a large store. A smaller store has fewer strangers.
_NO_STRANGER = 0.999


def measure_pairs(vectors: Vectors, sample: int = SAMPLE) -> RandomPairs | None:
    """The quantiles of the scores of all pairs of sampled vectors; None if there are too few vectors."""
    most = min(sample, max(_MIN_VECTORS, _SAMPLE_BYTES // (4 * vectors.dim)))
    _, block = sample_of(vectors, most, _SEED)
    block = block[np.isfinite(block).all(axis=1) & block.any(axis=1)]
    n = len(block)
    if n < _MIN_VECTORS:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        scores = (block @ block.T)[np.triu_indices(n, 1)]
    scores = np.sort(scores[np.isfinite(scores)])
    if not len(scores):
        return None
    shares = _shares(len(scores))
    at = np.minimum((shares * len(scores)).astype(np.int64), len(scores) - 1)
    return RandomPairs(len(scores), tuple(zip(shares.tolist(), scores[at].tolist(), strict=True)))


def share_below(pairs: RandomPairs, score: float) -> float:
    """The share of random pairs with a lower score, from 0 to 1 - 1 / the number of pairs."""
    shares, scores = np.array(pairs.quantiles, np.float64).T
    at = int(np.searchsorted(scores, score))
    if at == 0:
        return 0.0
    if at == len(scores):
        return float(shares[-1])
    low, high = scores[at - 1], scores[at]
    return float(shares[at - 1] + (shares[at] - shares[at - 1]) * (score - low) / (high - low))


def score_at(pairs: RandomPairs, share: float) -> float:
    """The score that a ``share`` of random pairs do not reach."""
    shares, scores = np.array(pairs.quantiles, np.float64).T
    return float(np.interp(share, shares, scores))


def is_stranger(share: float, vectors: int) -> bool:
    """Whether a hit is no closer than a random image of the store would be.

    Among n vectors, one is expected to be in the highest 1 / n of random pairs by chance.
    """
    return share < min(_NO_STRANGER, 1 - 1 / vectors)


def _shares(pairs: int) -> npt.NDArray[np.float64]:
    """The shares of the quantiles: closer together towards 1, the last one short of it by one pair."""
    rest = np.arange(0, np.log10(pairs), 1 / _STEPS)
    return np.append(1 - 10.0**-rest, 1 - 1 / pairs)
