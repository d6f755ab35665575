"""The disk that storage writes to: each call of the system that changes files, behind one class.

A test gives storage another disk, which records what is done, is full, or fails. Reads do not go
through it, nor does an open of a folder: neither changes anything. RocksDB writes from C++, past any
disk of ours: a test sees its commits in ``Keys.commit``, where each synced batch returns, and takes
its folder to be durable as of the last one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from engine.records import Buffer

_Path = str | os.PathLike[str]
_ZEROS = 1 << 20  # bytes at a time, where room cannot be allocated at once


class Disk:
    """Calls ``os``. Every method raises ``OSError`` as the function of its name there does.

    A path is relative to the open folder ``dir_fd``, if it is not None. ``fd`` is a descriptor,
    offsets and lengths are bytes.
    """

    def open(self, path: _Path, flags: int, mode: int = 0o666, *, dir_fd: int | None = None) -> int:
        """A descriptor of a file, which ``flags`` may create."""
        return os.open(path, flags, mode, dir_fd=dir_fd)

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        """Write some of ``data``; how many bytes that were."""
        return os.pwrite(fd, data, offset)

    def copy_file_range(self, source: int, fd: int, count: int, offset: int) -> int:
        """Copy bytes that lie at ``offset`` to the same place; how many. No macOS has it."""
        return os.copy_file_range(source, fd, count, offset, offset)

    def ftruncate(self, fd: int, length: int) -> None:
        """Cut a file, or lengthen it by a hole."""
        os.ftruncate(fd, length)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        """Take the blocks of a part of a file that is beyond its end."""
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
        """Make the contents and the length of a file durable."""
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
        """Give a file or a folder another name; a file that had that name loses it."""
        os.rename(path, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def link(self, path: _Path, new: _Path) -> None:
        """Give a file a second name; of a link, the link itself."""
        os.link(path, new, follow_symlinks=False)

    def unlink(self, path: _Path, *, dir_fd: int | None = None) -> None:
        """Take a name from a file."""
        os.unlink(path, dir_fd=dir_fd)

    def rmdir(self, path: _Path, *, dir_fd: int | None = None) -> None:
        """Delete an empty folder."""
        os.rmdir(path, dir_fd=dir_fd)

    def free(self, folder: Path) -> int:
        """Bytes that this process may still write on the disk that a folder lies on."""
        return shutil.disk_usage(folder).free


_of_process = Disk()


def disk() -> Disk:
    """The disk of this process, to which all stores in it are written."""
    return _of_process


@contextlib.contextmanager
def using(other: Disk) -> Iterator[None]:
    """Let ``other`` be the disk of this process, in all of its threads, until the block ends.

    It is a setting of the process and no argument, since some forty calls at the bottom of storage
    write, and each of their callers would have to pass it on. Blocks may be nested, and not overlap.
    """
    global _of_process
    before, _of_process = _of_process, other
    try:
        yield
    finally:
        _of_process = before
