"""The read path: which images a query is, is a copy of, or looks like."""
