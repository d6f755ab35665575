"""The open files of a store that snapshots read from. They are opened and closed together."""

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

_READERS = 16  # threads, so that the disk's queue has as many reads
# After so many lookups, reading one block of keys at a time costs more than reading ahead.
_MANY_LOOKUPS = 1000


class OpenFiles:
    """RocksDB and the extents of kept pixels and fingerprints, opened at one moment."""

    def __init__(self, store: Path, keys: Keys, is_behind: Callable[[], bool]) -> None:
        """``is_behind`` returns whether a newer commit may be why a file is not found."""
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
        """Return the open database; ``StoreError`` if it is closed."""
        if self._closed is not None:
            raise StoreError(self._closed)
        return self._keys

    @property
    def tables(self) -> Tables:
        """Return its tables; ``StoreError`` if it is closed."""
        if self._closed is not None:
            raise StoreError(self._closed)
        return self._tables

    def image_columns(self, wanted: list[bytes]) -> ImageRows:
        """Do ``ImagesTable.columns`` in many threads; a single one would wait for each disk read."""
        if self._readers is None:
            self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="engine-read")
        step = -(-len(wanted) // _READERS)
        parts = [wanted[at : at + step] for at in range(0, len(wanted), step)]
        found = self._readers.map(self.tables.images.get_many, parts)
        return ImageRows.unpack([value for part in found for value in part])

    def count_lookups(self, count: int, read_ahead: int) -> None:
        """Count lookups. After many of them, read up to ``read_ahead`` bytes of the keys ahead."""
        self._lookups += count
        if self._lookups >= _MANY_LOOKUPS and not self._read_ahead:
            self._read_ahead = True
            self.keys.read_ahead(read_ahead)

    def limit_cache(self, limit: int) -> None:
        """Limit the cache of the keys to ``limit`` bytes, until they are reopened."""
        # A failed write may have closed the store.
        if self._closed is None:
            self._keys.limit_cache(limit)

    def reopened(self) -> OpenFiles:
        """Return the same database with reopened extents, after their files were replaced."""
        self._stop_readers()
        self.pixels.close()
        self.fingerprints.close()
        self._closed = "its files were replaced: read through the newest snapshot"
        return OpenFiles(self._store, self._keys, self.is_behind)

    def close(self, why: str) -> None:
        """Close everything. Later use raises a ``StoreError`` with the message ``why``."""
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
        """Mark it closed in a forked child, where the files stay the parent's."""
        self._closed = why
