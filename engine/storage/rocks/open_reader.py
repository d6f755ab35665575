"""Opens a store's RocksDB for reading, even while a writer runs, without a trace in the store.

A reader opens RocksDB read-only, through a folder of links to files that it holds open. So reading
leaves nothing behind, works on a read-only mount, and sees one consistent state
(``engine.storage.rocks.pin``). A read-only open of the files themselves was seen to miss committed
records beside a live writer. Secondary instances were rejected too: they kept returning deleted
records.
"""

from __future__ import annotations

import functools
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rocksdict import AccessType

from engine.config import MemoryBudget
from engine.errors import StoreDamagedError, StoreError
from engine.storage import file_names
from engine.storage.rocks import opening
from engine.storage.rocks.database import FOLDER, Keys
from engine.storage.rocks.folder import (
    InTheWayError,
    require_files,
    require_folder,
    require_readable,
)
from engine.storage.rocks.pin import TRIES, UnsettledError, pinned, version
from engine.storage.safe_folders import ForeignError
from engine.storage.temp_folders import claimed, sweep

# Attempts to open a state that did not change.
_OPEN_TRIES = 4
# The prefix of a temporary folder with a reader's links.
_LINKS = "engine-reader-"
_log = logging.getLogger("engine.storage")


class BusyError(StoreError):
    """A writer changes files faster than they can be opened."""


def open_reader(store: Path, memory: MemoryBudget, *, tries: int = TRIES) -> Keys:
    """Open the newest commit, beside any writer, without a trace in the store.

    Raises ``StoreDamagedError``, or ``BusyError`` if a writer kept changing the files.
    """
    folder = store / FOLDER
    problem: StoreError | OSError | None = None
    for attempt in range(_OPEN_TRIES):
        try:
            require_files(store)
            with pinned(store, tries) as files:
                if files is None:
                    break
                try:
                    keys = _open_linked(folder, memory, files.name_in)
                    _log.debug("opened %s for reading", store)
                    return keys
                except InTheWayError:
                    raise
                except (StoreError, OSError) as error:
                    problem = error
        except UnsettledError:
            raise BusyError(
                f"{folder} could not be opened between two changes of a writer: try again, or give "
                f"the writer more memory"
            ) from None
        # This system has no names for open files, or too many are open.
        except OSError:
            require_readable(folder)
            opened = _open_unpinned(folder, memory)
            if isinstance(opened, Keys):
                _log.debug("opened %s for reading, by the names of its files", store)
                return opened
            problem = opened
        time.sleep(0.001 * (attempt + 1))
    require_readable(folder)
    require_folder(store)
    detail = f": {problem}" if problem else ""
    if problem is None and version(folder) is None:
        detail = " (no CURRENT with its MANIFEST)"
    raise StoreDamagedError(f"{folder} cannot be opened{detail}; run 'engine check'")


def _open_unpinned(folder: Path, memory: MemoryBudget) -> Keys | StoreError | OSError:
    """Open the files by their own names. A writer may delete them, so check that nothing changed."""

    def name_in(links: Path) -> None:
        real = folder.resolve()
        for name in require_files(folder.parent):
            # The engine sets the options itself. rocksdict writes its config file at every open, and a
            # link would lead that write back into the store.
            ours = file_names.ROCKSDB.fullmatch(name) and name != opening.CONFIG
            if ours and not name.startswith(("LOG", "LOCK", "OPTIONS-")):
                (links / name).symlink_to(real / name)

    for attempt in range(TRIES):
        before = version(folder)
        problem: StoreError | OSError | None = None
        try:
            keys = _open_linked(folder, memory, name_in)
        except (InTheWayError, ForeignError):
            raise
        except (StoreError, OSError) as error:
            problem = error
        else:
            if version(folder) == before:
                return keys
            keys.close()
        # A writer also deletes files some time after the MANIFEST has stopped naming them.
        if problem is not None and version(folder) == before and attempt >= 3:
            return problem
        time.sleep(min(0.001 * (attempt + 1), 0.05))
    raise BusyError(f"{folder} could not be opened between two changes of a writer: try again")


def _open_linked(folder: Path, memory: MemoryBudget, name_in: Callable[[Path], None]) -> Keys:
    try:
        claim = claimed(lambda: Path(tempfile.mkdtemp(prefix=_LINKS)))
    except OSError as error:
        raise InTheWayError(
            f"no folder for temporary files: {error.strerror}; make room there, or set TMPDIR"
        ) from None
    links = claim.path
    try:
        name_in(links)
        return opening.open_files(links, memory, AccessType.read_only(), create=False, real=folder)
    finally:
        # All files are open now (max_open_files is -1), so their names are not needed any more.
        shutil.rmtree(links, ignore_errors=True)
        claim.release()
        _sweep_links(links.parent)


@functools.cache
def _sweep_links(folder: Path) -> None:
    """Delete what killed readers left; once per process."""
    sweep(folder, re.compile(_LINKS + r"[a-z0-9_]{8}"), re.compile(r"[\w.-]+"))
