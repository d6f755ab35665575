"""Ingest: sources to commits. Images are prepared in worker threads, and one writer commits them."""
