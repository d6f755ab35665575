"""RESERVE: room on the disk that is given back when the disk is full, so that images can be removed.

RocksDB has to write before it can delete: opening replays its log into tables, and each commit goes
through the log. A file of no content holds the room for that. Its size goes with what has to be
written for each image; a small store has none, since its removal would bring nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from engine.config import Limits
from engine.errors import StoreError
from engine.storage import file_names, nofollow
from engine.storage.disk import disk
from engine.storage.safe_folders import ForeignError
from engine.storage.state import State

NAME = file_names.RESERVE
LITTLE = 2 << 20  # bytes of disk with which a store can still be opened for writing
_EACH = 48  # bytes an image: of its share of a record row, its key, and both in the log
_KEYS = 90  # bytes an image among the keys
_MAX = 64 << 20
_PLENTY = 4  # times its size that have to be free before it is made
LEFT = 5 << 19  # bytes of disk that an ingest leaves, so that images can be removed again
LOW = 64 << 20  # free bytes below which a chunk is measured before it is written
# A full disk, a used-up quota, and a limit on the size of files: less may still fit.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class NoRoomError(StoreError):
    """A chunk does not fit the disk. Nothing of it is left there, and a smaller one may fit."""


def is_full(error: BaseException) -> bool:
    """Whether an error, of the system or as RocksDB puts it into words, is that of a full disk."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(os.strerror(number) in str(error) for number in FULL)


def wanted(state: State, limits: Limits) -> int:
    """How large the reserve of a store should be, in bytes; 0 if there should be none."""
    held = sum(size for pairs in state.extents.values() for _, size in pairs) + _KEYS * state.images
    return (
        min(limits.ballast_bytes + _EACH * state.images, _MAX)
        if held >= limits.ballast_store
        else 0
    )


def renew(store: Path, size: int) -> bool:
    """Make the reserve, or a larger one, if there is plenty of room; whether it is there, whole.

    One that has another name too would give no room back, and a copy may be nothing but a hole: such
    a reserve is made again.
    """
    with contextlib.suppress(OSError, ForeignError):  # it is not worth an error
        found = nofollow.status(store, NAME)
        there = found.st_size if found is not None else 0
        good = found is None or (found.st_nlink == 1 and found.st_blocks * 512 >= there)
        if not good and free(store) >= _PLENTY * size:
            nofollow.remove(store, NAME)
            there, good = 0, True
        if there < size and free(store) >= _PLENTY * size:
            fd = nofollow.open_file(store, NAME, os.O_WRONLY | os.O_CREAT)
            try:
                disk().allocate(fd, there, size - there)
            except OSError:
                nofollow.remove(store, NAME)
                raise
            finally:
                os.close(fd)
            there = size
        return good and there >= size
    return False


def give_back(store: Path) -> None:
    """Let go of the reserve; it is made again when there is plenty of room."""
    with contextlib.suppress(OSError, ForeignError):
        nofollow.remove(store, NAME)


def free(store: Path) -> int:
    """Bytes that this process may still write on the disk of a store."""
    return disk().free(store)
