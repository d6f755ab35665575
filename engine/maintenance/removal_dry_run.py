"""The dry run of a removal: counts exactly what would go, without writing anything.

An image goes with the last of its sources. So the sources that go and those that stay are counted for
each id, some hundred thousand ids at a time, in the order of the keys.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO

import numpy as np
import numpy.typing as npt

from engine.maintenance.missing_sources import Missing, What, noting, unfinished_arrays
from engine.records import MissingBelow, RemoveReport
from engine.stop import Stop, StoppedError
from engine.storage.bitmap import IdSet
from engine.storage.live_ids import live
from engine.storage.runs import Run
from engine.storage.session import Session
from engine.storage.source_names import (
    arrays_inside,
    bases,
    containers,
    names_inside,
    one_row,
    those_named,
)

Counts = npt.NDArray[np.int64]
_WINDOW = 1 << 18  # ids counted at a time: whole buckets of runs
_MAX_LISTED = 1000  # sources and folders
_IN_MEMORY = 4 << 20  # bytes of ids in memory before they go to a file
_BLOCK = 1 << 16  # ids at a time


class RemovalPlan:
    """The dry run of one removal from a store. ``run`` may be called once."""

    def __init__(self, store: Session, stop: Callable[[], bool] | None = None) -> None:
        """``stop`` ends the counting; the report then has the counts so far."""
        self._store = store
        self._stop = Stop(stop)
        self._looks = 0
        self._touched = IdSet.none(store.snapshot.state.next_id)  # ids that lose a source
        self._rows: dict[tuple[int, int], int] = {}  # ids of single rows that go, by array and row
        self._arrays: set[int] = set()  # numbers of arrays that go whole
        self._listed: list[str] = []

    def run(
        self, ids: Iterable[int], names: Iterable[str] = (), *, missing: bool = False
    ) -> RemoveReport:
        """Count what would go: images by id, sources by name, and, if ``missing``, missing sources."""
        started = time.perf_counter()
        store = self._store
        given = [(name, bases(name)) for name in dict.fromkeys(names)]
        wanted, not_found = those_named(store, given)
        asked = sorted(set(ids))
        chosen = store.snapshot.those_there(asked)
        not_found = [str(id_) for id_ in sorted(set(asked) - set(chosen))] + not_found
        for id_ in chosen[:_MAX_LISTED]:
            self._list(f"#{id_}")
        looked = Missing(store, self._go_on) if missing else None
        folders: tuple[MissingBelow, ...] = ()
        kept: dict[str, None] = {}
        images = sources = 0
        interrupted = False
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as going:
            inside = self._named(wanted, going)
            try:
                if looked is not None:
                    looked.look()
                    folders = tuple(looked.folders())
                    for what, name in looked.found():
                        self._missing(what, name, inside, going)
                    unfinished = unfinished_arrays(store)
                    kept = looked.kept | unfinished
                alone = looked is not None and not unfinished
                images, sources = self._count(chosen, going, alone=alone)
            except StoppedError:
                interrupted = True
            finally:
                if looked is not None:
                    looked.close()
        return RemoveReport(
            images=images,
            sources=sources,
            not_found=tuple(not_found),
            seconds=round(time.perf_counter() - started, 3),
            kept=tuple(kept),
            interrupted=interrupted,
            dry_run=True,
            needs_yes=any(folder.needs_yes for folder in folders),
            folders=folders[:_MAX_LISTED],
            would_go=tuple(self._listed),
        )

    def _go_on(self) -> None:
        self._looks += 1
        if self._looks % self._store.limits.stop_checks == 0:
            self._stop.require()

    def _list(self, name: str) -> None:
        if len(self._listed) < _MAX_LISTED:
            self._listed.append(name)

    # --- which sources go -------------------------------------------------------------------------

    def _named(self, wanted: list[bytes], going: IO[bytes]) -> _Inside:
        """Note each source that is named or inside of a named one, once."""
        inside = _Inside()
        for base in wanted:
            row = one_row(self._store, base)
            if row is not None:
                _, part = row
                self._rows[part.array, part.row] = part.id
                self._touched.add_span(part.id, 1)
                self._list(os.fsdecode(base))
            for name, named in names_inside(self._store, base):
                if not inside.has(name):
                    self._name(name, named.id, going)
            for name, _ in arrays_inside(self._store, base):
                self._array(name)
            inside.add(base, containers(self._store, base))
        return inside

    def _missing(self, what: What, name: bytes, inside: _Inside, going: IO[bytes]) -> None:
        if what is What.NAME and not inside.has(name):
            row = self._store.snapshot.names([name])[0]
            if row is not None:
                self._name(name, row.id, going)
        elif what is What.ARRAY:
            self._array(name)

    def _name(self, name: bytes, id_: int, going: IO[bytes]) -> None:
        with noting():
            going.write(id_.to_bytes(8, "little"))
        self._touched.add_span(id_, 1)
        self._list(os.fsdecode(name))

    def _array(self, name: bytes) -> None:
        array = self._store.snapshot.array(name)
        if array is None or array.number in self._arrays:
            return
        self._arrays.add(array.number)
        self._list(os.fsdecode(name))
        for run in self._store.snapshot.tables.runs.of_array(array.number):
            self._touched.add_span(run.id, run.count if run.step else 1)

    # --- which images go with them ----------------------------------------------------------------

    def _count(self, chosen: list[int], going: IO[bytes], *, alone: bool) -> tuple[int, int]:
        """How many images and sources would go; with ``alone``, images without any source too."""
        named = np.array(chosen, np.int64)
        self._touched.add(named)
        with noting():
            going_ids = _sorted(going)
        images = sources = 0
        for first in range(0, self._store.snapshot.state.next_id, _WINDOW):
            self._stop.require()
            bits = self._touched.bits[first >> 3 : (first + _WINDOW) >> 3]
            if not alone and not bits.any():
                continue
            there = live(self._store.snapshot.keys, first, _WINDOW)
            lost, left = self._runs(first)
            names = _counted(self._ids_with_names(first))
            lost_names = _counted(_within(going_ids, first))
            lost, left = lost + lost_names, left + names - lost_names
            gone = (lost > 0) & (left <= 0)
            gone[named[(named >= first) & (named < first + _WINDOW)] - first] = True
            if alone:
                gone |= left + lost == 0
            gone &= there
            images += int(gone.sum())
            sources += int(np.where(gone, lost + left, lost)[there].sum())
        return images, sources

    def _ids_with_names(self, first: int) -> Iterator[Counts]:
        """The ids of the images of all names in a window, less ``first``, in blocks."""
        some: list[int] = []
        for id_ in self._store.snapshot.tables.sources.ids(first):
            if id_ >= first + _WINDOW:
                break
            some.append(id_ - first)
            if len(some) >= _BLOCK:
                yield np.array(some, np.int64)
                some = []
        yield np.array(some, np.int64)

    def _runs(self, first: int) -> tuple[Counts, Counts]:
        """How many rows of arrays each image of a window loses and keeps: (``_WINDOW``,) each."""
        edges = np.zeros((2, _WINDOW + 1), np.int64)
        for run in self._runs_of(first):
            which = 0 if run.array in self._arrays else 1
            at, each = run.id - first, 1 if run.several else run.count
            edges[which, at] += each
            edges[which, at + (run.count if run.several else 1)] -= each
        for (array, _), id_ in self._rows.items():
            if array not in self._arrays and first <= id_ < first + _WINDOW:
                edges[:, id_ - first] += (1, -1)
                edges[:, id_ - first + 1] -= (1, -1)
        lost, left = edges.cumsum(axis=1)[:, :-1]
        return lost, left

    def _runs_of(self, first: int) -> Iterator[Run]:
        runs = self._store.snapshot.tables.runs
        for found in (runs.of_several(first), runs.of_one_from(first)):
            for run in found:
                if run.id >= first + _WINDOW:
                    break
                yield run


class _Inside:
    """The sources inside of some names, by the rules of ``engine.storage.source_names``."""

    def __init__(self) -> None:
        self._exact: set[bytes] = set()
        self._before: tuple[bytes, ...] = ()

    def add(self, base: bytes, containers: Iterable[bytes]) -> None:
        """Add ``base`` and the names inside of it."""
        self._exact.add(base)
        self._before += (base + b"/", *(container + b"#" for container in containers))

    def has(self, name: bytes) -> bool:
        """Whether a name is inside of any of them."""
        return name in self._exact or name.startswith(self._before)


def _sorted(going: IO[bytes]) -> Counts:
    """Sort a file of ids in place, as it may be larger than memory; returns a map of it: (n,)."""
    if not going.seek(0, io.SEEK_END):
        return np.empty(0, np.int64)
    ids: Counts = np.memmap(going, "<i8", "r+")
    ids.sort()
    return ids


def _within(ids: Counts, first: int) -> Iterator[Counts]:
    """The part of ``ids`` (n,), ascending, that lies in a window, less ``first``, in blocks."""
    start, end = np.searchsorted(ids, (first, first + _WINDOW)).tolist()
    for at in range(start, end, _BLOCK):
        yield ids[at : min(at + _BLOCK, end)] - first


def _counted(blocks: Iterable[Counts]) -> Counts:
    """How often each id of a window occurs: (``_WINDOW``,)."""
    counts = np.zeros(_WINDOW, np.int64)
    for block in blocks:
        counts += np.bincount(block, minlength=_WINDOW)
    return counts
