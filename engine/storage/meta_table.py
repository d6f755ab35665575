"""The table of single values: state, settings, a copy of the manifest; and source counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.storage.rows import u64
from engine.storage.table import RowChange, Table

_TOO_MANY = 1 << 6  # as the first of eight bytes: 2^62


class MetaTable(Table):
    """Single values: state, settings, a copy of the manifest, roots, the mark of a repair.

    It also has the source counts (see ``engine.storage.source_counts``).
    """

    name = "meta"
    STATE, SETTINGS, MANIFEST, ROOTS = b"state", b"settings", b"manifest", b"roots"
    COUNTED, _COUNT = b"counted", b"sources"

    def state(self) -> bytes | None:
        """Return the state after the newest commit."""
        return self.get(self.STATE)

    def settings(self) -> bytes | None:
        """Return a copy of the structural settings."""
        return self.get(self.SETTINGS)

    def manifest(self) -> bytes | None:
        """Return a copy of the manifest, for repairs."""
        return self.get(self.MANIFEST)

    def roots(self) -> bytes | None:
        """Return the folders that were ingested."""
        return self.get(self.ROOTS)

    def counted(self) -> int | None:
        """Return the last commit that updated the source counts."""
        return _number(self.get(self.COUNTED))

    def put_counted(self, commit: int) -> RowChange:
        """Return the change that records ``commit`` as the last to update the source counts."""
        return self.change(self.COUNTED, u64(commit))

    def source_counts(self) -> Iterator[tuple[int, int]]:
        """Yield each image that has a source count, and the count."""
        start = len(self._COUNT)
        for key, value in self.scan(self._COUNT):
            count = _number(value)
            if len(key) == start + 8 and count is not None:
                yield int.from_bytes(key[start:], "big"), count

    def source_count(self, id_: int) -> int | None:
        """Return the source count of an image, or None."""
        return self.source_counts_of([id_])[0]

    def source_counts_of(self, ids: Sequence[int]) -> list[int | None]:
        """Return ``source_count`` of each of many images."""
        return [_number(one) for one in self.get_many([self._COUNT + u64(id_) for id_ in ids])]

    def put_source_count(self, id_: int, count: int) -> RowChange:
        """Return the change that sets the source count of an image."""
        return self.change(self._COUNT + u64(id_), u64(count))

    def drop_source_count(self, id_: int) -> RowChange:
        """Return the change that drops the source count of an image."""
        return self.change(self._COUNT + u64(id_), None)


def _number(value: bytes | None) -> int | None:
    """Parse a count; None if no engine wrote it: a count of 2^62 or more would not fit either."""
    if value is None or len(value) != 8 or value[0] >= _TOO_MANY:
        return None
    return int.from_bytes(value, "big")
