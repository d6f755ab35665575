"""Reconciles ``sources``, ``names`` and ``files``: each names an existing image, which names it back."""

from __future__ import annotations

from engine.maintenance.reconcile.changes import Changes
from engine.maintenance.reconcile.single_sources import SingleSources
from engine.maintenance.reconcile.survey import BAD_ROW, Survey
from engine.storage.session import Session
from engine.storage.source_rows import NameRow
from engine.storage.table import in_batches
from engine.storage.tables import UNREAD


class SourcesReconciler:
    """Reconciles the files in which images were seen."""

    def __init__(
        self, store: Session, survey: Survey, changes: Changes, single: SingleSources
    ) -> None:
        self._tables = store.snapshot.tables
        self._survey = survey
        self._changes = changes
        self._single = single

    def sources(self) -> None:
        """Drop sources of images that are not there; make the name of each other source lead to it."""
        sources, names, survey = self._tables.sources, self._tables.names, self._survey
        for batch in in_batches(sources.scan()):
            for key in (key for key, _ in batch if not sources.is_key(key)):
                self._changes.add(sources.change(key, None))
                survey.changed = True
            able = [key for key, _ in batch if sources.is_key(key)]
            values = names.get_many([sources.parts(key)[1] for key in able])
            single = []
            for key, value in zip(able, values, strict=True):
                id_, name = sources.parts(key)
                other = _name_row(value)
                if not survey.has(id_):
                    self._changes.add(sources.change(key, None))
                    survey.changed = True
                    # The method ``names`` counts sources whose name leads to the same image.
                    if not survey.was_removed(id_) and (other is None or other.id != id_):
                        survey.lose_source(name)
                    continue
                if other is not None and other.id != id_ and self._names_back(other.id, name):
                    self._changes.add(sources.change(key, None))
                    survey.changed = True
                    continue
                single.append(id_)
                if other is None or other.id != id_:
                    self._changes.add(names.put(name, NameRow(id_, UNREAD, 0)))
                    survey.changed = True
            self._single.mark(single)
        self._changes.flush()

    def _names_back(self, id_: int, name: bytes) -> bool:
        sources = self._tables.sources
        return self._survey.has(id_) and sources.get(sources.key(id_, name)) is not None

    def names(self) -> None:
        """Drop names of images that are not there; make each other name a source of its image."""
        sources, names, survey = self._tables.sources, self._tables.names, self._survey
        for batch in in_batches(names.scan()):
            rows = [(name, _name_row(value)) for name, value in batch]
            wanted = [sources.key(row.id, name) if row else b"" for name, row in rows]
            found = sources.get_many(wanted)
            for (name, row), source, value in zip(rows, wanted, found, strict=True):
                if row is None or not survey.has(row.id):
                    self._changes.add(names.change(name, None))
                    survey.changed = True
                    if row is not None and not survey.was_removed(row.id):
                        survey.lose_source(name)
                elif value is None:
                    self._changes.add(sources.change(source, b""))
                    survey.changed = True
        self._changes.flush()

    def files(self) -> None:
        """Drop files of images that are not there; make the file of each image lead to it."""
        files = self._tables.files
        for key, value in files.scan():
            if not files.is_value(value) or not self._survey.has(int.from_bytes(value, "big")):
                self._changes.add(files.change(key, None))
        self._changes.flush()
        for batch in in_batches(self._tables.records.files()):
            found = files.get_many([file_hash for _, file_hash in batch])
            for (id_, file_hash), named in zip(batch, found, strict=True):
                if named is None:
                    self._changes.add(files.put(file_hash, id_))
        self._changes.flush()


def _name_row(value: bytes | None) -> NameRow | None:
    try:
        return NameRow.unpack(value) if value is not None else None
    except BAD_ROW:
        return None
