"""What a run has counted so far, and how many items are done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from engine.ingest.resume import Resumed


@dataclass(slots=True)
class Counts:
    """The numbers of the report."""

    added: int = 0
    duplicates: int = 0
    unchanged: int = 0
    rejected: int = 0
    skipped: int = 0
    notes: Counter[str] = field(default_factory=Counter)

    @property
    def seen(self) -> int:
        """Images and what claims to be one."""
        return self.added + self.duplicates + self.unchanged + self.rejected


Marks = tuple[Counts, int]


class Tally:
    """The counts of one run. What was counted of a commit that failed can be taken back."""

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        """``progress`` is called with the number of items that are done."""
        self.counts = Counts()
        self._done = 0
        self._progress = progress or (lambda done: None)

    @property
    def begun(self) -> bool:
        """Whether anything of the run is done."""
        return self._done > 0

    def advance(self, count: int) -> None:
        """So many more items are done."""
        self._done += count
        self._progress(self._done)

    def resume(self, found: Resumed[object], left: int) -> None:
        """Count what earlier runs did with a source.

        ``left``: how many more items are done where what is left of it would be rejected again.
        """
        self.counts.unchanged += found.unchanged
        self.counts.rejected += found.rejected
        self.counts.skipped += found.skipped
        self.advance(found.done)
        if found.hopeless:
            self.counts.rejected += 1
            self.advance(left)

    def note(self, notes: Iterable[str]) -> None:
        """Count notes of what was skipped, or taken in only partly."""
        # Not in place: ``marks`` may hold the counter as it is.
        self.counts.notes = self.counts.notes + Counter(notes)

    def marks(self) -> Marks:
        """What is counted by now, to ``go_back`` to."""
        return replace(self.counts), self._done

    def go_back(self, marks: Marks) -> None:
        """Take back what was counted since."""
        counts, self._done = marks
        self.counts = replace(counts)
