"""Inner products of one query or many, by FAISS's kernels, without the interpreter's lock."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Block = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


def of_one(
    query: Block,
    vectors: Block,
    out: Block,
) -> None:
    """Write the inner products of a query (1, dim) and (n, dim) vectors to ``out`` (n,); one thread.

    All arrays must be contiguous.
    """
    import faiss

    products: Any = faiss.fvec_inner_products_ny  # type: ignore[attr-defined]
    n, dim = vectors.shape
    products(faiss.swig_ptr(out), faiss.swig_ptr(query), faiss.swig_ptr(vectors), dim, n)


def of_many(
    queries: Block,
    vectors: Block,
    rows: Numbers,
    out: Block,
) -> None:
    """Write the inner products of (nq, dim) queries with (nq, m) rows to ``out``; all threads."""
    import faiss

    products: Any = faiss.fvec_inner_products_by_idx  # type: ignore[attr-defined]
    nq, m = rows.shape
    products(
        faiss.swig_ptr(out),
        faiss.swig_ptr(queries),
        faiss.swig_ptr(vectors),
        faiss.swig_ptr(rows),
        vectors.shape[1],
        nq,
        m,
    )
