"""Proves a store whole: reads all committed data and compares the tables with each other."""
