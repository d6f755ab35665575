"""What the files of the index are called, as a store that knows nothing of their contents needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.storage import file_names, nofollow
from engine.storage.durable import cannot_read, file_checksum, fsync_dir, is_in_the_way
from engine.storage.extents import Append
from engine.storage.manifest import INDEX_FOLDER, SegmentEntry


@dataclass(frozen=True, slots=True)
class ReorderedExtent:
    """A new extent of vectors in the order of a segment's lists, before a store takes it over."""

    rows: int
    segment: SegmentEntry | None  # over extent 0, until it has its number; none if no row is left
    appends: tuple[tuple[Append, Append], ...]  # of vectors and of ids, as a commit records them


def segment_path(store: Path, number: int) -> Path:
    """Where segment ``number`` lies."""
    return store / INDEX_FOLDER / file_names.segment(number)


def quantizer_path(store: Path, number: int) -> Path:
    """Where quantizer ``number`` lies."""
    return store / INDEX_FOLDER / file_names.quantizer(number)


def make_index_folder(store: Path) -> None:
    """Make the folder that segments and quantizers lie in, durably, if it is not there."""
    if nofollow.make_folder(store, INDEX_FOLDER):
        fsync_dir(store)


def file_problem(
    path: Path, size: int, xxh64: int, step: Callable[[], None] = lambda: None
) -> str | None:
    """What is wrong with a segment's or a quantizer's file, or None; reads all of it.

    ``step`` is called after each megabyte, and what it raises ends the reading.
    ``UnreadableError`` where something keeps this process from reading it.
    """
    try:
        found = file_checksum(path, path.parent.parent, step)
    except OSError as error:
        if is_in_the_way(error):
            raise cannot_read(path, error) from None
        return f"cannot be read: {error.strerror}"
    return "its checksum is wrong" if found != (size, xxh64) else None
