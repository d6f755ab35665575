"""Writing files so that a power cut leaves the old one or the new one, never half of either."""

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

MORE_FILES = "let more files be open (ulimit -n 4096) and run the command again"
_MORE_MEMORY = "leave more memory free, or raise the limits of this process (ulimit -v)"


class UnreadableError(StoreError):
    """Something keeps this process from reading a file, which says nothing of what is in it."""


def fsync_dir(path: Path) -> None:
    """Make the names in a directory durable: a new file's name is not, until this returns."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        disk().fsync(fd)
    finally:
        os.close(fd)


def fsync_file(store: Path, name: str) -> None:
    """Make the contents of a file beneath ``store`` durable."""
    fd = nofollow.open_file(store, name)
    try:
        disk().fsync(fd)
    finally:
        os.close(fd)


def open_regular(path: Path) -> int:
    """Open a regular file to read it; ``OSError`` for a link or anything else, at once."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def read_regular(path: Path, most: int) -> bytes:
    """The contents of a regular file, up to ``most`` bytes; ``OSError`` for a link or anything else."""
    fd = open_regular(path)
    try:
        return os.read(fd, most)
    finally:
        os.close(fd)


def make_folders(path: Path) -> None:
    """A folder and those above it that are missing, all durable."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was faster
            disk().mkdir(folder)
        fsync_dir(folder.parent)


def is_in_the_way(error: OSError) -> bool:
    """Whether an error says nothing of a file: too many open, no memory, or one may not open it."""
    scarce = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return error.errno in scarce or isinstance(error, PermissionError)


def cannot_read(path: Path, error: OSError, otherwise: str = "cannot be read") -> StoreError:
    """What to raise for a file of a store that cannot be opened or read.

    ``StoreDamagedError``, or ``UnreadableError`` where the error says nothing of the file.
    """
    if not is_in_the_way(error):
        return StoreDamagedError(f"{path} {otherwise}: {error.strerror}; run 'engine check'")
    todo = _MORE_MEMORY if error.errno == errno.ENOMEM else MORE_FILES
    if isinstance(error, PermissionError):
        todo = "run the command as its owner"
    return UnreadableError(f"{path} cannot be read: {error.strerror}; {todo}")


def write_all(fd: int, data: Buffer, offset: int) -> None:
    """``pwrite`` until everything is written (one call may write less: signals, a nearly full disk)."""
    view = memoryview(data).cast("B")
    while view:
        written = disk().pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def replace_file(path: Path, data: bytes, store: Path | None = None) -> None:
    """Atomically and durably put ``data`` at ``path``: new file, fsync, rename, fsync of the folder.

    ``path`` lies beneath ``store``, by default its own folder: from there on no link is followed.
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
    """Durably write a new file of ``parts`` beneath ``store``; returns its length and xxh64.

    Whoever names it does so afterwards. Where it cannot be written, nothing is left of it.
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
    """What a file is called beneath ``store``, with slashes."""
    return path.relative_to(store).as_posix()


def remove(path: Path, store: Path) -> None:
    """Delete a file beneath ``store``, if it is there."""
    nofollow.remove(store, inside(path, store))


def file_checksum(
    path: Path, store: Path, step: Callable[[], None] = lambda: None
) -> tuple[int, int]:
    """The length and the xxh64 of a file beneath ``store``; reads all of it, with steps between."""
    check, size = hashing.Checksum(), 0
    with os.fdopen(nofollow.open_file(store, inside(path, store)), "rb") as file:
        while block := file.read(1 << 20):
            check.update(block)
            size += len(block)
            step()
    return size, check.value


def tree_bytes(path: Path) -> int:
    """Bytes of disk that a file or everything below a folder takes."""
    return sum(found.st_blocks * 512 for found in _stats(path))


def _stats(path: Path) -> Iterator[os.stat_result]:
    try:
        yield path.lstat()
        for folder, _, names in os.walk(path):
            for name in names:
                try:
                    yield (Path(folder) / name).lstat()
                except FileNotFoundError:  # a writer may be tidying up beside us
                    continue
    except FileNotFoundError:
        return
