"""A store's open RocksDB: tables that are read row by row, and one synced batch per commit."""

from __future__ import annotations

import collections
import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

from rocksdict import Cache, Rdict, WriteBatch, WriteOptions

from engine.errors import StoreDamagedError, StoreError
from engine.forking import abandon_in_child, keep_for_ever
from engine.storage import file_names, nofollow
from engine.storage.rows import TABLES

FOLDER = file_names.KEYS
_AHEAD = 128 << 10  # bytes
_LONG_LOG = 1 << 20  # bytes


class Batch:
    """The changes of one commit, in order; nothing is visible before ``Keys.commit``."""

    def __init__(self, tables: Mapping[str, Any]) -> None:
        """``tables`` are RocksDB's handles by name; ``Keys.batch`` passes them."""
        self.write = WriteBatch(raw_mode=True)
        self._tables = tables

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Set a row."""
        self.write.put(key, value, self._tables[table])

    def put_all(self, table: str, keys: Iterable[bytes], values: Iterable[bytes]) -> None:
        """Set many rows of one table."""
        # One call per row, without a Python loop between them.
        collections.deque(map(self.write.put, keys, values, repeat(self._tables[table])), maxlen=0)

    def delete(self, table: str, key: bytes) -> None:
        """Delete a row."""
        self.write.delete(key, self._tables[table])


class Keys:
    """One open RocksDB, for writing or for reading."""

    def __init__(self, db: Rdict, folder: Path, cache: Cache) -> None:
        self._db = db
        self._cache = cache
        self._folder = folder
        self._tables = {name: db.get_column_family(name) for name in TABLES}
        self._handles = {name: db.get_column_family_handle(name) for name in TABLES}
        self._sync = WriteOptions()
        self._sync.sync = True
        self._cursors: dict[int, Any] = {}  # of running scans
        self._abandoned = False
        abandon_in_child(self)

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the value of one row, or None."""
        try:
            value: bytes | None = self._tables[table].get(key)
        except Exception as error:  # rocksdict raises bare Exception
            raise _damaged(table, error) from None
        return value

    def get_many(self, table: str, keys: list[bytes]) -> list[bytes | None]:
        """Return the values of many rows, in order, in one call; other threads run during it."""
        with _NamesTable(table):
            values: Any = self._tables[table].get(keys)  # type: ignore[arg-type]
        return list(values)

    def limit_cache(self, max_bytes: int) -> None:
        """Limit the block cache to ``max_bytes`` from now on."""
        self._cache.set_capacity(max_bytes)

    def read_ahead(self, max_bytes: int) -> None:
        """Ask the kernel to fetch all tables, unless they are more than ``max_bytes``.

        It fetches them sequentially, in a fraction of the time that block-by-block reads take.
        """
        files = self._db.live_files()
        if sum(file["size"] for file in files) > max_bytes or not hasattr(os, "posix_fadvise"):
            return
        for file in files:
            # A writer may have replaced the file.
            with contextlib.suppress(OSError):
                name = f"{FOLDER}/{file['name'].lstrip('/')}"
                fd = nofollow.open_file(self._folder.parent, name)
                try:
                    # Linux fetches no more at a time.
                    for at in range(0, file["size"], _AHEAD):
                        os.posix_fadvise(fd, at, _AHEAD, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(fd)

    def scan(
        self, table: str, prefix: bytes = b"", start: bytes = b""
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield all rows whose key begins with ``prefix``, in key order, from ``start`` on.

        They are as they were when the first one is read; later commits do not change them.
        """
        first = max(prefix, start)
        with _NamesTable(table):
            rows: Any = self._tables[table].items(from_key=first)
            self._cursors[id(rows)] = rows
            try:
                for row in rows:
                    if not row[0].startswith(prefix):
                        return
                    first = row[0]
                    yield row
            finally:
                self._cursors.pop(id(rows), None)
            self._require_end(table, first)

    def scan_keys(self, table: str, prefix: bytes) -> Iterator[bytes]:
        """Yield the keys that ``scan`` finds, in a fifth of its time: no value is copied."""
        first = prefix
        with _NamesTable(table):
            keys: Any = self._tables[table].keys(from_key=prefix)
            self._cursors[id(keys)] = keys
            try:
                for key in keys:
                    if not key.startswith(prefix):
                        return
                    first = key
                    yield key
            finally:
                self._cursors.pop(id(keys), None)
            self._require_end(table, first)

    def _require_end(self, table: str, last: bytes) -> None:
        """Raise if damage ended the rows after ``last``: rocksdict's iterators then end silently."""
        cursor = self._tables[table].iter()
        cursor.seek(last)
        if cursor.valid():
            cursor.next()
        if not cursor.valid():
            cursor.status()

    def at_or_before(self, table: str, key: bytes) -> tuple[bytes, bytes] | None:
        """Return the row with the greatest key up to ``key``, or None."""
        cursor = self._tables[table].iter()
        with _NamesTable(table):
            cursor.seek_for_prev(key)
            if cursor.valid():
                return cursor.key(), cursor.value()
            cursor.status()
        return None

    def batch(self) -> Batch:
        """Return an empty batch, for ``commit``."""
        return Batch(self._handles)

    def commit(self, batch: Batch) -> None:
        """Write a batch, synced: after this it survives a power cut, whole.

        After an error, such as a full disk, the database takes no more writes until it is reopened.
        """
        try:
            self._db.write(batch.write, self._sync)
        except Exception as error:  # rocksdict raises bare Exception
            raise StoreError(f"the keys could not be written: {one_line(error)}") from None

    def settle(self) -> None:
        """As the writer, before closing: write tables instead of leaving a long log to replay.

        A log of 16 MB costs the next process that opens the store a tenth of a second. A short log is
        cheaper than the tables that would replace it.
        """
        store = self._folder.parent
        # If this fails, for example on a full disk, the log still has everything.
        with contextlib.suppress(Exception):
            there = nofollow.entries(store, FOLDER)
            logs = [entry.name for entry in there if entry.name.endswith(".log")]
            log = sum(nofollow.size(store, f"{FOLDER}/{name}") or 0 for name in logs)
            if log > _LONG_LOG:
                for table in self._tables.values():
                    table.flush()

    def compact(self, table: str) -> None:
        """As the writer, rewrite a table without its deleted rows; ``StoreError`` if it fails.

        It needs room for a second copy of the table. A full disk ends all writing until it is reopened.
        """
        try:
            self._tables[table].compact_range(None, None)
        except Exception as error:  # rocksdict raises bare Exception
            raise StoreError(
                f"the table {table!r} could not be compacted: {one_line(error)}"
            ) from None

    def close(self) -> None:
        """Close it; committed data is durable already."""
        if self._abandoned:
            return
        self._tables.clear()
        self._handles.clear()
        # After a failed write this fails too, and the error adds nothing: commits are durable already.
        with contextlib.suppress(Exception):
            self._db.close()

    def abandon(self) -> None:
        """Keep it open in a forked child: closing would flush and delete the parent's files."""
        keep_for_ever(self._db, *self._tables.values(), *self._handles.values())
        keep_for_ever(*self._cursors.values())
        self._tables, self._handles, self._abandoned = {}, {}, True


def one_line(error: BaseException) -> str:
    """Return an error's text without line breaks."""
    return " ".join(str(error).split())


def _plain(error: BaseException) -> str:
    """Return RocksDB's text about damaged rows, without checksums and a reader's own folder."""
    text = one_line(error).removeprefix("Corruption: ")
    text = re.sub(r": stored = .*? in ", " in ", text)
    return re.sub(r"\S*/(\d+\.sst) offset (\d+) size \d+", r"\1 at byte \2", text)


def _damaged(table: str, error: Exception) -> Exception:
    """Return a ``StoreDamagedError`` that names the table, for one of rocksdict's bare exceptions."""
    if type(error) is not Exception:
        return error
    return StoreDamagedError(
        f"the table {table!r} cannot be read: {_plain(error)}; run 'engine check'"
    )


class _NamesTable:
    """A context manager that converts exceptions with ``_damaged``."""

    def __init__(self, table: str) -> None:
        self._table = table

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if type(error) is Exception:
            raise _damaged(self._table, error) from None
