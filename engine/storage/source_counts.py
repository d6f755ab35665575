"""How many sources an image has, kept for those with many, so that a lookup need not count them.

Counted are names of files and runs over one image. Runs over several images are not: a bucket has few,
and whoever reads them has them all at once. An image of up to ``COUNTED`` rows needs no count: to read
them is cheaper. One that has more and no count has all of its rows read, so a missing count is never
wrong.

All counts hold only while ``meta`` says that they were kept with the newest commit. An engine that does
not know them commits without saying so; the next commit of one that does then drops them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from engine.errors import StoreDamagedError
from engine.storage.runs import ONE, Run
from engine.storage.table import RowChange
from engine.storage.tables import RunsTable, SourcesTable, Tables

COUNTED = 16  # rows of an image that are read; of one with more the count is kept
_TURNS = 16  # commits within which an image with many rows and without a count gets one


class Counted(NamedTuple):
    """What an image has: rows of the keys, and sources, of which a run is several."""

    rows: int
    sources: int


def count_sources(tables: Tables, id_: int) -> Counted:
    """Count what an image has, by reading all of it."""
    rows = sources = sum(1 for _ in tables.sources.names_of(id_))
    for run in tables.runs.of_one(id_):
        rows += 1
        sources += run.count
    return Counted(rows, sources)


def hold(tables: Tables, commit: int) -> bool:
    """Whether the counts that are kept are those of a commit."""
    return tables.meta.counted() == commit


class SourceCounts:
    """The counts that one transaction changes."""

    def __init__(self, tables: Tables, commit: int, next_id: int) -> None:
        """``commit`` is the newest one, which had ``next_id``."""
        self._tables = tables
        self._commit = commit
        self._next_id = next_id
        self._rows: Counter[int] = Counter()  # by how many an image has more
        self._sources: Counter[int] = Counter()
        self._noted: dict[tuple[str, bytes], bytes | None] = {}  # rows that may be there already

    def add(self, run: Run) -> None:
        """Count a run that was not there."""
        if not run.several:
            self._rows[run.id] += 1
            self._sources[run.id] += run.count

    def note(self, table: str, key: bytes, value: bytes | None) -> None:
        """Count a row that is put or deleted, if it is one that counts."""
        if table == SourcesTable.name or (table == RunsTable.name and key.startswith(ONE)):
            self._noted[table, key] = value

    @property
    def is_empty(self) -> bool:
        """Whether nothing that counts was noted, so that a run put now was not there."""
        return not self._noted

    def changes(self, commit: int) -> Iterator[RowChange]:
        """The rows that keep the counts with commit ``commit``."""
        meta = self._tables.meta
        holds = hold(self._tables, self._commit)
        try:
            self._take_noted()
        except StoreDamagedError:  # a row that is mended made no sense
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
        """Whether an image without a count may get one now.

        Not each time: of most it would only be found that they have few.
        """
        added = self._rows[id_]
        if added > COUNTED or id_ >= self._next_id:
            return added > COUNTED
        return added > 0 and (id_ + self._commit) % _TURNS == 0

    def _take_noted(self) -> None:
        """Count the rows noted, now that it can be seen which are there."""
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
