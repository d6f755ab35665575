"""Collects what the steps of a check find: problems to report, damage to mend, bytes read."""

from __future__ import annotations

from engine.maintenance.check.damage import Damage
from engine.records import Problem

# Listed; a store with more is to be restored, not read about.
_MAX_PROBLEMS = 1000


class Findings:
    """What was found so far."""

    def __init__(self, commit: int) -> None:
        """``commit`` is the one that the store is checked as of."""
        self.damage = Damage(commit)
        self.problems: list[Problem] = []
        self.bytes_read = 0

    def report(self, part: str, what: str) -> None:
        """Report a problem of one part of the store."""
        self.damage.rows |= part == "keys"
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(Problem(part, what))
