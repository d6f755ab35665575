"""Opens the folders of a store one inside another, and reports anything else that is in their place.

A store may come from anywhere. So each of its folders is opened from a descriptor of the store's own
folder, component by component. A symbolic link, a pipe, a socket, a device, or a file in place of a
folder raises a ``ForeignError`` that names it. Only the path of the store itself may be a link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.errors import StoreDamagedError, StoreError
from engine.storage import openat2

# Linux has O_PATH. It opens entries of a folder even where listing the folder is not allowed.
_PATH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
# The errors of opening something that is of another kind than expected.
OTHER_KIND = frozenset(
    {
        errno.ELOOP,
        errno.EMLINK,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENXIO,
        errno.ENODEV,
        errno.EINVAL,
    }
)
_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISREG, "a file"),
)


class ForeignError(StoreError):
    """The engine did not put this entry of a store there, and left it alone."""


@contextlib.contextmanager
def opened_folder(root: Path, name: str = "", flags: int = _PATH) -> Iterator[int]:
    """Open a folder and yield its descriptor; "" is ``root`` itself. By default it cannot be listed."""
    flags |= os.O_DIRECTORY | os.O_CLOEXEC
    parts = _parts(name)
    fd = os.open(root, _PATH if parts else flags)
    try:
        if parts:
            inner = _descend(root, fd, parts, flags)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


def _descend(root: Path, fd: int, parts: tuple[str, ...], flags: int) -> int:
    """Open a folder below an open one; if the kernel refuses, go step by step."""
    if openat2.open_beneath is not None:
        found = openat2.open_beneath(fd, "/".join(parts), flags)
        if found is not None:
            return found
    at, path = fd, root
    for number, part in enumerate(parts, 1):
        path /= part
        try:
            how = flags if number == len(parts) else _PATH
            inner = os.open(part, how | os.O_NOFOLLOW, dir_fd=at)
        except OSError as error:
            if error.errno in OTHER_KIND:
                require_kind(path, part, at, stat.S_ISDIR, "a folder")
            raise at_path(error, path) from None
        finally:
            if at != fd:
                os.close(at)
        at = inner
    return at


def split(name: str) -> tuple[str, str]:
    """Split a file's name into its folder and its last component."""
    parts = _parts(name)
    if not parts:
        raise StoreDamagedError(f"{name!r} is not a file name in a store")
    return "/".join(parts[:-1]), parts[-1]


def _parts(name: str) -> tuple[str, ...]:
    parts = tuple(name.split("/")) if name else ()
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise StoreDamagedError(f"{name!r} is not a name in a store; run 'engine check'")
    return parts


def require_kind(path: Path, last: str, at: int, kind: Callable[[int], bool], wanted: str) -> None:
    """Raise ``ForeignError`` if ``last`` in the open folder ``at`` is not what is ``wanted``."""
    mode = os.stat(last, dir_fd=at, follow_symlinks=False).st_mode
    if not kind(mode):
        raise foreign(path, mode, wanted)


def foreign(path: Path, mode: int, wanted: str) -> ForeignError:
    """Return the error for something at ``path`` that should be ``wanted``."""
    kind = next((what for is_one, what in _KINDS if is_one(mode)), "a device")
    if stat.S_ISLNK(mode):
        todo = (
            f"put {wanted} back in its place; to have a store on another disk, move its whole "
            f"folder and link that"
        )
    else:
        todo = "remove it, or restore the store from a copy"
    shown = str(path) if str(path).isprintable() else repr(str(path))
    return ForeignError(f"{shown} is {kind}, and should be {wanted}: it was left alone; {todo}")


def at_path(error: OSError, path: Path) -> OSError:
    """Return the same error with the whole path."""
    assert error.errno is not None
    return OSError(error.errno, error.strerror, str(path))
