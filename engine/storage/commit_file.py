"""COMMIT: the numbers of the newest commit and of the newest index, for open readers and for all.

Eight bytes each, and eight of a checksum of both. Readers that are open learn from it that there is
something new, for the price of reading it; an index that was built or measured again is no commit, since
nothing that is kept changed with it. It is written afterwards and not synced, so the commit that it
names may be older than the keys', after a kill or a power cut, and never newer: if it is, keys that
were committed are lost. RocksDB alone cannot tell, since a log or a MANIFEST that was cut short looks
as if a crash had left it so. Only a notice with its checksum is believed in this; any other is a hint
to look again. Earlier versions wrote none, and their readers pass over it.
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
    """What the file holds."""
    numbers = commit.to_bytes(_EACH, "big") + index.to_bytes(_EACH, "big")
    return numbers + _checksum(numbers)


def commit_of(notice: bytes) -> int:
    """The commit that a notice names, if it is as it was written; else 0."""
    numbers = notice[:_NUMBERS]
    if len(notice) < _SIZE or notice[_NUMBERS:_SIZE] != _checksum(numbers):
        return 0
    return int.from_bytes(numbers[:_EACH], "big")


def is_of_another_commit(notice: bytes, than: bytes) -> bool:
    """Whether two notices name two commits."""
    return notice[:_EACH] != than[:_EACH]


def _checksum(numbers: bytes) -> bytes:
    return hashing.checksum(NAME.encode() + numbers).to_bytes(_EACH, "big")


class Notice:
    """The notice of one store, for its writer or for a reader."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._path = str(store / NAME)
        self._fd: int | None = None
        self._file = (0, 0)  # device and inode of what is open
        self._writing = False
        self._commit: int | None = None  # that was published last

    def publish(self, commit: int) -> None:
        """Let readers know that ``commit`` is committed."""
        _log.debug("commit %d is in %s", commit, self._store)
        with contextlib.suppress(OSError, ForeignError):  # readers go on with what they have
            fd = self._for_writing()
            index = int.from_bytes(os.pread(fd, _EACH, _EACH), "big")
            disk().pwrite(fd, pack(commit, index), 0)
            self._commit = commit

    def publish_index(self) -> None:
        """Tell readers that the manifest names another index over what is committed."""
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
        """What the notice says; nothing where there is none."""
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
        """Whether another file has the name now: a writer copies one that has a second name.

        One call of the system, since this is on the way of every lookup. Where there is no file
        any more, what is open is the newest.
        """
        try:
            found = os.lstat(self._path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) != self._file

    def close(self) -> None:
        """Give the file descriptor back."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._writing = False
