"""Finds out what a SOURCE or an IMAGE is. An existing path wins over ``#``, ``?`` and ``{}`` in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from engine.errors import SourceError, UsageError
from engine.images.file_types import SUFFIXES
from engine.sources.name_patterns import expand
from engine.sources.named_arrays import (
    array_file,
    arrays_of,
    exists,
    is_array,
    missing_array,
)
from engine.sources.parquet_table import PARQUET_SUFFIXES, ParquetTable
from engine.sources.path_lists import shown
from engine.sources.synthetic import PREFIX, SyntheticBits
from engine.sources.tar_archive import TarArchive, begins_as_tar, is_named_tar
from engine.sources.zip_archive import ZipArchive

Archive = TarArchive | ZipArchive | ParquetTable


def check_source(spec: str) -> None:
    """``UsageError`` if the SOURCE does not exist or is not valid."""
    if is_synthetic(spec):
        SyntheticBits(spec)
        return
    if not exists(spec) and not any(_is_there(one) for one in expanded(spec)):
        raise UsageError(f"{shown(spec)}: {missing_array(spec) or 'no such file or folder'}")
    # A damaged archive is reported when it is read.
    with contextlib.suppress(SourceError, OSError):
        archive_of(spec)


def _is_there(spec: str) -> bool:
    """Whether ``spec`` names an existing file or folder, or an existing file and a ``?`` query."""
    if exists(spec):
        return True
    array = array_file(spec)
    if array is not None:
        return exists(array[0])
    try:
        return arrays_of(spec) is not None or archive_of(spec) is not None
    except (SourceError, OSError):
        return True


def expanded(spec: str) -> Iterator[str]:
    """The names that a pattern stands for, or ``spec`` itself if it is not a pattern."""
    # The name of a file may have braces in it; "#" and "?" begin what is inside of the file.
    ends = [len(spec), *(at for at, mark in enumerate(spec) if mark in "#?")]
    names = None if any(exists(spec[:end]) for end in ends) else expand(spec)
    return iter([spec]) if names is None else names


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    # The name is too long or holds a null byte.
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder of this name."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_synthetic(spec: str) -> bool:
    """Whether ``spec`` names a synthetic set, and not an existing file with such a name."""
    return spec.startswith(PREFIX) and not exists(spec)


def is_row(text: str) -> bool:
    """Whether ``text`` is the number of a row."""
    # The limit is there because int() refuses thousands of digits.
    return text.isdecimal() and len(text) <= 18


def archive_of(spec: str) -> Archive | None:
    """The archive or table that ``FILE`` or ``FILE?…`` names; None for anything else."""
    path, query = Path(spec), ""
    at = spec.find("?")
    if at != -1 and exists(spec):
        at = -1
    while at != -1 and not exists(spec[:at]):
        at = spec.find("?", at + 1)
    if at != -1:
        path, query = Path(spec[:at]), spec[at + 1 :]
    # A "#" begins a member. In the name of a column it is written %23.
    if "#" in query:
        return None
    if not _is_file(path) or is_array(path) or path.suffix.lower() in SUFFIXES:
        return None
    if path.name.lower().endswith(PARQUET_SUFFIXES):
        return ParquetTable(path, query)
    if path.name.lower().endswith(".zip"):
        return ZipArchive(path, query)
    if is_named_tar(path) or begins_as_tar(path):
        return TarArchive(path, query)
    with path.open("rb") as file:
        head = file.read(4)
    if head in (b"PK\3\4", b"PK\5\6"):
        return ZipArchive(path, query)
    if head == b"PAR1":
        return ParquetTable(path, query)
    return None
