"""The index of hnswlib: a graph in memory."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np

from ..data.arrays import Vectors, blocks, open_array
from ..data.exact_neighbours import Rows
from .vector_index import BUILD_WIDTH, LINKS, WIDTHS, Index, Setting

HNSWLIB = "hnswlib"


class Hnswlib(Index):
    """A graph in memory."""

    name, module = HNSWLIB, "hnswlib"
    sweep = tuple((width,) for width in WIDTHS)

    def load(self) -> None:
        """The module."""
        self._module = import_module("hnswlib")

    def build(self, vectors: Path, recall: float) -> None:
        """With all threads."""
        rows = open_array(vectors)
        graph = self._module.Index("ip", rows.shape[1])
        graph.init_index(len(rows), M=LINKS, ef_construction=BUILD_WIDTH, random_seed=0)
        graph.set_num_threads(self.threads)
        first = 0
        for block in blocks(rows):
            graph.add_items(block, np.arange(first, first + len(block)))
            first += len(block)
        self.folder.mkdir()
        graph.save_index(str(self.folder / "graph"))
        (self.folder / "dim").write_text(str(rows.shape[1]))

    def open(self) -> None:
        """Read it into memory, because it cannot be mapped."""
        self._graph = self._module.Index("ip", int((self.folder / "dim").read_text()))
        self._graph.load_index(str(self.folder / "graph"))
        self._graph.set_num_threads(self.threads)

    def set(self, setting: Setting) -> None:
        """Its ef."""
        self._graph.set_ef(int(setting[0]))

    def search(self, queries: Vectors, k: int) -> Rows:
        """All at once."""
        found, _ = self._graph.knn_query(queries, k)
        return np.asarray(found, np.int64)
