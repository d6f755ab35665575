"""Checks the files of RocksDB, and the copies of the manifest and of marks that the keys hold."""

from __future__ import annotations

from engine.maintenance.check.findings import Findings
from engine.storage import manifest
from engine.storage.commit_evidence import MARK
from engine.storage.manifest import DamagedManifestError
from engine.storage.rocks import files
from engine.storage.rocks.database import FOLDER
from engine.storage.writer import StoreFiles


class KeysCheck:
    """The keys as files, and what they have a copy of."""

    def __init__(self, store: StoreFiles, findings: Findings) -> None:
        self._store = store
        self._findings = findings

    def files(self) -> None:
        """Whether every block of every live table is whole, and what names them."""
        folder = self._store.path / FOLDER
        for found in files.problems(folder):
            self._findings.report("keys", f"{found.name}: {found.what}")
            self._findings.damage.tables = True
        self._findings.bytes_read += files.table_bytes(folder)

    def copies(self) -> None:
        """Whether the copy of the manifest among the keys can be read, and no repair is unfinished."""
        store, meta = self._store, self._store.tables.meta
        copy = meta.manifest()
        if copy is not None:
            try:
                named = manifest.parse(store.path, copy)
            except DamagedManifestError:
                self._findings.report("keys", "the copy of the manifest cannot be read")
            else:
                if (named.uuid, named.settings) != (store.manifest.uuid, store.manifest.settings):
                    self._findings.report("keys", "the copy of the manifest is another store's")
        if meta.get(MARK) is not None:
            what = "rows of them are lost, and what is left does not agree yet"
            self._findings.report("keys", what)
