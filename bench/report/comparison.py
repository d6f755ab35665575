"""Compares two runs: the ratio of each figure with its noise, and which figures got worse.

A figure is worse if it is more than a quarter larger and the whole interval of its ratio is above
1. If a time was measured once in either run, its noise is unknown, and it is worse if it is more
than half larger. A share, such as recall, is worse if it is smaller by a hundredth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.cli.text import printable

from ..harness.measurement import SECONDS, SHARE, Measurement
from .bootstrap import medians
from .results import Results
from .tables import align
from .units import show

WORSE, BETTER, SAME = "worse", "better", "same"

_Key = tuple[int, str, str, str, str]

_FACTOR = 1.25  # by which a figure has to differ: runs of one version differ by a tenth and more
_ALONE = 1.5  # the same for a time of unknown noise
_SHARE = 0.01  # by which a share has to differ
_DRAWS = 1_000
_LONGEST = 80  # characters of a text from another file
_SHOWN = 12  # lines of figures that only one run has
_SETTINGS = ("seed", "memory_bytes", "memory_limit_bytes", "embed", "data")


@dataclass(frozen=True, slots=True)
class Change:
    """One figure at one n in both runs."""

    old: Measurement
    new: Measurement
    ratio: float  # of the medians, new by old
    low: float | None  # of 95 % of the bootstrap resamples; None where one side was measured once
    high: float | None
    verdict: str

    @property
    def name(self) -> str:
        """Tier, method and figure as text."""
        return f"{self.new.tier}, {self.new.method}: {self.new.figure}"


def compare(old: Results, new: Results) -> list[Change]:
    """Every figure that both runs have, worst first."""
    before, now = _by_key(old), _by_key(new)
    changes = [_change(before[key], one) for key, one in now.items() if key in before]
    order = {WORSE: 0, BETTER: 1, SAME: 2}
    return sorted(changes, key=lambda one: (order[one.verdict], -abs(np.log(max(one.ratio, 1e-9)))))


def _key(one: Measurement) -> _Key:
    return one.n, one.tier, one.method, one.figure, one.unit


def _by_key(results: Results) -> dict[_Key, Measurement]:
    return {_key(one): one for one in results.measurements}


def _change(old: Measurement, new: Measurement) -> Change:
    ratio = 1.0 if new.median <= 0 else float("inf")
    if old.median > 0:
        ratio = new.median / old.median
    low = high = None
    if min(len(old.samples), len(new.samples)) > 1 and old.median > 0:
        draw = np.random.default_rng(0)
        now, before = (medians(one.samples, _DRAWS, draw) for one in (new, old))
        ratios = now / np.maximum(before, 1e-300)
        low, high = (float(one) for one in np.quantile(ratios, [0.025, 0.975]))
    return Change(old, new, ratio, low, high, _verdict(old, new, ratio, low, high))


def _verdict(
    old: Measurement, new: Measurement, ratio: float, low: float | None, high: float | None
) -> str:
    if new.unit == SHARE:
        gain = new.median - old.median
        return WORSE if gain < -_SHARE else BETTER if gain > _SHARE else SAME
    factor = _ALONE if low is None and new.unit == SECONDS else _FACTOR
    if ratio > factor and (low is None or low > 1):
        return WORSE
    if ratio < 1 / factor and (high is None or high < 1):
        return BETTER
    return SAME


def warnings(old: Results, new: Results) -> list[str]:
    """Reasons why the two runs may not be comparable, a line each."""
    found = []
    for name in ("cpu", "cores", "ram_bytes", "system"):
        if old.machine.get(name) != new.machine.get(name):
            found.append(f"another machine: {name} was {_plain(old.machine.get(name))}")
    for name in _SETTINGS:
        if old.settings.get(name) != new.settings.get(name):
            found.append(f"another setting: {name} was {_plain(old.settings.get(name))}")
    for name in sorted({*old.versions, *new.versions} - {"engine"}):
        if old.versions.get(name) != new.versions.get(name):
            was = _plain(old.versions.get(name, "not there"))
            found.append(f"another version: {_plain(name)} was {was}")
    if not (old.complete and new.complete):
        found.append("one of the runs did not end")
    return found


def _plain(value: object) -> str:
    """A text from another file on one line, without control characters for a terminal."""
    text = printable(" ".join(str(value).split()))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def missing(old: Results, new: Results) -> list[str]:
    """Sizes that only one of the runs has, then figures that only one has, a line each."""
    before, now = _by_key(old), _by_key(new)
    found = []
    for which, mine, other in (("old", before, now), ("new", now, before)):
        whole = {key[0] for key in mine} - {key[0] for key in other}
        if whole:
            some = sorted(whole)[-_SHOWN:]
            found.append(f"{which} run only: all of n = {'; '.join(f'{n:,}' for n in some)}")
        sizes: dict[tuple[str, ...], list[int]] = {}
        for key in mine:
            if key not in other and key[0] not in whole:
                sizes.setdefault(key[1:4], []).append(key[0])
        for (tier, method, figure), some in sizes.items():
            what = _plain(f"{tier}, {method}: {figure}")
            found.append(f"{which} run only: {what}, n = {'; '.join(f'{n:,}' for n in some[:8])}")
    return found


def table(old: Results, new: Results, changes: Sequence[Change]) -> str:
    """The figures that got worse or better, with ratios; then counts, and what only one run has."""
    blocks = [f"since {_plain(old.started)}", *warnings(old, new)]
    lines = [("", "n", "figure", "before", "now", "ratio", "95 %")]
    for one in changes:
        if one.verdict == SAME:
            continue
        interval = "-" if one.low is None else f"{one.low:.2f} to {one.high:.2f}"
        shown = (show(one.old.median, one.old.unit), show(one.new.median, one.new.unit))
        cells = (f"{one.new.n:,}", one.name, *shown, f"{one.ratio:.2f}", interval)
        lines.append((one.verdict.upper() if one.verdict == WORSE else one.verdict, *cells))
    if len(lines) > 1:
        blocks.append(align(lines, left=(0, 2)))
    same = sum(one.verdict == SAME for one in changes)
    only_old, only_new = (len(_by_key(one)) - len(changes) for one in (old, new))
    blocks.append(
        f"{same:,} figures are the same within their noise; {only_old:,} are of the old run only, "
        f"{only_new:,} of the new one"
    )
    gone = missing(old, new)
    blocks += gone[:_SHOWN]
    if len(gone) > _SHOWN:
        blocks.append(f"and {len(gone) - _SHOWN:,} more that only one run has (--json lists them)")
    return "\n".join(blocks)


def body(old: Results, new: Results, changes: Sequence[Change]) -> dict[str, object]:
    """The same for programs: every figure that both have."""
    return {
        "since": old.started,
        "warnings": warnings(old, new),
        "missing": missing(old, new),
        "changes": [
            {
                "n": one.new.n,
                "tier": one.new.tier,
                "method": one.new.method,
                "figure": one.new.figure,
                "unit": one.new.unit,
                "old": one.old.median,
                "new": one.new.median,
                "ratio": one.ratio if np.isfinite(one.ratio) else None,
                "low": one.low,
                "high": one.high,
                "verdict": one.verdict,
            }
            for one in changes
        ],
    }
