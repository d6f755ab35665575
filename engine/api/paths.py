"""Checks the paths that a caller passes, before anything is opened."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from engine.errors import UsageError

# Errors about the name itself, whatever is on the disk.
_NO_NAME = (errno.ELOOP, errno.ENAMETOOLONG)


def folder_named(path: str | os.PathLike[str]) -> Path:
    """The folder of a store or a copy, which need not exist.

    ``UsageError`` for anything but a path, for a path that is too long, and for a circle of links.
    """
    try:
        folder = Path(path)
    except TypeError:
        raise UsageError(f"a folder must be a path, not {path!r:.60}") from None
    try:
        folder.stat()
    except ValueError:
        raise UsageError(f"no folder can be called {str(path)!r:.60}: name another") from None
    except OSError as error:
        if error.errno in _NO_NAME:
            what = f"{str(path)!r:.60}"
            raise UsageError(f"{what} is not a folder: {error.strerror}; name another") from None
    return folder


def source_names(sources: object) -> list[str]:
    """The names of one or several sources; ``UsageError`` for anything else."""
    named = [sources] if isinstance(sources, str | os.PathLike) else sources
    try:
        if not isinstance(named, Iterable):
            raise TypeError
        names = [os.fspath(name) for name in named]
        if not all(isinstance(name, str) for name in names):
            raise TypeError
    except TypeError:
        raise UsageError(f"sources must be a list of paths, not {sources!r:.60}") from None
    for name in names:
        try:
            os.fsencode(name)
        except UnicodeEncodeError:
            raise UsageError(f"{name!r:.60} cannot be the name of a source") from None
    return names
