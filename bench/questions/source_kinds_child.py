"""The child of ``source_kinds``: one ingest into a new store, in a process of its own."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from engine import Store

from ..harness.process import answer, send


def take(source: str, work: str, memory_bytes: int) -> dict[str, float]:
    """Time the ingest of ``source``, from creating a store to closing it; the store is then removed."""
    folder = Path(work) / "bench.store"
    send(start=True)
    try:
        started = time.perf_counter()
        with Store.open(folder, create=True, encoder="none", memory=memory_bytes) as store:
            report = store.ingest(source)
        seconds = time.perf_counter() - started
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "seconds": seconds,
        "seen": report.seen,
        "added": report.added,
        "peak": report.peak_memory_bytes,
    }


if __name__ == "__main__":
    answer(take)
