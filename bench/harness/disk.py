"""Disk reads and writes as the kernel counts them, for this process and for the whole disk."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import numpy as np

from .errors import BenchError

_SECTOR = 512  # bytes: the unit of /sys, whatever the disk has
_PAGE = 4096  # bytes
_FILE, _PIECE = 256 << 20, 1 << 20  # bytes of the file whose places are read, and written at a time
_READS = 1_000
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def written() -> int:
    """Bytes that this process has written so far, on the disk or still to reach it; Linux only."""
    return _counted("write_bytes")


def fetched() -> int:
    """Bytes that the kernel has read from disk for this process so far; Linux only."""
    return _counted("read_bytes")


def _counted(name: str) -> int:
    try:
        for line in Path("/proc/self/io").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
    except OSError:
        pass
    raise BenchError("what a process reads and writes is counted on Linux only (/proc/self/io)")


def taken(folder: Path) -> int:
    """Bytes of disk that the files of a folder take."""
    return sum(path.stat().st_blocks * _SECTOR for path in folder.rglob("*") if path.is_file())


def random_reads(file: Path, *, seed: int, size: int = _FILE, count: int = _READS) -> list[float]:
    """Seconds of reads of 4 KiB at random places of ``file``, which is made and then removed.

    The file is not in the page cache, and there is no read-ahead. Empty if the kernel cannot be asked
    for that.
    """
    if not hasattr(os, "posix_fadvise"):
        return []
    draw = np.random.default_rng(seed)
    times = []
    try:
        with file.open("wb") as out:
            for _ in range(size // _PIECE):
                out.write(draw.bytes(_PIECE))
            out.flush()
            os.fsync(out.fileno())
        fd = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            for page in draw.integers(0, size // _PAGE, count).tolist():
                started = time.perf_counter()
                os.pread(fd, _PAGE, page * _PAGE)
                times.append(time.perf_counter() - started)
        finally:
            os.close(fd)
    finally:
        file.unlink(missing_ok=True)
    return times


class Disk:
    """The disk that a file lies on, and the reads of all programs from it."""

    def __init__(self, path: Path) -> None:
        """``BenchError`` if the kernel names no disk, as for a network file system."""
        number = path.stat().st_dev
        device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        # Most kernels count for each partition; otherwise the count of the whole disk has to do.
        for place in (device / "stat", device.resolve().parent / "stat"):
            if place.is_file():
                self._stat = place
                return
        raise BenchError(f"{path} lies on no disk whose reads are counted: give another --dir")

    def reads(self) -> tuple[int, int]:
        """The number of completed reads so far, and their bytes."""
        fields = self._stat.read_text().split()
        return int(fields[0]), int(fields[2]) * _SECTOR


def forget(folder: Path, *, everything: bool = True) -> None:
    """Drop a folder's files from the page cache; drop all files where the system allows it.

    With ``everything`` false, other files stay cached. ``BenchError`` where the kernel cannot be asked
    for it, as on macOS.
    """
    if not hasattr(os, "posix_fadvise"):
        raise BenchError("this kernel has no way to be told what to drop from the page cache")
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)  # dirty pages would stay
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
    if not everything:
        return
    with contextlib.suppress(OSError):  # only root may
        _DROP_CACHES.write_text("1")
