"""Proves a store whole: reads everything that is committed and compares what says the same twice."""
