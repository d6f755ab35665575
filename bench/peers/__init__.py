"""The engine's peers in a benchmark: methods in memory, tables of keys, indexes of vectors."""
