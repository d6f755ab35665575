"""The stage of the engine's own index, over vectors that are not the images'."""

from __future__ import annotations

from collections.abc import Iterator

from ..data.vector_store import QUERIES, VectorStore
from ..harness.measurement import SECONDS, Measurement
from ..peers.methods import ENGINE
from .context import Context
from .figures import RECALL, Advance, Figure, bytes_figure, memory_figure
from .index_search import search

_QUERIES = 2_000  # made ones


def engine_index(context: Context, vectors: VectorStore, advance: Advance) -> Iterator[Figure]:
    """Build and search the engine's index of vectors that are not the images'."""
    n = vectors.n
    built = vectors.make(
        memory=context.plan.memory,
        wanted=RECALL,
        queries=_QUERIES if vectors.array is None else QUERIES,
        done=lambda done: advance(0.3 * done / n),
        within=context.within,
    )
    context.resident = max(context.resident, built.resident)
    note = f"{context.vectors_note}; ingest and optimize"
    yield Measurement(n, "similar", ENGINE, "build", SECONDS, (built.seconds,), note)
    yield from memory_figure(n, "similar", ENGINE, "build memory", built.peak)
    yield bytes_figure(n, "similar", ENGINE, "disk", sum(built.parts.values()))
    yield from search(
        context, n, vectors.store, vectors.queries, vectors.truth, ENGINE, (RECALL,), context.within
    )
