"""What is on disk: manifest, lock, extents, RocksDB keys and index segments, each in its module."""
