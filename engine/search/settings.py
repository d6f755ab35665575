"""The settings of a lookup: which tiers, how many images of each, and how far they may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from engine.config import DEFAULT_K, DEFAULT_MAX_DISTANCE, DEFAULT_NEAR_LIMIT, SOURCES_SHOWN, whole
from engine.errors import UsageError, shortened
from engine.images.fingerprint import FINGERPRINT_BITS
from engine.index.operating_point import check_recall
from engine.search.tiers import SIMILAR, tier_names

_ALL = 1 << 62  # more than any store can have


@dataclass(frozen=True, slots=True)
class LookupSettings:
    """The settings of a lookup. ``of`` makes them from a caller's arguments.

    ``tiers`` is None for all tiers that the store has. ``recall`` is None for the store's own.
    """

    k: int = DEFAULT_K
    tiers: tuple[str, ...] | None = None
    min_score: float | None = None
    min_percentile: float | None = None  # percent of random pairs that are less alike
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
        min_score: float | str | None,
        max_distance: int,
        near_limit: int | None,
        max_sources: int | None,
        recall: float | None,
    ) -> Self:
        """Check the arguments and make settings; ``UsageError`` if one is invalid. None is no limit.

        ``Lookup`` checks ``min_score``, since its range depends on the store.
        """
        distance = _whole_or(max_distance, -1)
        if not 0 <= distance <= FINGERPRINT_BITS:
            raise UsageError(
                f"max_distance= is a number of bits, 0 to {FINGERPRINT_BITS}, not {max_distance!r}"
            )
        names = tier_names(tiers)
        if names is not None and SIMILAR not in names:
            for name, value in (("recall=", recall), ("min_score=", min_score)):
                if value is not None:
                    raise UsageError(
                        f"{name} is of the similar tier, which is not searched: leave it out"
                    )
        percentile = _percent(min_score) if isinstance(min_score, str) else None
        return cls(
            check_k(k),
            names,
            None if isinstance(min_score, str) else min_score,
            percentile,
            distance,
            _limit("near_limit=", near_limit),
            _limit("max_sources=", max_sources),
            check_recall(recall) if recall is not None else None,
        )


def check_k(k: object) -> int:
    """The number of hits; ``UsageError`` if ``k`` is not a whole number of 1 or more."""
    number = _whole_or(k, 0)
    if number < 1:
        raise UsageError(f"k must be 1 or more, not {k!r}")
    return number


def _percent(text: str) -> float:
    """The number in "95%"; ``UsageError`` unless it is above 0 and below 100."""
    number = text.strip().removesuffix("%")
    try:
        value = float(number) if text.strip().endswith("%") else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value < 100:
        raise UsageError(
            f"min_score= is a number, or a percentage of random pairs such as 99%, above 0 and below "
            f"100, not {shortened(text)}"
        )
    return value


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
