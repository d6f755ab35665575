"""Removes images and sources from a store, a commit for every few thousand of them.

What has gone with a commit is gone; interrupted anywhere and run again, it goes on. How it goes is in
``engine.storage.removal``, what a name stands for in ``engine.named``; here is what goes: images by id,
sources by name, and sources that are no longer where they were.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from engine.errors import SourceError
from engine.named import bases, is_there, one_row, rows_inside
from engine.records import RemoveReport
from engine.sources.whereabouts import Whereabouts, stamp, without_query
from engine.storage.chunk import Chunk
from engine.storage.removal import Going, removal
from engine.storage.rows import ONE, ArrayRow, NameRow, Run, record_ids
from engine.store import StoreFiles

MOST = 4096  # images or sources of one commit
_MOST_KEPT = 1000  # reasons told of


class _StoppedError(Exception):
    """``stop`` said so: everything that was done is committed."""


class Remove:
    """One removal from one store, which becomes its writer. ``run`` may be called once."""

    def __init__(
        self,
        store: StoreFiles,
        *,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        """``progress`` is told how many images and sources are done; ``stop`` ends after a commit."""
        self._store = store
        self._progress = progress or (lambda done: None)
        self._stop = stop or (lambda: False)
        self._images = 0
        self._sources = 0
        self._done = 0
        self._stopped = False  # after the last commit
        self._disk = Whereabouts()
        self._kept: dict[str, None] = {}  # why sources that are not there stay
        self._begin()

    def run(
        self, ids: Iterable[int], names: Iterable[str] = (), *, missing: bool = False
    ) -> RemoveReport:
        """Remove images by id, sources by name, and what is ``missing``; returns what was done."""
        started = time.perf_counter()
        not_found: list[str] = []
        given = [(name, bases(name)) for name in dict.fromkeys(names)]  # UsageError before anything
        self._store.become_writer(to_remove=True)
        interrupted = False
        try:
            wanted: list[bytes | None] = []
            for name, may_be in given:  # all before any goes: one may be inside of another
                wanted += [base for base in may_be if is_there(self._store, base)][:1] or [None]
                if wanted[-1] is None:
                    not_found.append(name)
            self._ids(sorted(set(ids)), not_found)
            for base in wanted:
                if base is not None:
                    self._named(base)
            self._flush()
            if missing:
                self._missing()
        except _StoppedError:
            interrupted = True
        return RemoveReport(
            images=self._images,
            sources=self._sources,
            not_found=tuple(not_found),
            seconds=round(time.perf_counter() - started, 3),
            kept=tuple(self._kept),
            interrupted=interrupted,
        )

    # --- by id ------------------------------------------------------------------------------------

    def _ids(self, ids: Sequence[int], not_found: list[str]) -> None:
        for at in range(0, len(ids), MOST):
            some = list(ids[at : at + MOST])
            there = self._store.those_there(some)
            not_found += [str(id_) for id_ in sorted(set(some) - set(there))]
            self._advance(len(some) - len(there))
            self._going.ids = there
            self._flush()

    # --- by name ----------------------------------------------------------------------------------

    def _named(self, base: bytes) -> None:
        """Remove what is named ``base`` and what is inside of it."""
        row = one_row(self._store, base)
        if row is not None:
            self._row(*row)
        for name, value in rows_inside(self._store, "names", base):
            self._name(name, NameRow.unpack(value).id)
        for key, _ in rows_inside(self._store, "arrays", base, b"n"):
            self._array(key[1:])
        for key, _ in rows_inside(self._store, "arrays", base, b"a"):
            self._going.arrays.append(key)
            self._flush_if_full()
        for name, _ in rows_inside(self._store, "rejects", base):
            self._going.rejects.append(name)
            self._flush_if_full()

    def _name(self, name: bytes, id_: int) -> None:
        if name not in self._names:
            self._names.add(name)
            self._going.names.append((name, id_))
            self._flush_if_full()

    def _row(self, run: Run, part: Run) -> None:
        if (part.array, part.row) not in self._rows and part.array not in self._arrays:
            self._rows.add((part.array, part.row))
            self._going.add_rows(run, part)
            self._flush_if_full()

    def _array(self, name: bytes) -> None:
        """Remove an array with all its rows."""
        array = self._store.array(name)
        if array is None:
            return
        if self._rows or array.number in self._arrays:
            self._flush()
        number = array.number.to_bytes(4, "big")
        empty = True
        for key, value in self._store.keys.scan("runs", b"r" + number):
            run = Run.from_row(key, value)
            self._arrays.add(array.number)
            self._going.add_rows(run, run)
            self._flush_if_full()
            empty = False
        if empty:  # nothing was committed of it, or a changed file has taken its place
            self._going.arrays += [b"n" + name, b"#" + number]

    # --- what is missing --------------------------------------------------------------------------

    def _missing(self) -> None:
        """Remove sources whose file is gone, images that no source is left of, and such rejects."""
        keys = self._store.keys
        for name, value in keys.scan("names"):
            row = NameRow.unpack(value)
            if self._is_gone(name, (row.mtime_ns, row.size)):
                self._name(name, row.id)
        for key, _ in keys.scan("arrays", b"n"):
            if self._is_gone(key[1:], None):
                self._array(key[1:])
        for key, _ in keys.scan("arrays", b"a"):
            if self._is_gone(key[1:], None):
                self._going.arrays.append(key)
                self._flush_if_full()
        for name, value in keys.scan("rejects"):
            row_ = json.loads(value)
            if self._is_gone(name, (row_["mtime_ns"], row_["size"])):
                self._going.rejects.append(name)
                self._flush_if_full()
        self._flush()
        if self._all_read():
            for some in self._without_sources():
                self._going.ids += some
                self._flush_if_full()
            self._flush()

    def _all_read(self) -> bool:
        """Whether each array is read to its end, as far as it can be.

        One that has changed names its images anew as it is read. Until it has been, those that are
        to come have no source, and are not missing.
        """
        unfinished = []
        for key, value in self._store.keys.scan("arrays", b"n"):
            row = ArrayRow.unpack(value)
            reject = self._store.rejects([key[1:]])[0]
            broken = reject is not None and (reject["mtime_ns"], reject["size"]) == (
                row.mtime_ns,
                row.size,
            )
            changes = row.mtime_ns or row.size  # a synthetic set never does
            if changes and not row.complete and not broken:
                unfinished.append(os.fsdecode(key[1:]))
        for name in unfinished[:_MOST_KEPT]:
            reason = f"images that no source is left of: {name} was not read to its end, ingest it"
            self._kept[reason] = None
        return not unfinished

    def _is_gone(self, name: bytes, seen: tuple[int, int] | None) -> bool:
        """Whether the file that ``name`` is in is gone; or, of a member that was ``seen`` when its
        archive had that stamp, whether it is in the archive no more."""
        self._go_on()
        if not name.startswith(b"/"):  # in memory, synthetic, or never found
            return False
        try:
            return self._left(name, seen)
        except SourceError as error:
            if len(self._kept) < _MOST_KEPT:
                self._kept[str(error)] = None
            return False

    def _left(self, name: bytes, seen: tuple[int, int] | None) -> bool:
        if os.path.lexists(name) or os.path.lexists(without_query(name)):
            return False
        at = name.find(b"#")
        while at >= 0:
            outer = name[:at]
            file = outer if os.path.lexists(outer) else without_query(outer)
            if Path(os.fsdecode(file)).is_file():
                row = self._store.archive(outer) if seen is not None else None
                now = stamp(file)
                read = row is not None and row.complete and (row.mtime_ns, row.size) == now
                return read and seen != now
            at = name.find(b"#", at + 1)
        return not self._disk.is_there(without_query(name))

    def _without_sources(self) -> Iterator[list[int]]:
        """Images that have no source, as a changed file leaves them; some at a time, ascending."""
        keys = self._store.keys
        # All of these are in the order of ids, so each is read once.
        by = (
            _Spans((int.from_bytes(key[:8], "big"), 1) for key, _ in keys.scan("sources")),
            _Spans((Run.from_id(*row).id, 1) for row in keys.scan("runs", ONE)),
            _Spans((run.id, run.count) for run in map(_run, keys.scan("runs", b"i"))),
        )
        for key, value in keys.scan("records"):
            self._go_on()
            ids = record_ids(key, value).tolist()
            yield [id_ for id_ in ids if not any(spans.cover(id_) for spans in by)]

    # --- commits ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._going = Going()
        self._names: set[bytes] = set()  # those in it
        self._rows: set[tuple[int, int]] = set()  # single rows in it: array, row
        self._arrays: set[int] = set()  # arrays with runs in it

    def _flush_if_full(self) -> None:
        if len(self._going):
            self._go_on()
        if len(self._going) >= MOST:
            self._flush()

    def _flush(self) -> None:
        """Commit what is to go by now; raises ``_StoppedError`` where no more is wanted."""
        while len(self._going):
            self._go_on()
            self._store.require_room()
            found, left = removal(self._store, self._going, MOST)
            self._store.commit(Chunk(removal=found))
            self._images += len(found.images)
            self._sources += found.sources
            self._advance(len(self._going) - len(left))
            self._begin()
            self._going.ids = left
            self._stopped = self._stop()

    def _go_on(self) -> None:
        """Before more is done: raises ``_StoppedError`` where no more is wanted."""
        if self._stopped:
            raise _StoppedError

    def _advance(self, count: int) -> None:
        if count:
            self._done += count
            self._progress(self._done)


class _Spans:
    """Spans of ids, in the order in which they begin, asked for ids in ascending order."""

    def __init__(self, spans: Iterator[tuple[int, int]]) -> None:
        """``spans`` are a first id and how many follow it."""
        self._spans = spans
        self._next = next(spans, None)
        self._end = 0

    def cover(self, id_: int) -> bool:
        """Whether an id is in any of them."""
        while self._next is not None and self._next[0] <= id_:
            self._end = max(self._end, sum(self._next))
            self._next = next(self._spans, None)
        return id_ < self._end


def _run(row: tuple[bytes, bytes]) -> Run:
    return Run.from_id(*row)
