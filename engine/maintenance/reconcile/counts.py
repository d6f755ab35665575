"""Commits counts that are those of what is there, and records of commits for every committed byte."""

from __future__ import annotations

from collections import Counter

import numpy as np

from engine.maintenance.reconcile.survey import Survey
from engine.storage import tombstones, unrecorded_commits
from engine.storage.commit_evidence import MARK
from engine.storage.extents import PIXELS
from engine.storage.live_ids import sources_in
from engine.storage.rows import ImageRows, Run
from engine.storage.table import RowChange, in_batches
from engine.storage.writer import StoreFiles


def commit_counts(store: StoreFiles, survey: Survey) -> None:
    """Let the state count what is there; the mark of a rescue goes with the same commit."""
    state, tables = store.state.next(), store.tables
    missing = survey.every().without(survey.there)
    rows: list[RowChange] = []
    rows += [tables.removed.change(key, None) for key, _ in tables.removed.scan()]
    rows += [tables.removed.change(*row) for row in tombstones.rows_of(missing)]
    state.images, state.removed = len(survey.there), len(missing)
    runs = (Run.from_row(*row) for row in tables.runs.scan_by_row())
    state.sources = sum(sources_in(store.keys, run) for run in runs)
    state.sources += tables.names.count()
    state.dead = _dead(store)
    appends = unrecorded_commits.mended(store, state.commit)
    rows += [tables.commits.change(key, found) for key, found in appends]
    numbers = [int.from_bytes(key, "big") for key, found in appends if found is not None]
    state.commit = max([state.commit, *numbers])
    rows.append(tables.meta.change(tables.meta.MANIFEST, store.manifest.dump()))
    rows.append(tables.meta.change(MARK, None))
    store.put_rows(rows, state)


def _dead(store: StoreFiles) -> dict[str, int]:
    """The kept bytes that are of no image, by the number of their extent."""
    live: Counter[int] = Counter()
    for batch in in_batches(store.tables.images.scan()):
        found = ImageRows.unpack([value for _, value in batch])
        for number in np.unique(found.extents[found.kept]).tolist():
            mine = found.kept & (found.extents == number)
            live[number] += int(found.lengths[mine].sum())
    committed = store.state.extents.get(PIXELS.name, [])
    return {str(n): size - live[n] for n, size in committed if size > live[n]}
