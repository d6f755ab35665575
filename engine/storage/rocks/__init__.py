"""RocksDB: opened for a store, and its files read without it where it refuses to."""
