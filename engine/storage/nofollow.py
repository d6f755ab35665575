"""Opens, lists, renames and deletes files in one folder, without following links.

A store may come from anywhere, and its writer deletes and overwrites files. So every file of a store is
reached through ``engine.storage.safe_folders``. A symbolic link, a pipe, a socket, a device, or a folder
in place of a file raises a ``ForeignError`` that names it. Only the store's own path may be a link. In
this module, ``root`` is that path and ``name`` is relative to it, with slashes.

A file with a second name (a hard link) is copied before it is written to. So writing to a store changes
neither a ``cp -al`` backup nor any other file that is linked into it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from engine.errors import StoreError
from engine.storage.disk import disk
from engine.storage.safe_folders import (
    OTHER_KIND,
    at_path,
    foreign,
    opened_folder,
    require_kind,
    split,
)

# Opening a pipe must not block, and a terminal must not become this process's.
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_COPIED = 1 << 20  # bytes per read
_DEEPEST = 4  # levels of folders in a folder that is discarded


class FolderEntry(NamedTuple):
    """An entry of a folder. A link to a file or a folder counts as neither."""

    name: str
    is_file: bool
    is_folder: bool


def open_file(root: Path, name: str, flags: int = os.O_RDONLY) -> int:
    """Open a regular file; return its descriptor, which the caller closes.

    With ``os.O_CREAT`` in ``flags`` a missing file is created, in an existing folder. Raises
    ``OSError`` as ``os.open`` does, ``ForeignError`` for anything that is not a regular file.
    """
    folder, last = split(name)
    writing = bool(flags & (os.O_WRONLY | os.O_RDWR))
    with opened_folder(root, folder) as at:
        fd = _open_file(root, name, last, flags, at)
        try:
            if not writing or os.fstat(fd).st_nlink <= 1:
                return fd
            _copy_apart(fd, root, name, last, at)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return _open_file(root, name, last, flags, at)


def own(root: Path, name: str) -> None:
    """Replace a file that has other names by a copy, so that it has only this one."""
    found = status(root, name)
    if found is not None and found.st_nlink > 1:
        os.close(open_file(root, name, os.O_WRONLY))


def open_lock(root: Path, name: str, flags: int) -> int:
    """Like ``open_file``, but never copy: processes with the same file share the same lock."""
    folder, last = split(name)
    with opened_folder(root, folder) as at:
        return _open_file(root, name, last, flags, at)


def create_file(root: Path, name: str) -> int:
    """Create an empty file and return its descriptor; a file with that name is deleted first."""
    folder, last = split(name)
    with opened_folder(root, folder) as at:
        _unlink(root, name, last, at)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFELY
        return disk().open(last, flags, dir_fd=at)


def read_file(root: Path, name: str, most: int | None = None) -> bytes:
    """Return a file's content, or its first ``most`` bytes. Raises ``OSError``, ``ForeignError``."""
    with os.fdopen(open_file(root, name), "rb") as file:
        if most is None:
            return file.read()
        # read() allocates as many bytes as it is asked for.
        return file.read(min(most, os.fstat(file.fileno()).st_size))


def status(root: Path, name: str) -> os.stat_result | None:
    """Return a regular file's status, None if it is missing; ``ForeignError`` for another kind."""
    folder, last = split(name)
    try:
        with opened_folder(root, folder) as at:
            found = os.stat(last, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise foreign(root / name, found.st_mode, "a file")
    return found


def size(root: Path, name: str) -> int | None:
    """Return a file's size in bytes, None if it is missing."""
    found = status(root, name)
    return found.st_size if found is not None else None


def entries(root: Path, name: str = "") -> list[FolderEntry]:
    """Return a folder's entries, sorted by name; empty if the folder is missing."""
    try:
        with opened_folder(root, name, os.O_RDONLY) as at, os.scandir(at) as found:
            there = [
                FolderEntry(
                    one.name,
                    one.is_file(follow_symlinks=False),
                    one.is_dir(follow_symlinks=False),
                )
                for one in found
            ]
    except FileNotFoundError:
        return []
    return sorted(there)


def files(root: Path, name: str, ours: re.Pattern[str]) -> list[str]:
    """Return the names in a folder that match ``ours``; ``ForeignError`` if one is not a file."""
    there = [entry for entry in entries(root, name) if ours.fullmatch(entry.name)]
    for entry in there:
        if not entry.is_file:
            # Raises an error that says what it is.
            status(root, f"{name}/{entry.name}")
    return [entry.name for entry in there]


def remove(root: Path, name: str) -> None:
    """Delete a regular file, if it exists; ``ForeignError`` if the name is something else."""
    folder, last = split(name)
    with contextlib.suppress(FileNotFoundError), opened_folder(root, folder) as at:
        _unlink(root, name, last, at)


def rename(root: Path, name: str, into: Path, new: str) -> None:
    """Move a regular file in ``root`` to the name ``new`` in ``into``, whose folder must exist."""
    folder, last = split(name)
    to, new_last = split(new)
    with opened_folder(root, folder) as at, opened_folder(into, to) as there:
        _require_file(root / name, last, at)
        with contextlib.suppress(FileNotFoundError):
            _require_file(into / new, new_last, there)
        disk().rename(last, new_last, src_dir_fd=at, dst_dir_fd=there)


def make_folder(root: Path, name: str) -> bool:
    """Make a folder in an existing one; return whether it was missing. Raises ``ForeignError``."""
    if is_folder(root, name):
        return False
    folder, last = split(name)
    with opened_folder(root, folder) as at:
        disk().mkdir(last, dir_fd=at)
    return True


def is_folder(root: Path, name: str) -> bool:
    """Return whether a folder exists; ``ForeignError`` if the name is something else."""
    try:
        with opened_folder(root, name):
            return True
    except FileNotFoundError:
        return False


def require_kinds(root: Path, files: Iterable[str], folders: Iterable[str]) -> None:
    """Raise ``ForeignError`` if an existing name in ``files`` or ``folders`` is of another kind."""
    try:
        with opened_folder(root) as at:
            for names, kind, wanted in (
                (files, stat.S_ISREG, "a file"),
                (folders, stat.S_ISDIR, "a folder"),
            ):
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        require_kind(root / name, name, at, kind, wanted)
    except (FileNotFoundError, NotADirectoryError):
        # The read that follows reports this.
        return


def discard(root: Path, name: str, ours: re.Pattern[str], called: str = "") -> None:
    """Delete a temporary folder; only files whose names match ``ours`` are deleted in it.

    ``ours`` is matched with ``called`` plus the file's path relative to the folder, with slashes. The
    folder remains if it holds anything else, or anything that cannot be deleted.
    """
    with contextlib.suppress(OSError, StoreError):
        _discard(root, name, called, ours)


def _discard(root: Path, name: str, inside: str, ours: re.Pattern[str]) -> None:
    for entry in entries(root, name):
        within = f"{inside}{entry.name}"
        with contextlib.suppress(OSError, StoreError):
            if entry.is_folder and within.count("/") < _DEEPEST:
                _discard(root, f"{name}/{entry.name}", f"{within}/", ours)
            elif entry.is_file and ours.fullmatch(within):
                remove(root, f"{name}/{entry.name}")
    remove_folder(root, name)


def remove_folder(root: Path, name: str) -> None:
    """Delete an empty folder. Raises ``OSError`` if it is not empty."""
    folder, last = split(name)
    with opened_folder(root, folder) as at:
        disk().rmdir(last, dir_fd=at)


def _open_file(root: Path, name: str, last: str, flags: int, at: int) -> int:
    try:
        fd = disk().open(last, flags | _SAFELY, dir_fd=at)
    except OSError as error:
        if error.errno in OTHER_KIND:
            _require_file(root / name, last, at)
        raise at_path(error, root / name) from None
    found = os.fstat(fd).st_mode
    if not stat.S_ISREG(found):
        os.close(fd)
        raise foreign(root / name, found, "a file")
    return fd


def _unlink(root: Path, name: str, last: str, at: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        _require_file(root / name, last, at)
        disk().unlink(last, dir_fd=at)


def _copy_apart(fd: int, root: Path, name: str, last: str, at: int) -> None:
    """Durably replace a file that has other names by a copy."""
    new = f".{last}.{os.getpid()}.new"
    source = _open_file(root, name, last, os.O_RDONLY, at)
    try:
        copy = create_file(root, f"{name[: -len(last)]}{new}")
        try:
            for start, end in _data(source, os.fstat(fd).st_size):
                for place in range(start, end, _COPIED):
                    data = os.pread(source, min(_COPIED, end - place), place)
                    while data:
                        written = disk().pwrite(copy, data, place)
                        data, place = data[written:], place + written
            disk().ftruncate(copy, os.fstat(fd).st_size)
            disk().fchmod(copy, stat.S_IMODE(os.fstat(fd).st_mode))
            disk().fsync(copy)
        finally:
            os.close(copy)
        disk().rename(new, last, src_dir_fd=at, dst_dir_fd=at)
    except BaseException:
        with contextlib.suppress(OSError):
            disk().unlink(new, dir_fd=at)
        raise
    finally:
        os.close(source)
    with opened_folder(root, name[: -len(last)].rstrip("/"), os.O_RDONLY) as folder:
        disk().fsync(folder)


def _data(fd: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of each part of a file that is not a hole."""
    at = 0
    while at < end:
        start, stop = at, end
        if hasattr(os, "SEEK_DATA"):
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
                stop = min(os.lseek(fd, start, os.SEEK_HOLE), end)
            except OSError as error:
                # Only a hole is left.
                if error.errno == errno.ENXIO:
                    return
        yield start, stop
        at = stop


def _require_file(path: Path, last: str, at: int) -> None:
    require_kind(path, last, at, stat.S_ISREG, "a file")
