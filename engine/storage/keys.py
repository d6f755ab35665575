"""The RocksDB of a store: its tables, its options with the reasons, one synced batch a commit.

A reader opens it read-only, through a folder of symbolic links, so that reading leaves nothing
behind and works on a read-only mount, and accepts what it opened only if RocksDB's CURRENT and
MANIFEST did not move meanwhile: beside a live writer, a read-only open across a flush was seen to
miss committed records. Secondary instances are no way out: they went on serving deleted ones.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

from rocksdict import (
    AccessType,
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    WriteBatch,
    WriteOptions,
)

from engine.config import MemoryBudget
from engine.errors import StoreDamagedError, StoreError
from engine.storage.rows import TABLES

FOLDER = "keys"
_OPEN_TRIES = 200
_NO_SPACE = os.strerror(errno.ENOSPC)
_AHEAD = 128 << 10  # bytes
_LONG_LOG = 1 << 20  # bytes
_TIGHT_LOG = 2 << 20  # bytes
_TIGHT_MANIFEST = 64 << 10  # bytes
# Tables whose keys and values do not compress: hashes and proofs.
_RANDOM = frozenset({"images", "files"})


class _NoTemporaryFolderError(StoreError):
    """Nothing is wrong with the store, and trying again would not help."""


class Batch:
    """Everything of one commit, in the order put; nothing is visible before ``Keys.commit``."""

    def __init__(self, tables: Mapping[str, Any]) -> None:
        """``tables`` are RocksDB's handles by name: ``Keys.batch`` knows them."""
        self.write = WriteBatch(raw_mode=True)
        self._tables = tables

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Set a row."""
        self.write.put(key, value, self._tables[table])

    def put_all(self, table: str, keys: Iterable[bytes], values: Iterable[bytes]) -> None:
        """Set many rows of one table."""
        # A call a row, and no step through the interpreter between them.
        collections.deque(map(self.write.put, keys, values, repeat(self._tables[table])), maxlen=0)

    def delete(self, table: str, key: bytes) -> None:
        """Remove a row."""
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

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value of one row, or None."""
        try:
            value: bytes | None = self._tables[table].get(key)
        except Exception as error:  # rocksdict raises bare Exception
            raise _damaged(table, error) from None
        return value

    def get_many(self, table: str, keys: list[bytes]) -> list[bytes | None]:
        """The values of many rows in their order; one call, during which other threads run."""
        with _Naming(table):
            values: Any = self._tables[table].get(keys)  # type: ignore[arg-type]
        return list(values)

    def limit_cache(self, most: int) -> None:
        """Let the block cache hold ``most`` bytes from now on."""
        self._cache.set_capacity(most)

    def read_ahead(self, most: int) -> None:
        """Ask the kernel to fetch all tables, if they are no more than ``most`` bytes.

        Sequentially, in a fraction of the reads and of the time that fetching it block by block takes.
        """
        files = self._db.live_files()
        if sum(file["size"] for file in files) > most or not hasattr(os, "posix_fadvise"):
            return
        for file in files:
            with contextlib.suppress(OSError):  # a writer may have replaced it since
                fd = os.open(self._folder / file["name"].lstrip("/"), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    for at in range(0, file["size"], _AHEAD):  # Linux fetches no more at a time
                        os.posix_fadvise(fd, at, _AHEAD, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(fd)

    def scan(
        self, table: str, prefix: bytes = b"", start: bytes = b""
    ) -> Iterator[tuple[bytes, bytes]]:
        """All rows whose key begins with ``prefix``, in key order, from ``start`` on.

        As they are when the first one is asked for, whatever is committed meanwhile.
        """
        cursor = self._tables[table].iter()
        cursor.seek(max(prefix, start))
        with _Naming(table):
            while cursor.valid():
                key: bytes = cursor.key()
                if not key.startswith(prefix):
                    return
                yield key, cursor.value()
                cursor.next()
            cursor.status()  # an iterator that met damage is not valid either

    def at_or_before(self, table: str, key: bytes) -> tuple[bytes, bytes] | None:
        """The row with the greatest key that is not above ``key``."""
        cursor = self._tables[table].iter()
        with _Naming(table):
            cursor.seek_for_prev(key)
            if cursor.valid():
                return cursor.key(), cursor.value()
            cursor.status()
        return None

    def batch(self) -> Batch:
        """An empty batch, for ``commit``."""
        return Batch(self._handles)

    def commit(self, batch: Batch) -> None:
        """Write a batch, synced: when this returns, it survives a power cut, whole.

        After an error (a full disk, say) the database takes no more writes until it is reopened.
        """
        try:
            self._db.write(batch.write, self._sync)
        except Exception as error:  # rocksdict raises bare Exception
            raise StoreError(f"the keys could not be written: {_line(error)}") from None

    def settle(self) -> None:
        """As the writer, before closing: write tables instead of leaving a long log to replay.

        A log of 16 MB costs whoever opens the store next a tenth of a second; a short one is cheaper
        than the tables that would take its place.
        """
        log = 0
        for file in self._folder.glob("*.log"):
            with contextlib.suppress(FileNotFoundError):  # RocksDB tidies up in a thread of its own
                log += file.stat().st_size
        if log > _LONG_LOG:
            with contextlib.suppress(Exception):  # a full disk, say: the log has everything
                for table in self._tables.values():
                    table.flush()

    def compact(self, table: str) -> None:
        """As the writer, rewrite a table without what was deleted; ``StoreError`` if it fails.

        It needs room for the table a second time. A full disk ends all writing until it is reopened.
        """
        try:
            self._tables[table].compact_range(None, None)
        except Exception as error:  # rocksdict raises bare Exception
            raise StoreError(
                f"the table {table!r} could not be compacted: {_line(error)}"
            ) from None

    def close(self) -> None:
        """Close it; what was committed is durable already."""
        self._tables.clear()
        self._handles.clear()
        # After a failed write it fails too, and has nothing to add: commits are durable already.
        with contextlib.suppress(Exception):
            self._db.close()


def create(store: Path, memory: MemoryBudget) -> Keys:
    """A new, empty RocksDB."""
    return _open(store / FOLDER, memory, AccessType.read_write(), create=True)


def open_writer(
    store: Path, memory: MemoryBudget, *, salvage: bool = False, tight: bool = False
) -> Keys:
    """For the process that holds the writer's lock; replays the write-ahead log.

    ``salvage`` replays a damaged log up to the damage and drops the rest. ``tight``: the disk is full,
    or nearly.
    """
    if not (store / FOLDER / "CURRENT").is_file():
        raise StoreDamagedError(
            f"{store / FOLDER} is not whole (no CURRENT): restore the store from a copy"
        )
    return _open(
        store / FOLDER, memory, AccessType.read_write(), create=False, salvage=salvage, tight=tight
    )


def open_reader(store: Path, memory: MemoryBudget) -> Keys:
    """A snapshot of what is committed, beside any writer, without a trace in the store."""
    folder = store / FOLDER
    problem: Exception | None = None
    moving = False
    for attempt in range(_OPEN_TRIES):
        before, files = version(folder), _names(folder)
        if before is not None:
            try:
                keys = _open_linked(folder, memory)
            except _NoTemporaryFolderError:
                raise
            except (StoreError, OSError) as error:
                problem = error
            else:
                if version(folder) == before:
                    return keys
                keys.close()
                problem = None
        # A writer also deletes files some time after the MANIFEST has ceased to name them.
        moving = (version(folder), _names(folder)) != (before, files)
        if before is None or (problem is not None and not moving and attempt >= 3):
            # Nothing moved and it still fails: damage, not a race.
            break
        time.sleep(min(0.001 * (attempt + 1), 0.05))
    if not os.access(folder, os.R_OK | os.X_OK):
        raise StoreError(f"{folder} cannot be read: Permission denied")
    if moving:
        raise StoreError(
            f"{folder} could not be opened between two changes of a writer: try again, or give the "
            f"writer more memory"
        )
    detail = f": {problem}" if problem else ""
    if problem is None and version(folder) is None:
        detail = " (no CURRENT)"
    raise StoreDamagedError(f"{folder} cannot be opened{detail}; run 'engine check'")


def _names(folder: Path) -> frozenset[str]:
    """The files of a RocksDB, without its own log."""
    try:
        return frozenset(e.name for e in os.scandir(folder) if not e.name.startswith("LOG"))
    except OSError:
        return frozenset()


def _open_linked(folder: Path, memory: MemoryBudget) -> Keys:
    try:
        links = Path(tempfile.mkdtemp(prefix="engine-reader-"))
    except OSError as error:
        raise _NoTemporaryFolderError(
            f"no folder for temporary files: {error.strerror}; make room there, or set TMPDIR"
        ) from None
    try:
        for entry in os.scandir(folder.resolve()):
            if not entry.name.startswith(("LOG", "LOCK")):
                (links / entry.name).symlink_to(entry.path)
        # Written by rocksdict at every open; a link would lead the write back into the store.
        config = links / "rocksdict-config.json"
        if config.is_symlink():
            text = config.read_bytes()
            config.unlink()
            config.write_bytes(text)
        return _open(links, memory, AccessType.read_only(), create=False, real=folder)
    finally:
        # All files are open by now (max_open_files is -1), so their names are not needed any more.
        shutil.rmtree(links, ignore_errors=True)


def version(folder: Path) -> tuple[bytes, int] | None:
    """CURRENT's contents and the size of the MANIFEST it names; None while they are not there.

    As long as it stays the same, the files of RocksDB's folder belong together.
    """
    try:
        current = (folder / "CURRENT").read_bytes()
        return current, (folder / current.decode().strip()).stat().st_size
    except (OSError, ValueError):
        return None


def _open(
    folder: Path,
    memory: MemoryBudget,
    access: AccessType,
    *,
    create: bool,
    salvage: bool = False,
    tight: bool = False,
    real: Path | None = None,
) -> Keys:
    # Faster than the default LRU cache, and more so with several threads. 4 KiB: what it holds.
    cache = Cache.new_hyper_clock_cache(memory.block_cache, 4096)
    families = {name: _table_options(name, memory, cache) for name in TABLES}
    database = _database_options(memory, create, salvage)
    if tight:
        # Logs and manifests are set aside whole, and compactions write before they delete.
        database.set_max_total_wal_size(_TIGHT_LOG)
        database.set_manifest_preallocation_size(_TIGHT_MANIFEST)
        for options in families.values():
            options.set_disable_auto_compactions(True)
    try:
        db = Rdict(
            str(folder),
            options=database,
            column_families=families,
            access_type=access,
        )
    except Exception as error:  # rocksdict raises bare Exception
        if _NO_SPACE in str(error) and real is None:
            raise StoreError(
                f"{folder} cannot be opened for writing: {_NO_SPACE}; make room, or remove images "
                f"with 'engine remove'"
            ) from None
        raise StoreDamagedError(f"{folder} cannot be opened: {_line(error)}") from None
    return Keys(db, real or folder, cache)


def _database_options(memory: MemoryBudget, create: bool, salvage: bool) -> Options:
    options = Options(raw_mode=True)  # without it keys and values would be pickled
    options.create_if_missing(create)
    options.create_missing_column_families(create)
    # All files stay open: readers then survive that the writer deletes what it has compacted.
    options.set_max_open_files(-1)
    # The default mode drops synced commits behind a flipped byte without a word; this one accepts
    # a torn tail (a commit that was never acknowledged) and reports anything else.
    modes = DBRecoveryMode
    mode = modes.point_in_time() if salvage else modes.tolerate_corrupted_tail_records()
    options.set_wal_recovery_mode(mode)
    # Replayed at each open, by readers too; a table that is seldom written would pin it for ever.
    options.set_max_total_wal_size(16 << 20)
    options.set_db_write_buffer_size(memory.write_buffers)
    options.set_max_background_jobs(2)
    # RocksDB's own log: two files of 1 MiB instead of a thousand.
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1 << 20)
    options.set_stats_dump_period_sec(0)
    return options


def _table_options(name: str, memory: MemoryBudget, cache: Cache) -> Options:
    options = Options(raw_mode=True)
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_block_size(4096)
    table.set_format_version(5)
    # A false positive of "is it known?" reads a block for nothing and leaves it in the cache: at 10
    # bits a key 1 in 100, which filled the cache while a million new images came in; at 15, 1 in 1,000.
    table.set_bloom_filter(15 if name in _RANDOM else 10, False)
    # Filter and index count as cache, in pieces. As one piece a file, the filter does not fit a
    # shard of the cache and is read again at every get: 75 µs instead of 3. Pieces of 16 KiB, since
    # with 4 KiB there are four times as many to look for.
    table.set_cache_index_and_filter_blocks(True)
    table.set_index_type(BlockBasedIndexType.two_level_index_search())
    table.set_partition_filters(True)
    table.set_metadata_block_size(16 << 10)
    table.set_pin_top_level_index_and_filter(True)
    options.set_block_based_table_factory(table)
    if name == "images":
        # Nearly every key that an ingest asks for is not there: half the time went into searching
        # the memtable for it. 2 % of the buffer is 20 bits a key; and only here, since each table's
        # filter counts as write buffer from the first row on.
        options.set_memtable_whole_key_filtering(True)
        options.set_memtable_prefix_bloom_ratio(0.02)
        options.set_write_buffer_size(memory.write_buffers)
    random = name in _RANDOM
    options.set_compression_type(DBCompressionType.none() if random else DBCompressionType.lz4())
    return options


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _damaged(table: str, error: Exception) -> Exception:
    """A ``StoreDamagedError`` that names the table, for one of rocksdict's bare exceptions."""
    if type(error) is not Exception:
        return error
    return StoreDamagedError(
        f"the table {table!r} cannot be read: {_line(error)}; run 'engine check'"
    )


class _Naming:
    """``_damaged`` for a block."""

    def __init__(self, table: str) -> None:
        self._table = table

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if type(error) is Exception:
            raise _damaged(self._table, error) from None
