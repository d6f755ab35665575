"""What turns vectors into lists and short codes: IVF centroids and a 4-bit product quantizer.

A store has one, trained on a sample of its own vectors, which all segments share: then one search of
the centroids serves all of them, and merging segments is putting their lists together. Vectors are
assigned to the centroid with the largest inner product; what is coded is the difference from it.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from engine import digest
from engine.errors import StoreDamagedError
from engine.storage.files import write_new

SUFFIX = ".quantizer"
HEADER_BYTES = 4096
SAMPLE_PER_LIST = 64  # vectors a centroid is trained on; FAISS warns below 39
_HEADER = struct.Struct("<8sIIIIf")  # magic, version, dim, nlist, sub-quantizers, scale
_MAGIC = b"ENGQUANT"
_BITS = 4
_LEAST_SCALE = 1e-30
_MOST_SUBS = 256  # sub-quantizers: the sums of more would not fit FastScan's 16 bits well
_FULL_DIM = 64  # up to which each dimension has a code of its own

Block = npt.NDArray[np.float32]


class Quantizer:
    """nlist centroids and the codebook, over vectors of length ``dim``."""

    def __init__(self, dim: int, scale: float, centroids: Block, codebook: Block) -> None:
        """``centroids`` is (nlist, width), ``codebook`` (subs, 16, width / subs)."""
        self.dim = dim
        self.scale = scale
        self.centroids = centroids
        self.codebook = codebook
        self.nlist, self.width = centroids.shape
        self.code_bytes = (codebook.shape[0] * _BITS + 7) // 8
        import faiss

        self._flat = faiss.IndexFlatIP(self.width)
        self._flat.add(np.ascontiguousarray(centroids))
        self._index = self.empty_index()

    @classmethod
    def train(cls, sample: Block, nlist: int, seed: int) -> Self:
        """Train on (n, dim) finite vectors, n no fewer than ``nlist`` and 16."""
        import faiss

        _, dim = sample.shape
        # Vectors of any length are brought to about 1, which is what centroids have.
        squares = np.einsum("ij,ij->i", sample, sample, dtype=np.float64)
        scale = max(float(np.sqrt(squares).mean()), _LEAST_SCALE)
        width, subs = _layout(dim)
        index: Any = faiss.IndexIVFPQ(
            faiss.IndexFlatIP(width), width, nlist, subs, _BITS, faiss.METRIC_INNER_PRODUCT
        )
        for clustering in (index.cp, index.pq.cp):
            clustering.seed = seed
            clustering.min_points_per_centroid = 1  # no warnings on duplicates: users have them
        index.cp.spherical = True
        index.train(_fit(sample, width, scale))
        centroids = index.quantizer.reconstruct_n(0, nlist)
        codebook = faiss.vector_to_array(index.pq.centroids)
        return cls(dim, scale, centroids, codebook.reshape(subs, 1 << _BITS, width // subs))

    def save(self, path: Path, number: int) -> tuple[int, int]:
        """Write it, durably; returns the file's length and xxh64."""
        subs = self.codebook.shape[0]
        head = _HEADER.pack(_MAGIC, number, self.dim, self.nlist, subs, self.scale)
        head += struct.pack("<Q", digest.checksum(head))
        parts = [head.ljust(HEADER_BYTES, b"\0"), self.centroids.tobytes(), self.codebook.tobytes()]
        return write_new(path, parts)

    @classmethod
    def load(cls, path: Path, number: int, dim: int, nlist: int, size: int) -> Self:
        """Read what ``save`` wrote; ``StoreDamagedError`` if it is anything else."""
        try:
            data = path.read_bytes() if path.stat().st_size == size else b""
        except OSError as error:
            raise StoreDamagedError(f"{path} cannot be read: {error.strerror}") from None
        if len(data) < HEADER_BYTES:
            raise StoreDamagedError(f"{path} has the wrong length")
        head, check = data[: _HEADER.size], data[_HEADER.size : _HEADER.size + 8]
        magic, own, own_dim, own_nlist, subs, scale = _HEADER.unpack(head)
        width, wanted = _layout(dim)
        good = (magic, own, own_dim, own_nlist, subs) == (_MAGIC, number, dim, nlist, wanted)
        body = np.frombuffer(data, np.float32, offset=HEADER_BYTES)
        if (
            int.from_bytes(check, "little") != digest.checksum(head)
            or not good
            or len(body) != (nlist + (1 << _BITS)) * width
        ):
            raise StoreDamagedError(f"{path} holds something else")
        centroids = body[: nlist * width].reshape(nlist, width)
        codebook = body[nlist * width :].reshape(subs, 1 << _BITS, width // subs)
        return cls(dim, scale, centroids, codebook)

    def fit(self, vectors: Block) -> Block:
        """Vectors (n, dim) in the form that lists and codes are of: (n, width), contiguous."""
        return _fit(vectors, self.width, self.scale)

    def nearest(self, fitted: Block, nprobe: int) -> tuple[Block, npt.NDArray[np.int64]]:
        """The ``nprobe`` nearest lists of each: inner products and numbers, (n, nprobe), best first."""
        found: tuple[Block, npt.NDArray[np.int64]] = self._index.quantizer.search(fitted, nprobe)
        return found

    def encode(self, vectors: Block) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8], Block]:
        """The list (n,), the code (n, code_bytes), and how close the centroid is (n,), of each."""
        import faiss

        fitted = self.fit(vectors)
        close, lists = self.nearest(fitted, 1)
        # What is not a number, in a damaged file, is nowhere near: it is found by an exact search.
        lists = np.maximum(lists[:, 0], 0)
        codes = np.empty((len(fitted), self.code_bytes), np.uint8)
        self._index.encode_vectors(
            len(fitted), faiss.swig_ptr(fitted), faiss.swig_ptr(lists), faiss.swig_ptr(codes)
        )
        return lists, codes, close[:, 0]

    def empty_index(self) -> Any:
        """A FAISS IVFPQ index with these centroids and codes and nothing in it.

        The centroids are shared: this must stay alive as long as what it gives.
        """
        import faiss

        subs = self.codebook.shape[0]
        index: Any = faiss.IndexIVFPQ(
            self._flat, self.width, self.nlist, subs, _BITS, faiss.METRIC_INNER_PRODUCT
        )
        faiss.copy_array_to_vector(self.codebook.reshape(-1), index.pq.centroids)
        index.is_trained = True
        return index


def _layout(dim: int) -> tuple[int, int]:
    """The width that vectors are padded to, and in how many parts each is coded."""
    each = 1 if dim <= _FULL_DIM else max(2, -(-dim // _MOST_SUBS))
    subs = -(-dim // each)
    return subs * each, subs


def _fit(vectors: Block, width: int, scale: float) -> Block:
    n, dim = vectors.shape
    out = np.zeros((n, width), np.float32)
    np.multiply(vectors, np.float32(1 / scale), out=out[:, :dim])
    return out
