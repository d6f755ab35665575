"""Appends to the newest extents of a store. An append counts only once a commit names it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from engine.config import Limits
from engine.records import Buffer, Place
from engine.storage.extent_writer import ExtentWriter
from engine.storage.extents import Append, Family
from engine.storage.state import State


class Appender:
    """One extent writer per family, opened at the family's first append.

    The ``put`` methods only say where data will lie; ``flush`` writes and syncs it. The appender keeps a
    record of each write until ``take`` hands the records to a commit.
    """

    def __init__(
        self,
        store: Path,
        limits: Limits,
        last: Callable[[Family], tuple[int, int]],
        begin: Callable[[Family], int],
    ) -> None:
        """``last`` returns the number and the committed bytes of a family's newest extent.

        ``begin`` creates a family's next extent, names it in the manifest and returns its number.
        """
        self._store = store
        self._limits = limits
        self._last = last
        self._begin = begin
        self._writers: dict[str, ExtentWriter] = {}
        self._appends: list[Append] = []

    def put(self, family: Family, blob: Buffer) -> Place:
        """Append a blob to a log; return where it will lie."""
        return self._writer(family).put(blob)

    def put_rows(self, family: Family, rows: Buffer) -> None:
        """Append whole rows."""
        view = memoryview(rows).cast("B")
        while view:
            writer = self._writer(family)
            part = view[: writer.room]
            writer.put(part)
            view = view[len(part) :]

    def put_zeros(self, family: Family, length: int) -> None:
        """Append rows of zeros. They take no disk space."""
        while length:
            writer = self._writer(family)
            part = min(length, writer.room)
            writer.put_zeros(part)
            length -= part

    def flush(self) -> None:
        """Write and sync all data that was put."""
        for writer in self._writers.values():
            self._flush(writer)

    def take(self) -> list[Append]:
        """Return the appends written since the last call."""
        done, self._appends = self._appends, []
        return done

    def newest(self, family: Family) -> int:
        """Open a family's newest extent and return its number; 0 if the family has none."""
        return self._open(family).number

    def begin_next(self, family: Family) -> None:
        """Begin a new extent; the next ``put`` goes there."""
        self._next(self._open(family))

    def forget(self, families: Iterable[str]) -> None:
        """Close the writers of families whose files are being replaced."""
        for name in families:
            writer = self._writers.pop(name, None)
            if writer is not None:
                writer.close()

    def close(self) -> None:
        """Close the files. Unflushed data is lost."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        self._appends = []

    def _writer(self, family: Family) -> ExtentWriter:
        writer = self._open(family)
        if writer.full:
            self._next(writer)
        return writer

    def _open(self, family: Family) -> ExtentWriter:
        writer = self._writers.get(family.name)
        if writer is None:
            writer = ExtentWriter(self._store, family, *self._last(family), self._limits)
            self._writers[family.name] = writer
        return writer

    def _next(self, writer: ExtentWriter) -> None:
        # First the file, then the manifest that names it, then the rows that use it.
        self._flush(writer)
        writer.begin(self._begin(writer.family))

    def _flush(self, writer: ExtentWriter) -> None:
        done = writer.flush()
        if done is not None:
            self._appends.append(done)


def count_appends(state: State, appends: Iterable[Append]) -> None:
    """Update the extent lengths in ``state`` to include these appends."""
    for append in appends:
        numbers = state.extents.setdefault(append.family, [])
        if not numbers or numbers[-1][0] != append.extent:
            numbers.append([append.extent, 0])
        numbers[-1][1] = append.offset + append.length
