"""Trains a quantizer on a bounded sample of a store's own vectors."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.config import MemoryBudget
from engine.errors import StoreDamagedError
from engine.index.background import BackgroundWork
from engine.index.inner_product import Numbers
from engine.index.quantizer import MIN_SAMPLE, SAMPLE_PER_LIST, Quantizer, mean_closeness
from engine.index.quantizer_file import save_quantizer
from engine.storage.index_files import make_index_folder, quantizer_path
from engine.storage.manifest import QuantizerEntry
from engine.storage.vectors import Vectors

_MIN_TRAINED = 256  # vectors in the sample, however little memory there is
_CLOSENESS_SAMPLE = 4096  # vectors whose closeness to their centroids is measured
_SPARSE = 8  # if there are so many times more rows than are drawn, few are drawn twice
_log = logging.getLogger("engine.index")


def lists_for(rows: int, dim: int, memory: MemoryBudget) -> int:
    """How many lists an index of ``rows`` vectors should have, until it has four times as many."""
    most = max(memory.training // (4 * dim), _MIN_TRAINED)
    return max(1, min(int(2 * (2 * rows) ** 0.5), most // SAMPLE_PER_LIST, rows // 16))


def train_quantizer(
    root: Path, number: int, generation: int, vectors: Vectors, rows: int, work: BackgroundWork
) -> tuple[QuantizerEntry, Quantizer]:
    """Train a quantizer for ``rows`` vectors, on a sample of ``vectors``, and write it.

    If it cannot be written, or the work is stopped, nothing is left of it.
    """
    started = time.perf_counter()
    nlist = lists_for(rows, vectors.dim, work.memory)
    sample = sample_of(vectors, SAMPLE_PER_LIST * nlist, number)[1]
    good = np.isfinite(sample).all(axis=1)
    # Damaged vectors are not finite; ``check`` reports them.
    if not good.all():
        sample = sample[good]
    if len(sample) < nlist:
        raise StoreDamagedError(
            "too many vectors are damaged to build an index: run 'engine check'"
        )
    if len(sample) < MIN_SAMPLE:
        sample = np.resize(sample, (MIN_SAMPLE, vectors.dim))
    quantizer = Quantizer.train(sample, nlist, number)
    some = sample[:: max(1, len(sample) // _CLOSENESS_SAMPLE)]
    closeness, _ = mean_closeness(quantizer.encode(some)[2])
    path = quantizer_path(root, number)
    make_index_folder(root)
    work.check_stop()
    _log.info(
        "%s: trained a quantizer of %d lists on %d vectors in %.1f s",
        root,
        nlist,
        len(sample),
        time.perf_counter() - started,
    )
    size, xxh64 = save_quantizer(quantizer, path, number)
    return QuantizerEntry(number, generation, nlist, rows, closeness, size, xxh64), quantizer


def sample_of(vectors: Vectors, most: int, seed: int) -> tuple[Numbers, npt.NDArray[np.float32]]:
    """Rows drawn at random, ascending, and their vectors: (n,), (n, dim), n at most ``most``."""
    size = min(vectors.rows, most)
    # Sorted, so that files are read forwards; seeded, so that it can be repeated.
    draw = np.random.default_rng(seed)
    if size * _SPARSE > vectors.rows:
        rows = np.sort(draw.choice(vectors.rows, size, replace=False)).astype(np.int64)
    else:
        # Gives a few less, but needs no permutation of all rows in memory.
        rows = np.unique(draw.integers(0, vectors.rows, size))
    sample = vectors.gather(rows)
    vectors.let_go()
    return rows, sample
