"""Folders for the time of one piece of work, and the sweeping of those that killed processes left.

Whoever makes such a folder holds the flock of the file ``LOCK`` in it, which the kernel drops when the
process dies, however it dies; a number of a process would say nothing, since numbers are used again.
Only what is of the same make is swept: a folder of this user, with a name and contents as these
have, whose lock is free. No link is followed, and where anything is unlike that, all of it stays.
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
_MAX_LOOKED_AT = 4096  # names of a folder
_MAX_SWEPT = 64  # folders at a time
_MAX_INSIDE = 4096  # names inside of one
_MAX_DEPTH = 3
_TRIES = 100
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Claimed:
    """A new folder that nobody takes for left behind, until ``release``."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def release(self) -> None:
        """Let go of it, wherever it is by now."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def claimed(make: Callable[[], Path]) -> Claimed:
    """The folder that ``make`` makes, under a new name each time; raises ``OSError``."""
    for _ in range(_TRIES):
        path = make()
        fd = -1
        try:
            fd = disk().open(path / _CLAIM, _FILE | os.O_CREAT | os.O_EXCL)
            try:
                _lock(fd)
            except OSError as error:  # a file system without locks: nobody sweeps there either
                if isinstance(error, BlockingIOError):
                    raise
            disk().rename(path / _CLAIM, path / _LOCK)  # needs not be durable
        except (FileNotFoundError, BlockingIOError):  # somebody swept it before it was locked
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
    raise StoreError(f"{path} is removed as often as it is made: end what tidies up there")


@contextlib.contextmanager
def work_folder(folder: Path | None, prefix: str, depth: int = 1) -> Iterator[Path]:
    """A new folder in ``folder``, or in that for temporary files, which is gone when the block ends.

    Those of this ``prefix`` that killed processes left there go first, if they are no deeper than
    ``depth``. Raises ``OSError``.
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
    """Remove what killed processes left in ``folder``; returns how many folders that were.

    ``names`` are theirs, ``inside`` the paths that files in them may have, ``depth`` how deep these
    lie. It takes a bounded effort, and raises nothing: whatever is in the way stays.
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
        # Whoever made it may have finished, and given it its own name: then it is somebody's.
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
    """The paths in a folder, and whether each is a folder, which comes behind what is in it.

    ``OSError`` where there is anything that is not of this user and this disk, or too much.
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
    """Remove one name below a folder, no part of its path being a link."""
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
    """Take a lock; ``BlockingIOError`` where another process has it."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
