"""The disk that storage writes to: every system call that changes files, behind one class.

A test can substitute a disk that records calls, is full, or fails. Reads and opens of folders bypass
it, because they change nothing. RocksDB writes from C++ and bypasses it too. A test sees RocksDB's
commits in ``Keys.commit``, where each synced batch returns, and assumes that RocksDB's folder is durable
up to the last one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from engine.records import Buffer

_Path = str | os.PathLike[str]
_ZEROS = 1 << 20  # bytes per write, where blocks cannot be allocated directly


class Disk:
    """Calls ``os``. Every method raises ``OSError`` like the ``os`` function of the same name.

    A path is relative to the open folder ``dir_fd``, unless that is None. ``fd`` is a file descriptor;
    offsets and lengths are bytes.
    """

    def open(self, path: _Path, flags: int, mode: int = 0o666, *, dir_fd: int | None = None) -> int:
        """Open a file, or create it if ``flags`` says so; return its descriptor."""
        return os.open(path, flags, mode, dir_fd=dir_fd)

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        """Write some of ``data``; return the number of bytes written."""
        return os.pwrite(fd, data, offset)

    def copy_file_range(self, source: int, fd: int, count: int, offset: int) -> int:
        """Copy bytes at ``offset`` to the same offset; return how many. macOS lacks this call."""
        return os.copy_file_range(source, fd, count, offset, offset)

    def ftruncate(self, fd: int, length: int) -> None:
        """Truncate a file, or extend it with a hole."""
        os.ftruncate(fd, length)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        """Allocate the blocks of a range beyond a file's end."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, offset, length)
            return
        for at in range(offset, offset + length, _ZEROS):  # macOS
            self.pwrite(fd, bytes(min(_ZEROS, offset + length - at)), at)

    def fchmod(self, fd: int, mode: int) -> None:
        """Set the permissions of a file."""
        os.fchmod(fd, mode)

    def fsync(self, fd: int) -> None:
        """Make a file, or the names in a folder, durable."""
        os.fsync(fd)

    def fdatasync(self, fd: int) -> None:
        """Make a file's contents and length durable."""
        # macOS has no fdatasync.
        getattr(os, "fdatasync", os.fsync)(fd)

    def mkdir(self, path: _Path, *, dir_fd: int | None = None) -> None:
        """Make a folder."""
        os.mkdir(path, dir_fd=dir_fd)

    def rename(
        self,
        path: _Path,
        new: _Path,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> None:
        """Rename a file or a folder; a file that had the new name is replaced."""
        os.rename(path, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def link(self, path: _Path, new: _Path) -> None:
        """Give a file a second name; a symbolic link is not followed."""
        os.link(path, new, follow_symlinks=False)

    def unlink(self, path: _Path, *, dir_fd: int | None = None) -> None:
        """Remove a name of a file."""
        os.unlink(path, dir_fd=dir_fd)

    def rmdir(self, path: _Path, *, dir_fd: int | None = None) -> None:
        """Delete an empty folder."""
        os.rmdir(path, dir_fd=dir_fd)

    def free(self, folder: Path) -> int:
        """Return how many bytes this process may still write to the disk that holds ``folder``."""
        return shutil.disk_usage(folder).free


_of_process = Disk()


def disk() -> Disk:
    """Return this process's disk; all of its stores are written to it."""
    return _of_process


@contextlib.contextmanager
def using(other: Disk) -> Iterator[None]:
    """Make ``other`` the disk of this process, in all of its threads, until the block ends.

    It is a process-wide setting rather than an argument: some forty calls at the bottom of storage
    write, and each of their callers would have to pass it on. Blocks may be nested but must not overlap.
    """
    global _of_process
    before, _of_process = _of_process, other
    try:
        yield
    finally:
        _of_process = before
