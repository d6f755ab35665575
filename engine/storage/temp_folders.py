"""Temporary folders for one piece of work, and the removal of those that killed processes left.

The maker of a temporary folder holds the flock of the file ``LOCK`` in it. The kernel drops the lock
when the process dies, however it dies. A process id would prove nothing, since ids are used again. Only
folders of the same kind are removed: owned by this user, with matching names inside and out, and with
a free lock. No link is followed, and a folder that differs in any way stays as a whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.errors import StoreError
from engine.storage.disk import disk

_LOCK = "LOCK"
_CLAIM = ".claim"  # the lock's name until it is held
_MAX_LOOKED_AT = 4096  # names in the parent folder
_MAX_SWEPT = 64  # folders per sweep
_MAX_INSIDE = 4096  # names in one folder
_MAX_DEPTH = 3
_TRIES = 100
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Claimed:
    """A new folder that no process takes for a leftover, until ``release``."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def release(self) -> None:
        """Release the lock, wherever the folder is now."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def claimed(make: Callable[[], Path]) -> Claimed:
    """Lock the folder that ``make`` makes, under a new name each time. Raises ``OSError``."""
    for _ in range(_TRIES):
        path = make()
        fd = -1
        try:
            fd = disk().open(path / _CLAIM, _FILE | os.O_CREAT | os.O_EXCL)
            try:
                _lock(fd)
            # A file system has no locks: then no process sweeps there either.
            except OSError as error:
                if isinstance(error, BlockingIOError):
                    raise
            # This rename need not be durable.
            disk().rename(path / _CLAIM, path / _LOCK)
        # Another process swept the folder before it was locked.
        except (FileNotFoundError, BlockingIOError):
            if fd >= 0:
                os.close(fd)
        except BaseException:
            if fd >= 0:
                os.close(fd)
            with contextlib.suppress(OSError):
                with contextlib.suppress(FileNotFoundError):
                    disk().unlink(path / _CLAIM)
                disk().rmdir(path)
            raise
        else:
            return Claimed(path, fd)
    raise StoreError(f"{path} is deleted as often as it is made: end the process that deletes it")


@contextlib.contextmanager
def work_folder(folder: Path | None, prefix: str, depth: int = 1) -> Iterator[Path]:
    """Yield a new folder in ``folder``, or in the system's temporary folder; delete it afterwards.

    First it deletes folders with this ``prefix`` that killed processes left, if they are at most
    ``depth`` levels deep. Raises ``OSError``.
    """
    parent = Path(folder or tempfile.gettempdir()).absolute()
    names = re.compile(rf"{re.escape(prefix)}[a-z0-9_]{{8}}")
    sweep(parent, names, re.compile(".*", re.DOTALL), depth)
    claim = claimed(lambda: Path(tempfile.mkdtemp(prefix=prefix, dir=parent)))
    try:
        yield claim.path
    finally:
        shutil.rmtree(claim.path, ignore_errors=True)
        claim.release()


def sweep(
    folder: Path, names: re.Pattern[str], inside: re.Pattern[str], depth: int = _MAX_DEPTH
) -> int:
    """Delete what killed processes left in ``folder``; return how many folders that were.

    ``names`` matches the folders, ``inside`` the paths of files in them; ``depth`` is the greatest depth
    of these. The effort is bounded. It raises nothing: a folder that cannot be deleted stays.
    """
    swept = 0
    with contextlib.suppress(OSError), _opened(os.open(folder, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        found = []
        with os.scandir(fd) as entries:
            for _, entry in zip(range(_MAX_LOOKED_AT), entries, strict=False):
                if names.fullmatch(entry.name):
                    found.append(entry.name)
        for name in found[:_MAX_SWEPT]:
            with contextlib.suppress(OSError):
                swept += _sweep(fd, name, inside, depth)
    return swept


def _sweep(parent: int, name: str, inside: re.Pattern[str], depth: int) -> bool:
    with contextlib.ExitStack() as stack:
        fd = stack.enter_context(_opened(os.open(name, _FOLDER, dir_fd=parent)))
        folder = os.fstat(fd)
        if folder.st_uid != os.geteuid():
            return False
        locks = [lock for lock in (_LOCK, _CLAIM) if _is_file(fd, lock)]
        for lock in locks:
            _lock(stack.enter_context(_opened(os.open(lock, _FILE, dir_fd=fd))))
        # Its maker may have finished and renamed it, so that it is in use.
        now = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if (now.st_dev, now.st_ino) != (folder.st_dev, folder.st_ino):
            return False
        found = list(_walk(fd, "", folder.st_dev, depth))
        files = [path for path, is_folder in found if not is_folder]
        if files and not locks:
            return False
        if not all(inside.fullmatch(path) for path in files if path not in (_LOCK, _CLAIM)):
            return False
        for path, is_folder in found:
            _remove(fd, path, is_folder=is_folder)
        disk().rmdir(name, dir_fd=parent)
    return True


def _walk(fd: int, before: str, device: int, depth: int) -> Iterator[tuple[str, bool]]:
    """Yield each path in a folder and whether it is a folder; a folder comes after its contents.

    Raises ``OSError`` for anything of another user or disk, and for too many entries.
    """
    for count, name in enumerate(os.listdir(fd)):
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        ours = status.st_uid == os.geteuid() and status.st_dev == device
        if not ours or count >= _MAX_INSIDE or depth < 1:
            raise OSError("not ours")
        if kind == stat.S_IFDIR:
            with _opened(os.open(name, _FOLDER, dir_fd=fd)) as below:
                yield from _walk(below, f"{before}{name}/", device, depth - 1)
        elif kind not in (stat.S_IFREG, stat.S_IFLNK):
            raise OSError("not ours")
        yield before + name, kind == stat.S_IFDIR


def _remove(fd: int, path: str, *, is_folder: bool) -> None:
    """Remove one name below a folder; no part of its path may be a link."""
    *above, name = path.split("/")
    with contextlib.ExitStack() as stack:
        for folder in above:
            fd = stack.enter_context(_opened(os.open(folder, _FOLDER, dir_fd=fd)))
        if is_folder:
            disk().rmdir(name, dir_fd=fd)
        else:
            disk().unlink(name, dir_fd=fd)


def _is_file(fd: int, name: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _lock(fd: int) -> None:
    """Take a lock; raise ``BlockingIOError`` if another process has it."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
