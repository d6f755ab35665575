"""The table of single values: state, settings, a copy of the manifest; and counts of sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.storage.rows import u64
from engine.storage.table import RowChange, Table


class MetaTable(Table):
    """Single values: state, settings, a copy of the manifest, roots, the mark of a repair.

    And counts of sources (see ``engine.storage.source_counts``).
    """

    name = "meta"
    STATE, SETTINGS, MANIFEST, ROOTS = b"state", b"settings", b"manifest", b"roots"
    COUNTED, _COUNT = b"counted", b"sources"

    def state(self) -> bytes | None:
        """What the newest commit left behind."""
        return self.get(self.STATE)

    def settings(self) -> bytes | None:
        """A copy of the structural settings."""
        return self.get(self.SETTINGS)

    def manifest(self) -> bytes | None:
        """A copy of the manifest, for repairs."""
        return self.get(self.MANIFEST)

    def roots(self) -> bytes | None:
        """The folders that ingests took."""
        return self.get(self.ROOTS)

    def counted(self) -> int | None:
        """The commit with which counts of sources were last kept."""
        value = self.get(self.COUNTED)
        return int.from_bytes(value, "big") if value is not None else None

    def put_counted(self, commit: int) -> RowChange:
        """That counts of sources were kept with a commit."""
        return self.change(self.COUNTED, u64(commit))

    def source_counts(self) -> Iterator[tuple[int, int]]:
        """Each image whose sources are counted, and how many they are."""
        start = len(self._COUNT)
        for key, value in self.scan(self._COUNT):
            if len(key) == start + 8:
                yield int.from_bytes(key[start:], "big"), int.from_bytes(value, "big")

    def source_count(self, id_: int) -> int | None:
        """How many sources were counted of an image."""
        return self.source_counts_of([id_])[0]

    def source_counts_of(self, ids: Sequence[int]) -> list[int | None]:
        """``source_count`` of each of many images."""
        values = self.get_many([self._COUNT + u64(id_) for id_ in ids])
        return [int.from_bytes(value, "big") if value is not None else None for value in values]

    def put_source_count(self, id_: int, count: int) -> RowChange:
        """How many sources an image has."""
        return self.change(self._COUNT + u64(id_), u64(count))

    def drop_source_count(self, id_: int) -> RowChange:
        """That the sources of an image are not counted."""
        return self.change(self._COUNT + u64(id_), None)
