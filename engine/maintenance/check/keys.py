"""Checks the files of RocksDB, the copy of the manifest in the keys, and the mark of a rescue."""

from __future__ import annotations

from engine.maintenance.check.findings import Findings
from engine.storage import manifest
from engine.storage.commit_evidence import MARK
from engine.storage.manifest import DamagedManifestError
from engine.storage.rocks import files
from engine.storage.rocks.database import FOLDER
from engine.storage.session import Session


class KeysCheck:
    """The check of the keys as files, and of the copies in them."""

    def __init__(self, store: Session, findings: Findings) -> None:
        self._store = store
        self._findings = findings

    def files(self) -> None:
        """Check every block of every live table, and the files that name the tables."""
        folder = self._store.path / FOLDER
        for found in files.problems(folder):
            self._findings.report("keys", f"{found.name}: {found.what}")
            self._findings.damage.tables = True
        self._findings.bytes_read += files.table_bytes(folder)

    def copies(self) -> None:
        """Check the copy of the manifest, and that no rescue is unfinished."""
        store, meta = self._store, self._store.snapshot.tables.meta
        copy = meta.manifest()
        if copy is not None:
            try:
                named = manifest.parse(store.path, copy)
            except DamagedManifestError:
                self._findings.report("keys", "the copy of the manifest cannot be read")
            else:
                if (named.uuid, named.settings) != (
                    store.snapshot.manifest.uuid,
                    store.snapshot.manifest.settings,
                ):
                    self._findings.report("keys", "the copy of the manifest is another store's")
        if meta.get(MARK) is not None:
            what = "rows are lost, and the remaining ones do not agree yet"
            self._findings.report("keys", what)
