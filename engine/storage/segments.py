"""Index segments: immutable on-disk FAISS IVF parts over a range of vector rows.

A segment holds short codes of its rows, names rows and not images, and can always be built again
from the vectors. It becomes live when the
manifest names it. FAISS reads a flipped byte without an error, so a segment carries a checksum.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine import digest
from engine.config import MemoryBudget
from engine.errors import StoreDamagedError
from engine.storage.files import fsync_dir
from engine.storage.manifest import SegmentEntry
from engine.storage.vectors import Vectors

FOLDER = "index"
_TRAIN_PER_LIST = 64  # vectors a centroid is trained on; FAISS warns below 39
_BLOCK = 1 << 16


def path_of(store: Path, number: int) -> Path:
    """Where segment ``number`` lies."""
    return store / FOLDER / f"{number:08d}.ivf"


def build(
    store: Path,
    number: int,
    vectors: Vectors,
    generation: int,
    first_row: int,
    rows: int,
    memory: MemoryBudget,
) -> SegmentEntry:
    """Train on a sample of the rows, add all of them in blocks, write, sync, checksum.

    nlist is 4·√n, PQ has dim / 2 four-bit codes (dim / 4 bytes a vector), or where dim is odd the
    codes are 8-bit scalars. The result is not live until the manifest names it.
    """
    import faiss

    dim = vectors.dim
    most = max(memory.training // (4 * dim), 4096)
    nlist = max(1, min(int(4 * rows**0.5), most // _TRAIN_PER_LIST))
    sample_size = min(rows, _TRAIN_PER_LIST * nlist)
    # Sorted, so that the map is walked forwards; seeded, so that a build can be repeated.
    chosen = np.random.default_rng(number).choice(rows, sample_size, replace=False)
    chosen.sort()
    sample = vectors.gather(chosen.astype(np.int64) + first_row)

    quantizer = faiss.IndexFlatIP(dim)
    metric = faiss.METRIC_INNER_PRODUCT
    index: Any
    if dim % 2:
        scalar = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(quantizer, dim, nlist, scalar, metric)
    else:
        index = faiss.IndexIVFPQ(quantizer, dim, nlist, dim // 2, 4, metric)
    index.cp.min_points_per_centroid = 1  # no warnings on duplicates: they are users' data
    index.cp.spherical = True
    index.train(sample)
    del sample
    at = first_row
    for block in vectors.blocks(first_row, first_row + rows, min(_BLOCK, most)):
        labels = np.arange(at, at + len(block), dtype=np.int64)
        index.add_with_ids(np.ascontiguousarray(block), labels)
        at += len(block)

    path = path_of(store, number)
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True)
        fsync_dir(store)
    try:
        faiss.write_index(index, str(path))
        size, check = _sync_and_sum(path)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, RuntimeError):  # FAISS's only error
            raise OSError(f"{path} could not be written") from error
        raise
    fsync_dir(path.parent)
    return SegmentEntry(number, generation, first_row, rows, nlist, size, check)


class Segment:
    """One live segment, mapped."""

    def __init__(self, store: Path, entry: SegmentEntry, dim: int) -> None:
        """Map it; ``StoreDamagedError`` if the file is gone, cut or not what the manifest says."""
        import faiss

        self.entry = entry
        path = path_of(store, entry.number)
        try:
            if path.stat().st_size != entry.bytes:
                raise StoreDamagedError(f"{path} has the wrong length")
            flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
            # The object read_index returns must stay alive as long as anything made from it.
            self._index = faiss.read_index(str(path), flags)
        except (OSError, RuntimeError, MemoryError) as error:  # a wrong length asks for too much
            raise StoreDamagedError(f"{path} cannot be read: {error}") from None
        if (self._index.ntotal, self._index.d) != (entry.rows, dim):
            raise StoreDamagedError(f"{path} holds something else")

    def candidates(
        self, queries: npt.NDArray[np.float32], depth: int, nprobe: int
    ) -> npt.NDArray[np.int64]:
        """Rows that may be close to (nq, dim) queries: (nq, depth) int64, padded with -1."""
        import faiss

        params: Any = faiss.SearchParametersIVF()
        params.nprobe = min(nprobe, self.entry.nlist)
        _, rows = self._index.search(queries, depth, params=params)
        found: npt.NDArray[np.int64] = rows
        return found


def checksum(store: Path, entry: SegmentEntry) -> str | None:
    """What is wrong with a segment's file, or None; reads all of it."""
    path = path_of(store, entry.number)
    try:
        size, check = _sync_and_sum(path, sync=False)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if (size, check) != (entry.bytes, entry.xxh64):
        return "its checksum is wrong"
    return None


def _sync_and_sum(path: Path, *, sync: bool = True) -> tuple[int, int]:
    check, size = digest.Checksum(), 0
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while block := file.read(1 << 20):
            check.update(block)
            size += len(block)
    return size, check.value
