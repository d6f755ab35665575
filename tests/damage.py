"""What goes wrong in tests: bits flip, disks fail or are full, work is interrupted."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.storage.disk import Disk, using

# The calls that change files.
CALLS = ("fsync", "fdatasync", "pwrite", "ftruncate", "rename", "unlink", "mkdir")
# The disk whose calls ``interrupted`` replaces. It is one of ours, so that no other disk changes.
OWN_DISK = Disk()


class Interrupted(BaseException):
    """One that nothing catches."""


def flip(path: Path, offset: int, bit: int = 0x40) -> None:
    """Change bits of a byte of a file; a negative offset counts from the end."""
    data = bytearray(path.read_bytes())
    data[offset] ^= bit
    path.write_bytes(data)


@dataclass
class Calls:
    """How often something was called."""

    made: int = 0


@contextlib.contextmanager
def interrupted(owner: object, name: str, at: int) -> Iterator[Calls]:
    """The ``at``-th call of a function, or any after it, ends the block.

    A call of the disk is one of ``OWN_DISK``, which is the disk of the process inside the block.
    """
    calls, real = Calls(), getattr(owner, name)

    def failing(*arguments: object, **named: object) -> object:
        calls.made += 1
        if calls.made >= at:
            raise Interrupted
        return real(*arguments, **named)

    with (
        using(owner) if isinstance(owner, Disk) else contextlib.nullcontext(),
        pytest.MonkeyPatch.context() as patch,
        contextlib.suppress(Interrupted),
    ):
        patch.setattr(owner, name, failing)
        yield calls


def killed_at(number: int, *, after: bool) -> tuple[Disk, list[int]]:
    """A disk that kills its process at its ``number``-th call that changes files, before it or after it.

    The list has how many such calls there were.
    """
    count, lock = [0], threading.Lock()

    disk = Disk()

    def around(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            with lock:
                count[0] += 1
                mine = count[0] == number
            if mine and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **named)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in CALLS:
        setattr(disk, name, around(getattr(disk, name)))
    return disk, count


class FailingDisk(Disk):
    """A disk whose ``call`` fails, from the ``at``-th time on.

    ``error`` is raised, or the ``OSError`` of this number. ``only``: a pattern in the path of the
    file; calls for others succeed and are not counted. ``half``: half of the data is written first.
    """

    def __init__(
        self,
        call: str,
        error: BaseException | int = errno.ENOSPC,
        *,
        at: int = 1,
        only: str = "",
        half: bool = False,
    ) -> None:
        self.calls = 0
        real = getattr(super(), call)

        def fail(*arguments: Any, **named: Any) -> Any:
            if only and not re.search(only, path_of(arguments[0])):
                return real(*arguments, **named)
            self.calls += 1
            if self.calls < at:
                return real(*arguments, **named)
            if half:
                fd, data, offset = arguments
                real(fd, bytes(data)[: len(data) // 2], offset)
            raise error if isinstance(error, BaseException) else OSError(error, os.strerror(error))

        setattr(self, call, fail)


class NearlyFull(Disk):
    """A disk with little room, and with more once a file is gone from it. Units: bytes."""

    def __init__(self, left: int, more: int = 0, without: Path | None = None) -> None:
        self.left, self._more, self._without = left, more, without

    def free(self, folder: Path) -> int:
        held = self._without is None or self._without.exists()
        return self.left + (0 if held else self._more)


def path_of(file: int | str | os.PathLike[str]) -> str:
    """The path of an open file, or of a name."""
    if not isinstance(file, int):
        return os.fspath(file)
    links = Path(f"/proc/self/fd/{file}")
    if links.is_symlink():
        return str(links.readlink())
    import fcntl

    found = fcntl.fcntl(file, fcntl.F_GETPATH, bytes(1024))  # macOS
    return os.fsdecode(found.rstrip(b"\0"))
