"""Compares queries with vectors in full, without an index."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from engine.index.inner_product import Block, Numbers
from engine.index.row_filter import RowFilter
from engine.index.top_k import TopK
from engine.storage.vectors import Vectors

_MANY = 64  # queries that are compared with all vectors at once
_MAPPED_BLOCKS = 16  # of vectors, 8 MB each, that stay mapped behind them


def compare_ranges(
    vectors: Vectors,
    queries: Block,
    best: TopK,
    ranges: Sequence[tuple[int, int]],
    row_filter: RowFilter | None,
    step: Callable[[], None] = lambda: None,
) -> None:
    """Add to ``best`` what queries find in ranges of rows, (start, end); with steps between."""
    for start, stop in ranges:
        at = let_go = start
        for block in vectors.blocks(start, stop, vectors.at_once):
            # With many queries a block takes far longer to compare than to be mapped again.
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
    """Add to ``best`` what queries find among some rows, (n,)."""
    step = vectors.at_once
    for at in range(0, len(rows), step):
        some = rows[at : at + step]
        best.add_block(queries, vectors.gather(some), some)
