"""COMMIT, the notice file: the numbers of the newest commit and of the newest index.

Each number takes eight bytes, followed by an eight-byte checksum of both. Open readers read it to learn
that there is something new. Rebuilding or recalibrating an index is not a commit, because no stored
data changes; so the index has a number of its own.

The writer writes the file after the commit and does not sync it. After a kill or a power cut, it may
therefore name an older commit than the keys, but never a newer one. If it does name a newer one, the
keys have lost commits. RocksDB cannot detect that: a truncated log or MANIFEST looks like a crash.
Only a notice with a valid checksum is believed in this; any other is a hint to look again. Earlier
versions wrote no checksum, and their readers ignore it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from engine.images import hashing
from engine.storage import file_names, nofollow
from engine.storage.disk import disk
from engine.storage.safe_folders import ForeignError

_log = logging.getLogger(__name__)

NAME = file_names.COMMIT
_EACH = 8  # bytes of a number
_NUMBERS = 2 * _EACH
_SIZE = 3 * _EACH


def pack(commit: int, index: int = 0) -> bytes:
    """Return the contents of the file."""
    numbers = commit.to_bytes(_EACH, "big") + index.to_bytes(_EACH, "big")
    return numbers + _checksum(numbers)


def commit_of(notice: bytes) -> int:
    """Return the commit that a notice names; 0 if its checksum is wrong."""
    numbers = notice[:_NUMBERS]
    if len(notice) < _SIZE or notice[_NUMBERS:_SIZE] != _checksum(numbers):
        return 0
    return int.from_bytes(numbers[:_EACH], "big")


def is_of_another_commit(notice: bytes, than: bytes) -> bool:
    """Return whether two notices name different commits."""
    return notice[:_EACH] != than[:_EACH]


def _checksum(numbers: bytes) -> bytes:
    return hashing.checksum(NAME.encode() + numbers).to_bytes(_EACH, "big")


class Notice:
    """The notice file of one store, for its writer or for a reader."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._path = str(store / NAME)
        self._fd: int | None = None
        self._file = (0, 0)  # device and inode of the open file
        self._writing = False
        # The commit that was published last.
        self._commit: int | None = None

    def publish(self, commit: int) -> None:
        """Announce to readers that ``commit`` is committed."""
        _log.debug("commit %d is in %s", commit, self._store)
        # If this fails, readers keep the commit that they have.
        with contextlib.suppress(OSError, ForeignError):
            fd = self._for_writing()
            index = int.from_bytes(os.pread(fd, _EACH, _EACH), "big")
            disk().pwrite(fd, pack(commit, index), 0)
            self._commit = commit

    def publish_index(self) -> None:
        """Announce to readers that the manifest names another index over the same commit."""
        with contextlib.suppress(OSError, ForeignError):
            fd = self._for_writing()
            before = os.pread(fd, _SIZE, 0)
            commit = commit_of(before) if self._commit is None else self._commit
            index = int.from_bytes(before[_EACH:_NUMBERS], "big")
            disk().pwrite(fd, pack(commit, (index + 1) % (1 << 8 * _EACH)), 0)

    def _for_writing(self) -> int:
        if self._fd is None or not self._writing:
            self.close()
            fd = nofollow.open_file(self._store, NAME, os.O_RDWR | os.O_CREAT)
            self._hold(fd, writing=True)
            return fd
        return self._fd

    def read(self) -> bytes:
        """Return the notice; empty if there is none."""
        try:
            if self._fd is not None and self._was_replaced():
                self.close()
            if self._fd is None:
                fd = nofollow.open_file(self._store, NAME)
                self._hold(fd)
            else:
                fd = self._fd
            return os.pread(fd, _SIZE, 0)
        except (OSError, ForeignError):
            return b""

    def _hold(self, fd: int, *, writing: bool = False) -> None:
        found = os.fstat(fd)
        self._fd, self._writing = fd, writing
        self._file = found.st_dev, found.st_ino

    def _was_replaced(self) -> bool:
        """Return whether another file has the name now: a writer replaces one that has a second name.

        Every lookup calls this, so it makes a single system call. If the file is
        gone, the open one is the newest.
        """
        try:
            found = os.lstat(self._path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) != self._file

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._writing = False
