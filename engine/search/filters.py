"""Restricts a search to some images of a store: by id, by source, by metadata, or by several of these.

Ids without an image are not an error, since a list of ids may be older than the store. A source without
an image is one, since a misspelt name would silently find nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import reduce

import numpy as np
import numpy.typing as npt

from engine.config import whole
from engine.errors import UsageError, shortened
from engine.search.where import WhereMetadata
from engine.storage.bitmap import IdSet
from engine.storage.session import Session
from engine.storage.source_names import arrays_inside, bases, names_inside, one_row
from engine.storage.table import in_batches

_MAX_ID = (1 << 63) - 1

Ids = Iterable[int] | npt.NDArray[np.integer]
Names = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class SearchedIn:
    """A restriction to the images of some sources, found again after each commit."""

    def __init__(self, sources: Names) -> None:
        """``UsageError`` if ``sources`` are not names."""
        # Each with its possible names in a store: a relative path depends on the current folder.
        self.names = tuple(_name(one) for one in _listed(sources))
        if not self.names:
            raise UsageError("name at least one source to search in")
        self._found = IdSet.none(0)
        self._commit = -1

    def ids(self, store: Session) -> IdSet:
        """``ids_within`` of the sources, cached until the commit changes, since it reads all of them."""
        if self._commit != store.snapshot.state.commit:
            self._found, self._commit = ids_within(store, self.names), store.snapshot.state.commit
        return self._found


class Within:
    """A restriction of a search by ids, by sources, by metadata, or by several of them."""

    def __init__(
        self, ids: Ids | None, sources: SearchedIn | None, where: WhereMetadata | None = None
    ) -> None:
        """At least one is not None; ``UsageError`` if ``ids`` are not ids."""
        self._ids = None if ids is None else _numbers(ids)
        self._named = [one for one in (sources, where) if one is not None]
        self._found = IdSet.none(0)
        self._commit = -1

    def ids(self, store: Session) -> IdSet:
        """The images that may be found, without removed ones; cached until the commit changes.

        ``UsageError`` if one of the sources has no image, or no image has a field of ``where``.
        """
        if self._commit != store.snapshot.state.commit:
            parts = [one.ids(store) for one in self._named]
            if self._ids is not None:
                given = IdSet.of(self._ids, store.snapshot.state.next_id)
                parts.append(given.without(store.snapshot.removed_ids()))
            self._found, self._commit = reduce(IdSet.both, parts), store.snapshot.state.commit
        return self._found


def ids_within(store: Session, names: Iterable[tuple[str, tuple[bytes, ...]]]) -> IdSet:
    """The images seen in any of some sources, each given as its name and its possible names in a store.

    ``UsageError`` if one has no image. It takes the memory of two sets, however many names are inside
    of a source.
    """
    every = IdSet.none(store.snapshot.state.next_id)
    for name, may_be in names:
        for base in may_be:
            found = _ids_inside(store, base)
            if len(found):
                every = every.union(found)
                break
        else:
            raise UsageError(
                f"{store.path} has no image of the source {name}: name a file, or a folder, as "
                f"results show it"
            )
    return every


def _ids_inside(store: Session, base: bytes) -> IdSet:
    """The images that were seen in ``base`` or inside of it."""
    found = IdSet.none(store.snapshot.state.next_id)
    row = one_row(store, base)
    if row is not None:
        found.add_span(row[1].id, 1)
    for batch in in_batches(names_inside(store, base), store.limits.read_names):
        found.add(np.array([row.id for _, row in batch], np.int64))
    for _, array in arrays_inside(store, base):
        for run in store.snapshot.tables.runs.of_array(array.number):
            found.add_span(run.id, run.count if run.step else 1)
    # Runs may still cover removed images.
    return found.without(store.snapshot.removed_ids()) if store.snapshot.state.removed else found


def _numbers(ids: Ids) -> npt.NDArray[np.int64]:
    """A caller's ids as (n,) int64, without numbers that cannot be ids."""
    if isinstance(ids, np.ndarray) and (ids.dtype.kind in "iu" or not ids.size):
        return ids[(ids > 0) & (ids <= _MAX_ID)].astype(np.int64)
    try:
        if isinstance(ids, str | bytes | np.ndarray):
            raise TypeError
        numbers = map(whole, ids)
        return np.fromiter((id_ for id_ in numbers if 0 < id_ <= _MAX_ID), np.int64)
    except TypeError:
        raise UsageError(f"ids are whole numbers in a list, not {shortened(ids)}") from None


def _listed(sources: Names) -> Iterable[str | os.PathLike[str]]:
    if isinstance(sources, str | os.PathLike):
        return [sources]
    if isinstance(sources, bytes) or not isinstance(sources, Iterable):
        raise UsageError(f"a source is a path, or several are in a list, not {shortened(sources)}")
    return sources


def _name(source: str | os.PathLike[str]) -> tuple[str, tuple[bytes, ...]]:
    """A source's name, and its possible names in a store."""
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else source
    if not isinstance(name, str):
        raise UsageError(f"a source is a path, or several are in a list, not {shortened(source)}")
    return name, tuple(bases(name))
