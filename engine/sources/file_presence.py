"""Finds out whether the file of a source still exists, is gone, or may be on an unmounted disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

from engine.errors import SourceError
from engine.sources.items import stamp_of

_MAX_FOLDERS = 4096  # folders in the cache
# Folders in which disks are mounted, each on a folder that disappears with it.
_MOUNTS = frozenset(map(PurePosixPath, ("/", "/mnt", "/media", "/run/media", "/Volumes")))
_MOUNTS_OF_USERS = frozenset(map(PurePosixPath, ("/media", "/run/media")))


# A query after the name of a file chooses one of several ways to read it.
QUERIES = (b"?kind=", b"?image=", b"?metadata=", b"?vector=")


def without_query(name: bytes) -> bytes:
    """The file name in ``/b.npy?kind=8bit`` or ``/c.parquet?image=scan``; other names unchanged."""
    found = [at for query in QUERIES if (at := name.find(query)) >= 0]
    return name[: min(found)] if found else name


class Whereabouts:
    """Looks files up by name. It looks at each folder once and keeps the answer."""

    def __init__(self) -> None:
        # For each folder: why its files may come back, if they may, and its nearest existing parent.
        self._folders: dict[bytes, tuple[str | None, bytes]] = {}

    def is_there(self, path: bytes) -> bool:
        """Whether a file of this name exists, even as a dangling link.

        ``SourceError`` if the lookup fails, or if the file's disk may not be mounted.
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

    def why_away(self, name: bytes) -> str | None:
        """Why the file of a source cannot be read now, though it may come back with its disk.

        None if the file can be read, or is gone for good. ``name`` may be that of a member or a row.
        """
        if not name.startswith(b"/"):
            return None
        at = len(name)
        while at > 0:
            file = without_query(name[:at])
            if os.path.lexists(file):
                readable = os.access(file, os.R_OK)
                return None if readable else f"{os.fsdecode(file)} cannot be read"
            at = name.rfind(b"#", 0, at)
        try:
            self.is_there(without_query(name.partition(b"#")[0]))
        except SourceError as error:
            return str(error)
        return None

    def missing_folder(self, path: bytes) -> bytes | None:
        """The topmost missing folder of a missing file; None if the file's folder exists."""
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
    """(mtime_ns, size) of a file, as an ingest records it; None if ``stat`` fails."""
    try:
        status = Path(os.fsdecode(path)).stat()
    except (OSError, ValueError):
        return None
    return stamp_of(status)


def _unmounted(folder: bytes) -> tuple[str | None, bytes]:
    """Why a file missing from ``folder`` may come back with its disk, and the nearest existing folder.

    The reason is None if the file is gone.
    """
    try:
        while True:
            try:
                status = os.lstat(folder)
                break
            except (FileNotFoundError, NotADirectoryError):
                folder = os.path.dirname(folder)  # noqa: PTH120 - bytes
        if stat.S_ISLNK(status.st_mode):
            return f"{os.fsdecode(folder)} is a dangling link: is its disk mounted?", folder
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
        return f"{path} {what}: its disk may be unmounted, and the files still there", folder
    return None, folder
