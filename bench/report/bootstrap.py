"""The noise of a median: its spread over bootstrap resamples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]


def medians(samples: Sequence[float], draws: int, draw: np.random.Generator) -> Numbers:
    """Medians of ``draws`` bootstrap resamples of at least one sample.

    No resample is made. Instead, the places of the middle one or two of n picks in the sorted
    samples are drawn from their distribution. So this does not need n × draws of memory, which
    would be too much for a file with millions of samples.
    """
    ordered = np.sort(np.asarray(samples, np.float64))
    n = len(ordered)
    below = (n - 1) // 2  # picks that are smaller than the (lower) middle one
    # The order statistics of n uniform numbers are beta distributed. Given one, the next is the
    # least of the remaining uniform numbers above it.
    lower = draw.beta(below + 1, n - below, draws)
    picked = ordered[_places(lower, n)]
    if n % 2:
        return picked
    above = n - below - 1
    upper = lower + (1 - lower) * draw.beta(1, above, draws)
    return np.asarray((picked + ordered[_places(upper, n)]) / 2, np.float64)


def _places(share: Numbers, n: int) -> npt.NDArray[np.intp]:
    return np.minimum((share * n).astype(np.intp), n - 1)
