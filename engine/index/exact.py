"""Compares queries with vectors in full, without an index."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from engine.index.inner_product import Block, Numbers
from engine.index.row_filter import RowFilter
from engine.index.top_k import TopK
from engine.storage.vectors import Vectors

_MANY = 64  # queries, from which on compared blocks are unmapped
_MAPPED_BLOCKS = 16  # compared blocks of vectors, 8 MB each, that stay mapped until then


def compare_ranges(
    vectors: Vectors,
    queries: Block,
    best: TopK,
    ranges: Sequence[tuple[int, int]],
    row_filter: RowFilter | None,
    step: Callable[[], None] = lambda: None,
) -> None:
    """Add the rows that queries find in ranges, (start, end), to ``best``; ``step`` after each block."""
    for start, stop in ranges:
        at = let_go = start
        for block in vectors.blocks(start, stop, vectors.at_once):
            # With many queries, comparing a block takes far longer than mapping it again.
            if len(queries) >= _MANY and at - let_go >= _MAPPED_BLOCKS * vectors.at_once:
                vectors.let_go()
                let_go = at
            rows = np.arange(at, at + len(block), dtype=np.int64)
            at += len(block)
            if row_filter is not None:
                some = row_filter.ids.has(vectors.ids(rows))
                block, rows = block[some], rows[some]
            if len(rows):
                best.add_block(queries, block, rows)
            step()


def compare_rows(vectors: Vectors, queries: Block, rows: Numbers, best: TopK) -> None:
    """Add to ``best`` the rows that queries find among ``rows`` (n,)."""
    step = vectors.at_once
    for at in range(0, len(rows), step):
        some = rows[at : at + step]
        best.add_block(queries, vectors.gather(some), some)
