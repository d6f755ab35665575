"""Appends to the newest extents of a store; nothing of it counts before a commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from engine.config import Limits
from engine.records import Buffer, Place
from engine.storage.extent_writer import ExtentWriter
from engine.storage.extents import Append, Family
from engine.storage.state import State


class Appender:
    """One writer of extents a family, opened when it is first appended to.

    ``put`` and its like only say where data will lie; ``flush`` writes and syncs it. What was written
    is in ``appends``, until ``take`` takes it for a commit.
    """

    def __init__(
        self,
        store: Path,
        limits: Limits,
        last: Callable[[Family], tuple[int, int]],
        begin: Callable[[Family], int],
    ) -> None:
        """``last`` returns number and committed bytes of a family's newest extent.

        ``begin`` makes the next extent of a family, has the manifest name it, and returns its number.
        """
        self._store = store
        self._limits = limits
        self._last = last
        self._begin = begin
        self._writers: dict[str, ExtentWriter] = {}
        self._appends: list[Append] = []

    def put(self, family: Family, blob: Buffer) -> Place:
        """Append a blob to a log; returns where it will lie."""
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
        """Append rows of zeros, which take no disk."""
        while length:
            writer = self._writer(family)
            part = min(length, writer.room)
            writer.put_zeros(part)
            length -= part

    def flush(self) -> None:
        """Write and sync what was put."""
        for writer in self._writers.values():
            self._flush(writer)

    def take(self) -> list[Append]:
        """What was written since this was last called."""
        done, self._appends = self._appends, []
        return done

    def newest(self, family: Family) -> int:
        """The number of the newest extent, 0 if there is none; it is open then."""
        return self._open(family).number

    def begin_next(self, family: Family) -> None:
        """Let what is put next lie in a new extent."""
        self._next(self._open(family))

    def forget(self, families: Iterable[str]) -> None:
        """Close the writers of some families: their files are replaced."""
        for name in families:
            writer = self._writers.pop(name, None)
            if writer is not None:
                writer.close()

    def close(self) -> None:
        """Give the files back; what was not flushed is forgotten."""
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
        # The file first, then the manifest that names it, then the rows that use it.
        self._flush(writer)
        writer.begin(self._begin(writer.family))

    def _flush(self, writer: ExtentWriter) -> None:
        done = writer.flush()
        if done is not None:
            self._appends.append(done)


def count_appends(state: State, appends: Iterable[Append]) -> None:
    """Let a state have the lengths of extents that these appends leave."""
    for append in appends:
        numbers = state.extents.setdefault(append.family, [])
        if not numbers or numbers[-1][0] != append.extent:
            numbers.append([append.extent, 0])
        numbers[-1][1] = append.offset + append.length
