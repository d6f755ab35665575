"""The RocksDB of a store: its tables, its options with the reasons, one synced batch a commit.

A reader opens it read-only, through a folder of links to files that it holds open, so that reading
leaves nothing behind, works on a read-only mount, and sees one state (``engine.storage.rocks.pin``):
beside a live writer, a read-only open of the files themselves was seen to miss committed records.
Secondary instances are no way out: they went on serving deleted ones.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import functools
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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

from engine import address_space
from engine.config import MemoryBudget
from engine.errors import StoreDamagedError, StoreError
from engine.forking import abandon_in_child, keep_for_ever
from engine.storage import file_names, nofollow
from engine.storage.ballast import FULL
from engine.storage.durable import MORE_FILES
from engine.storage.nofollow import ForeignError
from engine.storage.rocks import threads
from engine.storage.rocks.pin import TRIES, MovedError, pinned, version
from engine.storage.rows import TABLES
from engine.storage.temp_folders import claimed, sweep

_log = logging.getLogger(__name__)
FOLDER = file_names.KEYS
_CONFIG = "rocksdict-config.json"
_LOST = "lost"  # a folder that RocksDB's own repair makes
_OPEN_TRIES = 4  # of what was found not to move
_MAX_CURRENT = 64  # bytes of CURRENT
_THREADS = 16 + 4  # that open files, and that flush and compact
_LINKS = "engine-reader-"  # how the folder begins that has the links of a reader
_MANY_FILES = os.strerror(errno.EMFILE)
_NO_PERMISSION = os.strerror(errno.EACCES)
_AHEAD = 128 << 10  # bytes
_LONG_LOG = 1 << 20  # bytes
_TIGHT_LOG = 2 << 20  # bytes
_TIGHT_MANIFEST = 64 << 10  # bytes
# Tables whose keys and values do not compress: hashes and proofs.
_RANDOM = frozenset({"images", "files"})


class BusyError(StoreError):
    """A writer changes files faster than they can be opened."""


class _InTheWayError(StoreError):
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
        self._cursors: dict[int, Any] = {}  # of scans under way
        self._abandoned = False
        abandon_in_child(self)

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
                name = f"{FOLDER}/{file['name'].lstrip('/')}"
                fd = nofollow.open_file(self._folder.parent, name)
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
        self._cursors[id(cursor)] = cursor
        try:
            cursor.seek(max(prefix, start))
            with _Naming(table):
                while cursor.valid():
                    key: bytes = cursor.key()
                    if not key.startswith(prefix):
                        return
                    yield key, cursor.value()
                    cursor.next()
                cursor.status()  # an iterator that met damage is not valid either
        finally:
            self._cursors.pop(id(cursor), None)

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
        store = self._folder.parent
        logs = [one.name for one in nofollow.entries(store, FOLDER) if one.name.endswith(".log")]
        log = sum(nofollow.size(store, f"{FOLDER}/{name}") or 0 for name in logs)
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
        if self._abandoned:
            return
        self._tables.clear()
        self._handles.clear()
        # After a failed write it fails too, and has nothing to add: commits are durable already.
        with contextlib.suppress(Exception):
            self._db.close()

    def abandon(self) -> None:
        """In a forked child: closing it would flush and delete files of the parent's database."""
        keep_for_ever(self._db, *self._tables.values(), *self._handles.values())
        keep_for_ever(*self._cursors.values())
        self._tables, self._handles, self._abandoned = {}, {}, True


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
    require_readable(store / FOLDER)
    _require_folder(store)
    if not has_current(store):
        raise StoreDamagedError(f"{store / FOLDER} is not whole (no CURRENT); run 'engine check'")
    for name in require_files(store):
        # rocksdict would read them first, and write into the second: both are made again.
        if name.startswith("OPTIONS-") or name == _CONFIG:
            nofollow.remove(store, f"{FOLDER}/{name}")
        elif not name.endswith(".sst"):  # these are never written to again
            nofollow.own(store, f"{FOLDER}/{name}")
    _log.debug("opening %s for writing", store / FOLDER)
    return _open(
        store / FOLDER, memory, AccessType.read_write(), create=False, salvage=salvage, tight=tight
    )


def open_reader(store: Path, memory: MemoryBudget, *, tries: int = TRIES) -> Keys:
    """A snapshot of what is committed, beside any writer, without a trace in the store.

    Raises ``StoreDamagedError``, or ``BusyError`` where a writer never left the files alone.
    """
    folder = store / FOLDER
    _log.debug("opening %s for reading", folder)
    problem: StoreError | OSError | None = None
    for attempt in range(_OPEN_TRIES):
        try:
            require_files(store)
            with pinned(store, tries) as files:
                if files is None:
                    break
                try:
                    return _open_linked(folder, memory, files.name_in)
                except _InTheWayError:
                    raise
                except (StoreError, OSError) as error:
                    problem = error
        except MovedError:
            raise BusyError(
                f"{folder} could not be opened between two changes of a writer: try again, or give "
                f"the writer more memory"
            ) from None
        except OSError:  # no names of open files here, or too many files
            require_readable(folder)
            keys = _open_unpinned(folder, memory)
            if isinstance(keys, Keys):
                return keys
            problem = keys
        time.sleep(0.001 * (attempt + 1))
    require_readable(folder)
    _require_folder(store)
    detail = f": {problem}" if problem else ""
    if problem is None and version(folder) is None:
        detail = " (no CURRENT with its MANIFEST)"
    raise StoreDamagedError(f"{folder} cannot be opened{detail}; run 'engine check'")


def has_current(store: Path) -> bool:
    """Whether the keys have the file that says where everything else is."""
    return nofollow.status(store, f"{FOLDER}/CURRENT") is not None


def _require_folder(store: Path) -> None:
    """``StoreDamagedError`` where a repair was interrupted between two renames (``rescue``)."""
    if not nofollow.is_folder(store, FOLDER) and nofollow.is_folder(store, file_names.MENDED):
        raise StoreDamagedError(
            f"{store / FOLDER} is gone: a repair is under way, or 'engine check --fix' ends one "
            f"that was killed"
        )


def require_files(store: Path) -> list[str]:
    """What is in RocksDB's folder, which follows links itself; ``ForeignError`` if that is one."""
    found = nofollow.entries(store, FOLDER)
    for entry in found:
        if not entry.is_file and not (entry.is_folder and entry.name == _LOST):
            nofollow.status(store, f"{FOLDER}/{entry.name}")  # says what it is
    return [entry.name for entry in found if entry.is_file]


def require_readable(folder: Path) -> None:
    """``StoreError`` where RocksDB's folder, its CURRENT or its MANIFEST may not be read.

    What is not there is not the matter of this: it is damage, and others say so.
    """
    store, name = folder.parent, f"{FOLDER}/CURRENT"
    try:
        with nofollow.opened_folder(store, FOLDER, os.O_RDONLY):
            current = nofollow.read_file(store, name, _MAX_CURRENT)
        name = f"{FOLDER}/{current.decode().strip()}"
        os.close(nofollow.open_file(store, name))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, StoreError):
        return
    except OSError as error:
        todo = "run the command as its owner" if isinstance(error, PermissionError) else "try again"
        path = error.filename or folder
        raise _InTheWayError(f"{path} cannot be read: {error.strerror}; {todo}") from None


def _open_unpinned(folder: Path, memory: MemoryBudget) -> Keys | StoreError | OSError:
    """Open the files by their own names, which a writer may delete: good if nothing has moved then."""

    def name_in(links: Path) -> None:
        real = folder.resolve()
        for name in require_files(folder.parent):
            # Options are ours, and not the store's. rocksdict writes its own file at every open: a
            # link would lead the write back into the store.
            ours = file_names.ROCKSDB.fullmatch(name) and name != _CONFIG
            if ours and not name.startswith(("LOG", "LOCK", "OPTIONS-")):
                (links / name).symlink_to(real / name)

    for attempt in range(TRIES):
        before = version(folder)
        problem: StoreError | OSError | None = None
        try:
            keys = _open_linked(folder, memory, name_in)
        except (_InTheWayError, ForeignError):
            raise
        except (StoreError, OSError) as error:
            problem = error
        else:
            if version(folder) == before:
                return keys
            keys.close()
        # A writer also deletes files some time after the MANIFEST has ceased to name them.
        if problem is not None and version(folder) == before and attempt >= 3:
            return problem
        time.sleep(min(0.001 * (attempt + 1), 0.05))
    raise BusyError(f"{folder} could not be opened between two changes of a writer: try again")


def _open_linked(folder: Path, memory: MemoryBudget, name_in: Callable[[Path], None]) -> Keys:
    try:
        claim = claimed(lambda: Path(tempfile.mkdtemp(prefix=_LINKS)))
    except OSError as error:
        raise _InTheWayError(
            f"no folder for temporary files: {error.strerror}; make room there, or set TMPDIR"
        ) from None
    links = claim.path
    try:
        name_in(links)
        return _open(links, memory, AccessType.read_only(), create=False, real=folder)
    finally:
        # All files are open by now (max_open_files is -1), so their names are not needed any more.
        shutil.rmtree(links, ignore_errors=True)
        claim.release()
        _sweep_links(links.parent)


@functools.cache
def _sweep_links(folder: Path) -> None:
    """Once in a process: remove what readers that were killed left behind."""
    sweep(folder, re.compile(_LINKS + r"[a-z0-9_]{8}"), re.compile(r"[\w.-]+"))


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
    _require_threads()
    threads.use(to_write=real is None)
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
        said = str(error)
        if _MANY_FILES in said:
            raise _InTheWayError(
                f"{real or folder} cannot be opened: {_MANY_FILES}; {MORE_FILES}"
            ) from None
        if _NO_PERMISSION in said:
            require_readable(real or folder)
            what = _line(error).replace(str(folder), str(real or folder))
            raise _InTheWayError(
                f"{real or folder} cannot be opened: {what}; run the command as its owner"
            ) from None
        full = next((os.strerror(n) for n in FULL if os.strerror(n) in said), None)
        if full is not None and real is None:
            room = "make room, or remove images with 'engine remove'"
            if full == os.strerror(errno.EFBIG):
                room = "let files be larger (ulimit -f unlimited)"
            raise StoreError(f"{folder} cannot be opened for writing: {full}; {room}") from None
        if full is not None:
            raise _InTheWayError(
                f"no room for temporary files: {full}; make room there, or set TMPDIR"
            ) from None
        raise StoreDamagedError(f"{folder} cannot be opened: {_line(error)}") from None
    return Keys(db, real or folder, cache)


@functools.cache
def _require_threads() -> None:
    """Once in a process: ``StoreError`` where it may not start as many threads as RocksDB does.

    RocksDB would abort the process.
    """
    done = threading.Event()
    started = []
    try:
        for _ in range(_THREADS):
            thread = threading.Thread(target=done.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        limits = "ulimit -u" if address_space.limit() is None else "ulimit -u, ulimit -v"
        raise _InTheWayError(
            f"no more threads can be started: raise the limit ({limits}), or end other processes"
        ) from None
    finally:
        done.set()
        for thread in started:
            thread.join()


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
