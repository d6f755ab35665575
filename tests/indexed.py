"""What tests of the similarity index share: vectors that have clusters, and stores of a few of them."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engine import Store
from engine.config import Limits
from engine.storage import extents
from engine.storage.extent_writer import ExtentWriter
from engine.storage.vectors import Vectors

DIM = 12
UUID = bytes(16)


def clustered(n: int, dim: int = DIM, seed: int = 0, clusters: int = 30) -> np.ndarray:
    """(n, dim) float32 unit vectors in clusters, which are the same for each seed."""
    centres = np.random.default_rng(999).standard_normal((clusters, dim))
    rng = np.random.default_rng(seed)
    found = centres[rng.integers(0, clusters, n)] + 0.4 * rng.standard_normal((n, dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def write(store: Path, block: np.ndarray, each: int = 1 << 20) -> Vectors:
    """Extents of ``each`` rows of vectors, whose image ids are ten times their row."""
    rows, dim = block.shape
    store.mkdir(parents=True, exist_ok=True)
    ids = np.arange(rows, dtype=np.int64) * 10
    starts = range(0, rows, each)
    for family, column in ((extents.vectors(1, dim), block), (extents.vector_ids(1), ids)):
        for number, at in enumerate(starts, 1):
            extents.create(store, family, number, UUID)
            writer = ExtentWriter(store, family, number, 0)
            writer.put(np.ascontiguousarray(column[at : at + each]).tobytes())
            writer.flush()
            writer.close()
    parts = [(number, min(each, rows - at)) for number, at in enumerate(starts, 1)]
    return Vectors(store, 1, dim, parts)


@contextlib.contextmanager
def few_files(free: int) -> Iterator[None]:
    """Let this process open so many files more, and none after them (Linux)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    limit = [number for number in range(soft) if number not in used][free]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def nearest(block: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows of the k largest inner products, by NumPy."""
    scores = queries @ block.T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


def recall_of(found: np.ndarray, truth: np.ndarray) -> float:
    """The mean share of each row of ``truth`` that is in the same row of ``found``."""
    return float(np.mean([len({*a} & {*b}) / len(b) for a, b in zip(found, truth, strict=True)]))


def small_limits(rows: int, **others: Any) -> Limits:
    """Indexes from ``rows`` vectors on, of which recall is measured with few candidates."""
    usual = {"unindexed_rows": 2 * rows, "rerank_depths": (1, 2, 5)}
    return Limits(exact_rows=rows, **(usual | others))


def new_store(path: Path, limits: Limits | None = None) -> Store:
    return Store.open(path, create=True, encoder="none", limits=limits)


def stored(store: Store) -> dict[int, bytes]:
    """The vectors of the images that are there, by id."""
    store.refresh()
    found = store.session.snapshot.open_vectors()
    try:
        rows = np.arange(found.rows, dtype=np.int64)
        ids, alive = found.ids(rows), store.session.snapshot.alive()
        there = np.ones(len(ids), bool) if alive is None else alive.has(ids)
        blocks = found.gather(rows[there])
        return {
            int(id_): row.tobytes() for id_, row in zip(ids[there].tolist(), blocks, strict=True)
        }
    finally:
        found.close()


def leftovers(store: Path) -> list[str]:
    """Files that belong to nothing: what the manifest does not name, and what is being made."""
    from engine.storage import manifest

    named = manifest.load(store)
    live = named.index_files(store)
    for family in named.space.families:
        live |= {family.path(store, n) for n in named.extents.get(family.name, [])}
    there = {p for top in ("index", "vectors") for p in (store / top).rglob("*") if p.is_file()}
    return sorted(
        str(p.relative_to(store))
        for p in {*(there - live), *(live - there), *store.glob(".*.new"), *store.glob(".*.begun")}
    )
