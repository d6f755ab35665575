"""Texts that say why things are not read, to print after the count of such things."""

from __future__ import annotations

from collections.abc import Mapping

HARD_LINKS = "hard links in tars: their pixels are those of the member that each leads to"
LINKS = "symbolic links in archives: they are not followed"
DEVICES = "devices and pipes in archives"
PIECES = "pieces of files in a tar of several volumes: put them together with tar -M"
FOLDERS_WITH_DATA = "folders in zips that have contents of their own"
NO_ARCHIVE = "tars followed by data that is not a tar"
WITHOUT_METADATA = "images added without their metadata, which cannot be read or kept"
WITHOUT_VECTOR = "images that the file of vectors does not name: they get no vector"
IDX_IN_FOLDERS = "IDX files are not read in folders: name each as a source"
ARRAYS_IN_FOLDERS = "array files are not read in folders: name each as a source"
ARCHIVES_IN_FOLDERS = "archive and table files are not read in folders: name each as a source"
_NOT_SKIPPED = {WITHOUT_METADATA, WITHOUT_VECTOR, NO_ARCHIVE}


def unread(format_: str) -> str:
    """The note for files of a format that is not read yet."""
    return f"{format_} files are not read yet"


def skipped_with(notes: Mapping[str, int]) -> int:
    """How many skipped things have a note, of the notes of a run and how many of each there are."""
    return sum(count for note, count in notes.items() if note not in _NOT_SKIPPED)
