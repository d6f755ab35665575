"""Opens a store's RocksDB, and explains why if it cannot be opened."""

from __future__ import annotations

import errno
import functools
import logging
import os
import threading
from pathlib import Path

from rocksdict import AccessType, Rdict

from engine import address_space
from engine.config import MemoryBudget
from engine.errors import StoreDamagedError, StoreError
from engine.storage import nofollow
from engine.storage.ballast import FULL
from engine.storage.durable import MORE_FILES
from engine.storage.rocks import options, threads
from engine.storage.rocks.database import FOLDER, Keys, one_line
from engine.storage.rocks.folder import (
    InTheWayError,
    has_current,
    require_files,
    require_folder,
    require_readable,
)
from engine.storage.rows import TABLES

CONFIG = "rocksdict-config.json"
_THREADS = 16 + 4  # at most, for opening files, and for flushes and compactions
_MANY_FILES = os.strerror(errno.EMFILE)
_NO_PERMISSION = os.strerror(errno.EACCES)
_log = logging.getLogger("engine.storage")


def create(store: Path, memory: MemoryBudget) -> Keys:
    """Create an empty RocksDB."""
    return open_files(store / FOLDER, memory, AccessType.read_write(), create=True)


def open_writer(
    store: Path, memory: MemoryBudget, *, salvage: bool = False, tight: bool = False
) -> Keys:
    """Open it for writing and replay the write-ahead log; the caller holds the writer's lock.

    ``salvage`` replays a damaged log up to the damage and drops the rest. ``tight``: the disk is full,
    or nearly full.
    """
    require_readable(store / FOLDER)
    require_folder(store)
    if not has_current(store):
        raise StoreDamagedError(f"{store / FOLDER} is incomplete (no CURRENT); run 'engine check'")
    for name in require_files(store):
        # rocksdict would read the first and write to the second. RocksDB and rocksdict make both again.
        if name.startswith("OPTIONS-") or name == CONFIG:
            nofollow.remove(store, f"{FOLDER}/{name}")
        # Tables are never written to again.
        elif not name.endswith(".sst"):
            nofollow.own(store, f"{FOLDER}/{name}")
    keys = open_files(
        store / FOLDER, memory, AccessType.read_write(), create=False, salvage=salvage, tight=tight
    )
    _log.info("opened %s for writing", store)
    return keys


def open_files(
    folder: Path,
    memory: MemoryBudget,
    access: AccessType,
    *,
    create: bool,
    salvage: bool = False,
    tight: bool = False,
    real: Path | None = None,
) -> Keys:
    """Open the files in ``folder``; a reader's are links into the folder ``real``.

    Raises ``StoreDamagedError``, ``InTheWayError``, or ``StoreError`` if the disk is full.
    """
    _require_threads()
    threads.use(to_write=real is None)
    cache = options.block_cache(memory)
    families = {name: options.table_options(name, memory, cache) for name in TABLES}
    files = sum(1 for _ in folder.glob("*.sst"))
    database = options.database_options(memory, files, create, salvage)
    if tight:
        options.limit_for_full_disk(database, families.values())
    try:
        db = Rdict(
            str(folder),
            options=database,
            column_families=families,
            access_type=access,
        )
    except Exception as error:  # rocksdict raises bare Exception
        raise _cause(error, folder, real) from None
    return Keys(db, real or folder, cache)


def _cause(error: Exception, folder: Path, real: Path | None) -> StoreError:
    """Return why the files of a folder could not be opened; ``real`` as in ``open_files``."""
    said = str(error)
    if _MANY_FILES in said:
        return InTheWayError(f"{real or folder} cannot be opened: {_MANY_FILES}; {MORE_FILES}")
    if _NO_PERMISSION in said:
        require_readable(real or folder)
        what = one_line(error).replace(str(folder), str(real or folder))
        return InTheWayError(
            f"{real or folder} cannot be opened: {what}; run the command as its owner"
        )
    full = next((os.strerror(n) for n in FULL if os.strerror(n) in said), None)
    if full is not None and real is None:
        room = "make room, or remove images with 'engine remove'"
        if full == os.strerror(errno.EFBIG):
            room = "raise the limit of file sizes (ulimit -f unlimited)"
        return StoreError(f"{folder} cannot be opened for writing: {full}; {room}")
    if full is not None:
        return InTheWayError(f"no room for temporary files: {full}; make room there, or set TMPDIR")
    return StoreDamagedError(f"{folder} cannot be opened: {one_line(error)}")


@functools.cache
def _require_threads() -> None:
    """Raise ``StoreError`` if this process may not start RocksDB's threads; tested once per process.

    Without this test, RocksDB would abort the process.
    """
    done = threading.Event()
    started = []
    try:
        for _ in range(_THREADS):
            thread = threading.Thread(target=done.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        limits = "ulimit -u" if address_space.limit() is None else "ulimit -u, ulimit -v"
        raise InTheWayError(
            f"no more threads can be started: raise the limit ({limits}), or end other processes"
        ) from None
    finally:
        done.set()
        for thread in started:
            thread.join()
