"""Reconciles ``runs``: each is found by row and by id, has existing images and a named array."""

from __future__ import annotations

from engine.maintenance.reconcile.changes import Changes
from engine.maintenance.reconcile.single_sources import SingleSources
from engine.maintenance.reconcile.survey import BAD_ROW, Survey
from engine.storage.runs import Run
from engine.storage.session import Session
from engine.storage.table import in_batches

_BATCH = 1000  # images marked at a time


class RunsReconciler:
    """Reconciles the rows of arrays in which images were seen."""

    def __init__(
        self, store: Session, survey: Survey, changes: Changes, single: SingleSources
    ) -> None:
        self._runs = store.snapshot.tables.runs
        self._arrays = store.snapshot.tables.arrays
        self._survey = survey
        self._changes = changes
        self._single = single
        self._has_name: dict[int, bool] = {}  # by the number of an array

    def run(self) -> None:
        """Drop invalid runs, and put the missing one of a run's two rows."""
        self._by_row()
        self._by_id()

    def _by_row(self) -> None:
        runs, changes = self._runs, self._changes
        for batch in in_batches(runs.scan_by_row()):
            for key, value in batch:
                run = _run_by_row(key, value)
                if run is None or not self._is_run(run):
                    changes.add(runs.change(key, None))
                    if run is not None:
                        changes.add(runs.change(run.by_id[0], None))
                    self._survey.changed = True
                elif runs.get(run.by_id[0]) != run.by_id[1]:
                    changes.add(runs.change(*run.by_id))
                    self._survey.changed = True
        changes.flush()

    def _by_id(self) -> None:
        runs, changes = self._runs, self._changes
        alone = []
        for key, value in runs.scan_by_id():
            run = _run_by_id(key, value)
            twin = runs.get(run.by_row[0]) if run is not None else None
            if run is not None and twin is None and self._is_run(run):
                changes.add(runs.change(*run.by_row))
                self._survey.changed = True
            elif run is None or twin != run.by_row[1]:
                changes.add(runs.change(key, None))
                self._survey.changed = True
                continue
            if not run.several:
                alone.append(run.id)
            if len(alone) >= _BATCH:
                self._single.mark(alone)
                alone = []
        self._single.mark(alone)
        changes.flush()

    def _is_run(self, run: Run) -> bool:
        if run.array not in self._has_name:
            self._has_name[run.array] = self._arrays.name_of(run.array) is not None
        images = run.count if run.step else 1
        whole = run.count > 0 and run.id > 0 and run.id + images <= self._survey.size
        return self._has_name[run.array] and whole and self._survey.has_any(run.id, images)


def _run_by_row(key: bytes, value: bytes) -> Run | None:
    """The run of a row; None if it is invalid, or lies under a wrong key."""
    try:
        run = Run.from_row(key, value)
        return run if run.by_row[0] == key else None
    except BAD_ROW:
        return None


def _run_by_id(key: bytes, value: bytes) -> Run | None:
    try:
        run = Run.from_id(key, value)
        return run if run.by_id[0] == key else None
    except BAD_ROW:
        return None
