"""What has to be in the folder of the keys before RocksDB opens it, which follows links itself."""

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
    """Nothing is wrong with the store, and trying again would not help."""


def has_current(store: Path) -> bool:
    """Whether the keys have the file that says where everything else is."""
    return nofollow.status(store, f"{KEYS}/CURRENT") is not None


def require_folder(store: Path) -> None:
    """``StoreDamagedError`` where a repair of the keys was interrupted between two renames."""
    if not nofollow.is_folder(store, KEYS) and nofollow.is_folder(store, file_names.MENDED):
        raise StoreDamagedError(
            f"{store / KEYS} is gone: a repair is under way, or 'engine check --fix' ends one "
            f"that was killed"
        )


def require_files(store: Path) -> list[str]:
    """What is in RocksDB's folder, which follows links itself; ``ForeignError`` if that is one."""
    found = nofollow.entries(store, KEYS)
    for entry in found:
        if not entry.is_file and not (entry.is_folder and entry.name == _LOST):
            nofollow.status(store, f"{KEYS}/{entry.name}")  # says what it is
    return [entry.name for entry in found if entry.is_file]


def require_readable(folder: Path) -> None:
    """``StoreError`` where RocksDB's folder, its CURRENT or its MANIFEST may not be read.

    What is not there is not the matter of this: it is damage, and others say so.
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
