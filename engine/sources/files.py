"""Image files: single ones, and all below a folder, in a stable order."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from engine.pixels import SUFFIXES, looks_like_image
from engine.sources.base import FileItem, Item, Problem, Skipped, absolute


def one(path: Path) -> FileItem | Problem:
    """A file that was named: an item, or the reason why it is none."""
    try:
        status = path.stat()
    except OSError as error:
        return Problem(absolute(path), f"cannot be read: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        return Problem(absolute(path), "neither a file nor a folder")
    return FileItem(path, absolute(path), status.st_mtime_ns, status.st_size)


def walk(folder: Path, *, recursive: bool) -> Iterator[Item]:
    """The files below a folder: its own by name, then its subfolders by name.

    Links to folders are not followed (they may lead in circles). A file that is neither named nor
    signed as an image is skipped; a folder that cannot be listed is a problem.
    """
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        yield Problem(absolute(folder), f"the folder cannot be listed: {error.strerror}")
        return
    folders = []
    for entry in entries:
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            folders.append(path)
        elif entry.is_file():
            yield one(path) if _claims(path) else Skipped(absolute(path))
        else:
            yield Skipped(absolute(path))
    if recursive:
        for path in folders:
            yield from walk(path, recursive=True)


def count(folder: Path, *, recursive: bool) -> int:
    """How many files ``walk`` will meet; quick, for a progress bar."""
    total = 0
    for _, folders, names in os.walk(folder):
        total += len(names)
        if not recursive:
            folders.clear()
    return total


def _claims(path: Path) -> bool:
    """Whether a file claims to be an image, by its name or its first bytes."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return looks_like_image(file.read(32))
    except OSError:
        return False
