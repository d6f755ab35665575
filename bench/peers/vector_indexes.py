"""The same job done by each index of vectors: taken in, opened again, asked; the engine is one of them.

All get unit vectors and search by inner product. What each is set to is what its makers advise for
this size, or what was found to be best; ``sweep`` is what is turned for recall, cheapest first.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from engine import Store, UsageError

from ..data.arrays import BLOCK_ROWS, Vectors, blocks, open_array
from ..data.exact_neighbours import Rows
from ..harness.errors import BenchError

ENGINE, HNSWLIB, USEARCH, LANCEDB = "engine", "hnswlib", "usearch", "lancedb"
ZVEC_HNSW, ZVEC_DISKANN = "zvec-hnsw", "zvec-diskann"
FLAT, IVF = "faiss-flat", "faiss-ivf"

_LINKS, _BUILD_WIDTH = 16, 200  # of the graphs: M and efConstruction
_WIDTHS = (
    16,
    24,
    32,
    40,
    48,
    56,
    64,
    72,
    80,
    96,
    112,
    128,
    160,
    192,
    256,
    384,
    512,
)  # ef while searching
_DOCS = 1_000  # rows of one insert where rows are Python objects
# What sets the threads of libraries that have no call for it; read when they are loaded.
_THREADS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "LANCE_CPU_THREADS", "TOKIO_WORKER_THREADS")

Setting = tuple[float, ...]


class Index(ABC):
    """One index over the vectors of a .npy file, in a folder of its own; rows are numbered from 0."""

    name: str
    module: str  # what has to be installed
    sweep: Sequence[Setting]
    setting: Setting

    def __init__(self, folder: Path, threads: int, memory: int) -> None:
        """Nothing is opened yet; ``memory``: bytes, for the engine."""
        self.folder = folder
        self.threads = threads
        self.memory = memory
        for name in _THREADS:
            os.environ[name] = str(threads)
        self.load()

    @classmethod
    def check(cls) -> None:
        """``UsageError`` if what it needs is not installed."""
        if find_spec(cls.module) is None:
            raise UsageError(
                f"{cls.module} is not installed: pip install '.[peers]', or leave it out of --peers"
            )

    @abstractmethod
    def load(self) -> None:
        """Import what is needed; what memory that takes is not the index's."""

    @abstractmethod
    def build(self, vectors: Path, recall: float) -> None:
        """Take all vectors in, and leave what ``open`` needs on disk."""

    @abstractmethod
    def open(self) -> None:
        """Open what ``build`` has left."""

    def set(self, setting: Setting) -> None:
        """Search like this from now on."""
        self.setting = setting

    @abstractmethod
    def search(self, queries: Vectors, k: int) -> Rows:
        """Rows that are nearest to each query, best first: (nq, d) → (nq, k) int64, -1 for none."""


class _OneByOne(Index):
    """One that is asked for one query at a time, by as many threads as it may use."""

    @abstractmethod
    def one(self, query: Vectors, k: int) -> Sequence[int]:
        """Rows that are nearest to one query, (d,)."""

    def search(self, queries: Vectors, k: int) -> Rows:
        """One after another, or in threads where there are many."""
        found = np.full((len(queries), k), -1, np.int64)
        if len(queries) == 1 or self.threads == 1:
            answers: Iterator[Sequence[int]] = (self.one(query, k) for query in queries)
            self._fill(found, answers)
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                self._fill(found, pool.map(lambda query: self.one(query, k), queries))
        return found

    @staticmethod
    def _fill(found: Rows, answers: Iterator[Sequence[int]]) -> None:
        for row, rows in zip(found, answers, strict=True):
            row[: len(rows)] = rows


class Engine(Index):
    """The engine: ``ingest``, ``optimize``, ``search_vectors``; what is turned is the recall wanted."""

    name, module = ENGINE, "faiss"
    sweep = tuple(
        (recall,) for recall in (0.8, 0.85, 0.9, 0.93, 0.94, 0.95, 0.96, 0.965, 0.97, 0.98, 0.99)
    )

    def load(self) -> None:
        """FAISS is loaded by the first search; here, so that it counts for nobody."""
        import_module("faiss")

    def build(self, vectors: Path, recall: float) -> None:
        """Everything is durable, indexed, and its recall measured, when the store is closed."""
        with Store.open(self.folder, create=True, encoder="none", memory=self.memory) as store:
            store.ingest(str(vectors))
            store.optimize(recall=recall)

    def open(self) -> None:
        """As a reader."""
        self.store = Store.open(self.folder, read_only=True, memory=self.memory)

    def search(self, queries: Vectors, k: int) -> Rows:
        """Ids begin at 1."""
        _, ids = self.store.search_vectors(queries, k=k, recall=self.setting[0])
        return np.where(ids > 0, ids - 1, -1)


class Hnswlib(Index):
    """A graph in memory."""

    name, module = HNSWLIB, "hnswlib"
    sweep = tuple((width,) for width in _WIDTHS)

    def load(self) -> None:
        """The module."""
        self._module = import_module("hnswlib")

    def build(self, vectors: Path, recall: float) -> None:
        """With all threads."""
        rows = open_array(vectors)
        graph = self._module.Index("ip", rows.shape[1])
        graph.init_index(len(rows), M=_LINKS, ef_construction=_BUILD_WIDTH, random_seed=0)
        graph.set_num_threads(self.threads)
        first = 0
        for block in blocks(rows):
            graph.add_items(block, np.arange(first, first + len(block)))
            first += len(block)
        self.folder.mkdir()
        graph.save_index(str(self.folder / "graph"))
        (self.folder / "dim").write_text(str(rows.shape[1]))

    def open(self) -> None:
        """Read it into memory: it cannot be mapped."""
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


class Usearch(Index):
    """A graph with vectors of 16 bits, mapped."""

    name, module = USEARCH, "usearch"
    sweep = tuple((width,) for width in _WIDTHS)

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
            connectivity=_LINKS,
            expansion_add=_BUILD_WIDTH,
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
        """Its expansion while searching."""
        self._graph.expansion_search = int(setting[0])

    def search(self, queries: Vectors, k: int) -> Rows:
        """All at once."""
        if len(queries) == 1:  # answers of another shape, which cost less
            keys = self._graph.search(queries[0], k, threads=1).keys[None]
        else:
            keys = self._graph.search(queries, k, threads=self.threads).keys
        return np.asarray(keys, np.int64)


class LanceDb(_OneByOne):
    """A table on disk with an IVF of RaBitQ codes; it brings its own threads.

    By cosine, which of its distances finds the most at each setting; of unit vectors it is the same.
    """

    name, module = LANCEDB, "lancedb"
    # nprobes and refine_factor: with 5 it stops short of what the others find
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


class _Zvec(_OneByOne):
    """zvec: documents with one vector each."""

    def load(self) -> None:
        """The module, which says nothing less than an error, and has as many threads as it is told."""
        self._module = import_module("zvec")
        self._module.init(
            log_level=self._module.LogLevel.ERROR,
            query_threads=self.threads,
            optimize_threads=self.threads,
        )

    @abstractmethod
    def index(self) -> Any:
        """What the index is made with."""

    @abstractmethod
    def asked(self) -> Any:
        """What a query is asked with, for ``setting``."""

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
        """For reading."""
        option = self._module.CollectionOption(read_only=True)
        self._documents = self._module.open(str(self.folder), option)

    def set(self, setting: Setting) -> None:
        """What is asked with is made once."""
        super().set(setting)
        self._asked = self.asked()

    def one(self, query: Vectors, k: int) -> Sequence[int]:
        """One query."""
        asked = self._module.Query(field_name="vector", vector=query, param=self._asked)
        return [int(found.id) for found in self._documents.query(asked, topk=k)]


class ZvecHnsw(_Zvec):
    """A graph."""

    name, module = ZVEC_HNSW, "zvec"
    sweep = tuple((width,) for width in _WIDTHS)

    def index(self) -> Any:
        """As the other graphs."""
        metric = self._module.MetricType.IP
        return self._module.HnswIndexParam(
            metric_type=metric, m=_LINKS, ef_construction=_BUILD_WIDTH
        )

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


class _Faiss(Index):
    """An index of FAISS, read into memory."""

    def load(self) -> None:
        """The module, with as many threads as it may use."""
        self._module = import_module("faiss")
        self._module.omp_set_num_threads(self.threads)

    @abstractmethod
    def factory(self, n: int) -> str:
        """What it is for ``n`` vectors, in FAISS's language."""

    def build(self, vectors: Path, recall: float) -> None:
        """Train it on what FAISS takes at most, and add all."""
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
        """Nothing but vectors."""
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


INDEXES: dict[str, type[Index]] = {
    kind.name: kind
    for kind in (Engine, Hnswlib, Usearch, LanceDb, ZvecHnsw, ZvecDiskAnn, FaissFlat, FaissIvf)
}


PEERS = tuple(name for name in INDEXES if name != ENGINE)
