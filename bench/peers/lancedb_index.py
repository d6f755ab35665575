"""The index of LanceDB: a table on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..data.arrays import BLOCK_ROWS, Vectors, open_array
from .vector_index import OneByOne

LANCEDB = "lancedb"


class LanceDb(OneByOne):
    """A table on disk with an IVF of RaBitQ codes; it brings its own threads.

    It searches by cosine, the distance with the best recall at each setting. For unit vectors cosine and
    inner product are the same.
    """

    name, module = LANCEDB, "lancedb"
    # nprobes and refine_factor: with 5 it does not reach the recall of the others
    sweep = (
        *((probes, 5) for probes in (5, 10, 20)),
        *((probes, 10) for probes in (10, 20, 30, 40, 60, 80)),
        *((probes, 20) for probes in (80, 160)),
    )

    def load(self) -> None:
        """The modules."""
        self._module, self._index = import_module("lancedb"), import_module("lancedb.index")
        self._arrow = import_module("pyarrow")

    def build(self, vectors: Path, recall: float) -> None:
        """A table of ids and vectors, then the index; √n partitions are its default."""
        rows = open_array(vectors)
        arrow = self._arrow
        vector = arrow.list_(arrow.float32(), rows.shape[1])
        schema = arrow.schema([("id", arrow.int64()), ("vector", vector)])

        def batches() -> Iterator[Any]:
            for first in range(0, len(rows), BLOCK_ROWS):
                block = np.ascontiguousarray(rows[first : first + BLOCK_ROWS])
                ids = arrow.array(np.arange(first, first + len(block)))
                values = arrow.FixedSizeListArray.from_arrays(
                    arrow.array(block.ravel()), rows.shape[1]
                )
                yield arrow.RecordBatch.from_arrays([ids, values], schema=schema)

        reader = arrow.RecordBatchReader.from_batches(schema, batches())
        table = self._module.connect(str(self.folder)).create_table("vectors", reader)
        partitions = max(1, round(len(rows) ** 0.5))
        config = self._index.IvfRq(distance_type="cosine", num_partitions=partitions)
        table.create_index("vector", config=config)

    def open(self) -> None:
        """Open the table."""
        self._table = self._module.connect(str(self.folder)).open_table("vectors")

    def one(self, query: Vectors, k: int) -> Sequence[int]:
        """One query of the table."""
        probes, refine = map(int, self.setting)
        asked = self._table.search(query, vector_column_name="vector").distance_type("cosine")
        asked = asked.limit(k).nprobes(probes).refine_factor(refine).select(["id", "_distance"])
        rows: list[int] = asked.to_arrow()["id"].to_pylist()
        return rows
