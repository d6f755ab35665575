"""Runs a reconciliation, table by table, so that each step leaves the keys no worse than they were.

Each row is held against the others that say the same. What one table lacks is put there from
another, from kept pixels or from a source (``recover_images``); an image that has lost its record or
its key for good goes, and is named. Deletions may have been lost with a row: what ``removed`` has of
an id counts more than a record of it. In the end all counts are those of what is there, and where rows
may be missing that nothing tells of, arrays and archives are read again by the next ingest.

The mark of a rescue goes with the last step: a process that is killed in between leaves what the next
run goes on with.
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
from engine.storage.writer import StoreFiles

_log = logging.getLogger("engine.maintenance")


class Reconcile:
    """One pass over all keys of a store, by its writer."""

    def __init__(self, store: StoreFiles, *, ids_whole: bool = True) -> None:
        """``ids_whole``: whether the ids of vectors are what was committed."""
        self._store = store
        self._ids_whole = ids_whole

    def run(self) -> list[Problem]:
        """Reconcile; what was lost for good."""
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
