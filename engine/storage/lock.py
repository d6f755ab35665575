"""LOCK: the flock of the one writer. The kernel drops it when the process dies, however it dies."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from engine.errors import StoreError, StoreLockedError
from engine.forking import abandon_in_child
from engine.stop import StoppedError
from engine.storage import file_names, nofollow
from engine.storage.disk import disk

NAME = file_names.LOCK
_FIRST_POLL = 0.01  # seconds, between two tries of whoever waits
_LAST_POLL = 0.25  # seconds, to which that grows
_POLL_GROWTH = 1.5
_MAX_HOST = 64  # characters of a name: as long as Linux lets one be
_log = logging.getLogger("engine.storage")
_TRIES = 500  # while others only ask for it
_PAUSE = 0.002  # seconds


class WriterLock:
    """Held from the first write until ``release``; what is in the file is information only.

    That is a JSON object: the ``pid`` of the holder, its ``host``, and ``since`` (seconds since 1970),
    which older versions of the engine do not write.
    """

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

    def acquire(self, wait: float = 0.0, stop: Callable[[], bool] | None = None) -> None:
        """Take the lock; wait up to ``wait`` seconds for whoever has it.

        Then ``StoreLockedError`` names that process. ``stop`` is asked before each try but the first:
        once it says so, ``StoppedError`` is raised.
        """
        deadline, pause = time.monotonic() + wait, _FIRST_POLL
        waiting = False
        while not self.held:
            holder = self._try()
            if holder is None:
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise StoreLockedError(self._refusal(holder, wait))
            if not waiting:
                _log.warning("waiting for %s, which writes to %s", holder, self._store)
                waiting = True
            time.sleep(min(pause, left))
            pause = min(pause * _POLL_GROWTH, _LAST_POLL)
            if stop is not None and stop():
                raise StoppedError

    def _refusal(self, holder: str, wait: float) -> str:
        advice = (
            f"waited {wait:g} s: raise wait=" if wait else "wait for it with wait= (in seconds)"
        )
        return f"{self._store} is being written by {holder}: {advice}, or end that process"

    def _try(self) -> str | None:
        """Take the lock, or say who has it.

        The file is opened again for each try: whoever waits must not end up with the lock of a store
        that was deleted, and made again, while it waited.
        """
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
            return holder
        except OSError as error:
            os.close(fd)
            raise StoreError(
                f"{self._path} cannot be locked: {error.strerror}; put the store on a local disk"
            ) from None
        said = {"pid": os.getpid(), "host": socket.gethostname(), "since": round(time.time(), 3)}
        self._fd = fd
        with contextlib.suppress(OSError):  # a full disk: the lock is held all the same
            if os.fstat(fd).st_nlink > 1:
                return None  # it is somebody else's file too
            disk().ftruncate(fd, 0)
            disk().pwrite(fd, json.dumps(said).encode(), 0)
        return None

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
    """Who has the lock, as far as the file says so; it may hold anything."""
    try:
        said = json.loads(os.pread(fd, 4096, 0))
        pid, host = int(said["pid"]), str(said["host"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return "another process"
    if host == socket.gethostname():
        host = "this machine"
    elif not host.isprintable() or len(host) > _MAX_HOST:
        host = "another machine"
    return f"process {pid} on {host}{_since(said.get('since'))}"


def _since(seconds: object) -> str:
    """Since when, in local time; nothing where an older version of the engine has the lock."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return ""
    try:
        return time.strftime(" since %Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OSError, ValueError, OverflowError):
        return ""
