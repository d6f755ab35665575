"""Reads the queries of ``engine lookup``: lists, which make batches, or a pipe, one by one."""

from __future__ import annotations

import contextlib
import itertools
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from engine.errors import EngineError
from engine.sources.path_lists import listed
from engine.sources.source_stream import Sources

Query = str | int

_AT_ONCE = 1000  # names in memory


def pieces(
    named: Sequence[Query], files_from: str = "", *, null: bool = False
) -> Iterator[Iterable[Query]]:
    """The queries in order: lists of names, and an iterator over the names from a pipe.

    The writer of a pipe may wait for an answer before it sends the next name. A file is complete.
    There is at least one piece, so that wrong options are found even if there is nothing to look up.
    """
    for at in range(0, len(named), _AT_ONCE):
        yield list(named[at : at + _AT_ONCE])
    if not files_from:
        return
    names = listed(files_from, null=null)
    if not _is_file(files_from):
        yield names
        return
    piece = list(itertools.islice(names, _AT_ONCE))
    if not piece and not named:
        yield piece
    while piece:
        yield piece
        piece = list(itertools.islice(names, _AT_ONCE))


def count(named: Sequence[Query], exclude: Sequence[str]) -> int | None:
    """About how many images have these names; None if only reading all of them would show it."""
    total = 0
    for name in named:
        images: int | None = 1
        if isinstance(name, str) and name != "-":
            # The lookup itself reports the error.
            with contextlib.suppress(EngineError, OSError):
                images = Sources([name], exclude=exclude).count()
        if images is None:
            return None
        total += images
    return total


def _is_file(path: str) -> bool:
    """Whether a list is a regular file, including one on standard input."""
    try:
        return stat.S_ISREG(Path("/dev/stdin" if path == "-" else path).stat().st_mode)
    except (OSError, ValueError):
        return False
