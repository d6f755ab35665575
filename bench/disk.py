"""What the disk is asked for: counted by the kernel, for this process and for the disk as a whole."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .errors import BenchError

_SECTOR = 512  # bytes; what /sys counts in, whatever the disk has
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def written() -> int:
    """Bytes that this process has had written to disk, so far or in time; Linux only."""
    return _counted("write_bytes")


def fetched() -> int:
    """Bytes that this process has had read from disk, so far; Linux only."""
    return _counted("read_bytes")


def _counted(name: str) -> int:
    try:
        for line in Path("/proc/self/io").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
    except OSError:
        pass
    raise BenchError("what a process reads and writes is told on Linux only (/proc/self/io)")


def taken(folder: Path) -> int:
    """Bytes of disk that the files of a folder take."""
    return sum(path.stat().st_blocks * _SECTOR for path in folder.rglob("*") if path.is_file())


class Disk:
    """The disk that a file lies on, with all that anybody reads from it."""

    def __init__(self, path: Path) -> None:
        """``BenchError`` if the kernel does not tell which disk it is, as on a network's."""
        number = path.stat().st_dev
        device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        # A partition counts for itself on most kernels; where it does not, its disk does.
        for place in (device / "stat", device.resolve().parent / "stat"):
            if place.is_file():
                self._stat = place
                return
        raise BenchError(f"{path} lies on no disk whose reads are counted: give another --dir")

    def reads(self) -> tuple[int, int]:
        """Reads completed so far, and their bytes."""
        fields = self._stat.read_text().split()
        return int(fields[0]), int(fields[2]) * _SECTOR


def forget(folder: Path) -> None:
    """Have nothing of a folder's files in the page cache; of no file, where the system allows it."""
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)  # what is not on the disk yet would stay
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
    with contextlib.suppress(OSError):  # root may
        _DROP_CACHES.write_text("1")
