"""The open files of a store that snapshots read from: opened together, and closed together."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.errors import StoreError
from engine.storage import extents
from engine.storage.extent_reader import ExtentReader
from engine.storage.fingerprints import Fingerprints
from engine.storage.image_rows import ImageRows
from engine.storage.rocks.database import Keys
from engine.storage.tables import Tables

_READERS = 16  # threads: reads in the disk's queue
_MANY_LOOKUPS = 1000  # after which one more block of keys at a time is the slow way


class OpenFiles:
    """RocksDB, the extents of kept pixels and of fingerprints, as of one opening."""

    def __init__(self, store: Path, keys: Keys, is_behind: Callable[[], bool]) -> None:
        """``is_behind``: whether a newer commit may be why something is not found."""
        self._store = store
        self.is_behind = is_behind
        self.pixels = ExtentReader(store, extents.PIXELS, is_behind)
        self.fingerprints = Fingerprints(store)
        self._keys = keys
        self._tables = Tables(keys)
        self._closed: str | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._lookups = 0
        self._read_ahead = False

    @property
    def keys(self) -> Keys:
        """The open database; ``StoreError`` if it is closed."""
        if self._closed is not None:
            raise StoreError(self._closed)
        return self._keys

    @property
    def tables(self) -> Tables:
        """Its tables; ``StoreError`` if it is closed."""
        if self._closed is not None:
            raise StoreError(self._closed)
        return self._tables

    def image_columns(self, wanted: list[bytes]) -> ImageRows:
        """``ImagesTable.columns`` by many threads, where one would wait for each read from disk."""
        if self._readers is None:
            self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="engine-read")
        step = -(-len(wanted) // _READERS)
        parts = [wanted[at : at + step] for at in range(0, len(wanted), step)]
        found = self._readers.map(self.tables.images.get_many, parts)
        return ImageRows.unpack([value for part in found for value in part])

    def count_lookups(self, count: int, read_ahead: int) -> None:
        """Count lookups. After many, have up to ``read_ahead`` bytes of keys read ahead."""
        self._lookups += count
        if self._lookups >= _MANY_LOOKUPS and not self._read_ahead:
            self._read_ahead = True
            self.keys.read_ahead(read_ahead)

    def limit_cache(self, limit: int) -> None:
        """Let the cache of the keys hold ``limit`` bytes; until they are opened again."""
        if self._closed is None:  # a failed write may have closed the store
            self._keys.limit_cache(limit)

    def reopened(self) -> OpenFiles:
        """The same database, with extents that are opened again: their files were replaced."""
        self._stop_readers()
        self.pixels.close()
        self.fingerprints.close()
        self._closed = "its files were replaced: read through the newest snapshot"
        return OpenFiles(self._store, self._keys, self.is_behind)

    def close(self, why: str) -> None:
        """Give everything back. Whoever asks later gets a ``StoreError`` that says ``why``."""
        self._stop_readers()
        if self._closed is None:
            self._closed = why
            self._keys.close()
            self.pixels.close()
            self.fingerprints.close()

    def _stop_readers(self) -> None:
        if self._readers is not None:
            self._readers.shutdown()
            self._readers = None

    def abandon(self, why: str) -> None:
        """In a forked child: it stays the parent's."""
        self._closed = why
