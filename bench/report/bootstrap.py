"""The noise of a median: what it would be in other samples of the same kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]


def medians(samples: Sequence[float], draws: int, draw: np.random.Generator) -> Numbers:
    """Medians of ``draws`` bootstrap resamples of at least one sample.

    No resample is made: where the middle one or two of n picks lie in the sorted samples is drawn
    itself, from the distribution that it has. So this takes no n × draws of memory, of which a file
    with millions of samples would ask too much.
    """
    ordered = np.sort(np.asarray(samples, np.float64))
    n = len(ordered)
    below = (n - 1) // 2  # picks that are smaller than the (lower) middle one
    # The order statistics of n uniform numbers are beta distributed; given one, the next is the
    # least of the uniform numbers that are left above it.
    lower = draw.beta(below + 1, n - below, draws)
    picked = ordered[_places(lower, n)]
    if n % 2:
        return picked
    above = n - below - 1
    upper = lower + (1 - lower) * draw.beta(1, above, draws)
    return np.asarray((picked + ordered[_places(upper, n)]) / 2, np.float64)


def _places(share: Numbers, n: int) -> npt.NDArray[np.intp]:
    return np.minimum((share * n).astype(np.intp), n - 1)
