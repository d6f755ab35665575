"""Image files: single ones, and all below a folder, in a stable order."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from engine.images.file_types import SUFFIXES, looks_like_image
from engine.images.unread_formats import unread_format
from engine.sources.exclusions import NOTHING, Exclusions
from engine.sources.idx import is_idx
from engine.sources.items import FileItem, Item, Reject, Skipped, absolute, stamp_of
from engine.sources.skip_notes import IDX_IN_FOLDERS, unread


def one(path: Path) -> FileItem | Reject:
    """A file that was named: an item, or the reason why it is none."""
    try:
        status = path.stat()
    except OSError as error:
        return Reject(absolute(path), f"cannot be read: {error.strerror}")
    if stat.S_ISDIR(status.st_mode):
        return Reject(absolute(path), "a folder: name the images in it")
    if not stat.S_ISREG(status.st_mode):
        return Reject(absolute(path), "neither a file nor a folder")
    if unread_format(os.fsencode(path.name)) is not None:
        return refuse_unread(absolute(path))
    return FileItem(path, absolute(path), *stamp_of(status))


def refuse_unread(name: bytes) -> Reject:
    """A file whose name is of a format that is not read yet."""
    format_ = unread_format(name)
    return Reject(name, f"{format_} is not read yet: convert it to TIFF, PNG or JPEG")


def walk(folder: Path, *, recursive: bool, exclude: Exclusions = NOTHING) -> Iterator[Item]:
    """The files below a folder: its own by name, then its subfolders by name.

    What ``exclude`` matches is not there, and folders that it matches are not entered.
    Links to folders are not followed (they may lead in circles). A file that is neither named nor
    signed as an image is skipped, and so is one of a format that is not read yet; a folder that cannot
    be listed is a problem.
    """
    for listed in _listings(folder, recursive=recursive, exclude=exclude):
        if isinstance(listed, Reject):
            yield listed
            continue
        for entry in listed:
            yield _entry(entry)


def count(folder: Path, *, recursive: bool, exclude: Exclusions = NOTHING) -> int:
    """How many files ``walk`` will meet; quick, for a progress bar."""
    listings = _listings(folder, recursive=recursive, exclude=exclude)
    return sum(1 if isinstance(listed, Reject) else len(listed) for listed in listings)


def _listings(
    folder: Path, *, recursive: bool, exclude: Exclusions
) -> Iterator[list[os.DirEntry[str]] | Reject]:
    """What each folder holds besides folders, by name; or why it cannot be listed."""
    # A list, and not recursion: folders may be nested deeper than calls may be. With each folder is
    # its path below the first one, with a slash behind it.
    left = [(folder, "")]
    while left:
        current, below = left.pop()
        try:
            with os.scandir(current) as listing:
                entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            yield Reject(absolute(current), f"the folder cannot be listed: {error.strerror}")
            continue
        if {"MANIFEST.json", "keys"} <= {entry.name for entry in entries}:
            continue  # a store: what it keeps is not there to be ingested
        folders: list[os.DirEntry[str]] = []
        others: list[os.DirEntry[str]] = []
        for entry in entries:
            if exclude and exclude.match(entry.name, below + entry.name):
                continue
            (folders if entry.is_dir(follow_symlinks=False) else others).append(entry)
        yield others
        if recursive:
            left.extend((Path(entry.path), f"{below}{entry.name}/") for entry in reversed(folders))


def _entry(entry: os.DirEntry[str]) -> FileItem | Reject | Skipped:
    """What a folder holds under one name."""
    path = Path(entry.path)
    if not _is_file(entry):
        return Skipped(absolute(path))
    format_ = unread_format(os.fsencode(entry.name))
    if format_ is not None:
        return Skipped(absolute(path), unread(format_))
    if is_idx(entry.name):
        return Skipped(absolute(path), IDX_IN_FOLDERS)
    return one(path) if _claims(path) else Skipped(absolute(path))


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link in a circle, or into a folder that is closed to us: reading tells
        return True


def _claims(path: Path) -> bool:
    """Whether a file claims to be an image, by its name or its first bytes.

    What macOS keeps beside an image as "._NAME" has its name, and is none.
    """
    if path.suffix.lower() in SUFFIXES and not path.name.startswith("._"):
        return True
    try:
        with path.open("rb") as file:
            return looks_like_image(file.read(32))
    except OSError:
        return False
