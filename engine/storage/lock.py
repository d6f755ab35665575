"""LOCK: the single writer's flock. The kernel releases it when the process dies, however it dies."""

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
_FIRST_POLL = 0.01  # seconds between the first two attempts
_LAST_POLL = 0.25  # seconds between attempts in the end
_POLL_GROWTH = 1.5
_MAX_HOST = 64  # characters of a host name, which is Linux's limit
_log = logging.getLogger("engine.storage")
_TRIES = 500  # while other processes only test the lock
_PAUSE = 0.002  # seconds


class WriterLock:
    """The writer's lock, from the first write until ``release``. The file's content is informational.

    It is a JSON object: the ``pid`` of the holder, its ``host``, and ``since`` (seconds since 1970),
    which older versions of the engine do not write.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._path = store / NAME
        self._fd: int | None = None
        # Whether this is a forked child's copy of its parent's lock.
        self.abandoned = False
        abandon_in_child(self)

    @property
    def held(self) -> bool:
        """Return whether this object holds the lock."""
        return self._fd is not None

    def acquire(self, wait: float = 0.0, stop: Callable[[], bool] | None = None) -> None:
        """Take the lock; wait up to ``wait`` seconds for its holder.

        Raises ``StoreLockedError``, which names the holder, after that. Before each attempt but the
        first it calls ``stop``, and raises ``StoppedError`` if that returns true.
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
        """Take the lock and return None, or return the name of its holder.

        Each attempt opens the file again. Otherwise a waiting process could get the lock of a store that
        was deleted and created again.
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
        # Writing fails on a full disk, but the lock is held all the same.
        with contextlib.suppress(OSError):
            if os.fstat(fd).st_nlink > 1:
                # The file has another name too, so it is not ours alone.
                return None
            disk().ftruncate(fd, 0)
            disk().pwrite(fd, json.dumps(said).encode(), 0)
        return None

    def busy(self) -> bool:
        """Return whether any process holds the lock."""
        try:
            fd = nofollow.open_lock(self._store, NAME, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        # Some file systems have no locks.
        except OSError:
            return False
        finally:
            os.close(fd)
        return False

    def release(self) -> None:
        """Release the lock. The file stays, because removing it would race with the next writer."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def abandon(self) -> None:
        """Close it in a forked child: the lock stays the parent's, which alone releases it."""
        self.abandoned = True
        self.release()


def _lock(fd: int) -> None:
    """Take the lock; raise ``BlockingIOError`` if a writer has it.

    ``busy`` takes a shared lock for a moment. While a shared lock succeeds there is no writer, so this
    tries again.
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
    """Return the lock's holder as the file names it; the file may contain anything."""
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
    """Return since when, in local time; empty if an older version of the engine has the lock."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return ""
    try:
        return time.strftime(" since %Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OSError, ValueError, OverflowError):
        return ""
