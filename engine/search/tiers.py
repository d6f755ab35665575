"""The tiers of a lookup, and which of them it searches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.errors import UsageError
from engine.storage.session import Session

IDENTICAL, NEAR, SIMILAR = "identical", "near", "similar"
TIERS = (IDENTICAL, NEAR, SIMILAR)


def tier_names(wanted: Iterable[str] | None) -> tuple[str, ...] | None:
    """A caller's tiers as a tuple; ``UsageError`` if they are not a list."""
    if isinstance(wanted, str) or not (wanted is None or isinstance(wanted, Iterable)):
        raise UsageError(f"tiers is a list of {', '.join(TIERS)}, not {wanted!r}")
    return None if wanted is None else tuple(wanted)


def searched_tiers(store: Session, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The tiers to search, strictest first: the wanted ones, or all that the store has.

    ``UsageError`` for an unknown tier, or one that the store lacks.
    """
    has = TIERS if store.snapshot.space.exists else (IDENTICAL, NEAR)
    if wanted is None:
        return has
    for tier in wanted:
        if tier not in TIERS:
            raise UsageError(f"there is no tier {tier!r}: choose among {', '.join(TIERS)}")
        if tier not in has:
            raise UsageError(
                f'{store.path} has no {tier} tier: it was filled with encoder="none", and images '
                f"get vectors when they are first ingested: make another store"
            )
    return tuple(tier for tier in TIERS if tier in wanted)
