"""The store on disk: manifest, lock, extents, RocksDB keys and index segments, one module each."""
