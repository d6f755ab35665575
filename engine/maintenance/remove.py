"""Removes images and sources from a store, a commit for every few thousand of them.

This module selects what goes: images by id, sources by name, and sources that are no longer where they
were. ``engine.storage.removal`` removes it; ``engine.storage.source_names`` says what a name stands
for. An interrupted removal goes on from its last commit when it is run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from engine.maintenance.missing_sources import (
    Missing,
    What,
    images_without_sources,
    unfinished_arrays,
)
from engine.records import RemoveReport
from engine.stop import Stop, StoppedError
from engine.storage.changeset import Chunk
from engine.storage.removal import RemovalRequest, plan_removal
from engine.storage.runs import Run
from engine.storage.session import Session
from engine.storage.source_names import (
    archives_inside,
    arrays_inside,
    bases,
    names_inside,
    one_row,
    rejects_inside,
    those_named,
)


class Remove:
    """One removal from one store, which becomes its writer. ``run`` may be called once."""

    def __init__(
        self,
        store: Session,
        *,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        """``progress(done)`` counts images and sources; ``stop`` ends the removal after a commit."""
        self._store = store
        self._progress = progress or (lambda done: None)
        self._stop = Stop(stop)
        self._images = 0
        self._sources = 0
        self._done = 0
        self._stopped = False  # whether ``stop`` asked for an end after the last commit
        self._interrupted = False
        self._looks = 0
        self._kept: dict[str, None] = {}  # reasons why missing sources stay
        self._begin()

    def run(
        self,
        ids: Iterable[int],
        names: Iterable[str] = (),
        *,
        missing: bool = False,
        yes: bool = False,
    ) -> RemoveReport:
        """Remove images by id, sources by name, and, if ``missing``, missing sources.

        Raises ``MissingError`` before anything goes if so much is missing that a disk may be away,
        unless ``yes``.
        """
        started = time.perf_counter()
        # Raises UsageError before anything is removed.
        given = [(name, bases(name)) for name in dict.fromkeys(names)]
        looked: Missing | None = None
        not_found: list[str] = []
        try:
            self._store.become_writer(to_remove=True, stop=self._stop.asked)
            looked = Missing(self._store, self._look_on) if missing else None
            if looked is not None and self._look(looked) and not yes:
                looked.require_yes()
            wanted, not_found = those_named(self._store, given)
            self._ids(sorted(set(ids)), not_found)
            for base in wanted:
                self._named(base)
            self._flush()
            if looked is not None:
                self._look_on()
                self._remove_missing(looked)
        except StoppedError:
            self._interrupted = True
        finally:
            if looked is not None:
                looked.close()
        return RemoveReport(
            images=self._images,
            sources=self._sources,
            not_found=tuple(not_found),
            seconds=round(time.perf_counter() - started, 3),
            kept=tuple(self._kept),
            interrupted=self._interrupted,
        )

    # --- by id ------------------------------------------------------------------------------------

    def _ids(self, ids: Sequence[int], not_found: list[str]) -> None:
        most = self._store.limits.removal_batch
        for at in range(0, len(ids), most):
            some = list(ids[at : at + most])
            there = self._store.snapshot.those_there(some)
            not_found += [str(id_) for id_ in sorted(set(some) - set(there))]
            self._advance(len(some) - len(there))
            self._request.ids = there
            self._flush()

    # --- by name ----------------------------------------------------------------------------------

    def _named(self, base: bytes) -> None:
        """Remove the source named ``base`` and those inside of it."""
        row = one_row(self._store, base)
        if row is not None:
            self._row(*row)
        # Rejects go first: those of an array that was read in another way are found by its row.
        for name in rejects_inside(self._store, base):
            self._request.rejects.append(name)
            self._flush_if_full()
        for name, named in names_inside(self._store, base):
            self._name(name, named.id)
        for name, _ in arrays_inside(self._store, base):
            self._array(name)
        for name in archives_inside(self._store, base):
            self._request.archives.append(name)
            self._flush_if_full()

    def _name(self, name: bytes, id_: int) -> None:
        if name not in self._names:
            self._names.add(name)
            self._request.names.append((name, id_))
            self._flush_if_full()

    def _row(self, run: Run, part: Run) -> None:
        if (part.array, part.row) not in self._rows and part.array not in self._arrays:
            self._rows.add((part.array, part.row))
            self._request.add_rows(run, part)
            self._flush_if_full()

    def _array(self, name: bytes) -> None:
        """Remove an array with all its rows."""
        array = self._store.snapshot.array(name)
        if array is None:
            return
        if self._rows or array.number in self._arrays:
            self._flush()
        empty = True
        for run in self._store.snapshot.tables.runs.of_array(array.number):
            self._arrays.add(array.number)
            self._request.add_rows(run, run)
            self._flush_if_full()
            empty = False
        # None of its rows was committed, or a changed file has taken its place.
        if empty:
            self._request.arrays.append((name, array.number))

    # --- missing sources --------------------------------------------------------------------------

    def _look(self, missing: Missing) -> bool:
        """Look for all sources; False if that was stopped."""
        try:
            missing.look()
        except StoppedError:
            # Images and sources that the caller named are removed all the same.
            self._interrupted = True
            return False
        return True

    def _look_on(self) -> None:
        """Stop soon while sources are looked for, since that changes nothing."""
        self._looks += 1
        if self._interrupted or (
            self._looks % self._store.limits.stop_checks == 0 and self._stop.asked()
        ):
            raise StoppedError
        self._go_on()

    def _remove_missing(self, missing: Missing) -> None:
        """Remove missing sources and rejects, then images without a source."""
        for what, name in missing.found():
            self._remove_one(missing, what, name)
        self._flush()
        unfinished = unfinished_arrays(self._store)
        if not unfinished:
            for some in images_without_sources(self._store, self._look_on):
                self._request.ids += some
                self._flush_if_full()
            self._flush()
        self._kept |= missing.kept | unfinished

    def _remove_one(self, missing: Missing, what: What, name: bytes) -> None:
        """Remove a source that was missing, if it still is."""
        store = self._store
        if what is What.NAME:
            row = store.snapshot.names([name])[0]
            if row is not None and missing.is_gone(name, (row.mtime_ns, row.size)):
                self._name(name, row.id)
        elif what is What.ARRAY:
            if missing.is_gone(name, None):
                self._array(name)
        elif what is What.ARCHIVE:
            if store.snapshot.archive(name) is not None and missing.is_gone(name, None):
                self._request.archives.append(name)
                self._flush_if_full()
        else:
            reject = store.snapshot.rejects([name])[0]
            if reject and missing.is_gone(name, (reject["mtime_ns"], reject["size"])):
                self._request.rejects.append(name)
                self._flush_if_full()

    # --- commits ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._request = RemovalRequest()
        self._names: set[bytes] = set()  # names in the request
        self._rows: set[tuple[int, int]] = set()  # single rows in the request: array, row
        self._arrays: set[int] = set()  # arrays with runs in the request

    def _flush_if_full(self) -> None:
        if len(self._request):
            self._go_on()
        if len(self._request) >= self._store.limits.removal_batch:
            self._flush()

    def _flush(self) -> None:
        """Commit the request; raises ``StoppedError`` once the removal was stopped."""
        while len(self._request):
            self._go_on()
            self._store.writer.require_room()
            most = self._store.limits.removal_batch
            found, left = plan_removal(self._store.snapshot, self._request, most)
            self._store.writer.commit(Chunk(removal=found))
            self._images += len(found.images)
            self._sources += found.sources
            self._advance(len(self._request) - len(left))
            self._begin()
            self._request.ids = left
            self._stopped = self._stop.asked()

    def _go_on(self) -> None:
        """Raise ``StoppedError`` once the removal was stopped."""
        if self._stopped:
            raise StoppedError

    def _advance(self, count: int) -> None:
        if count:
            self._done += count
            self._progress(self._done)
