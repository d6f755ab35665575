"""A store of many vectors, made or from a file, ingested a million at a time, with exact neighbours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..harness.errors import BenchError
from ..harness.process import run_child
from . import clustered_vectors
from .arrays import Vectors, blocks, open_array, write_array
from .exact_neighbours import Nearest, Rows

K = 10  # neighbours of a query
QUERIES = 500  # whose recall is measured
PIECE = 1_000_000  # vectors of one file, and of one ingest
STORE_BYTES = 1_400  # of disk, a vector: laying out takes twice the final size for a while


@dataclass(frozen=True, slots=True)
class Built:
    """The cost of building a store: seconds, bytes."""

    n: int
    ingest_s: float
    optimize_s: float
    peak: int  # anonymous bytes above the empty process, the largest of all building processes
    resident: int  # bytes of all memory of such a process, mapped pages included
    parts: dict[str, int]  # bytes of disk

    @property
    def seconds(self) -> float:
        """The time from vectors to an indexed and laid-out store."""
        return self.ingest_s + self.optimize_s


@dataclass(frozen=True, slots=True)
class VectorStore:
    """A store of ``n`` vectors, with queries and their exact neighbours beside it.

    The vectors are made from a seed, or are the first rows of ``array``. Then its last rows are the
    queries.
    """

    n: int
    seed: int
    folder: Path
    array: Path | None = None

    @property
    def store(self) -> Path:
        """The folder of the store."""
        return (self.folder / f"vectors-{self.n}-{self.seed}.store").absolute()

    @property
    def queries(self) -> Path:
        """The .npy of the queries, which are not among its vectors."""
        return self.store.with_suffix(".queries.npy")

    @property
    def truth(self) -> Path:
        """The .npy of the exact neighbours (rows) of the first queries."""
        return self.store.with_suffix(".truth.npy")

    @property
    def _built(self) -> Path:
        return self.store.with_suffix(".json")

    def make(
        self,
        *,
        memory: int,
        wanted: float,
        queries: int = QUERIES,
        done: Callable[[int], None] = lambda count: None,
        within: Sequence[str] = (),
    ) -> Built:
        """Build the store, with ``queries`` queries; a complete one is left as it is.

        ``within`` is passed to ``run_child`` for the processes that build it. ``BenchError`` if an
        existing store was made with other arguments.
        """
        made_with = {"queries": queries, "wanted": wanted, "memory": memory}
        if self._built.exists():
            kept = json.loads(self._built.read_text())
            if kept.get("made_with") != made_with:
                listed = ", ".join(f"{name} {value}" for name, value in made_with.items())
                raise BenchError(
                    f"{self.store} was made otherwise, not with {listed}: remove it, or ask as then"
                )
            return Built(**kept["built"])
        if self.store.exists():
            raise BenchError(f"{self.store} is not whole: remove it")
        asked = self.asked(queries)
        nearest = Nearest(asked[:QUERIES], K)
        given: dict[str, object] = {"folder": str(self.store), "memory_bytes": memory}
        seconds, peaks, resident = 0.0, [], []
        for first in range(0, self.n, PIECE):
            count = min(PIECE, self.n - first)
            # The store identifies an array by its name, so each piece has its own.
            piece = self.folder / f"vectors-{first}.npy"
            write_array(piece, self._watched(first, count, nearest), count, asked.shape[1])
            spec = given | {"job": "ingest", "vectors": str(piece)}
            taken = run_child("data.vector_store_child", spec, within=within)
            piece.unlink()
            seconds += taken.result["seconds"]
            peaks.append(taken.anonymous_peak - taken.result["empty"])
            resident.append(taken.resident_peak)
            done(first + count)
        spec = given | {"job": "optimize", "wanted": wanted}
        ended = run_child("data.vector_store_child", spec, within=within)
        resident.append(ended.resident_peak)
        peaks.append(ended.anonymous_peak - ended.result["empty"])
        if ended.result["vectors"] != self.n:
            raise BenchError(f"{self.store} holds {ended.result['vectors']:,} vectors: remove it")
        np.save(self.queries, asked)
        np.save(self.truth, nearest.rows())
        took = ended.result["seconds"]
        built = Built(self.n, seconds, took, max(peaks), max(resident), ended.result["parts"])
        self._built.write_text(json.dumps({"made_with": made_with, "built": asdict(built)}))
        return built

    def asked(self, count: int) -> Vectors:
        """Queries, (count, d)."""
        if self.array is None:
            return clustered_vectors.queries(self.seed, count)
        return np.array(open_array(self.array)[-count:])

    def blocks(self, first: int, count: int) -> Iterator[Vectors]:
        """Its rows ``[first, first + count)``, block by block."""
        if self.array is None:
            return clustered_vectors.blocks(self.seed, first, count)
        return blocks(open_array(self.array)[first : first + count])

    def exact(self) -> Rows:
        """Rows of the exact neighbours: (500, 10) int64."""
        rows: Rows = np.load(self.truth)
        return rows

    def _watched(self, first: int, count: int, nearest: Nearest) -> Iterator[Vectors]:
        for block in self.blocks(first, count):
            nearest.add(block)
            yield block
