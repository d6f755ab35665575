"""Batches of queries, each prepared by other threads while the one before it is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Self

from engine.config import MemoryBudget, cpu_count
from engine.search.batch_work import BatchWork
from engine.search.batches import sized_batches
from engine.sources.items import Reject
from engine.sources.query import Query


class PreparedBatch(NamedTuple):
    """Some queries with their work; ``work`` leaves out those that could not be read."""

    queries: list[Query | Reject]
    work: BatchWork
    memory_bytes: int


class BatchesAhead:
    """The batches of some queries, in their order. The next one is prepared in a pool of threads.

    The pixels of all batches in memory fit ``memory.decoding`` together: two batches take half of it
    each. A query that needs more than half is only prepared when nothing else is. Only the thread that
    calls ``next`` reads queries and the store.
    """

    def __init__(
        self,
        queries: Iterable[Query | Reject],
        memory: MemoryBudget,
        prepare: Callable[[Sequence[Query]], BatchWork],
    ) -> None:
        """``prepare`` returns the work of some queries; it is called by ``next``."""
        self._share = memory.decoding // 2
        self._unread = sized_batches(queries, self._share)
        self._prepare = prepare
        self._following: PreparedBatch | None = None
        self._workers = ThreadPoolExecutor(cpu_count(), thread_name_prefix="engine-lookup")

    def next(self) -> PreparedBatch | None:
        """The next batch, prepared; None at the end. The caller has dropped the one before it."""
        current, self._following = self._following or self._read(), None
        if current is None:
            return None
        # A query alone takes no thread: the caller does its work.
        if len(current.queries) > 1:
            current.work.start(self._workers)
        if current.memory_bytes <= self._share:
            following = self._read()
            if following is not None and following.memory_bytes <= self._share:
                following.work.start(self._workers)
            self._following = following
        current.work.wait()
        return current

    def _read(self) -> PreparedBatch | None:
        queries, size = next(self._unread, ([], 0))
        if not queries:
            return None
        able = [query for query in queries if isinstance(query, Query)]
        return PreparedBatch(queries, self._prepare(able), size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drop the work that has not begun. What has begun is not used."""
        # Do not wait: an image may take a minute to decode.
        self._workers.shutdown(wait=False, cancel_futures=True)
