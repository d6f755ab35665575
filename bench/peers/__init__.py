"""What the engine is measured beside: methods in memory, tables of keys, indexes of vectors."""
