"""The engine's job done with SQLite and LMDB: keys and proofs on disk, durable, each key once.

Both are set up to be as fast as they can while they promise what the engine promises: a chunk is
one transaction, and is on the disk when the call returns. Its rows are inserted in sorted order, as
if all were new, so no lookup comes first. Only if a key exists already, the chunk is rolled back
and its keys are looked up.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import how_to_install
from engine.images.hashing import KEY_BYTES

from ..harness.errors import BenchError

SQLITE, LMDB = "SQLite", "LMDB"

Found = tuple[int, bytes]  # the id and the proof of an image
Row = tuple[bytes, int, bytes]  # key, id and proof

_PAGE_BYTES = 16_384  # of SQLite: its default, 4,096, takes a quarter longer
_LOG_PAGES = 5_000  # of its log, after which it is checkpointed: 82 MB; its default writes more
_ASKED = 500  # keys of one SELECT
_MAP_BYTES = 1 << 36  # of LMDB: address space, of which only what is written takes disk
_ID_BYTES = 8


class Peer(ABC):
    """A table from the key of an image to its id and proof, in a folder."""

    def take(self, first_id: int, keys: Sequence[bytes], proofs: Sequence[bytes]) -> int:
        """Add the missing ones, durably, with ids from ``first_id`` on; returns how many.

        ``BenchError`` if a key exists with another proof, because a table of keys cannot hold both.
        """
        ids = range(first_id, first_id + len(keys))
        if self._insert(_sorted(zip(keys, ids, proofs, strict=True))):
            return len(keys)
        new: dict[bytes, Row] = {}
        for key, proof, known in zip(keys, proofs, self.find_many(keys), strict=True):
            there = known[1] if known else new[key][2] if key in new else None
            if there is None:
                new[key] = key, first_id + len(new), proof
            elif there != proof:
                raise BenchError("two images with one key")
        self._insert(_sorted(new.values()))
        return len(new)

    @abstractmethod
    def _insert(self, rows: Sequence[Row]) -> bool:
        """Add all rows durably and return true; if one of the keys exists, add none and return false."""

    @abstractmethod
    def find(self, key: bytes) -> Found | None:
        """The id and proof of a key; None if it is not there."""

    @abstractmethod
    def find_many(self, keys: Sequence[bytes]) -> list[Found | None]:
        """The id and proof of each key; None for missing keys."""

    @abstractmethod
    def close(self) -> None:
        """Close it completely, so that the next open has nothing to recover."""


class Sqlite(Peer):
    """A table without row numbers, so that a row lies in the tree of keys itself."""

    def __init__(self, folder: Path, cache: int) -> None:
        """Open it, or make it; ``cache``: bytes of memory for its pages."""
        folder.mkdir(exist_ok=True)
        self._db = sqlite3.connect(folder / "images.sqlite", isolation_level=None)
        for pragma in (
            f"page_size = {_PAGE_BYTES}",
            "journal_mode = WAL",
            "synchronous = FULL",  # of a write-ahead log: each commit is on the disk
            f"cache_size = -{cache >> 10}",
            f"wal_autocheckpoint = {_LOG_PAGES}",
        ):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS images "
            "(key BLOB PRIMARY KEY, id INTEGER NOT NULL, proof BLOB NOT NULL) WITHOUT ROWID"
        )

    def _insert(self, rows: Sequence[Row]) -> bool:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany("INSERT INTO images VALUES (?, ?, ?)", rows)
        except sqlite3.IntegrityError:
            self._db.execute("ROLLBACK")
            return False
        self._db.execute("COMMIT")
        return True

    def find(self, key: bytes) -> Found | None:
        """The id and proof of a key; None if it is not there."""
        asked = self._db.execute("SELECT id, proof FROM images WHERE key = ?", (key,))
        found: Found | None = asked.fetchone()
        return found

    def find_many(self, keys: Sequence[bytes]) -> list[Found | None]:
        """The id and proof of each key; None for missing keys."""
        found: dict[bytes, Found] = {}
        for at in range(0, len(keys), _ASKED):
            some = keys[at : at + _ASKED]
            marks = ",".join("?" * len(some))
            query = f"SELECT key, id, proof FROM images WHERE key IN ({marks})"
            for key, id_, proof in self._db.execute(query, some):
                found[key] = id_, proof
        return [found.get(key) for key in keys]

    def close(self) -> None:
        """Write the log into the table and close it."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()


class Lmdb(Peer):
    """A B+ tree in a memory map; the page cache is its cache."""

    def __init__(self, folder: Path, cache: int) -> None:
        """Open it, or make it; ``cache`` is not used."""
        try:
            import lmdb
        except ModuleNotFoundError:
            raise BenchError(f"LMDB is not installed: {how_to_install('peers')}") from None
        self._env = lmdb.open(str(folder), map_size=_MAP_BYTES)  # writes, and syncs each commit
        # One transaction for all lookups: to begin one takes as long as a lookup.
        self._snapshot: Any = None

    def _insert(self, rows: Sequence[Row]) -> bool:
        items = [(key, id_.to_bytes(_ID_BYTES, "big") + proof) for key, id_, proof in rows]
        self._forget()
        transaction = self._env.begin(write=True)
        _, added = transaction.cursor().putmulti(items, dupdata=False, overwrite=False)
        if added < len(items):
            transaction.abort()
            return False
        transaction.commit()
        return True

    def find(self, key: bytes) -> Found | None:
        """The id and proof of a key; None if it is not there."""
        if self._snapshot is None:
            self._snapshot = self._env.begin()
        value: bytes | None = self._snapshot.get(key)
        return _unpack(value) if value is not None else None

    def find_many(self, keys: Sequence[bytes]) -> list[Found | None]:
        """The id and proof of each key; None for missing keys."""
        with self._env.begin() as transaction:
            get = transaction.get
            return [_unpack(value) if (value := get(key)) is not None else None for key in keys]

    def close(self) -> None:
        """Close it."""
        self._forget()
        self._env.close()

    def _forget(self) -> None:
        """Release the snapshot, which keeps pages from being reused."""
        if self._snapshot is not None:
            self._snapshot.abort()
            self._snapshot = None


PEERS: dict[str, type[Sqlite | Lmdb]] = {SQLITE: Sqlite, LMDB: Lmdb}


def _unpack(value: bytes) -> Found:
    return int.from_bytes(value[:_ID_BYTES], "big"), value[_ID_BYTES:]


def _sorted(rows: Iterable[Row]) -> list[Row]:
    """Sort rows by key, because a tree inserts sorted rows faster."""
    given = list(rows)
    keys = np.frombuffer(b"".join(key for key, _, _ in given), np.uint8).reshape(-1, KEY_BYTES)
    halves = keys.view(">u8")[:, 0].astype(np.uint64)  # enough to sort by
    return [given[i] for i in np.argsort(halves).tolist()]
