"""COMMIT: tells open readers that there is something new, for the price of reading eight bytes.

It holds the number of the newest commit and is information only: not synced, and nothing depends on
it but when a reader looks again. A writer that is killed between a commit and its notice has its
commit seen by whoever opens the store, and by open readers with the next notice.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

NAME = "COMMIT"


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
