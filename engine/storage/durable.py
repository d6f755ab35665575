"""Writes files so that a power cut leaves the whole old file or the whole new one."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from engine.errors import StoreDamagedError, StoreError
from engine.images import hashing
from engine.records import Buffer
from engine.storage import nofollow
from engine.storage.disk import disk

MORE_FILES = "raise the limit of open files (ulimit -n 4096) and run the command again"
_MORE_MEMORY = "leave more memory free, or raise the limits of this process (ulimit -v)"


class UnreadableError(StoreError):
    """This process cannot read a file for a reason that is not damage, such as a lack of memory."""


def fsync_dir(path: Path) -> None:
    """Make the names in a folder durable. Until this returns, a new file's name is not."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        disk().fsync(fd)
    finally:
        os.close(fd)


def fsync_file(store: Path, name: str) -> None:
    """Make the contents of a file in ``store`` durable."""
    fd = nofollow.open_file(store, name)
    try:
        disk().fsync(fd)
    finally:
        os.close(fd)


def open_regular(path: Path) -> int:
    """Open a regular file for reading; raise ``OSError`` at once for a link or anything else."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def read_regular(path: Path, most: int) -> bytes:
    """Read up to ``most`` bytes of a regular file; raise ``OSError`` for a link or anything else."""
    fd = open_regular(path)
    try:
        return os.read(fd, most)
    finally:
        os.close(fd)


def make_folders(path: Path) -> None:
    """Create a folder and its missing parents, and make them durable."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        # Another process may be faster.
        with contextlib.suppress(FileExistsError):
            disk().mkdir(folder)
        fsync_dir(folder.parent)


def is_in_the_way(error: OSError) -> bool:
    """Return whether an error is not the file's fault: too many open files, no memory, no permission."""
    scarce = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return error.errno in scarce or isinstance(error, PermissionError)


def cannot_read(path: Path, error: OSError, otherwise: str = "cannot be read") -> StoreError:
    """Return the error to raise for a store's file that cannot be opened or read.

    It is ``StoreDamagedError``, or ``UnreadableError`` if the error is not the file's fault.
    """
    if not is_in_the_way(error):
        return StoreDamagedError(f"{path} {otherwise}: {error.strerror}; run 'engine check'")
    todo = _MORE_MEMORY if error.errno == errno.ENOMEM else MORE_FILES
    if isinstance(error, PermissionError):
        todo = "run the command as its owner"
    return UnreadableError(f"{path} cannot be read: {error.strerror}; {todo}")


def write_all(fd: int, data: Buffer, offset: int) -> None:
    """Write all of ``data`` with ``pwrite``. One call may write less: signals, a nearly full disk."""
    view = memoryview(data).cast("B")
    while view:
        written = disk().pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def replace_file(path: Path, data: bytes, store: Path | None = None) -> None:
    """Atomically and durably put ``data`` at ``path``: new file, fsync, rename, fsync of the folder.

    ``path`` lies in ``store``, by default its own folder. No link is followed inside ``store``.
    """
    root = store or path.parent
    name = inside(path, root)
    new = inside(path.with_name(f".{path.name}.{os.getpid()}.new"), root)
    fd = nofollow.create_file(root, new)
    try:
        try:
            write_all(fd, data, 0)
            disk().fsync(fd)
        finally:
            os.close(fd)
        nofollow.rename(root, new, root, name)
    except BaseException:
        with contextlib.suppress(OSError):
            nofollow.remove(root, new)
        raise
    fsync_dir(path.parent)


def write_new(path: Path, parts: Iterable[Buffer], store: Path) -> tuple[int, int]:
    """Durably write a new file of ``parts`` in ``store``; return its length and xxh64.

    The caller names the file in the manifest afterwards. If the write fails, the file is deleted.
    """
    check, size = hashing.Checksum(), 0
    fd = nofollow.create_file(store, inside(path, store))
    try:
        try:
            for part in parts:
                write_all(fd, part, size)
                check.update(part)
                size += memoryview(part).nbytes
            disk().fsync(fd)
        finally:
            os.close(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(path, store)
        raise
    fsync_dir(path.parent)
    return size, check.value


def inside(path: Path, store: Path) -> str:
    """Return a file's path relative to ``store``, with slashes."""
    return path.relative_to(store).as_posix()


def remove(path: Path, store: Path) -> None:
    """Delete a file in ``store``, if it exists."""
    nofollow.remove(store, inside(path, store))


def file_checksum(
    path: Path, store: Path, step: Callable[[], None] = lambda: None
) -> tuple[int, int]:
    """Return the length and the xxh64 of a file in ``store``; call ``step`` after each MiB read."""
    check, size = hashing.Checksum(), 0
    with os.fdopen(nofollow.open_file(store, inside(path, store)), "rb") as file:
        while block := file.read(1 << 20):
            check.update(block)
            size += len(block)
            step()
    return size, check.value


def tree_bytes(path: Path) -> int:
    """Return the disk bytes that a file, or everything in a folder, takes."""
    return sum(found.st_blocks * 512 for found in _stats(path))


def _stats(path: Path) -> Iterator[os.stat_result]:
    try:
        yield path.lstat()
        for folder, _, names in os.walk(path):
            for name in names:
                try:
                    yield (Path(folder) / name).lstat()
                # A writer may be deleting leftovers at the same time.
                except FileNotFoundError:
                    continue
    except FileNotFoundError:
        return
