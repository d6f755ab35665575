"""What the disk is asked for: counted by the kernel, for this process and for the disk as a whole."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import numpy as np

from .errors import BenchError

_SECTOR = 512  # bytes; what /sys counts in, whatever the disk has
_PAGE = 4096  # bytes
_FILE, _PIECE = 256 << 20, 1 << 20  # bytes of the file whose places are read, and written at a time
_READS = 1_000
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
    raise BenchError("what a process reads and writes is counted on Linux only (/proc/self/io)")


def taken(folder: Path) -> int:
    """Bytes of disk that the files of a folder take."""
    return sum(path.stat().st_blocks * _SECTOR for path in folder.rglob("*") if path.is_file())


def random_reads(file: Path, *, seed: int, size: int = _FILE, count: int = _READS) -> list[float]:
    """Seconds of reads of 4 KiB at random places of ``file``, which is made, and removed again.

    None of it is in the page cache, and nothing around a place is read with it. Empty where the
    kernel has no way to be told so.
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
    """The disk that a file lies on, with all that anybody reads from it."""

    def __init__(self, path: Path) -> None:
        """``BenchError`` if the kernel does not say which disk it is, as on a network's."""
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


def forget(folder: Path, *, everything: bool = True) -> None:
    """Have nothing of a folder's files in the page cache; of no file, where the system allows it.

    ``everything`` false: the caches of others are left to them. ``BenchError`` where the kernel cannot
    be asked for it, as on macOS.
    """
    if not hasattr(os, "posix_fadvise"):
        raise BenchError("this kernel has no way to be told what to drop from the page cache")
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)  # what is not on the disk yet would stay
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
    if not everything:
        return
    with contextlib.suppress(OSError):  # root may
        _DROP_CACHES.write_text("1")
