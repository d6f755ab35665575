"""The contract of an index of vectors: built, opened, searched."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from engine import UsageError
from engine.errors import how_to_install

from ..data.arrays import Vectors
from ..data.exact_neighbours import Rows

# All graphs are built with these: M and efConstruction.
LINKS, BUILD_WIDTH = 16, 200
# All graphs are searched with each of these in turn: ef.
WIDTHS = (16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 112, 128, 160, 192, 256, 384, 512)
# Variables that set the threads of libraries without a call for it; libraries read them on loading.
_THREADS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "LANCE_CPU_THREADS", "TOKIO_WORKER_THREADS")

Setting = tuple[float, ...]


class Index(ABC):
    """One index over the vectors of a .npy file, in a folder of its own; rows are numbered from 0."""

    name: str
    module: str  # has to be installed
    sweep: Sequence[Setting]
    setting: Setting

    def __init__(self, folder: Path, threads: int, memory: int) -> None:
        """Open nothing yet; ``memory`` is in bytes, for the engine."""
        self.folder = folder
        self.threads = threads
        self.memory = memory
        for name in _THREADS:
            os.environ[name] = str(threads)
        self.load()

    @classmethod
    def check(cls) -> None:
        """``UsageError`` if its library is not installed."""
        if find_spec(cls.module) is None:
            raise UsageError(
                f"{cls.module} is not installed: {how_to_install('peers')}; or leave it out of --peers"
            )

    @abstractmethod
    def load(self) -> None:
        """Import its library; that memory does not count as the index's."""

    @abstractmethod
    def build(self, vectors: Path, recall: float) -> None:
        """Add all vectors, and write to disk everything that ``open`` needs."""

    @abstractmethod
    def open(self) -> None:
        """Open the index that ``build`` wrote."""

    def set(self, setting: Setting) -> None:
        """Search with this setting from now on."""
        self.setting = setting

    @abstractmethod
    def search(self, queries: Vectors, k: int) -> Rows:
        """The rows nearest to each query, best first: (nq, d) → (nq, k) int64, -1 for none."""


class OneByOne(Index):
    """An index that takes one query at a time, from as many threads as it may use."""

    @abstractmethod
    def one(self, query: Vectors, k: int) -> Sequence[int]:
        """The rows nearest to one query, (d,)."""

    def search(self, queries: Vectors, k: int) -> Rows:
        """Search one query after another, or in threads if there are many."""
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
