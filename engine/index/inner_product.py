"""Inner products by FAISS's kernels, without the interpreter's lock: of one query, and of many."""

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
    """The inner products of one query, (1, dim), with (n, dim) vectors, by one thread: (n,) ``out``.

    All are contiguous.
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
    """The inner products of (nq, dim) queries with (nq, m) rows of vectors each, by all threads."""
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
