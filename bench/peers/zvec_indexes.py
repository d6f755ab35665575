"""The indexes of zvec: a graph in memory, and one on disk."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..data.arrays import Vectors, open_array
from ..harness.errors import BenchError
from .vector_index import BUILD_WIDTH, LINKS, WIDTHS, OneByOne, Setting

ZVEC_HNSW, ZVEC_DISKANN = "zvec-hnsw", "zvec-diskann"

_DOCS = 1_000  # rows of one insert: rows are Python objects


class _Zvec(OneByOne):
    """zvec: documents with one vector each."""

    def load(self) -> None:
        """Import the module, to log errors only, with as many threads as it may use."""
        self._module = import_module("zvec")
        self._module.init(
            log_level=self._module.LogLevel.ERROR,
            query_threads=self.threads,
            optimize_threads=self.threads,
        )

    @abstractmethod
    def index(self) -> Any:
        """The parameters of the index."""

    @abstractmethod
    def asked(self) -> Any:
        """The parameters of a query, for ``setting``."""

    def build(self, vectors: Path, recall: float) -> None:
        """Insert all documents, then build the index."""
        zvec = self._module
        rows = open_array(vectors)
        column = zvec.VectorSchema(
            "vector", zvec.DataType.VECTOR_FP32, rows.shape[1], index_param=self.index()
        )
        documents = zvec.create_and_open(
            str(self.folder), zvec.CollectionSchema("vectors", vectors=column)
        )
        for first in range(0, len(rows), _DOCS):
            some = np.asarray(rows[first : first + _DOCS])
            given = [
                zvec.Doc(id=str(first + i), vectors={"vector": row}) for i, row in enumerate(some)
            ]
            if not all(status.ok() for status in documents.insert(given)):
                raise BenchError(f"{self.name} did not take rows from {first:,} on")
        documents.optimize()
        documents.close()

    def open(self) -> None:
        """Open it for reading."""
        option = self._module.CollectionOption(read_only=True)
        self._documents = self._module.open(str(self.folder), option)

    def set(self, setting: Setting) -> None:
        """Make the parameters of the queries once."""
        super().set(setting)
        self._asked = self.asked()

    def one(self, query: Vectors, k: int) -> Sequence[int]:
        """One query."""
        asked = self._module.Query(field_name="vector", vector=query, param=self._asked)
        return [int(found.id) for found in self._documents.query(asked, topk=k)]


class ZvecHnsw(_Zvec):
    """A graph."""

    name, module = ZVEC_HNSW, "zvec"
    sweep = tuple((width,) for width in WIDTHS)

    def index(self) -> Any:
        """The same as for the other graphs."""
        metric = self._module.MetricType.IP
        return self._module.HnswIndexParam(metric_type=metric, m=LINKS, ef_construction=BUILD_WIDTH)

    def asked(self) -> Any:
        """Its ef."""
        return self._module.HnswQueryParam(ef=int(self.setting[0]))


class ZvecDiskAnn(_Zvec):
    """A graph on disk."""

    name, module = ZVEC_DISKANN, "zvec"
    sweep = tuple((size,) for size in (10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300))

    def index(self) -> Any:
        """With its defaults."""
        return self._module.DiskAnnIndexParam(metric_type=self._module.MetricType.IP)

    def asked(self) -> Any:
        """The length of its list."""
        return self._module.DiskAnnQueryParam(list_size=int(self.setting[0]))
