"""The ballast file RESERVE: disk space released on a full disk, so that images can still be removed.

RocksDB has to write before it can delete: opening replays its log into tables, and each commit goes
through the log. The ballast file reserves the space for that. Its size grows with the number of
images. A small store has none, because removing its images would free little.
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
# Free bytes with which a store can still be opened for writing.
LITTLE = 2 << 20
# Bytes per image: its share of a record row and its key, plus both in the log.
_EACH = 48
# Bytes per image that the keys take.
_KEYS = 90
_MAX = 64 << 20
# The disk must have this many times the file's size free before the file is made.
_PLENTY = 4
# Free bytes that an ingest leaves, so that images can be removed afterwards.
LEFT = 5 << 19
# Below this many free bytes, each chunk is measured before it is written.
LOW = 64 << 20
# A full disk, a used-up quota and a file-size limit: a smaller write may still fit.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class NoRoomError(StoreError):
    """A chunk does not fit on the disk. None of it was kept; a smaller chunk may fit."""


def is_full(error: BaseException) -> bool:
    """Return whether an error, from the OS or as RocksDB text, means a full disk."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(os.strerror(number) in str(error) for number in FULL)


def wanted(state: State, limits: Limits) -> int:
    """Return how large the ballast file should be, in bytes; 0 if there should be none."""
    held = sum(size for pairs in state.extents.values() for _, size in pairs) + _KEYS * state.images
    return (
        min(limits.ballast_bytes + _EACH * state.images, _MAX)
        if held >= limits.ballast_store
        else 0
    )


def renew(store: Path, size: int) -> bool:
    """Create or enlarge the ballast file if the disk has plenty of room; return whether it is complete.

    Deleting a file with a second name frees no space, and a copy may be sparse. This function replaces
    either.
    """
    # A missing ballast file is no reason to fail.
    with contextlib.suppress(OSError, ForeignError):
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
    """Delete the ballast file; ``renew`` makes it again when there is plenty of room."""
    with contextlib.suppress(OSError, ForeignError):
        nofollow.remove(store, NAME)


def free(store: Path) -> int:
    """Return how many bytes this process may still write to the store's disk."""
    return disk().free(store)
