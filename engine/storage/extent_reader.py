"""Reads committed data of extents, through memory maps and with ``pread``."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import StoreDamagedError, StoreError
from engine.records import Place
from engine.storage import nofollow
from engine.storage.durable import cannot_read
from engine.storage.extents import HEADER_BYTES, Family

# Bytes per read-ahead request: Linux fetches no more at a time.
_AHEAD = 128 << 10
# Places longer than this many bytes are first checked against the file's length.
_LARGE = 16 << 20


class MovedError(StoreError):
    """A newer commit has moved the data that a reader wants; the reader has to move to that commit."""


class ExtentReader:
    """Reads committed bytes of one family with ``pread``, or its rows through a read-only map."""

    def __init__(
        self,
        store: Path,
        family: Family,
        behind: Callable[[], bool] = lambda: False,
        *,
        scattered: bool = False,
    ) -> None:
        """``behind`` returns whether the store has newer commits; then a file may legitimately be gone.

        ``scattered``: rows are read in random order, so the map does no read-ahead.
        """
        self._store = store
        self._scattered = scattered
        self.family = family
        self._behind = behind
        self._fds: dict[int, int] = {}
        self._maps: dict[int, npt.NDArray[Any]] = {}
        self._opened: dict[int, mmap.mmap] = {}

    def read(self, place: Place) -> bytes:
        """Return the bytes at ``place``; ``StoreDamagedError`` if the file is gone or too short."""
        fd = self._fds.get(place.extent)
        if fd is None:
            fd = self._open(place.extent)
        try:
            if place.length > _LARGE:
                self._require(fd, place)
            data = os.pread(fd, place.length, HEADER_BYTES + place.offset)
        except OSError as error:
            raise cannot_read(self.family.path(self._store, place.extent), error) from None
        except (ValueError, OverflowError, MemoryError):
            path = self.family.path(self._store, place.extent)
            raise StoreDamagedError(
                f"{path} cannot be read: no such place in it ({place}); run 'engine check'"
            ) from None
        if len(data) != place.length:
            path = self.family.path(self._store, place.extent)
            raise StoreDamagedError(f"{path} is cut short; run 'engine check'")
        return data

    def _require(self, fd: int, place: Place) -> None:
        """Raise ``OSError`` if ``place`` is not in the file, before memory is allocated for it."""
        if os.fstat(fd).st_size < HEADER_BYTES + place.offset + place.length:
            raise OSError(errno.EINVAL, "it is cut short")

    def equal(
        self,
        extents: npt.NDArray[np.int64],
        offsets: npt.NDArray[np.int64],
        wanted: Sequence[npt.NDArray[np.uint8]],
    ) -> list[bool]:
        """Return for each place whether its data begins with ``wanted``; errors as in ``read``.

        Data in the page cache is compared at once. The rest is requested all together, so that the disk
        has a queue to work on, and then waited for.
        """
        same = [False] * len(wanted)
        cold: list[tuple[int, int, int]] = []
        # It stays in the processor's cache, and compares with memcmp.
        scratch = bytearray()
        into = (scratch,)
        now = getattr(os, "RWF_NOWAIT", 0)  # Linux
        places = zip(extents.tolist(), offsets.tolist(), wanted, strict=True)
        for i, (extent, offset, data) in enumerate(places):
            fd = self._fds.get(extent)
            if fd is None:
                fd = self._open(extent)
            if len(data) != len(scratch):
                scratch = bytearray(len(data))
                into = (scratch,)
            try:
                if os.preadv(fd, into, HEADER_BYTES + offset, now) == len(data):
                    same[i] = scratch == data
                    continue
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:
                    now = 0
            cold.append((extent, offset, i))
        cold.sort()
        self.announce([Place(extent, offset, len(wanted[i])) for extent, offset, i in cold])
        for extent, offset, i in cold:
            same[i] = self.read(Place(extent, offset, len(wanted[i]))) == wanted[i].tobytes()
        return same

    def announce(self, places: Iterable[Place]) -> None:
        """Ask the kernel to read these places ahead, so that the disk has a queue to work on."""
        if hasattr(os, "posix_fadvise"):
            for extent, offset, length in places:
                fd = self._fds.get(extent)
                if fd is None:
                    fd = self._open(extent)
                start = HEADER_BYTES + offset
                end = start + length
                if length > _LARGE:
                    end = min(end, os.fstat(fd).st_size)
                for at in range(start, end, _AHEAD):
                    size = min(_AHEAD, end - at)
                    # The read itself reports errors.
                    with contextlib.suppress(OSError, OverflowError):
                        os.posix_fadvise(fd, at, size, os.POSIX_FADV_WILLNEED)

    def written(self, number: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of an extent's first ``size`` data bytes outside holes: start and end of each.

        Holes read as zeros; zeros may also lie outside holes.
        """
        fd = self._fds.get(number)
        if fd is None:
            fd = self._open(number)
        at, end = HEADER_BYTES, HEADER_BYTES + size
        while at < end:
            start, stop = at, end
            try:
                if hasattr(os, "SEEK_DATA"):
                    start = os.lseek(fd, at, os.SEEK_DATA)
                    stop = min(os.lseek(fd, start, os.SEEK_HOLE), end)
            except OSError as error:
                # Only a hole is left.
                if error.errno == errno.ENXIO:
                    return
            if start < end:
                yield start - HEADER_BYTES, stop - HEADER_BYTES
            at = stop

    def _open(self, extent: int) -> int:
        path = self.family.path(self._store, extent)
        try:
            fd = nofollow.open_file(self._store, self.family.inside(extent))
        except OSError as error:
            if isinstance(error, FileNotFoundError) and self._behind():
                raise MovedError(f"{path} was rewritten; ask again") from None
            raise cannot_read(path, error) from None
        if hasattr(os, "posix_fadvise"):
            # Reads are random: a blob's neighbours are not read next.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        # Another thread may have opened it first.
        if self._fds.setdefault(extent, fd) != fd:
            os.close(fd)
        return self._fds[extent]

    def rows(self, number: int, rows: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return the first ``rows`` rows of extent ``number``, mapped: (rows, row_bytes / itemsize)."""
        item = np.dtype(dtype)
        width = self.family.row_bytes // item.itemsize
        mapped = self._maps.get(number)
        if mapped is None or len(mapped) < rows:
            path = self.family.path(self._store, number)
            try:
                fd = nofollow.open_file(self._store, self.family.inside(number))
                try:
                    length = HEADER_BYTES + rows * self.family.row_bytes
                    opened = mmap.mmap(fd, length, access=mmap.ACCESS_READ)
                finally:
                    os.close(fd)
            except (OSError, ValueError) as error:
                if isinstance(error, FileNotFoundError) and self._behind():
                    raise MovedError(f"{path} was rewritten; ask again") from None
                if isinstance(error, OSError):
                    raise cannot_read(path, error, "is gone or cut short") from None
                raise StoreDamagedError(
                    f"{path} is gone or cut short ({error}); run 'engine check'"
                ) from None
            if self._scattered and hasattr(mmap, "MADV_RANDOM"):
                opened.madvise(mmap.MADV_RANDOM)
            mapped = np.frombuffer(opened, item, rows * width, HEADER_BYTES).reshape(rows, width)
            self._maps[number], self._opened[number] = mapped, opened
        return mapped[:rows]

    def let_go(self) -> None:
        """Drop all mapped pages from this process. Views stay valid; the page cache keeps the pages."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for opened in list(self._opened.values()):
                opened.madvise(mmap.MADV_DONTNEED)

    def ask_for(self, number: int, spans: Iterable[tuple[int, int]]) -> None:
        """Ask the kernel to read spans of the file ahead: (start, end) in bytes."""
        if hasattr(os, "posix_fadvise"):
            fd = self._fds.get(number)
            if fd is None:
                fd = self._open(number)
            for start, end in spans:
                os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close the files and maps."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._maps.clear()
        self._opened.clear()
