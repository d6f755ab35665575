"""One table over RocksDB: rows of bytes in key order, and changes of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, TypeVar

from engine.storage.rocks.database import Keys

T = TypeVar("T")
Row = tuple[bytes, bytes]


class RowChange(NamedTuple):
    """A row of a table to put, or to delete if ``value`` is None."""

    table: str
    key: bytes
    value: bytes | None


class Table:
    """One table: rows of bytes, in key order."""

    name: str

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def get(self, key: bytes) -> bytes | None:
        """Return the value of one row, or None."""
        return self._keys.get(self.name, key)

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """Return the values of many rows, in the order of ``keys``, in one call."""
        if not keys:
            return []
        return self._keys.get_many(self.name, keys)

    def scan(self, prefix: bytes = b"", start: bytes = b"") -> Iterator[Row]:
        """Yield all rows whose key begins with ``prefix``, from ``start`` on, as stored."""
        return self._keys.scan(self.name, prefix, start)

    def scan_keys(self, prefix: bytes = b"") -> Iterator[bytes]:
        """Yield the keys of all rows whose key begins with ``prefix``; cheaper than ``scan``."""
        return self._keys.scan_keys(self.name, prefix)

    def at_or_before(self, key: bytes) -> Row | None:
        """Return the row with the greatest key up to ``key``, or None."""
        return self._keys.at_or_before(self.name, key)

    def count(self) -> int:
        """Count the rows by reading all of them."""
        return sum(1 for _ in self.scan())

    def compact(self) -> None:
        """As the writer, rewrite the table without its deleted rows."""
        self._keys.compact(self.name)

    def change(self, key: bytes, value: bytes | None) -> RowChange:
        """Return the change that puts a row, or deletes it if ``value`` is None."""
        return RowChange(self.name, key, value)


def in_batches(rows: Iterable[T], size: int = 1000) -> Iterator[list[T]]:
    """Yield items in lists of up to ``size``."""
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch
