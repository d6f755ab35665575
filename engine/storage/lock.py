"""LOCK: the flock of the one writer. The kernel drops it when the process dies, however it dies."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path

from engine.errors import StoreError, StoreLockedError
from engine.forking import abandon_in_child
from engine.storage import file_names, nofollow
from engine.storage.disk import disk

NAME = file_names.LOCK
_TRIES = 500  # while others only ask for it
_PAUSE = 0.002  # seconds


class WriterLock:
    """Held from the first write until ``release``; pid and host in the file are information only."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._path = store / NAME
        self._fd: int | None = None
        self.abandoned = False  # it is the parent's of this forked process
        abandon_in_child(self)

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def acquire(self) -> None:
        """Take the lock; ``StoreLockedError`` names the process that has it."""
        if self._fd is not None:
            return
        try:
            fd = nofollow.open_lock(self._store, NAME, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise StoreError(
                f"{self._path.parent} cannot be written: {error.strerror}; "
                f"it can still be read (engine lookup)"
            ) from None
        try:
            _lock(fd)
        except BlockingIOError:
            holder = _holder(fd)
            os.close(fd)
            raise StoreLockedError(
                f"{self._path.parent} is being written by {holder}: wait for it or end it"
            ) from None
        except OSError as error:
            os.close(fd)
            raise StoreError(
                f"{self._path} cannot be locked: {error.strerror}; put the store on a local disk"
            ) from None
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        self._fd = fd
        with contextlib.suppress(OSError):  # a full disk: the lock is held all the same
            if os.fstat(fd).st_nlink > 1:
                return  # it is somebody else's file too
            disk().ftruncate(fd, 0)
            disk().pwrite(fd, text, 0)

    def busy(self) -> bool:
        """Whether somebody holds the lock."""
        try:
            fd = nofollow.open_lock(self._store, NAME, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
        finally:
            os.close(fd)
        return False

    def release(self) -> None:
        """Give the lock back; the file stays, since removing it would race with the next writer."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def abandon(self) -> None:
        """In a forked child: it stays the parent's, and is free as soon as the parent gives it back."""
        self.abandoned = True
        self.release()


def _lock(fd: int) -> None:
    """Take the lock; ``BlockingIOError`` if a writer has it.

    Whoever only asks whether it is held (``busy``) shares it for a moment. As long as it can be
    shared there is no writer, and it is tried again.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_UN)
        time.sleep(_PAUSE)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(fd: int) -> str:
    try:
        info = json.loads(os.pread(fd, 4096, 0))
        return f"process {int(info['pid'])} on {info['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
