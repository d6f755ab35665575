"""The engine as an index of vectors."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np

from engine import Store

from ..data.arrays import Vectors
from ..data.exact_neighbours import Rows
from .vector_index import Index

ENGINE = "engine"


class Engine(Index):
    """The engine: ``ingest``, ``optimize``, ``search_vectors``; its setting is the wanted recall."""

    name, module = ENGINE, "faiss"
    sweep = tuple(
        (recall,) for recall in (0.8, 0.85, 0.9, 0.93, 0.94, 0.95, 0.96, 0.965, 0.97, 0.98, 0.99)
    )

    def load(self) -> None:
        """Load FAISS here rather than in the first search, so that no measurement includes it."""
        import_module("faiss")

    def build(self, vectors: Path, recall: float) -> None:
        """Ingest and optimize; on close everything is durable, indexed, and its recall measured."""
        with Store.open(self.folder, create=True, encoder="none", memory=self.memory) as store:
            store.ingest(str(vectors))
            store.optimize(recall=recall)

    def open(self) -> None:
        """Open the store as a reader."""
        self.store = Store.open(self.folder, read_only=True, memory=self.memory)

    def search(self, queries: Vectors, k: int) -> Rows:
        """Row numbers are ids minus one, because ids begin at 1."""
        _, ids = self.store.search_vectors(queries, k=k, recall=self.setting[0])
        return np.where(ids > 0, ids - 1, -1)
