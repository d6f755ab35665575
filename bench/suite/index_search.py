"""Queries of a finished index of vectors: the engine's, or a peer's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..data.vector_store import K
from ..harness.measurement import SECONDS, SHARE, Measurement
from ..harness.process import run_child
from ..peers.methods import ENGINE
from .context import Context
from .figures import RECALL, Figure, memory_figure


def search(
    context: Context,
    n: int,
    store: Path,
    queries: Path,
    truth: Path,
    method: str,
    setting: tuple[float, ...],
    within: tuple[str, ...],
) -> Iterator[Figure]:
    """Search a finished index, with one query after the other and with 1,000 at once."""
    spec: dict[str, object] = {
        "method": method,
        "folder": str(store),
        "memory_bytes": context.plan.memory,
        "queries": str(queries),
        "truth": str(truth),
        "k": K,
        "gone": None,
        "setting": list(setting),
    }
    single = run_child("peers.index_child", spec | {"job": "single", "threads": 1}, within=within)
    batch = run_child("peers.index_child", spec | {"job": "batch", "threads": 2}, within=within)
    note = f"recall@{K} of {RECALL} wanted"
    times = tuple(single.result["seconds"])
    yield Measurement(n, "similar", method, "single", SECONDS, times, note)
    each = 1 / batch.result["qps"]
    yield Measurement(n, "similar", method, "batch", SECONDS, (each,), f"{note}; two threads")
    right = batch.result["recall"]
    yield Measurement(n, "similar", method, f"recall@{K}", SHARE, (right,), note)
    taken = batch.result["searched"] - batch.result["empty"]
    yield from memory_figure(n, "similar", method, "memory", taken)
    if method == ENGINE:
        context.saw(single, batch)
