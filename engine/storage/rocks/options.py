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
# Tables whose keys and values do not compress: hashes and proofs.
_RANDOM = frozenset({"images", "files"})


def block_cache(memory: MemoryBudget) -> Cache:
    """The cache that all tables share."""
    # Faster than the default LRU cache, and more so with several threads. 4 KiB: what it holds.
    return Cache.new_hyper_clock_cache(memory.block_cache, 4096)


def database_options(memory: MemoryBudget, create: bool, salvage: bool) -> Options:
    """What holds for the whole database.

    ``create`` lets it make what is missing; ``salvage`` replays a damaged log up to the damage.
    """
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


def table_options(name: str, memory: MemoryBudget, cache: Cache) -> Options:
    """What holds for one table."""
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


def limit_for_full_disk(database: Options, tables: Iterable[Options]) -> None:
    """Let a database that is opened on a full disk take as little of it as it can."""
    # Logs and manifests are set aside whole, and compactions write before they delete.
    database.set_max_total_wal_size(_TIGHT_LOG)
    database.set_manifest_preallocation_size(_TIGHT_MANIFEST)
    for options in tables:
        options.set_disable_auto_compactions(True)
