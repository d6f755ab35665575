"""The losses of a repair, and the damage that it could not mend, as problems to report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from engine.records import Problem

_MAX_NAMED = 100  # ranges of images in one line


class Outcome:
    """The problems of one repair."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def set_aside(self, part: str, what: str) -> None:
        """Report a loss; the store is whole without it."""
        self.problems.append(Problem(part, what, fixed=True))

    def not_mended(self, part: str, error: Exception) -> None:
        """Report a part that stays damaged."""
        self.problems.append(Problem(part, f"it cannot be mended: {error}"))

    def add(self, problems: Iterable[Problem]) -> None:
        """Report the problems of another step."""
        self.problems += problems


def named(ids: Sequence[int]) -> str:
    """Ids as a phrase: "image 3", or "images 3, 7 to 9 and 12 more"."""
    if len(ids) == 1:
        return f"image {ids[0]}"
    ordered = np.unique(np.array(ids, np.int64))
    ranges = np.split(ordered, np.flatnonzero(np.diff(ordered) > 1) + 1)
    shown = [f"{r[0]} to {r[-1]}" if len(r) > 1 else f"{r[0]}" for r in ranges[:_MAX_NAMED]]
    more = sum(len(r) for r in ranges[_MAX_NAMED:])
    return f"images {', '.join(shown)}" + (f" and {more} more" if more else "")
