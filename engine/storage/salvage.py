"""Makes a store that cannot be opened openable again, with as little loss as its damage allows.

manifest   gone or unreadable: made anew from the copy that the keys have. Extents that it names are
           all that are committed; segments are derived, and dropped.
log        RocksDB's write-ahead log has a flipped byte: it is replayed up to there, and what was
           committed behind it is lost. The damaged files are set aside first.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from engine.config import MemoryBudget
from engine.errors import StoreDamagedError
from engine.records import Problem
from engine.storage import keys, manifest
from engine.storage.files import fsync_dir
from engine.storage.lock import WriterLock
from engine.storage.state import State

ASIDE = "damaged"


def salvage(store: Path, memory: MemoryBudget) -> list[Problem]:
    """Mend what keeps ``store`` from being opened; returns what it was, or nothing.

    Raises ``StoreDamagedError`` where nothing helps but a copy, ``StoreLockedError`` where another
    process is writing, ``StoreFormatError`` where there is no store.
    """
    if not (store / keys.FOLDER / "CURRENT").is_file():
        manifest.load(store)  # says what it is instead
        raise StoreDamagedError(
            f"{store / keys.FOLDER} is not whole (no CURRENT): restore the store from a copy"
        )
    lock = WriterLock(store)
    lock.acquire()
    try:
        return [*_log(store, memory), *_manifest(store, memory)]
    finally:
        lock.release()


def _log(store: Path, memory: MemoryBudget) -> list[Problem]:
    try:
        keys.open_writer(store, memory).close()
    except StoreDamagedError as error:
        folder = store / keys.FOLDER
        aside = store / ASIDE
        aside.mkdir(exist_ok=True)
        for log in sorted(folder.glob("*.log")):
            shutil.copy2(log, aside / log.name)
        fsync_dir(store)
        try:
            table = keys.open_writer(store, memory, salvage=True)
        except StoreDamagedError:  # not the log: a table, which no replay brings back
            shutil.rmtree(aside)
            raise error from None
        last = State.unpack(table.get("meta", b"state") or b"{}").commit
        table.close()
        what = (
            f"the write-ahead log was damaged: what was committed after commit {last} is lost; "
            f"ingest the same sources again (the log is in {aside})"
        )
        return [Problem("keys", what, fixed=True)]
    return []


def _manifest(store: Path, memory: MemoryBudget) -> list[Problem]:
    try:
        manifest.load(store)
    except manifest.DamagedManifestError as error:
        table = keys.open_writer(store, memory)
        copy = table.get("meta", b"manifest")
        table.close()
        if copy is None:
            raise
        replace(manifest.parse(store, copy), segments=()).save(store)
        return [Problem(manifest.NAME, f"it was made anew: {error}", fixed=True)]
    return []
