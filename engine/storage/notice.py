"""COMMIT: the numbers of the newest commit and of the newest index, for open readers and for all.

Eight bytes each. Readers that are open learn from it that there is something new, for the price of
reading it; an index that was built or measured anew is no commit, since nothing that is kept changed
with it. It is written afterwards and not synced, so the commit that it tells may be older than the
keys', after a kill or a power cut, and never newer: if it is, keys that were committed are lost.
RocksDB alone cannot tell, since a log or a MANIFEST that was cut short looks as if a crash had left
it so.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from engine.storage import beneath, names
from engine.storage.beneath import ForeignError

NAME = names.COMMIT
_EACH = 8  # bytes of a number


def commit_of(notice: bytes) -> int:
    """The commit that a notice names; 0 where it names none."""
    return int.from_bytes(notice[:_EACH], "big") if len(notice) >= _EACH else 0


def is_of_another_commit(notice: bytes, than: bytes) -> bool:
    """Whether two notices name two commits."""
    return notice[:_EACH] != than[:_EACH]


class Notice:
    """The notice of one store, for its writer or for a reader."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._fd: int | None = None
        self._writing = False

    def publish(self, commit: int) -> None:
        """Tell readers that ``commit`` is committed."""
        with contextlib.suppress(OSError, ForeignError):  # readers go on with what they have
            os.pwrite(self._for_writing(), commit.to_bytes(_EACH, "big"), 0)

    def publish_index(self) -> None:
        """Tell readers that the manifest names another index over what is committed."""
        with contextlib.suppress(OSError, ForeignError):
            fd = self._for_writing()
            before = int.from_bytes(os.pread(fd, _EACH, _EACH), "big")
            after = (before + 1) % (1 << 8 * _EACH)
            os.pwrite(fd, after.to_bytes(_EACH, "big"), _EACH)

    def _for_writing(self) -> int:
        if self._fd is None or not self._writing:
            self.close()
            self._fd = beneath.open_file(self._store, NAME, os.O_RDWR | os.O_CREAT)
            self._writing = True
        return self._fd

    def read(self) -> bytes:
        """What the notice says; nothing where there is none."""
        try:
            if self._fd is None:
                self._fd = beneath.open_file(self._store, NAME)
            return os.pread(self._fd, 2 * _EACH, 0)
        except (OSError, ForeignError):
            return b""

    def close(self) -> None:
        """Give the file descriptor back."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._writing = False
