"""Checks the sources: files, names and runs name images that exist, and these name them back."""

from __future__ import annotations

import numpy as np

from engine.maintenance.check.findings import Findings
from engine.maintenance.check.known_images import KnownImages
from engine.storage import source_counts
from engine.storage.runs import Run
from engine.storage.session import Session
from engine.storage.source_rows import NameRow
from engine.storage.table import in_batches


class SourcesCheck:
    """The check of the sources of all images."""

    def __init__(self, store: Session, findings: Findings, known: KnownImages) -> None:
        self._store = store
        self._tables = store.snapshot.tables
        self._findings = findings
        self._known = known
        self._sources = 0
        self._names_counted = False

    def files(self) -> None:
        """Check that files name existing images, and that arrays, archives and rejects are readable."""
        for batch in in_batches(self._tables.files.scan()):
            ids = np.array([int.from_bytes(id_, "big") for _, id_ in batch], np.int64)
            # A file that changed after its ingest may still name an image that was removed.
            known = self._known
            removed = self._store.snapshot.state.removed
            there = known.were_given(ids) if removed else known.have_records(ids)
            for id_ in ids[~there]:
                self._findings.report("keys", f"a file names image {id_}, which is not there")
        # No other table repeats these, so they can only be read.
        self._tables.arrays.require_whole()
        self._tables.rejects.require_whole()

    def names(self) -> None:
        """Check that each name has an image that names it back."""
        sources, names = self._tables.sources, self._tables.names
        for batch in in_batches(sources.scan()):
            parts = [sources.parts(key) for key, _ in batch]
            values = names.get_many([name for _, name in parts])
            there = self._known.have_records(np.array([id_ for id_, _ in parts], np.int64)).tolist()
            for (id_, name), is_there, value in zip(parts, there, values, strict=True):
                if not is_there:
                    what = f"the source {name!r} belongs to image {id_}, which is not there"
                    self._findings.report("keys", what)
                elif value is None or NameRow.unpack(value).id != id_:
                    what = f"image {id_} names a source that is not its own: {name!r}"
                    self._findings.report("keys", what)
        for batch in in_batches(names.scan()):
            self._sources += len(batch)
            wanted = [sources.key(NameRow.unpack(value).id, name) for name, value in batch]
            for (name, _), value in zip(batch, sources.get_many(wanted), strict=True):
                if value is None:
                    what = f"the source {name!r} names an image that does not name it"
                    self._findings.report("keys", what)
        self._names_counted = True

    def runs(self) -> None:
        """Check that runs are found by row and by id, and that the count of sources is right."""
        self._by_row()
        self._by_id()
        state = self._store.snapshot.state
        if self._names_counted and self._sources != state.sources:
            what = f"{state.sources} sources are committed, {self._sources} are there"
            self._findings.report("keys", what)
        self._counts()

    def _counts(self) -> None:
        if not source_counts.hold(self._tables, self._store.snapshot.state.commit):
            return
        for id_, count in self._tables.meta.source_counts():
            there = source_counts.count_sources(self._tables, id_).sources
            if count != there:
                what = f"image {id_} has a count of {count} sources, but {there} are there"
                self._findings.report("keys", what)

    def _by_row(self) -> None:
        state = self._store.snapshot.state
        for batch in in_batches(self._tables.runs.scan_by_row()):
            runs = [Run.from_row(key, value) for key, value in batch]
            twins = self._tables.runs.get_many([run.by_id[0] for run in runs])
            for run, twin in zip(runs, twins, strict=True):
                if twin is None:
                    what = f"rows {run.row} … of array {run.array} are not found by id"
                    self._findings.report("keys", what)
                images = run.count if run.step else 1
                there = int(self._known.have_records(np.arange(run.id, run.id + images)).sum())
                self._sources += there if run.step else run.count
                # A run of several images may still cover removed ones.
                whole = run.id + images <= state.next_id and there
                if not whole or (there < images and not state.removed):
                    what = f"rows of array {run.array} name images that are not there"
                    self._findings.report("keys", what)

    def _by_id(self) -> None:
        for batch in in_batches(self._tables.runs.scan_by_id()):
            runs = [Run.from_id(key, value) for key, value in batch]
            twins = self._tables.runs.get_many([run.by_row[0] for run in runs])
            for run, twin in zip(runs, twins, strict=True):
                if twin != run.by_row[1]:
                    what = f"rows {run.row} … of array {run.array} are found by id only"
                    self._findings.report("keys", what)
