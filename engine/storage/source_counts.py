"""Stored source counts of images with many sources, so that a lookup need not count them.

Names of files and runs over one image are counted. Runs over several images are not: a bucket has few of
them, and a reader has them all at once. An image of up to ``COUNTED`` rows has no stored count, because
reading its rows is cheaper. An image without a stored count has all of its rows read, so a missing count
is never wrong.

The counts are valid only while ``meta`` says that the newest commit updated them. An older engine, which
does not know them, commits without saying so; then the next commit of a newer engine drops them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from engine.errors import StoreDamagedError
from engine.storage.runs import ONE, Run
from engine.storage.table import RowChange
from engine.storage.tables import RunsTable, SourcesTable, Tables

# An image with more rows than this gets a stored count; fewer rows are read.
COUNTED = 16
# An image with many rows but no count gets one within this many commits.
_TURNS = 16


class Counted(NamedTuple):
    """The counts of an image: rows of the keys, and sources, of which a run has several."""

    rows: int
    sources: int


def count_sources(tables: Tables, id_: int) -> Counted:
    """Count an image's rows and sources by reading all its rows."""
    rows = sources = sum(1 for _ in tables.sources.names_of(id_))
    for run in tables.runs.of_one(id_):
        rows += 1
        sources += run.count
    return Counted(rows, sources)


def hold(tables: Tables, commit: int) -> bool:
    """Return whether the stored counts are those of ``commit``."""
    return tables.meta.counted() == commit


class SourceCounts:
    """The counts that one transaction changes."""

    def __init__(self, tables: Tables, commit: int, next_id: int) -> None:
        """``commit`` is the newest one, with the state's ``next_id``."""
        self._tables = tables
        self._commit = commit
        self._next_id = next_id
        # The difference for each image.
        self._rows: Counter[int] = Counter()
        self._sources: Counter[int] = Counter()
        # Rows that may exist already.
        self._noted: dict[tuple[str, bytes], bytes | None] = {}

    def add(self, run: Run) -> None:
        """Count a new run."""
        if not run.several:
            self._rows[run.id] += 1
            self._sources[run.id] += run.count

    def note(self, table: str, key: bytes, value: bytes | None) -> None:
        """Note a row that is put or deleted, if it affects the counts."""
        if table == SourcesTable.name or (table == RunsTable.name and key.startswith(ONE)):
            self._noted[table, key] = value

    @property
    def is_empty(self) -> bool:
        """Return whether nothing that affects counts was noted, so that a run put now must be new."""
        return not self._noted

    def changes(self, commit: int) -> Iterator[RowChange]:
        """Yield the rows that update the counts with commit ``commit``."""
        meta = self._tables.meta
        holds = hold(self._tables, self._commit)
        try:
            self._take_noted()
        # A repair replaces a malformed row.
        except StoreDamagedError:
            holds = False
            self._rows.clear()
        if not holds:
            yield from (meta.drop_source_count(id_) for id_, _ in meta.source_counts())
        ids = list(self._rows)
        known = meta.source_counts_of(ids) if holds else [None] * len(ids)
        for id_, before in zip(ids, known, strict=True):
            if before is not None:
                left = before + self._sources[id_]
                yield meta.put_source_count(id_, left) if left > 0 else meta.drop_source_count(id_)
            elif self._is_in_turn(id_):
                there = count_sources(self._tables, id_)
                if there.rows + self._rows[id_] > COUNTED:
                    yield meta.put_source_count(id_, there.sources + self._sources[id_])
        yield meta.put_counted(commit)

    def _is_in_turn(self, id_: int) -> bool:
        """Return whether an image without a count may get one now.

        Counting in each commit would be a waste, since most images turn out to have few rows.
        """
        added = self._rows[id_]
        if added > COUNTED or id_ >= self._next_id:
            return added > COUNTED
        return added > 0 and (id_ + self._commit) % _TURNS == 0

    def _take_noted(self) -> None:
        """Count the noted rows that change what exists."""
        names, runs = self._tables.sources, self._tables.runs
        of_names = [key for table, key in self._noted if table == names.name]
        for key, old in zip(of_names, names.get_many(of_names), strict=True):
            more = (self._noted[names.name, key] is not None) - (old is not None)
            if more:
                id_ = names.parts(key)[0]
                self._rows[id_] += more
                self._sources[id_] += more
        of_runs = [key for table, key in self._noted if table == runs.name]
        for key, old in zip(of_runs, runs.get_many(of_runs), strict=True):
            new = self._noted[runs.name, key]
            for value, sign in ((new, 1), (old, -1)):
                if value is not None:
                    run = Run.from_id(key, value)
                    self._rows[run.id] += sign
                    self._sources[run.id] += sign * run.count
