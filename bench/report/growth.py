"""How figures grow with n: exponents with their noise, and tests of the claims about growth.

A figure t(n) is fitted with n^e: least squares of log t on log n, through the medians at each size.
e is 0 for O(1), 1 for O(n). Its interval covers 95 % of the bootstrap resamples of the raw samples.
A figure that was measured once at each size has no interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..harness.measurement import BYTES, SECONDS, Measurement
from .bootstrap import Numbers, medians
from .results import Results

_DRAWS = 400
_SEED = 0
_FIXED = (
    3.0  # times the smallest set's figure: if the largest is below, fixed costs hide the growth
)

Key = tuple[str, str, str]  # tier, method, figure


@dataclass(frozen=True, slots=True)
class Growth:
    """One figure over several sizes, fitted."""

    exponent: float
    low: float | None  # of 95 % of the resamples
    high: float | None
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        """The exponent, and its interval."""
        text = f"n^{self.exponent:.2f}"
        return text if self.low is None else f"{text} ({self.low:.2f} to {self.high:.2f})"


def series(results: Results) -> dict[Key, list[Measurement]]:
    """Each figure at all of its sizes, in rising order."""
    found: dict[Key, list[Measurement]] = {}
    for one in results.measurements:
        found.setdefault((one.tier, one.method, one.figure), []).append(one)
    return {key: sorted(some, key=lambda one: one.n) for key, some in found.items()}


def fit(measured: Sequence[Measurement], *, without_fixed: bool = False) -> Growth | None:
    """The growth of one figure; None if fewer than two sizes have a value above zero.

    ``without_fixed`` subtracts figure and n of the smallest size from those of the others. Then a
    fixed cost plus a constant cost of each image is exactly n^1. It needs three sizes, none of
    which takes less than the smallest; otherwise the result is None.
    """
    some = [one for one in measured if one.median > 0 and one.n > 0]
    sizes = tuple(one.n for one in some)
    if len(set(sizes)) < 2 + without_fixed:
        return None
    taken = np.array([[one.median] for one in some])  # (sizes, 1)
    numbers = np.array(sizes, np.float64)
    if without_fixed:
        taken, numbers = taken[1:] - taken[0], numbers[1:] - numbers[0]
        if (taken <= 0).any():
            return None
    exponent = float(_slopes(np.log(numbers), np.log(taken))[0])
    if max(len(one.samples) for one in some) == 1:
        return Growth(exponent, None, None, sizes)
    draw = np.random.default_rng(_SEED)
    drawn = np.stack([medians(one.samples, _DRAWS, draw) for one in some])  # (sizes, draws)
    if without_fixed:
        drawn = drawn[1:] - drawn[0]
    slopes = _slopes(np.log(numbers), np.log(np.maximum(drawn, 1e-300)))
    low, high = np.quantile(slopes, [0.025, 0.975])
    return Growth(exponent, float(low), float(high), sizes)


def growths(results: Results) -> dict[Key, Growth]:
    """The growth of all figures of time, memory and disk."""
    found = {}
    for key, measured in series(results).items():
        growth = fit(measured) if measured[0].unit in (SECONDS, BYTES) else None
        if growth is not None:
            found[key] = growth
    return found


def _slopes(x: Numbers, y: Numbers) -> Numbers:
    """The slope of each column of y on x, by least squares."""
    centred = x - x.mean()
    rise = (centred[:, None] * (y - y.mean(axis=0))).sum(axis=0)
    return np.asarray(rise / (centred**2).sum(), np.float64)


@dataclass(frozen=True, slots=True)
class Claim:
    """One sentence about growth, its measurement, and whether it holds."""

    text: str
    measured: str
    verdict: str  # "holds", "does not hold" or "cannot tell"


@dataclass(frozen=True, slots=True)
class _Rule:
    text: str
    key: Key
    least: float
    most: float
    without_fixed: bool = False  # the cost of the smallest set does not count as growth
    from_size: int = 1_000  # smaller ones say little
    fewest: int = 3  # sizes


_O1 = (-math.inf, 0.2)
_ON = (0.80, 1.25)  # a set that outgrows a cache takes more of each
_RULES = (
    _Rule("the engine's identical lookup is O(1)", ("identical", "engine", "hit"), *_O1),
    _Rule("so is its miss", ("identical", "engine", "miss"), *_O1),
    _Rule("a lookup in a dict of hashes is O(1)", ("identical", "dict of hashes", "hit"), *_O1),
    _Rule("in a list of hashes it is O(n)", ("identical", "list of hashes", "miss"), *_ON, True),
    _Rule("pixel by pixel it is O(n)", ("identical", "pixel by pixel", "miss"), *_ON, True),
    _Rule(
        "what a cold hit reads is constant",
        ("identical", "engine", "hit, cold, read"),
        *_O1,
        from_size=10_000,
    ),
    # A commit has 20,000 images. In a smaller set no work overlaps, so its cost is subtracted.
    _Rule("an ingest is O(n)", ("ingest", "engine", "time"), 0.95, 1.10, True, from_size=10_000),
    # Until its chunks are as large as --memory allows, an ingest takes less.
    _Rule(
        "its memory does not grow",
        ("ingest", "engine", "memory"),
        *_O1,
        from_size=100_000,
        fewest=2,
    ),
    _Rule(
        "a near lookup grows no faster than n", ("near", "engine", "hit"), -math.inf, _ON[1], True
    ),
    _Rule("IndexFlatL2 is O(n)", ("similar", "IndexFlatL2", "single"), *_ON, True),
    _Rule(
        "a search of the index grows far less than n",
        ("similar", "engine", "single"),
        -math.inf,
        0.35,
        from_size=20_000,  # smaller sets are compared in full
        fewest=2,
    ),
)


def claims(results: Results) -> list[Claim]:
    """The claims of the report and of the engine about growth, as far as they were measured."""
    every = series(results)
    return [_judge(rule, every[rule.key]) for rule in _RULES if rule.key in every]


def _judge(rule: _Rule, every: Sequence[Measurement]) -> Claim:
    measured = [one for one in every if one.n >= rule.from_size]
    if len(measured) < rule.fewest:
        number = {2: "two", 3: "three"}[rule.fewest]
        why = f"fewer than {number} sizes from {rule.from_size:,} on"
        return Claim(rule.text, why, "cannot tell")
    without_fixed = rule.without_fixed
    if without_fixed and measured[-1].median < _FIXED * measured[0].median:
        if rule.least > -math.inf:
            return Claim(rule.text, "fixed costs hide it at these sizes", "cannot tell")
        without_fixed = False  # an upper limit can be tested with fixed costs too
    growth = fit(measured, without_fixed=without_fixed)
    if growth is None:
        return Claim(rule.text, "it does not rise with each size", "cannot tell")
    what = f"{growth} from {growth.sizes[0]:,} to {growth.sizes[-1]:,}"
    low = growth.exponent if growth.low is None else growth.low
    high = growth.exponent if growth.high is None else growth.high
    if rule.least <= low and high <= rule.most:
        return Claim(rule.text, what, "holds")
    if high < rule.least or low > rule.most:
        return Claim(rule.text, what, "does not hold")
    return Claim(rule.text, f"{what}; the noise is too large", "cannot tell")


def exponent(times: dict[int, float]) -> float | None:
    """The e of the n^e that fits the times best; None if there are fewer than two."""
    if len(times) < 2:
        return None
    return float(np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)[0])
