"""Image files: single files, and all files below a folder, in a stable order."""

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
from engine.sources.skip_notes import (
    ARCHIVES_IN_FOLDERS,
    ARRAYS_IN_FOLDERS,
    IDX_IN_FOLDERS,
    unread,
)

_ARRAYS = (".npy", ".npz")
_ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".parquet")


def one(path: Path) -> FileItem | Reject:
    """The item for a named file, or a reject that says why it cannot be read."""
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
    """The reject for a file whose name is that of an unsupported format."""
    format_ = unread_format(name)
    return Reject(name, f"{format_} is not read yet: convert it to TIFF, PNG or JPEG")


def walk(folder: Path, *, recursive: bool, exclude: Exclusions = NOTHING) -> Iterator[Item]:
    """The files below a folder: first its own files by name, then its subfolders by name.

    Files and folders that match ``exclude`` are left out. Links to folders are not followed, because
    they may form circles. A file is ``Skipped`` if neither its name nor its signature is an image's, or
    if its format is not supported. A folder that cannot be listed is a ``Reject``.
    """
    for listed in _listings(folder, recursive=recursive, exclude=exclude):
        if isinstance(listed, Reject):
            yield listed
            continue
        for entry in listed:
            yield _entry(entry)


def count(folder: Path, *, recursive: bool, exclude: Exclusions = NOTHING) -> int:
    """The number of files that ``walk`` will yield; quick, for a progress bar."""
    listings = _listings(folder, recursive=recursive, exclude=exclude)
    return sum(1 if isinstance(listed, Reject) else len(listed) for listed in listings)


def _listings(
    folder: Path, *, recursive: bool, exclude: Exclusions
) -> Iterator[list[os.DirEntry[str]] | Reject]:
    """For each folder, its entries but subfolders, by name; or a reject if it cannot be listed."""
    # A list instead of recursion, because folders may be nested deeper than calls. Each folder comes
    # with its path below the first one and a trailing slash.
    left = [(folder, "")]
    while left:
        current, below = left.pop()
        try:
            with os.scandir(current) as listing:
                entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            yield Reject(absolute(current), f"the folder cannot be listed: {error.strerror}")
            continue
        # Do not ingest the content of a store.
        if {"MANIFEST.json", "keys"} <= {entry.name for entry in entries}:
            continue
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
    """The item for one entry of a folder."""
    path = Path(entry.path)
    if not _is_file(entry):
        return Skipped(absolute(path))
    format_ = unread_format(os.fsencode(entry.name))
    if format_ is not None:
        return Skipped(absolute(path), unread(format_))
    if is_idx(entry.name):
        return Skipped(absolute(path), IDX_IN_FOLDERS)
    if _claims(path):
        return one(path)
    name = entry.name.lower()
    if name.endswith(_ARRAYS):
        return Skipped(absolute(path), ARRAYS_IN_FOLDERS)
    return Skipped(absolute(path), ARCHIVES_IN_FOLDERS if name.endswith(_ARCHIVES) else "")


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    # A circular link, or a link into a folder without access. Reading it will report the error.
    except OSError:
        return True


def _claims(path: Path) -> bool:
    """Whether a file claims to be an image, by its name or its first bytes.

    The name of a macOS file "._NAME" does not count, because it holds only attributes of NAME.
    """
    if path.suffix.lower() in SUFFIXES and not path.name.startswith("._"):
        return True
    try:
        with path.open("rb") as file:
            return looks_like_image(file.read(32))
    except OSError:
        return False
