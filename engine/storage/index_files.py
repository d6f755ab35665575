"""The paths and checksums of index files. This module knows nothing of their contents."""

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
    """A new extent of vectors in the order of a segment's lists, not yet part of a store."""

    rows: int
    # It covers extent 0 until the extent has its number; None if no row is left.
    segment: SegmentEntry | None
    appends: tuple[tuple[Append, Append], ...]  # of vectors and of ids, as a commit records them


def segment_path(store: Path, number: int) -> Path:
    """Return the path of segment ``number``."""
    return store / INDEX_FOLDER / file_names.segment(number)


def quantizer_path(store: Path, number: int) -> Path:
    """Return the path of quantizer ``number``."""
    return store / INDEX_FOLDER / file_names.quantizer(number)


def make_index_folder(store: Path) -> None:
    """Durably make the folder of segments and quantizers, if it is missing."""
    if nofollow.make_folder(store, INDEX_FOLDER):
        fsync_dir(store)


def file_problem(
    path: Path, size: int, xxh64: int, step: Callable[[], None] = lambda: None
) -> str | None:
    """Read a whole segment or quantizer file; return what is wrong with it, or None.

    ``step`` is called after each megabyte; an exception from it ends the reading. Raises
    ``UnreadableError`` if this process cannot read the file for a reason that is not damage.
    """
    try:
        found = file_checksum(path, path.parent.parent, step)
    except OSError as error:
        if is_in_the_way(error):
            raise cannot_read(path, error) from None
        return f"cannot be read: {error.strerror}"
    return "its checksum is wrong" if found != (size, xxh64) else None
