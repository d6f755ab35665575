"""Keeps a store healthy: checks, repairs, removals, compaction, copies."""
