"""Rebuilds the keys from every readable row, if RocksDB cannot open them or has lost some.

It reads all tables and logs block by block, and writes the newest version of each row to a new database
beside the old one. One rename puts the new one in place; the old one is kept. It does not know which
rows are lost: a row of ``meta`` marks the keys until ``engine.maintenance.reconcile`` has made them
agree.

    keys.mended    the new database; it gets this name only when it is complete
    damaged        the old one; ``damaged-2`` … if that name is taken

If the process is killed between the two renames, there is no ``keys``; ``finish`` continues from there.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engine.config import MemoryBudget
from engine.errors import StoreDamagedError, StoreError
from engine.storage import commit_evidence, file_names, manifest, nofollow, staging
from engine.storage.ballast import is_full
from engine.storage.commit_evidence import MARK
from engine.storage.disk import disk
from engine.storage.durable import cannot_read, fsync_dir, fsync_file, is_in_the_way
from engine.storage.manifest import DamagedManifestError, Manifest
from engine.storage.rocks import database, files, opening
from engine.storage.rocks.blocks import PUT, RowVersion, varint
from engine.storage.rocks.database import Keys
from engine.storage.rocks.folder import require_files
from engine.storage.rocks.log import Records, Versions, batch_rows, versions
from engine.storage.rocks.sst import TableFile
from engine.storage.rows import TABLES

MENDED = file_names.MENDED
ASIDE = "damaged"
_BATCH_ROWS = 4096
_BATCH_BYTES = 4 << 20
_log = logging.getLogger("engine.storage")


@dataclass(slots=True)
class Rescued:
    """The result of a rebuild."""

    aside: Path
    commit: int  # the last one that the keys now have
    problems: list[str] = field(default_factory=list)  # what could not be read


def finish(store: Path) -> bool:
    """Finish a rebuild that was killed; return whether the new database is now in place.

    Raises ``StoreError`` if foreign files are in the way of another rebuild.
    """
    mended, folder = store / MENDED, store / database.FOLDER
    if not mended.is_dir() or mended.is_symlink():
        return False
    if folder.exists() or folder.is_symlink():
        # A writer may have continued with the old keys since, so the new ones are discarded.
        nofollow.discard(store, MENDED, file_names.ROCKSDB)
        if mended.exists():
            raise StoreError(
                f"{mended} holds files that are not the engine's: move it away, and run "
                f"'engine check --fix' again"
            )
        return False
    disk().rename(mended, folder)
    fsync_dir(store)
    return True


def rescue(store: Path, memory: MemoryBudget, told: int, *, everything: bool = False) -> Rescued:
    """Replace the keys by a new database with every readable row.

    ``everything``: also read tables that the MANIFEST does not name, since it may have been cut short.
    ``told`` is the commit that COMMIT names. Raises ``StoreDamagedError`` if nothing can be read.
    """
    folder = store / database.FOLDER
    reading = _Reading(folder, everything=everything)
    try:
        with staging.locked(store, database.FOLDER) as made:
            with contextlib.closing(opening.create(made, memory)) as table:
                if not reading.copy(table):
                    raise StoreDamagedError(
                        f"{folder} holds no table and no log that can be read: restore the store "
                        f"from a copy"
                    )
                commit = _complete(table, store, told, reading.lost)
                table.settle()
            _sync(made)
            place = _free_name(store)
            older = [path for path in _names(store) if (path / files.CURRENT).exists()]
            disk().rename(made / database.FOLDER, store / MENDED)
            fsync_dir(store)
        disk().rename(folder, place)
        disk().rename(store / MENDED, folder)
        fsync_dir(store)
    except (OSError, StoreError) as error:
        if isinstance(error, StoreError) and not is_full(error):
            raise
        what = error.strerror if isinstance(error, OSError) else None
        todo = "make room for a second copy of them, and " if is_full(error) else ""
        raise StoreError(
            f"the keys of {store} could not be built again: {what or error}; {todo}run "
            f"'engine check --fix' again"
        ) from None
    finally:
        reading.close()
    # One damaged database is kept, not one for each repair.
    for path in older:
        nofollow.discard(store, path.name, file_names.ROCKSDB)
    _log.info(
        "built the keys of %s again, up to commit %d; the damaged ones are in %s",
        store,
        commit,
        place,
    )
    return Rescued(place, commit, reading.problems)


class _Reading:
    """The readable rows of a damaged database, the newest version of each."""

    def __init__(self, folder: Path, *, everything: bool) -> None:
        self.problems: list[str] = []
        self.lost = False  # whether rows may be missing
        self._named, whole = _versions(folder)
        self._tables: dict[bytes, list[tuple[str, TableFile]]] = {}
        self._count = 0
        on_disk = files.numbered(folder, "sst")
        if whole and not everything:
            gone = [n for n in sorted(self._named.live) if n not in on_disk]
            self.problems += [f"{number:06d}.sst is gone" for number in gone]
            self.lost = bool(gone)
            on_disk = {n: path for n, path in on_disk.items() if n in self._named.live}
        for number, path in on_disk.items():
            self._open(number, path)
        self._logs = files.numbered(folder, "log")
        self._trust_logs = whole and not everything

    def _open(self, number: int, path: Path) -> None:
        try:
            table = TableFile(path)
        except OSError as error:
            if is_in_the_way(error):
                self.close()
                raise cannot_read(path, error) from None
            self.problems.append(f"{path.name} cannot be read: {error.strerror}")
            self.lost = True
            return
        families = self._named.families
        family = table.family or families.get(self._named.live.get(number, -1))
        number_of = table.properties.get(b"rocksdb.column.family.id")
        if number_of and table.family is not None:
            with contextlib.suppress(ValueError, IndexError):
                families.setdefault(varint(number_of, 0)[0], table.family)
        if family is None:
            self.problems.append(f"{path.name}: the name of its table is lost")
            self.lost = True
            table.close()
            return
        self._tables.setdefault(family, []).append((path.name, table))

    def close(self) -> None:
        for tables in self._tables.values():
            for _, table in tables:
                table.close()

    def copy(self, table: Keys) -> int:
        """Write all rows to ``table``; return how many there were."""
        logged = self._logged()
        for name in TABLES:
            family = name.encode()
            mine = self._tables.get(family, [])
            streams: list[Iterator[RowVersion]] = [found.rows() for _, found in mine]
            streams.append(iter(logged.get(family, [])))
            self._write(table, name, heapq.merge(*streams, key=_order))
            for file, found in mine:
                self.problems += [f"{file} ({name}): {what}" for what in found.problems]
                self.lost |= found.lost > 0
        return self._count

    def _write(self, table: Keys, name: str, rows: Iterator[RowVersion]) -> None:
        last: bytes | None = None
        batch, count, size = table.batch(), 0, 0
        for row in rows:
            if row.key == last:
                # An older version of the same row.
                continue
            last = row.key
            if row.kind != PUT:
                continue
            batch.put(name, row.key, row.value)
            count += 1
            size += len(row.key) + len(row.value)
            if count >= _BATCH_ROWS or size >= _BATCH_BYTES:
                table.commit(batch)
                self._count += count
                batch, count, size = table.batch(), 0, 0
        if count:
            table.commit(batch)
            self._count += count

    def _logged(self) -> dict[bytes, list[RowVersion]]:
        """Return the rows in the write-ahead logs, by table and in order. They fit in memory."""
        found: dict[bytes, list[RowVersion]] = {}
        ids = dict(self._named.families)
        for number, path in self._logs.items():
            records = Records(path)
            try:
                for record in records:
                    for family, row in batch_rows(record):
                        name = ids.get(family)
                        if name is None or (
                            self._trust_logs and number < self._named.logs.get(family, 0)
                        ):
                            continue
                        found.setdefault(name, []).append(row)
            except (ValueError, IndexError):
                records.damaged = True
            except OSError as error:
                if is_in_the_way(error):
                    raise cannot_read(path, error) from None
                self.problems.append(f"{path.name} cannot be read: {error.strerror}")
                self.lost = True
            if records.damaged:
                self.problems.append(f"{path.name}: a record is lost")
                self.lost = True
        for rows in found.values():
            rows.sort(key=_order)
        return found


def _versions(folder: Path) -> tuple[Versions, bool]:
    """Return the readable content of the MANIFEST, and whether it is complete."""
    path = files.current(folder) or files.newest(folder)
    if path is not None:
        with contextlib.suppress(OSError):
            found = versions(path)
            return found, found.whole and not found.torn
    found = Versions()
    for older in sorted(folder.glob("MANIFEST-*")):
        with contextlib.suppress(OSError):
            found.families.update(versions(older).families)
    return found, False


def _order(row: RowVersion) -> tuple[bytes, int]:
    return row.key, -row.sequence


def _complete(table: Keys, store: Path, told: int, lost: bool) -> int:
    """Add the rows that opening requires, and the mark of a repair; return the last commit."""
    copy = table.get("meta", b"manifest")
    named = _manifest(store, copy)
    before = table.get("meta", b"state")
    state = commit_evidence.state_of(table, store, named, told)
    batch = table.batch()
    batch.put("meta", b"settings", json.dumps(named.settings.to_dict()).encode())
    batch.put("meta", b"state", state.pack())
    batch.put("meta", b"manifest", named.dump())
    if lost or commit_evidence.read_state(before) != state:
        batch.put("meta", MARK, json.dumps({"lost": lost}).encode())
    table.commit(batch)
    return state.commit


def _manifest(store: Path, copy: bytes | None) -> Manifest:
    try:
        return manifest.load(store, writing=True)
    except DamagedManifestError:
        if copy is None:
            raise StoreDamagedError(
                f"{store}: its {manifest.NAME} and the copy of it among the keys are lost: restore "
                f"the store from a copy"
            ) from None
        return manifest.parse(store, copy, writing=True)


def _sync(made: Path) -> None:
    for name in require_files(made):
        fsync_file(made, f"{database.FOLDER}/{name}")
    fsync_dir(made / database.FOLDER)
    fsync_dir(made)


def _names(store: Path) -> list[Path]:
    """Return the folders of damaged databases that were kept before."""
    return [path for path in (_name(store, n) for n in range(1, 100)) if path.is_dir()]


def _name(store: Path, number: int) -> Path:
    return store / (ASIDE if number == 1 else f"{ASIDE}-{number}")


def _free_name(store: Path) -> Path:
    number = 1
    while os.path.lexists(_name(store, number)):
        number += 1
    return _name(store, number)
