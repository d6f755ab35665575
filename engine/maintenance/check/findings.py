"""Collects the findings of a check: problems to report, damage to mend, bytes read."""

from __future__ import annotations

from engine.maintenance.check.damage import Damage
from engine.records import Problem

# A store with more problems than this is restored from a copy; nobody reads its list.
_MAX_PROBLEMS = 1000


class Findings:
    """The findings of one check so far."""

    def __init__(self, commit: int) -> None:
        """``commit`` is the commit that is checked."""
        self.damage = Damage(commit)
        self.problems: list[Problem] = []
        self.bytes_read = 0

    def report(self, part: str, what: str) -> None:
        """Report a problem of one part of the store.

        ``what`` may be an error's text, whose advice to run a check is left out.
        """
        what = what.removesuffix("; run 'engine check'")
        self.damage.rows |= part == "keys"
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(Problem(part, what))
