"""Reads the imported vectors of images again from the columns of Parquet files."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from engine.errors import EngineError, SourceError, StoreDamagedError
from engine.ingest.checked_vectors import reason_of
from engine.search.stored_query import MAX_SOURCES
from engine.sources.items import Member
from engine.sources.locate import archive_of
from engine.sources.parquet_table import ParquetTable
from engine.storage.session import Session
from engine.storage.vector_space import VectorSpace

_IMAGES = 4096  # whose sources are looked up at a time
_IN_QUERY = b"vector="

Numbers = npt.NDArray[np.int64]
Rows = npt.NDArray[np.float32]


class SourceColumns:
    """The columns of vectors that images of a store came with."""

    def __init__(self, store: Session, space: VectorSpace) -> None:
        """``space`` is the space of the vectors."""
        self._store = store
        self._space = space

    def vectors_of(self, ids: Numbers) -> Iterator[tuple[Numbers, Rows, bool]]:
        """The vectors of (n,) ids as their tables have them now, in pieces.

        Each piece is: positions in ``ids`` (m,), their vectors (m, dim), and whether these are certainly
        the committed ones: the table is unchanged, and the image has no other source.
        """
        for at in range(0, len(ids), _IMAGES):
            tables: defaultdict[bytes, dict[int, tuple[int, bool]]] = defaultdict(dict)
            for position, id_ in enumerate(ids[at : at + _IMAGES].tolist(), at):
                names, count = self._sources(id_)
                for name in names:
                    table, _, row = name.rpartition(b"#")
                    tables[table][int(row)] = position, count == 1
            for table, wanted in tables.items():
                with contextlib.suppress(EngineError, OSError):
                    yield from self._read(table, wanted)

    def names_of(self, ids: Numbers) -> Iterator[bytes]:
        """The rows of tables that some images came from with their vectors."""
        for id_ in ids.tolist():
            yield from self._sources(id_)[0]

    def _sources(self, id_: int) -> tuple[list[bytes], int]:
        """The rows of tables with vectors among an image's sources, and the number of all sources."""
        try:
            names, count = self._store.snapshot.sources_of(id_, MAX_SOURCES)
        except StoreDamagedError:
            return [], 0
        found = []
        for name in names:
            table, _, row = name.rpartition(b"#")
            if _IN_QUERY in table.rpartition(b"?")[2] and row.isdigit() and len(row) <= 18:
                found.append(name)
        return found, count

    def _read(
        self, name: bytes, wanted: dict[int, tuple[int, bool]]
    ) -> Iterator[tuple[Numbers, Rows, bool]]:
        """The vectors of some rows of a table; each value is a position and whether it is sure."""
        table = archive_of(os.fsdecode(name))
        if not isinstance(table, ParquetTable) or not table.brings_vectors:
            raise SourceError("is not a table with vectors")
        names = [b"%s#%d" % (name, row) for row in wanted]
        stamps = dict(zip(names, self._store.snapshot.names(names), strict=True))
        last = max(wanted)
        for number, item in enumerate(
            table.members(min(wanted), self._store.memory.max_file), min(wanted)
        ):
            if number in wanted and isinstance(item, Member) and item.vector is not None:
                position, sure = wanted[number]
                vector, reason = reason_of(item.vector, normalize=self._space.normalized)
                if not reason and len(vector) == self._space.dim:
                    row = stamps[item.name]
                    sure &= row is not None and (row.mtime_ns, row.size) == (
                        table.mtime_ns,
                        table.size,
                    )
                    yield np.array([position], np.int64), vector[np.newaxis], sure
            if number == last:
                return
