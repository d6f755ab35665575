"""Says whether the file of a source is still where it was, or may only be out of reach."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

from engine.errors import SourceError
from engine.sources.items import stamp_of

_MAX_FOLDERS = 4096  # that are remembered
# Where disks are mounted, each in a folder that goes with it.
_MOUNTS = frozenset(map(PurePosixPath, ("/", "/mnt", "/media", "/run/media", "/Volumes")))
_MOUNTS_OF_USERS = frozenset(map(PurePosixPath, ("/media", "/run/media")))


# How a name goes on behind its file's, where the file was to be read in one of several ways.
QUERIES = (b"?kind=", b"?image=", b"?metadata=")


def without_query(name: bytes) -> bytes:
    """The file of ``/b.npy?kind=8bit`` or ``/c.parquet?image=scan``; other names as they are."""
    found = [at for query in QUERIES if (at := name.find(query)) >= 0]
    return name[: min(found)] if found else name


class Whereabouts:
    """Looks files up by name. What it says of folders holds for as long as it lives."""

    def __init__(self) -> None:
        # Of each folder: why its files may come back, if they may, and the nearest that is there.
        self._folders: dict[bytes, tuple[str | None, bytes]] = {}

    def is_there(self, path: bytes) -> bool:
        """Whether there is something of this name, a link that leads nowhere included.

        ``SourceError`` where nobody can tell: it cannot be looked up, or its disk may not be mounted.
        """
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            reason, _ = self._folder(os.path.dirname(path))  # noqa: PTH120 - bytes
            if reason is not None:
                raise SourceError(reason) from None
            return False
        except (OSError, ValueError) as error:
            what = error.strerror if isinstance(error, OSError) else str(error)
            raise SourceError(f"{os.fsdecode(path)} cannot be looked up: {what}") from None
        return True

    def missing_folder(self, path: bytes) -> bytes | None:
        """Of a file that is gone, the topmost folder that went with it; None if its folder is there."""
        folder = os.path.dirname(path)  # noqa: PTH120 - bytes
        _, nearest = self._folder(folder)
        if nearest == folder:
            return None
        top = folder.find(b"/", len(nearest.rstrip(b"/")) + 1)
        return folder if top < 0 else folder[:top]

    def _folder(self, folder: bytes) -> tuple[str | None, bytes]:
        if folder not in self._folders:
            if len(self._folders) >= _MAX_FOLDERS:
                self._folders.clear()
            self._folders[folder] = _unmounted(folder)
        return self._folders[folder]


def stamp(path: bytes) -> tuple[int, int] | None:
    """Time and size of a file, as an ingest sees them; None where it cannot be asked for."""
    try:
        status = Path(os.fsdecode(path)).stat()
    except (OSError, ValueError):
        return None
    return stamp_of(status)


def _unmounted(folder: bytes) -> tuple[str | None, bytes]:
    """Why a file that is not in ``folder`` may come back with its disk, None if it will not; and the
    nearest folder above that is there."""
    try:
        while True:
            try:
                status = os.lstat(folder)
                break
            except (FileNotFoundError, NotADirectoryError):
                folder = os.path.dirname(folder)  # noqa: PTH120 - bytes
        if stat.S_ISLNK(status.st_mode):
            return f"{os.fsdecode(folder)} leads nowhere: is its disk mounted?", folder
        if not stat.S_ISDIR(status.st_mode):
            # A file has taken the folder's place.
            return None, os.path.dirname(folder)  # noqa: PTH120 - bytes
        with os.scandir(folder) as entries:
            empty = next(entries, None) is None
    except OSError as error:
        return f"{os.fsdecode(folder)} cannot be read: {error.strerror}", folder
    path = PurePosixPath(os.fsdecode(folder))
    if empty or path in _MOUNTS or path.parent in _MOUNTS_OF_USERS:
        what = "is empty" if empty else "is where disks are mounted"
        return f"{path} {what}: its disk may be gone and not the files", folder
    return None, folder
