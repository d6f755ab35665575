"""Compares candidates with a query by their full vectors."""

from __future__ import annotations

import numpy as np

from engine.index.inner_product import Block, Numbers, of_many, of_one
from engine.storage.vectors import Vectors

_GATHERED = 1 << 12  # candidates of one query whose vectors are copied at a time


def inner_products(vectors: Vectors, queries: Block, rows: Numbers) -> Block:
    """The inner products of (nq, dim) queries with (nq, m) rows each; -inf for row -1.

    It runs without the interpreter's lock, and on all cores if there are several queries. For one,
    waiting for a second thread costs more than it gains, on a busy machine a thousand times as much.
    """
    nq, m = rows.shape
    out = np.full((nq, m), -np.inf, np.float32)
    whole = len(vectors.parts) == 1
    for block, inside in vectors.mapped_rows(rows):
        into = out if whole else np.empty_like(out)
        if nq == 1:
            for at in range(0, m, _GATHERED):
                some = slice(at, at + _GATHERED)
                of_one(queries, block.take(inside[0, some], axis=0, mode="wrap"), into[0, some])
            into[inside < 0] = -np.inf
        else:
            of_many(queries, block, inside, into)
        if into is not out:
            np.maximum(out, into, out=out)
    return out
