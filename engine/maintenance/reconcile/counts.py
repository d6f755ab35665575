"""Counts images, sources and dead bytes again, and makes lost records of commits again."""

from __future__ import annotations

from collections import Counter

import numpy as np

from engine.maintenance.reconcile.survey import Survey
from engine.storage import tombstones, unrecorded_commits
from engine.storage.commit_evidence import MARK
from engine.storage.extents import PIXELS
from engine.storage.image_rows import ImageRows
from engine.storage.live_ids import sources_in
from engine.storage.runs import Run
from engine.storage.session import Session
from engine.storage.table import RowChange, in_batches


def commit_counts(store: Session, survey: Survey) -> None:
    """Commit the right counts; the same commit removes the mark of a rescue."""
    state, tables = store.snapshot.state.next(), store.snapshot.tables
    missing = survey.every().without(survey.there)
    rows: list[RowChange] = []
    rows += [tables.removed.change(key, None) for key, _ in tables.removed.scan()]
    rows += [tables.removed.change(*row) for row in tombstones.rows_of(missing)]
    state.images, state.removed = len(survey.there), len(missing)
    runs = (Run.from_row(*row) for row in tables.runs.scan_by_row())
    state.sources = sum(sources_in(store.snapshot.keys, run) for run in runs)
    state.sources += tables.names.count()
    state.dead = _dead(store)
    appends = unrecorded_commits.mended(store.snapshot, state.commit)
    rows += [tables.commits.change(key, found) for key, found in appends]
    numbers = [int.from_bytes(key, "big") for key, found in appends if found is not None]
    state.commit = max([state.commit, *numbers])
    rows += [tables.meta.drop_source_count(id_) for id_, _ in tables.meta.source_counts()]
    rows.append(tables.meta.change(tables.meta.MANIFEST, store.snapshot.manifest.dump()))
    rows.append(tables.meta.change(MARK, None))
    store.writer.put_rows(rows, state)


def _dead(store: Session) -> dict[str, int]:
    """The kept bytes that belong to no image, by the number of their extent."""
    live: Counter[int] = Counter()
    for batch in in_batches(store.snapshot.tables.images.scan()):
        found = ImageRows.unpack([value for _, value in batch])
        for number in np.unique(found.extents[found.kept]).tolist():
            mine = found.kept & (found.extents == number)
            live[number] += int(found.lengths[mine].sum())
    committed = store.snapshot.state.extents.get(PIXELS.name, [])
    return {str(n): size - live[n] for n, size in committed if size > live[n]}
