"""The quantizer: turns vectors into lists and short codes, by IVF centroids and 4-bit product codes.

A store has one quantizer, trained on a sample of its own vectors. All segments share it, so one search
of the centroids serves them all, and segments are merged by joining their lists. A vector x goes to the
centroid with the largest inner product. The difference r = x - centroid is coded, as r'. From codes
alone, the inner product of a query q with x is estimated as q·x', where x' = centroid + r'.

That estimate is too low for vectors that are coded too short, and too high for those coded too long.
This would displace half of the candidates. So each code has another byte, the correction
(|x|² - |x'|²) / 2|x| in 256 steps, which is added |q| times. For unit vectors the order is then that of
the distances |q - x'|, as if these had been computed in full. It still needs only the one table for
each query that an inner product needs; a table for each list would take as much memory as the codes.
FAISS sees the correction as two more 4-bit parts, one of sixteens and one of ones.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from engine.index.centroids import Centroids
from engine.index.inner_product import Block

MIN_SAMPLE = 16  # vectors: as many as a part of a code has values
SAMPLE_PER_LIST = 40  # vectors for training each centroid; FAISS warns below 39
_ITERATIONS = 5  # of k-means; ten find 1 % more in the same lists, and take twice as long
_BITS = 4
VALUES = 1 << _BITS  # values of a part of a code
_MAX_PARTS = 254  # 256 with the correction: the sums of more would not fit 16 bits well
_FULL_DIM = 64  # up to so many dimensions, each has a part of its own
_MIN_SQUARE, _MAX_SQUARE = 1e-25, 1e35  # squared lengths that float32 represents well
_MIN_SCALE, _MAX_SCALE = 1e-30, 3e38  # scales whose inverse float32 represents too
_CORRECTIONS = 2  # parts of a code that hold the correction
_STEPS = VALUES**_CORRECTIONS - 1
_TAIL = 1e-3  # the share of corrections cut off at either end


class Quantizer:
    """The centroids of ``nlist`` lists and a codebook, for vectors of ``dim`` numbers."""

    def __init__(
        self,
        dim: int,
        scale: float,
        centroids: Block,
        codebook: Block,
        correction: tuple[float, float],
    ) -> None:
        """``centroids`` is (nlist, width), ``codebook`` (parts, 16, width / parts).

        ``correction`` is the smallest correction, and the step from one to the next.
        """
        self.dim = dim
        self.nlist, self.width = centroids.shape
        self.scale = scale
        self.codebook = codebook
        self.correction = correction
        parts, _, each = codebook.shape
        self.code_bytes = code_bytes(parts)
        # Centroids and queries have more dimensions, which the corrections are multiplied with.
        self.centroids = Centroids(centroids, _CORRECTIONS * each)
        self._coder: Any = None  # made by the first ``encode``

    @classmethod
    def train(cls, sample: Block, nlist: int, seed: int) -> Self:
        """Train on (n, dim) finite vectors, n at least ``nlist`` and at least 16."""
        import faiss

        _, dim = sample.shape
        # Scale vectors to a mean length of 1, the length of centroids.
        squares = np.einsum("ij,ij->i", sample, sample, dtype=np.float64)
        scale = min(max(float(np.sqrt(squares).mean()), _MIN_SCALE), _MAX_SCALE)
        width, parts = code_layout(dim)
        flat = faiss.IndexFlatIP(width)
        index: Any = faiss.IndexIVFPQ(flat, width, nlist, parts, _BITS, faiss.METRIC_INNER_PRODUCT)
        for clustering in (index.cp, index.pq.cp):
            clustering.seed = seed
            clustering.min_points_per_centroid = 1  # no warnings about duplicates: users have them
        index.cp.spherical = True
        index.cp.niter = _ITERATIONS
        fitted = _fit(sample, width, scale)
        index.train(fitted)
        centroids = flat.reconstruct_n(0, nlist)
        codebook = faiss.vector_to_array(index.pq.centroids)
        codebook = codebook.reshape(parts, VALUES, width // parts)
        some = np.ascontiguousarray(fitted[:: max(1, len(fitted) >> 16)])
        found = _coded(index, centroids, some)[3]
        least, most = np.quantile(found, (_TAIL, 1 - _TAIL)).tolist()
        return cls(dim, scale, centroids, codebook, (least, (most - least) / _STEPS))

    def prepare_queries(self, vectors: Block) -> Block:
        """Queries (n, dim) in the form that ``Centroids`` and the index of codes take: contiguous.

        They are scaled to length 1, which changes no order, since products of long ones would not fit
        float32.
        """
        out = np.zeros((len(vectors), self.centroids.flat.d), np.float32)
        corrections = out[:, self.width :: self.codebook.shape[2]]
        with np.errstate(over="ignore"):
            squares = np.einsum("ij,ij->i", vectors, vectors)
        # For one query, ``min`` and ``max`` would take as long as all the rest.
        if len(squares) == 1:
            least = most = float(squares[0])
        else:
            least, most = squares.min(initial=1), squares.max(initial=1)
        if least > _MIN_SQUARE and most < _MAX_SQUARE:
            np.multiply(vectors, (squares**-0.5)[:, None], out=out[:, : self.dim])
            corrections[:] = 1
            return out
        wide = vectors.astype(np.float64)
        lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))[:, None]
        np.divide(wide, lengths, out=wide, where=lengths > 0)
        out[:, : self.dim] = wide
        corrections[:] = lengths > 0
        return out

    def encode(self, vectors: Block) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8], Block]:
        """The list (n,), the code (n, code_bytes) and the closeness (n,) of each vector (n, dim).

        The closeness is the inner product with the centroid; for damaged vectors, which are not finite,
        it is NaN or infinite (see ``mean_closeness``).
        """
        import faiss

        if self._coder is None:
            flat = faiss.IndexFlatIP(self.width)
            flat.add(np.ascontiguousarray(self.centroids.block))
            self._coder = flat, _index(flat, self.codebook)
        fitted = _fit(vectors, self.width, self.scale)
        lists, parts, close, found = _coded(self._coder[1], self.centroids.block, fitted)
        least, step = self.correction
        steps = np.nan_to_num((found - least) / step) if step > 0 else np.zeros(len(found))
        steps = np.clip(np.round(steps), 0, _STEPS).astype(np.uint8)
        codes = np.zeros((len(fitted), self.code_bytes), np.uint8)
        codes[:, : parts.shape[1]] = parts
        for i, value in enumerate((steps >> _BITS, steps & (VALUES - 1))):
            at, odd = divmod(self.codebook.shape[0] + i, 2)
            codes[:, at] |= value << (_BITS * odd)
        return lists, codes, close

    def empty_index(self) -> Any:
        """An empty FAISS IVFPQ index with this quantizer's centroids and codebook.

        It shares the centroids, so the quantizer must stay alive as long as the index.
        """
        each = self.codebook.shape[2]
        least, step = self.correction
        corrections = np.zeros((_CORRECTIONS, VALUES, each), np.float32)
        corrections[0, :, 0] = least + step * VALUES * np.arange(VALUES)
        corrections[1, :, 0] = step * np.arange(VALUES)
        return _index(self.centroids.flat, np.concatenate([self.codebook, corrections]))


def _index(flat: Any, codebook: Block) -> Any:
    """A trained FAISS IVFPQ index over the centroids in ``flat``, which must outlive it."""
    import faiss

    parts = codebook.shape[0]
    inner = faiss.METRIC_INNER_PRODUCT
    index: Any = faiss.IndexIVFPQ(flat, flat.d, flat.ntotal, parts, _BITS, inner)
    faiss.copy_array_to_vector(np.ascontiguousarray(codebook).reshape(-1), index.pq.centroids)
    index.is_trained = True
    return index


def _coded(
    index: Any, centroids: Block, fitted: Block
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8], Block, Block]:
    """Lists, codes without the correction, inner products with the centroids, and corrections."""
    import faiss

    close, lists = index.quantizer.search(fitted, 1)
    # Vectors of a damaged file may be NaN, and have no nearest list; only an exact search sees them.
    nowhere = lists[:, 0] < 0
    close[nowhere] = np.nan
    lists = np.where(nowhere, 0, lists[:, 0])
    codes = np.empty((len(fitted), index.code_size), np.uint8)
    index.encode_vectors(
        len(fitted), faiss.swig_ptr(fitted), faiss.swig_ptr(lists), faiss.swig_ptr(codes)
    )
    estimates = index.pq.decode(codes)
    estimates += centroids[lists]
    squares = np.einsum("ij,ij->i", fitted, fitted)
    # Damaged vectors are not finite, and others may be too long.
    with np.errstate(invalid="ignore", over="ignore"):
        less = squares - np.einsum("ij,ij->i", estimates, estimates)
        lengths = np.sqrt(squares)
        corrections = np.divide(less, 2 * lengths, out=np.zeros_like(less), where=lengths > 0)
    return lists, codes, close[:, 0], corrections


def code_layout(dim: int) -> tuple[int, int]:
    """The width that vectors are padded to, and the number of parts of a code."""
    each = 1 if dim <= _FULL_DIM else max(2, -(-dim // _MAX_PARTS))
    parts = -(-dim // each)
    return parts * each, parts


def mean_closeness(close: Block) -> tuple[float, int]:
    """The mean of (n,) values of closeness, without those of damaged vectors, and their number.

    One damaged vector would make the mean NaN, and the index look unlike its vectors. The mean is 1 if
    all vectors are damaged.
    """
    finite = close[np.isfinite(close)]
    return (float(finite.mean(dtype=np.float64)) if len(finite) else 1.0), len(finite)


def code_bytes(parts: int) -> int:
    """The bytes of a code of so many parts, including its correction."""
    return (parts + _CORRECTIONS + 1) // 2


def _fit(vectors: Block, width: int, scale: float) -> Block:
    """Vectors (n, dim), scaled and padded for coding: (n, width), contiguous."""
    n, dim = vectors.shape
    out = np.zeros((n, width), np.float32)
    np.multiply(vectors, np.float32(1 / scale), out=out[:, :dim])
    return out
