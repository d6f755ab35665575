"""The child that makes a store of vectors: ingests them, or optimizes it."""

from __future__ import annotations

import time
from typing import Any

from engine import Store

from ..harness import memory
from ..harness.process import answer, send


def ingest(folder: str, vectors: str, memory_bytes: int) -> dict[str, float]:
    """Ingest the vectors of one file into a store, which is created if needed."""
    empty = memory.anonymous()
    send(start=True)
    started = time.perf_counter()
    with Store.open(folder, create=True, encoder="none", memory=memory_bytes) as store:
        store.ingest(vectors)
    return {"seconds": time.perf_counter() - started, "empty": empty}


def optimize(folder: str, memory_bytes: int, wanted: float) -> dict[str, Any]:
    """Index, lay out and measure everything; report the bytes of disk by part."""
    empty = memory.anonymous()
    send(start=True)
    started = time.perf_counter()
    with Store.open(folder, memory=memory_bytes) as store:
        store.optimize(recall=wanted)
    seconds = time.perf_counter() - started
    with Store.open(folder, read_only=True, memory=memory_bytes) as store:
        info = store.info()
        return {
            "seconds": seconds,
            "empty": empty,
            "vectors": info.vectors,
            "parts": dict(info.bytes),
        }


if __name__ == "__main__":
    answer({"ingest": ingest, "optimize": optimize})
