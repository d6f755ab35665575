"""Pieces of a file in memory, read as one file."""

from __future__ import annotations

import bisect
import io


class JoinedFile:
    """Pieces of a file in memory, read as one without being copied together."""

    def __init__(self, parts: list[memoryview]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._ends: list[int] = []
        total = 0
        for part in self._parts:
            total += len(part)
            self._ends.append(total)
        self._size = total
        self._at = 0

    def read(self, count: int = -1) -> bytes:
        """Read up to ``count`` bytes, or all remaining ones."""
        stop = self._size if count < 0 else min(self._at + count, self._size)
        found = []
        # A search rather than a walk: a file may have a million alternating kept and dropped chunks.
        which = bisect.bisect_right(self._ends, self._at)
        while self._at < stop:
            part, end = self._parts[which], self._ends[which]
            begin = end - len(part)
            found.append(part[self._at - begin : stop - begin])
            self._at = min(end, stop)
            which += 1
        return bytes(found[0]) if len(found) == 1 else b"".join(found)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to ``offset``, as files do."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def tell(self) -> int:
        """Return the position of the next byte to read."""
        return self._at
