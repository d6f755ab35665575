"""Makes a store that cannot be opened openable again, with as little loss as its damage allows.

manifest   gone or unreadable: made again from the copy in the keys. That copy names all committed
           extents; segments are derived from the vectors, and dropped.
CURRENT    gone or damaged: made again, to name the newest MANIFEST.
log        RocksDB's write-ahead log has a flipped byte: it is replayed up to that byte, and later
           commits are lost.
tables     some table or RocksDB's MANIFEST is damaged, or the keys end before the last commit that
           was made: the keys are built again from all rows that can be read
           (engine.storage.rocks.rebuild).

Before a step that loses rows for good, the files that may still have them are set aside.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from engine.config import MemoryBudget
from engine.errors import StoreDamagedError, StoreFormatError
from engine.records import Problem
from engine.storage import commit_evidence, file_names, manifest, nofollow
from engine.storage.commit_file import Notice, commit_of
from engine.storage.disk import disk
from engine.storage.durable import fsync_dir, replace_file, write_new
from engine.storage.lock import WriterLock
from engine.storage.manifest import DamagedManifestError
from engine.storage.rocks import database, files, open_reader, opening, rebuild
from engine.storage.rocks.database import Keys
from engine.storage.rocks.folder import require_files
from engine.storage.state import State, settings_in
from engine.storage.tables import Tables

_PIECE = 1 << 20  # bytes
_NAMED = 5  # problems listed in a message
_log = logging.getLogger("engine.maintenance")


def salvage(store: Path, memory: MemoryBudget, wait: float = 0.0) -> list[Problem]:
    """Mend what keeps ``store`` from being opened; returns the mended problems.

    Raises ``StoreDamagedError`` if the store can only be restored from a copy, ``StoreLockedError`` if
    another process is still writing after ``wait`` seconds, ``StoreFormatError`` if ``store`` is not a
    store, or was made by a newer engine.
    """
    damaged: DamagedManifestError | None = None
    try:
        # Before anything is changed: this may not be a store.
        manifest.load(store, writing=True)
    except DamagedManifestError as error:
        damaged = error
    folder = store / database.FOLDER
    nofollow.require_kinds(store, file_names.FILES, file_names.FOLDERS)
    if not (folder.is_dir() or (store / rebuild.MENDED).is_dir()):
        if damaged is not None:
            raise StoreFormatError(f"{store} is not a store: it has no {database.FOLDER}") from None
        raise StoreDamagedError(f"{folder} is gone: restore the store from a copy")
    held, notice = WriterLock(store), Notice(store)
    try:
        held.acquire(wait)
        problems = _keys(store, memory, commit_of(notice.read()))
        if damaged is not None:
            problems.append(_manifest(store, memory, damaged))
        if problems:
            with closing(open_reader.open_reader(store, memory)) as table:
                notice.publish(_state(table).commit)
        for problem in problems:
            _log.info("salvaged %s: %s: %s", store, problem.part, problem.what)
        return problems
    finally:
        notice.close()
        held.release()


def _keys(store: Path, memory: MemoryBudget, published: int) -> list[Problem]:
    folder, problems = store / database.FOLDER, []
    if rebuild.finish(store):
        what = "an interrupted rebuild of the keys was finished"
        problems.append(Problem(database.FOLDER, what, fixed=True))
    files.require_readable(folder)
    if files.current(folder) is None and (newest := files.newest(folder)) is not None:
        replace_file(folder / files.CURRENT, f"{newest.name}\n".encode())
        what = f"CURRENT was damaged or gone: it names {newest.name} again"
        problems.append(Problem(database.FOLDER, what, fixed=True))
    if files.current(folder) is None or files.problems(folder):
        return [*problems, _rescue(store, memory, published)]
    try:
        # A reader changes no files.
        table = open_reader.open_reader(store, memory)
    except StoreDamagedError:
        return [*problems, _replay_log(store, memory, published)]
    with closing(table):
        meta = Tables(table).meta
        state = commit_evidence.read_state(meta.state())
        whole = state is not None and _are_settings(meta.settings())
    if state is not None and whole and state.commit >= published:
        return problems
    # RocksDB's MANIFEST may have been cut short, and so not name all tables.
    return [*problems, _rescue(store, memory, published, everything=True)]


def _are_settings(value: bytes | None) -> bool:
    try:
        return value is not None and settings_in(value) is not None
    except StoreDamagedError:
        return False


def _rescue(
    store: Path, memory: MemoryBudget, published: int, *, everything: bool = False
) -> Problem:
    done = rebuild.rescue(store, memory, published, everything=everything)
    if done.commit < published:
        what = f"the keys end before commit {published}, which was made"
        return _lost(what, done.commit, done.aside)
    found = "; ".join(done.problems[:_NAMED]) or "RocksDB's MANIFEST was damaged"
    more = f"; and {len(done.problems) - _NAMED} more" if len(done.problems) > _NAMED else ""
    what = f"they were built again from the rows that can be read: {found}{more}"
    return Problem(database.FOLDER, f"{what} (the damaged ones are in {done.aside})", fixed=True)


def _replay_log(store: Path, memory: MemoryBudget, published: int) -> Problem:
    logs = [name for name in require_files(store) if name.endswith(".log")]
    aside = _set_aside(store, logs)
    try:
        table = opening.open_writer(store, memory, salvage=True)
    except StoreDamagedError:
        # More than the log is damaged, or some tables are ahead of it.
        nofollow.discard(store, aside.name, file_names.ROCKSDB)
        return _rescue(store, memory, published)
    with closing(table):
        last = _state(table).commit
    return _lost("the write-ahead log was damaged", last, aside)


def _lost(what: str, last: int, aside: Path) -> Problem:
    after = f"{what}: every commit after commit {last} is lost"
    where = f"ingest the same sources again (the old files of the keys are in {aside})"
    return Problem(database.FOLDER, f"{after}; {where}", fixed=True)


def _set_aside(store: Path, files: Iterable[str]) -> Path:
    """Copy files of the keys into a new folder, durably; link those that never change."""
    aside, number = store / rebuild.ASIDE, 1
    while os.path.lexists(aside):
        number += 1
        aside = store / f"{rebuild.ASIDE}-{number}"
    nofollow.make_folder(store, aside.name)
    for name in sorted(files):
        file = f"{database.FOLDER}/{name}"
        if name.endswith(".sst"):
            try:
                disk().link(store / file, aside / name)
                continue
            except OSError:  # this file system has no hard links
                pass
        write_new(aside / name, _pieces(store, file), store)
    fsync_dir(aside)
    fsync_dir(store)
    return aside


def _pieces(store: Path, name: str) -> Iterator[bytes]:
    """The contents of a file, in pieces: a damaged log may be larger than memory."""
    with os.fdopen(nofollow.open_file(store, name), "rb") as file:
        while data := file.read(_PIECE):
            yield data


def _manifest(store: Path, memory: MemoryBudget, error: DamagedManifestError) -> Problem:
    with closing(open_reader.open_reader(store, memory)) as table:
        copy = Tables(table).meta.manifest()
    if copy is None:
        raise StoreDamagedError(
            f"{store / manifest.NAME} is gone or damaged, and the keys have no copy of it, since "
            f"nothing was ever committed: make another store"
        )
    manifest.parse(store, copy, writing=True).with_index(()).save(store)
    what = str(error).partition(";")[0]
    return Problem(manifest.NAME, f"it was made again, without the index: {what}", fixed=True)


def _state(table: Keys) -> State:
    return State.unpack(Tables(table).meta.state() or b"{}")
