"""RocksDB: opens it for a store, and reads its files without it if it refuses to open."""
