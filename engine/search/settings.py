"""What a lookup is asked for: which tiers, how many images of each, and how far they may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from engine.config import DEFAULT_K, DEFAULT_MAX_DISTANCE, DEFAULT_NEAR_LIMIT, SOURCES_SHOWN, whole
from engine.errors import UsageError
from engine.images.fingerprint import FINGERPRINT_BITS
from engine.index.operating_point import check_recall
from engine.search.tiers import SIMILAR, tier_names

_NUMBER = float | int | np.floating | np.integer
_ALL = 1 << 62  # more than there can be


@dataclass(frozen=True, slots=True)
class LookupSettings:
    """What a lookup is asked for. ``of`` makes one of what a caller gave.

    ``tiers``: None for all that the store has. ``recall``: None for what the store was measured for.
    """

    k: int = DEFAULT_K
    tiers: tuple[str, ...] | None = None
    min_score: float | None = None
    max_distance: int = DEFAULT_MAX_DISTANCE
    near_limit: int = DEFAULT_NEAR_LIMIT
    max_sources: int = SOURCES_SHOWN
    recall: float | None = None

    @classmethod
    def of(
        cls,
        *,
        k: int,
        tiers: Sequence[str] | None,
        min_score: float | None,
        max_distance: int,
        near_limit: int | None,
        max_sources: int | None,
        recall: float | None,
    ) -> Self:
        """Checked; ``UsageError`` where something makes no sense. None is no limit."""
        distance = _whole_or(max_distance, -1)
        if not 0 <= distance <= FINGERPRINT_BITS:
            raise UsageError(
                f"max_distance= is a number of bits, 0 to {FINGERPRINT_BITS}, not {max_distance!r}"
            )
        if min_score is not None and not (
            isinstance(min_score, _NUMBER) and math.isfinite(min_score)
        ):
            raise UsageError(
                f"min_score= is a number, of cosines between -1 and 1, not {min_score!r}"
            )
        names = tier_names(tiers)
        if names is not None and SIMILAR not in names:
            for name, value in (("recall=", recall), ("min_score=", min_score)):
                if value is not None:
                    raise UsageError(
                        f"{name} is of the similar tier, which is not asked: leave it out"
                    )
        return cls(
            check_k(k),
            names,
            min_score,
            distance,
            _limit("near_limit=", near_limit),
            _limit("max_sources=", max_sources),
            check_recall(recall) if recall is not None else None,
        )


def check_k(k: object) -> int:
    """How many hits are wanted; ``UsageError`` if it is no whole number of 1 or more."""
    number = _whole_or(k, 0)
    if number < 1:
        raise UsageError(f"k must be 1 or more, not {k!r}")
    return number


def _limit(name: str, value: object) -> int:
    number = _ALL if value is None else _whole_or(value, -1)
    if number < 0:
        raise UsageError(f"{name} is a whole number of 0 or more, or None for all, not {value!r}")
    return number


def _whole_or(value: object, instead: int) -> int:
    try:
        return whole(value)
    except TypeError:
        return instead
