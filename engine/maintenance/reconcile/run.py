"""Runs a reconciliation, table by table, so that each step leaves the keys no worse than before.

Each row is compared with the rows of other tables that repeat it. A missing row is made again from
another table, from kept pixels or from a source (``recover_images``). An image whose record or key is
lost for good goes, and is reported. A deletion may be lost like any row, so a tombstone of an id counts
more than a record of it. In the end everything is counted again. If rows may be missing that no other
table repeats, the next ingest reads arrays and archives again.

The last step removes the mark of a rescue, so a killed run is finished by the next one.
"""

from __future__ import annotations

import logging

from engine.maintenance.reconcile.arrays import reconcile_arrays
from engine.maintenance.reconcile.changes import Changes
from engine.maintenance.reconcile.counts import commit_counts
from engine.maintenance.reconcile.images import ImagesReconciler
from engine.maintenance.reconcile.records import reconcile_records
from engine.maintenance.reconcile.runs import RunsReconciler
from engine.maintenance.reconcile.single_sources import SingleSources
from engine.maintenance.reconcile.sources import SourcesReconciler
from engine.maintenance.reconcile.survey import Survey
from engine.maintenance.reconcile.vectors import reconcile_vectors
from engine.records import Problem
from engine.storage.session import Session

_log = logging.getLogger("engine.maintenance")


class Reconcile:
    """One pass over all keys of a store, by its writer."""

    def __init__(self, store: Session, *, ids_whole: bool = True) -> None:
        """``ids_whole``: whether the ids of vectors are what was committed."""
        self._store = store
        self._ids_whole = ids_whole

    def run(self) -> list[Problem]:
        """Reconcile all tables; returns the losses as problems."""
        store = self._store
        _log.info("reconciling the keys of %s", store.path)
        changes = Changes(store)
        survey = Survey(store, changes)
        images = ImagesReconciler(store, survey, changes)
        single = SingleSources(store, survey, changes)
        sources = SourcesReconciler(store, survey, changes, single)
        reconcile_records(store, survey, changes)
        if self._ids_whole:
            reconcile_vectors(store, survey, changes)
        images.rows()
        images.unkeyed()
        images.strays()
        sources.sources()
        sources.names()
        sources.files()
        RunsReconciler(store, survey, changes, single).run()
        reconcile_arrays(store, survey, changes)
        problems = survey.problems()
        commit_counts(store, survey)
        return problems
