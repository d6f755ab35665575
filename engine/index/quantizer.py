"""What turns vectors into lists and short codes: IVF centroids and a 4-bit product quantizer.

A store has one, trained on a sample of its own vectors, which all segments share: then one search of
the centroids serves all of them, and merging segments is putting their lists together. Vectors go to
the centroid with the largest inner product, and what is coded is the difference r from it, r'. From
codes alone the inner product of a query q with a vector x is q·x', where x' = centroid + r'.

That estimate is too low for vectors that are coded too short and too high for the others, which costs
half of the candidates their place. So each code has a byte more: (|x|² - |x'|²) / 2|x|, in 256 steps,
added |q| times. For unit vectors the order is then that of the distances |q - x'|, as if these had
been computed in full, but by the one table a query that an inner product needs (a table for each list
would take as much memory as the codes). FAISS sees it as two more 4-bit parts, of sixteens and of ones.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from engine.errors import StoreDamagedError
from engine.images import hashing
from engine.index.inner_product import of_one
from engine.storage import nofollow
from engine.storage.durable import inside, write_new

SUFFIX = ".quantizer"
HEADER_BYTES = 4096
MIN_SAMPLE = 16  # vectors: as many as a part of a code has values
SAMPLE_PER_LIST = 40  # vectors a centroid is trained on; FAISS warns below 39
_ITERATIONS = 5  # of k-means; ten find 1 % more in the same lists, and take twice as long
_HEADER = struct.Struct("<8sIIIIfff")  # magic, number, dim, nlist, parts, scale, least, step
_MAGIC = b"ENGQUANT"
_BITS = 4
_VALUES = 1 << _BITS  # of a part of a code
_MAX_PARTS = 254  # with the two of the correction: the sums of more would not fit 16 bits well
_FULL_DIM = 64  # up to which each dimension has a part of its own
_MIN_SQUARE, _MAX_SQUARE = 1e-25, 1e35  # lengths that float32 has well
_MIN_SCALE, _MAX_SCALE = 1e-30, 3e38  # of which float32 can hold 1 / scale, too
_COARSE_LISTS = 512  # of which looking at all centroids takes no longer
_COARSE_SHARE = 2  # one in so many lists of centroids is looked at
_ALL_OF_ONE = 4096  # lists, up to which one query is compared with all of them all the same
_ROUNDING = 1e-6
_COARSE_SAME, _COARSE_WORST = 0.99, 0.8  # of the nearest lists, on average and for any query
_COARSE_LEAST = 8  # times as many lists as are wanted, at least
_CORRECTIONS = 2  # parts that are not of the vector
_STEPS = _VALUES**_CORRECTIONS - 1
_TAIL = 1e-3  # of the corrections that are cut off at either end

Block = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reach:
    """Which of the nearest lists are worth a look: those at most ``times`` as far off as the nearest.

    What is far off is told by half the squared distance of query and centroid, both of length 1. Where
    neighbours are, more lists are within reach the less clear it is in which one the query lies (as in
    SPANN, Chen et al., 2021). ``least``: what is nearer counts as so far off, since a query that is all
    but a centroid has its neighbours around it as others have.
    """

    times: float
    least: float

    def far(self, close: Block, closest: Block) -> Block:
        """How many times as far off as the nearest one: lists with inner products (n, m) and (n, 1)."""
        found: Any = (1 - close) / np.maximum(1 - closest, np.float32(self.least))
        return found  # type: ignore[no-any-return]

    def min_close(self, closest: float) -> float:
        """The least inner product that is within reach."""
        return 1 - self.times * max(1 - closest, self.least)


class Quantizer:
    """nlist centroids and the codebook, over vectors of length ``dim``."""

    def __init__(
        self,
        dim: int,
        scale: float,
        centroids: Block,
        codebook: Block,
        correction: tuple[float, float],
    ) -> None:
        """``centroids`` is (nlist, width), ``codebook`` (parts, 16, width / parts).

        ``correction``: the least one, and the step from one to the next.
        """
        import faiss

        self.dim = dim
        self.nlist, self.width = centroids.shape
        self._scale = scale
        self._centroids = centroids
        self._codebook = codebook
        self._correction = correction
        parts, _, each = codebook.shape
        self.code_bytes = (parts + _CORRECTIONS + 1) // 2
        # Centroids, and queries, go on with what the corrections are multiplied with.
        self._flat = faiss.IndexFlatIP(self.width + _CORRECTIONS * each)
        self._flat.add(np.pad(centroids, ((0, 0), (0, _CORRECTIONS * each))))
        self._coder: Any = None  # made when something is to be coded
        self._coarse: Any = None  # made by ``hasten``
        self._plain = False  # whether that is left alone

    @classmethod
    def train(cls, sample: Block, nlist: int, seed: int) -> Self:
        """Train on (n, dim) finite vectors, n no fewer than ``nlist`` and 16."""
        import faiss

        _, dim = sample.shape
        # Vectors of any length are brought to about 1, which is what centroids have.
        squares = np.einsum("ij,ij->i", sample, sample, dtype=np.float64)
        scale = min(max(float(np.sqrt(squares).mean()), _MIN_SCALE), _MAX_SCALE)
        width, parts = _layout(dim)
        flat = faiss.IndexFlatIP(width)
        index: Any = faiss.IndexIVFPQ(flat, width, nlist, parts, _BITS, faiss.METRIC_INNER_PRODUCT)
        for clustering in (index.cp, index.pq.cp):
            clustering.seed = seed
            clustering.min_points_per_centroid = 1  # no warnings on duplicates: users have them
        index.cp.spherical = True
        index.cp.niter = _ITERATIONS
        fitted = _fit(sample, width, scale)
        index.train(fitted)
        centroids = flat.reconstruct_n(0, nlist)
        codebook = faiss.vector_to_array(index.pq.centroids)
        codebook = codebook.reshape(parts, _VALUES, width // parts)
        some = np.ascontiguousarray(fitted[:: max(1, len(fitted) >> 16)])
        found = _coded(index, centroids, some)[3]
        least, most = np.quantile(found, (_TAIL, 1 - _TAIL)).tolist()
        return cls(dim, scale, centroids, codebook, (least, (most - least) / _STEPS))

    def save(self, path: Path, number: int) -> tuple[int, int]:
        """Write it, durably; returns the file's length and xxh64."""
        parts = self._codebook.shape[0]
        numbers = (number, self.dim, self.nlist, parts, self._scale, *self._correction)
        head = _HEADER.pack(_MAGIC, *numbers)
        head += struct.pack("<Q", hashing.checksum(head))
        body = [self._centroids.tobytes(), self._codebook.tobytes()]
        return write_new(path, [head.ljust(HEADER_BYTES, b"\0"), *body], path.parent.parent)

    @classmethod
    def load(
        cls, path: Path, number: int, dim: int, nlist: int, size: int, xxh64: int | None = None
    ) -> Self:
        """Read what ``save`` wrote; ``StoreDamagedError`` if it is anything else."""
        width, parts = _layout(dim)
        if size != HEADER_BYTES + 4 * (nlist + _VALUES) * width:  # before memory is taken for it
            raise StoreDamagedError(f"{path} holds something else")
        try:
            root = path.parent.parent
            name = inside(path, root)
            data = nofollow.read_file(root, name) if nofollow.size(root, name) == size else b""
        except OSError as error:
            raise StoreDamagedError(f"{path} cannot be read: {error.strerror}") from None
        if len(data) < HEADER_BYTES:
            raise StoreDamagedError(f"{path} has the wrong length")
        if xxh64 is not None and hashing.checksum(data) != xxh64:
            raise StoreDamagedError(f"{path} is damaged: its checksum is wrong")
        head, check = data[: _HEADER.size], data[_HEADER.size : _HEADER.size + 8]
        magic, *own, scale, least, step = _HEADER.unpack(head)
        if int.from_bytes(check, "little") != hashing.checksum(head) or (magic, own) != (
            _MAGIC,
            [number, dim, nlist, parts],
        ):
            raise StoreDamagedError(f"{path} holds something else")
        body = np.frombuffer(data, np.float32, offset=HEADER_BYTES)
        centroids = body[: nlist * width].reshape(nlist, width)
        codebook = body[nlist * width :].reshape(parts, _VALUES, width // parts)
        return cls(dim, scale, centroids, codebook, (least, step))

    def queries(self, vectors: Block) -> Block:
        """Queries (n, dim) as ``nearest`` and the index of codes take them: contiguous.

        They are brought to length 1, which changes no order: what is computed of long ones would not
        fit float32.
        """
        out = np.zeros((len(vectors), self._flat.d), np.float32)
        corrections = out[:, self.width :: self._codebook.shape[2]]
        with np.errstate(over="ignore"):
            squares = np.einsum("ij,ij->i", vectors, vectors)
        if len(squares) == 1:  # the general way takes as long as all the rest
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

    def nearest(
        self, queries: Block, nprobe: int, reach: Reach | None = None
    ) -> tuple[Block, npt.NDArray[np.int64]]:
        """The ``nprobe`` nearest lists of each: inner products and numbers, (n, nprobe), best first.

        Those out of ``reach`` are -1, and left out altogether where they are so for all queries.
        """
        if len(queries) == 1 and (self._coarse is None or self.nlist <= _ALL_OF_ONE):
            return self._nearest_of_one(queries, nprobe, reach)
        coarse = self._coarse if nprobe * _COARSE_LEAST <= self.nlist else None
        close, lists = (coarse or self._flat).search(queries, nprobe)
        if coarse:
            few = np.flatnonzero(lists[:, -1] < 0)  # those looked at were not as many
            if len(few):
                close[few], lists[few] = self._flat.search(queries[few], nprobe)
        if reach is None:
            return close, lists
        near = reach.far(close, close[:, :1]) <= reach.times
        most = int(near.sum(axis=1).max(initial=1))
        return np.ascontiguousarray(close[:, :most]), np.where(near, lists, -1)[:, :most].copy()

    def _nearest_of_one(
        self, query: Block, nprobe: int, reach: Reach | None
    ) -> tuple[Block, npt.NDArray[np.int64]]:
        """``nearest`` of one query, which takes two thirds of the time of FAISS's heap."""
        close = np.empty(self.nlist, np.float32)
        of_one(query, self._centroids, close)
        if reach is not None:
            at = np.flatnonzero(close >= reach.min_close(float(close.max())))
            some = close[at]
        else:
            at, some = np.arange(self.nlist), close
        if len(at) > nprobe:
            best = np.argpartition(some, -nprobe)[-nprobe:]
            at, some = at[best], some[best]
        if not len(at):  # of centroids that are damaged
            found: tuple[Block, npt.NDArray[np.int64]] = self._flat.search(query, nprobe)
            return found
        order = np.argsort(-some)
        return some[order][None], at[order][None]

    def closeness(self, queries: Block) -> Block:
        """The inner products of (n, width) fitted queries with all centroids: (n, nlist)."""
        found: Block = queries[:, : self.width] @ self._centroids.T
        return found

    def hasten(self) -> None:
        """Have ``nearest`` look at half of the centroids, by lists of their own.

        It takes two thirds of the time then, and fewer than one in a hundred of the lists are others
        (for queries that lie as centroids do; where these lie so that it is more, it is left alone).
        Many searches later it has paid for itself.
        """
        import faiss

        if self._coarse is not None or self._plain or self.nlist < _COARSE_LISTS:
            return
        # The corrections' dimensions are 0 in all centroids, so that inner products stay what they are.
        centroids = np.pad(self._centroids, ((0, 0), (0, self._flat.d - self.width)))
        lists = int(self.nlist**0.5)
        coarse: Any = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(self._flat.d), self._flat.d, lists, faiss.METRIC_INNER_PRODUCT
        )
        coarse.cp.min_points_per_centroid = 1
        coarse.cp.spherical = True
        coarse.train(centroids)
        coarse.add(centroids)
        coarse.nprobe = -(-lists // _COARSE_SHARE)
        near = self.nlist // _COARSE_LEAST
        some = centroids[::_COARSE_LEAST]
        # As many of the nearest are among those looked at as are no farther than the last of them.
        farthest = self._flat.search(some, near)[0][:, -1:]
        same = (coarse.search(some, near)[0] >= farthest - _ROUNDING).mean(axis=1)
        self._plain = same.mean() < _COARSE_SAME or same.min() < _COARSE_WORST
        if not self._plain:
            self._coarse = coarse

    def encode(self, vectors: Block) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8], Block]:
        """The list (n,), the code (n, code_bytes), and how close the centroid is (n,), of each."""
        import faiss

        if self._coder is None:
            flat = faiss.IndexFlatIP(self.width)
            flat.add(np.ascontiguousarray(self._centroids))
            self._coder = flat, _index(flat, self._codebook)
        fitted = _fit(vectors, self.width, self._scale)
        lists, parts, close, found = _coded(self._coder[1], self._centroids, fitted)
        least, step = self._correction
        steps = np.nan_to_num((found - least) / step) if step > 0 else np.zeros(len(found))
        steps = np.clip(np.round(steps), 0, _STEPS).astype(np.uint8)
        codes = np.zeros((len(fitted), self.code_bytes), np.uint8)
        codes[:, : parts.shape[1]] = parts
        for i, value in enumerate((steps >> _BITS, steps & (_VALUES - 1))):
            at, odd = divmod(self._codebook.shape[0] + i, 2)
            codes[:, at] |= value << (_BITS * odd)
        return lists, codes, close

    def empty_index(self) -> Any:
        """A FAISS IVFPQ index with these centroids and codes and nothing in it.

        The centroids are shared: this must stay alive as long as what it gives.
        """
        each = self._codebook.shape[2]
        least, step = self._correction
        corrections = np.zeros((_CORRECTIONS, _VALUES, each), np.float32)
        corrections[0, :, 0] = least + step * _VALUES * np.arange(_VALUES)
        corrections[1, :, 0] = step * np.arange(_VALUES)
        return _index(self._flat, np.concatenate([self._codebook, corrections]))


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
    # What is not a number, in a damaged file, is nowhere near: only an exact search looks at it.
    lists = np.maximum(lists[:, 0], 0)
    codes = np.empty((len(fitted), index.code_size), np.uint8)
    index.encode_vectors(
        len(fitted), faiss.swig_ptr(fitted), faiss.swig_ptr(lists), faiss.swig_ptr(codes)
    )
    estimates = index.pq.decode(codes)
    estimates += centroids[lists]
    squares = np.einsum("ij,ij->i", fitted, fitted)
    with np.errstate(invalid="ignore", over="ignore"):  # of what is damaged, or too long
        less = squares - np.einsum("ij,ij->i", estimates, estimates)
        lengths = np.sqrt(squares)
        corrections = np.divide(less, 2 * lengths, out=np.zeros_like(less), where=lengths > 0)
    return lists, codes, close[:, 0], corrections


def _layout(dim: int) -> tuple[int, int]:
    """The width that vectors are padded to, and in how many parts each is coded."""
    each = 1 if dim <= _FULL_DIM else max(2, -(-dim // _MAX_PARTS))
    parts = -(-dim // each)
    return parts * each, parts


def _fit(vectors: Block, width: int, scale: float) -> Block:
    """Vectors (n, dim) as they are coded: scaled and padded, (n, width), contiguous."""
    n, dim = vectors.shape
    out = np.zeros((n, width), np.float32)
    np.multiply(vectors, np.float32(1 / scale), out=out[:, :dim])
    return out
