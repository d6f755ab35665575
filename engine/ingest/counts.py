"""The counts of a run, and its progress."""

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
    vectors: int = 0  # rows of vectors among the items above
    image_vectors: int = 0  # images that got a vector of the caller's
    notes: Counter[str] = field(default_factory=Counter)

    @property
    def seen(self) -> int:
        """Images, and items that were rejected."""
        return self.added + self.duplicates + self.unchanged + self.rejected


Marks = tuple[Counts, int]


class Tally:
    """The counts of one run. Those of a failed commit can be undone."""

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        """``progress`` is called with the number of finished items."""
        self.counts = Counts()
        self._done = 0
        self._progress = progress or (lambda done: None)

    @property
    def begun(self) -> bool:
        """Whether any item is done."""
        return self._done > 0

    def advance(self, count: int) -> None:
        """Report ``count`` more items as done."""
        self._done += count
        self._progress(self._done)

    def resume(self, found: Resumed[object], left: int) -> None:
        """Count what earlier runs did with a source.

        ``left`` is how many more items are done if the rest of the source would be rejected again.
        """
        self.counts.unchanged += found.unchanged
        self.counts.rejected += found.rejected
        self.counts.skipped += found.skipped
        self.advance(found.done)
        if found.hopeless:
            self.counts.rejected += 1
            self.advance(left)

    def note(self, notes: Iterable[str]) -> None:
        """Count notes about skipped items, and about images ingested without their metadata."""
        # Not in place, since ``marks`` may share the counter.
        self.counts.notes = self.counts.notes + Counter(notes)

    def marks(self) -> Marks:
        """The counts so far, for ``go_back``."""
        return replace(self.counts), self._done

    def go_back(self, marks: Marks) -> None:
        """Restore the counts of ``marks``."""
        counts, self._done = marks
        self.counts = replace(counts)
