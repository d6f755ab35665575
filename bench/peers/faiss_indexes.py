"""FAISS's indexes: all vectors compared, and inverted lists."""

from __future__ import annotations

from abc import abstractmethod
from importlib import import_module
from pathlib import Path

import numpy as np

from ..data.arrays import Vectors, blocks, open_array
from ..data.exact_neighbours import Rows
from .vector_index import Index, Setting

FLAT, IVF = "faiss-flat", "faiss-ivf"


class _Faiss(Index):
    """An index of FAISS, read into memory."""

    def load(self) -> None:
        """The module, with as many threads as it may use."""
        self._module = import_module("faiss")
        self._module.omp_set_num_threads(self.threads)

    @abstractmethod
    def factory(self, n: int) -> str:
        """FAISS's factory string of the index for ``n`` vectors."""

    def build(self, vectors: Path, recall: float) -> None:
        """Train it on as many vectors as FAISS uses at most, and add all."""
        rows = open_array(vectors)
        n, dim = rows.shape
        index = self._module.index_factory(dim, self.factory(n), self._module.METRIC_INNER_PRODUCT)
        most = 64 * max(1, getattr(index, "nlist", 1))
        index.train(np.ascontiguousarray(rows[:: max(1, n // most)]))
        for block in blocks(rows):
            index.add(np.ascontiguousarray(block))
        self.folder.mkdir()
        self._module.write_index(index, str(self.folder / "index"))

    def open(self) -> None:
        """Read it."""
        self._index = self._module.read_index(str(self.folder / "index"))

    def search(self, queries: Vectors, k: int) -> Rows:
        """All at once."""
        _, rows = self._index.search(queries, k)
        return np.asarray(rows, np.int64)


class FaissFlat(_Faiss):
    """No index: all vectors are compared."""

    name, module = FLAT, "faiss"
    sweep = ((1,),)

    def factory(self, n: int) -> str:
        """Plain vectors."""
        return "Flat"


class FaissIvf(_Faiss):
    """Inverted lists of whole vectors, as many as a power of two near 4·√n."""

    name, module = IVF, "faiss"
    sweep = tuple((probes,) for probes in (4, 8, 16, 32, 48, 64, 80, 96, 128, 192, 256))

    def factory(self, n: int) -> str:
        """4,096 lists for 700,000 vectors."""
        return f"IVF{1 << max(0, round(np.log2(4 * n**0.5)))},Flat"

    def set(self, setting: Setting) -> None:
        """Its nprobe."""
        self._index.nprobe = int(setting[0])
