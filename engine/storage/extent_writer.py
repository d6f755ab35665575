"""Appends to the newest extent of one family."""

from __future__ import annotations

import os
from pathlib import Path

from engine.config import Limits
from engine.images import hashing
from engine.records import Buffer, Place
from engine.storage import nofollow
from engine.storage.disk import disk
from engine.storage.durable import write_all
from engine.storage.extents import HEADER_BYTES, Append, Family

# A shorter append stays in the page cache, because somebody may read it soon.
_DROP_BYTES = 1 << 20
_ZEROS = bytes(64 << 10)


class ExtentWriter:
    """Appends to the newest extent of one family; the caller names new extents in the manifest.

    ``put`` only says where data will lie, so that the rows that name the place can be built while
    ``flush`` writes and syncs the data.
    """

    def __init__(
        self,
        store: Path,
        family: Family,
        last: int,
        committed: int,
        limits: Limits | None = None,
    ) -> None:
        """``last``: the newest extent's number (0: none yet). ``committed``: its data bytes."""
        self._store = store
        self.family = family
        limits = limits or Limits()
        # Data bytes after which a new extent begins: exact for rows, a soft limit for logs.
        self._capacity = limits.extent_rows * family.row_bytes or limits.extent_bytes
        self.number = last
        self.end = committed
        self._waiting: list[Buffer] = []
        self._zeros = 0
        self._fd: int | None = None

    @property
    def full(self) -> bool:
        """Return whether the next append needs a new extent first."""
        return self.number == 0 or self.end >= self._capacity

    @property
    def room(self) -> int:
        """Return the data bytes that still fit (rows only; a log takes any blob until it is full)."""
        return self._capacity - self.end

    def begin(self, number: int) -> None:
        """Continue in a new extent, which exists and which the manifest names."""
        assert not self._waiting  # flushed before
        assert not self._zeros
        self.close()
        self.number, self.end = number, 0

    def put(self, data: Buffer) -> Place:
        """Append contiguous ``data``, unchanged until it is flushed; return where it will lie."""
        assert not self._zeros
        place = Place(self.number, self.end, memoryview(data).nbytes)
        self._waiting.append(data)
        self.end += place.length
        return place

    def put_zeros(self, length: int) -> None:
        """Append zeros, which take no disk space; put no other data until they are flushed."""
        assert not self._waiting
        self._zeros += length
        self.end += length

    def flush(self) -> Append | None:
        """Write all data that was put, durably; return the append, or None without data."""
        if self._zeros:
            return self._flush_zeros()
        if not self._waiting:
            return None
        data = b"".join(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
        view = memoryview(data).cast("B")
        self._waiting.clear()
        start = self.end - len(view)
        self._fd = self._open()
        write_all(self._fd, view, HEADER_BYTES + start)
        disk().fdatasync(self._fd)
        if self.family.streamed and len(view) >= _DROP_BYTES and hasattr(os, "posix_fadvise"):
            # Streaming millions of images would push everything else out of the page
            # cache. On virtual machines, a page never used before costs ten times a used one.
            os.posix_fadvise(self._fd, HEADER_BYTES + start, len(view), os.POSIX_FADV_DONTNEED)
        return Append(self.family.name, self.number, start, len(view), hashing.checksum(view))

    def _flush_zeros(self) -> Append:
        """Extend the file, which ends where the last commit ended; the new part reads as zeros."""
        length, self._zeros = self._zeros, 0
        self._fd = self._open()
        disk().ftruncate(self._fd, HEADER_BYTES + self.end)
        disk().fsync(self._fd)
        check = hashing.Checksum()
        for at in range(0, length, len(_ZEROS)):
            check.update(memoryview(_ZEROS)[: length - at])
        start = self.end - length
        return Append(self.family.name, self.number, start, length, check.value)

    def _open(self) -> int:
        if self._fd is None:
            name = self.family.inside(self.number)
            self._fd = nofollow.open_file(self._store, name, os.O_WRONLY)
        return self._fd

    def close(self) -> None:
        """Close the file. Unflushed data is lost."""
        self._waiting.clear()
        self._zeros = 0
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
