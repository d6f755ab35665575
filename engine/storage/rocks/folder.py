"""Checks the folder of the keys before RocksDB opens it, because RocksDB follows links itself."""

from __future__ import annotations

import os
from pathlib import Path

from engine.errors import StoreDamagedError, StoreError
from engine.storage import file_names, nofollow
from engine.storage.file_names import KEYS
from engine.storage.safe_folders import opened_folder

_LOST = "lost"  # a folder that RocksDB's own repair makes
_MAX_CURRENT = 64  # bytes of CURRENT


class InTheWayError(StoreError):
    """The store itself is fine, but something else keeps it from opening; a retry would not help."""


def has_current(store: Path) -> bool:
    """Return whether the keys have CURRENT, the file that RocksDB starts from."""
    return nofollow.status(store, f"{KEYS}/CURRENT") is not None


def require_folder(store: Path) -> None:
    """Raise ``StoreDamagedError`` if a repair of the keys was interrupted between two renames."""
    if not nofollow.is_folder(store, KEYS) and nofollow.is_folder(store, file_names.MENDED):
        raise StoreDamagedError(
            f"{store / KEYS} is gone: a repair is under way, or 'engine check --fix' ends one "
            f"that was killed"
        )


def require_files(store: Path) -> list[str]:
    """Return the files in RocksDB's folder; raise ``ForeignError`` if one is a link."""
    found = nofollow.entries(store, KEYS)
    for entry in found:
        if not entry.is_file and not (entry.is_folder and entry.name == _LOST):
            # Raises an error that says what it is.
            nofollow.status(store, f"{KEYS}/{entry.name}")
    return [entry.name for entry in found if entry.is_file]


def require_readable(folder: Path) -> None:
    """Raise ``StoreError`` if RocksDB's folder, its CURRENT or its MANIFEST may not be read.

    A missing file is ignored here: it is damage, which other code reports.
    """
    store, name = folder.parent, f"{KEYS}/CURRENT"
    try:
        with opened_folder(store, KEYS, os.O_RDONLY):
            current = nofollow.read_file(store, name, _MAX_CURRENT)
        name = f"{KEYS}/{current.decode().strip()}"
        os.close(nofollow.open_file(store, name))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, StoreError):
        return
    except OSError as error:
        todo = "run the command as its owner" if isinstance(error, PermissionError) else "try again"
        path = error.filename or folder
        raise InTheWayError(f"{path} cannot be read: {error.strerror}; {todo}") from None
