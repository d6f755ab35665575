"""The options of RocksDB, each with its measured reason."""

from __future__ import annotations

from collections.abc import Iterable

from rocksdict import (
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    DBRecoveryMode,
    Options,
)

from engine.config import MemoryBudget

_TIGHT_LOG = 2 << 20  # bytes
_TIGHT_MANIFEST = 64 << 10  # bytes
_FILES_PER_THREAD = 16
_MAX_OPENING_THREADS = 16
# Tables whose keys and values do not compress: hashes and proofs.
_RANDOM = frozenset({"images", "files"})


def block_cache(memory: MemoryBudget) -> Cache:
    """The cache that all tables share."""
    # Faster than the default LRU cache, even more so with several threads. Entries are 4 KiB blocks.
    return Cache.new_hyper_clock_cache(memory.block_cache, 4096)


def database_options(memory: MemoryBudget, files: int, create: bool, salvage: bool) -> Options:
    """Return the options of the whole database, which has about ``files`` table files.

    ``create`` lets it make missing parts; ``salvage`` replays a damaged log up to the damage.
    """
    # Without raw mode, keys and values would be pickled.
    options = Options(raw_mode=True)
    options.create_if_missing(create)
    options.create_missing_column_families(create)
    # All files stay open, so readers can still read files that the writer has compacted and deleted.
    options.set_max_open_files(-1)
    # The default is 16 threads for each table, however few files there are. Starting these 180 threads
    # took two thirds of opening a small store.
    threads = min(1 + files // _FILES_PER_THREAD, _MAX_OPENING_THREADS)
    options.set_max_file_opening_threads(threads)
    # The default mode silently drops synced commits after a flipped byte. This mode accepts a torn
    # tail, which is a commit that was never acknowledged, and reports anything else.
    modes = DBRecoveryMode
    mode = modes.point_in_time() if salvage else modes.tolerate_corrupted_tail_records()
    options.set_wal_recovery_mode(mode)
    # Logs are replayed at each open, by readers too. A table that is seldom written would keep them.
    options.set_max_total_wal_size(16 << 20)
    options.set_db_write_buffer_size(memory.write_buffers)
    options.set_max_background_jobs(2)
    # RocksDB's own log: two files of 1 MiB instead of a thousand.
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1 << 20)
    options.set_stats_dump_period_sec(0)
    return options


def table_options(name: str, memory: MemoryBudget, cache: Cache) -> Options:
    """Return the options of one table."""
    options = Options(raw_mode=True)
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_block_size(4096)
    table.set_format_version(5)
    # A false positive reads a block in vain and leaves it in the cache. At 10 bits per key, 1 lookup in
    # 100 did, which filled the cache while a million new images came in; at 15, 1 in 1,000.
    table.set_bloom_filter(15 if name in _RANDOM else 10, False)
    # Filters and indexes are cached in pieces. As one piece per file, a filter does not fit into a shard
    # of the cache and is read again at every get: 75 µs instead of 3. Pieces have 16 KiB, because with
    # 4 KiB there are four times as many to look up.
    table.set_cache_index_and_filter_blocks(True)
    table.set_index_type(BlockBasedIndexType.two_level_index_search())
    table.set_partition_filters(True)
    table.set_metadata_block_size(16 << 10)
    table.set_pin_top_level_index_and_filter(True)
    options.set_block_based_table_factory(table)
    if name == "images":
        # Nearly every key that an ingest looks up is missing, and half the time went into searching the
        # memtable for it. 2 % of the buffer is 20 bits per key. Only this table has the filter, since
        # each table's filter counts as write buffer from its first row on.
        options.set_memtable_whole_key_filtering(True)
        options.set_memtable_prefix_bloom_ratio(0.02)
        options.set_write_buffer_size(memory.write_buffers)
    random = name in _RANDOM
    options.set_compression_type(DBCompressionType.none() if random else DBCompressionType.lz4())
    return options


def limit_for_full_disk(database: Options, tables: Iterable[Options]) -> None:
    """Make a database opened on a full disk use as little of it as it can."""
    # Logs and manifests are preallocated, and compactions write before they delete.
    database.set_max_total_wal_size(_TIGHT_LOG)
    database.set_manifest_preallocation_size(_TIGHT_MANIFEST)
    for options in tables:
        options.set_disable_auto_compactions(True)
