"""One table over RocksDB: rows of bytes in the order of their keys, and changes of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, TypeVar

from engine.storage.rocks.database import Keys

T = TypeVar("T")
Row = tuple[bytes, bytes]


class RowChange(NamedTuple):
    """A row of a table to put, or to delete where ``value`` is None."""

    table: str
    key: bytes
    value: bytes | None


class Table:
    """One table: rows of bytes, in the order of their keys."""

    name: str

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def get(self, key: bytes) -> bytes | None:
        """The value of one row, or None."""
        return self._keys.get(self.name, key)

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """The values of many rows in their order, in one call."""
        if not keys:
            return []
        return self._keys.get_many(self.name, keys)

    def scan(self, prefix: bytes = b"", start: bytes = b"") -> Iterator[Row]:
        """All rows whose key begins with ``prefix``, from ``start`` on, as they are stored."""
        return self._keys.scan(self.name, prefix, start)

    def scan_keys(self, prefix: bytes = b"") -> Iterator[bytes]:
        """The keys of all rows whose key begins with ``prefix``; cheaper than ``scan``."""
        return self._keys.scan_keys(self.name, prefix)

    def at_or_before(self, key: bytes) -> Row | None:
        """The row with the greatest key that is not above ``key``."""
        return self._keys.at_or_before(self.name, key)

    def count(self) -> int:
        """How many rows there are; reads all of them."""
        return sum(1 for _ in self.scan())

    def compact(self) -> None:
        """As the writer, rewrite the table without what was deleted."""
        self._keys.compact(self.name)

    def change(self, key: bytes, value: bytes | None) -> RowChange:
        """A row to put; without a value, to delete."""
        return RowChange(self.name, key, value)


def in_batches(rows: Iterable[T], size: int = 1000) -> Iterator[list[T]]:
    """Rows, or what was made of them, in lists of up to ``size``."""
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch
