"""COMMIT: the number of the newest commit, in eight bytes, for readers that are open and for all.

Readers that are open learn from it that there is something new, for the price of reading it. It is
written after a commit and not synced, so it may say less than the keys, after a kill or a power cut,
and never more: if it does, keys that were committed are lost. RocksDB alone cannot tell, since a log
or a MANIFEST that was cut short looks as if a crash had left it so.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

NAME = "COMMIT"


def commit_of(notice: bytes) -> int:
    """The commit that a notice names; 0 where it names none."""
    return int.from_bytes(notice, "big") if len(notice) == 8 else 0


class Notice:
    """The notice of one store, for its writer or for a reader."""

    def __init__(self, store: Path) -> None:
        self._path = store / NAME
        self._fd: int | None = None
        self._writing = False

    def publish(self, commit: int) -> None:
        """Tell readers that ``commit`` is committed."""
        with contextlib.suppress(OSError):  # readers go on with what they have
            if not self._writing:
                self.close()
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                self._writing = True
            if self._fd is not None:
                os.pwrite(self._fd, commit.to_bytes(8, "big"), 0)

    def read(self) -> bytes:
        """What the notice says; nothing where there is none."""
        try:
            if self._fd is None:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._fd, 8, 0)
        except OSError:
            return b""

    def close(self) -> None:
        """Give the file descriptor back."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._writing = False
