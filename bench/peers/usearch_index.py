"""The index of usearch: a mapped graph."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np

from ..data.arrays import Vectors, blocks, open_array
from ..data.exact_neighbours import Rows
from .vector_index import BUILD_WIDTH, LINKS, WIDTHS, Index, Setting

USEARCH = "usearch"


class Usearch(Index):
    """A graph with vectors of 16 bits, mapped."""

    name, module = USEARCH, "usearch"
    sweep = tuple((width,) for width in WIDTHS)

    def load(self) -> None:
        """The module."""
        self._module = import_module("usearch.index")

    def build(self, vectors: Path, recall: float) -> None:
        """With all threads."""
        rows = open_array(vectors)
        graph = self._module.Index(
            ndim=rows.shape[1],
            metric="ip",
            dtype="f16",
            connectivity=LINKS,
            expansion_add=BUILD_WIDTH,
        )
        first = 0
        for block in blocks(rows):
            graph.add(np.arange(first, first + len(block)), np.asarray(block), threads=self.threads)
            first += len(block)
        self.folder.mkdir()
        graph.save(str(self.folder / "graph"))

    def open(self) -> None:
        """Map it."""
        self._graph = self._module.Index.restore(str(self.folder / "graph"), view=True)

    def set(self, setting: Setting) -> None:
        """Set its expansion for searches."""
        self._graph.expansion_search = int(setting[0])

    def search(self, queries: Vectors, k: int) -> Rows:
        """All at once."""
        # One query gets an answer of another shape, at a lower cost.
        if len(queries) == 1:
            keys = self._graph.search(queries[0], k, threads=1).keys[None]
        else:
            keys = self._graph.search(queries, k, threads=self.threads).keys
        return np.asarray(keys, np.int64)
