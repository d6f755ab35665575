"""Groups queries into batches whose pixels fit in memory together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from engine.config import MemoryBudget
from engine.images.decode import memory_to_decode
from engine.sources.items import Reject
from engine.sources.query import Query

MAX_BATCH = 32  # queries
_OF_BITS = 17  # bytes of memory for a byte of canonical pixels, at most: a bit image needs that

Asked = TypeVar("Asked", bound=Query | Reject)


def batches(
    queries: Iterable[Asked], memory: MemoryBudget, max_queries: int = MAX_BATCH
) -> Iterator[list[Asked]]:
    """The queries in their order; a batch takes at most the memory that ``memory`` has for decoding.

    A single query may need more; decoding it then fails.
    """
    return (batch for batch, _ in sized_batches(queries, memory.decoding, max_queries))


def sized_batches(
    queries: Iterable[Asked], max_bytes: int, max_queries: int = MAX_BATCH
) -> Iterator[tuple[list[Asked], int]]:
    """The queries in their order, in batches, each with the bytes of memory that it takes.

    A batch takes at most ``max_bytes``, unless it is a single query.
    """
    batch: list[Asked] = []
    size = 0
    for query in queries:
        needed = _memory_of(query)
        if batch and size + needed > max_bytes:
            yield batch, size
            batch, size = [], 0
        batch.append(query)
        size += needed
        if len(batch) >= max_queries:
            yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size


def _memory_of(query: Query | Reject) -> int:
    """Bytes of memory that a query takes while it is decoded and searched for."""
    if isinstance(query, Reject):
        return 0
    if query.data is not None:
        return len(query.data) + memory_to_decode(query.data)
    # With a byte for each bit, a bit image is 8 times as large; its picture needs that twice.
    return query.memory_bytes * (1 if query.vector is not None else _OF_BITS)
