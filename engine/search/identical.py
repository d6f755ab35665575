"""The identical tier: images with the same canonical form, found by their key and then verified."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from time import perf_counter

import numpy as np
import numpy.typing as npt

from engine.errors import StoreDamagedError
from engine.images import hashing
from engine.records import Buffer
from engine.storage.bitmap import IdSet
from engine.storage.image_rows import ImageRow
from engine.storage.session import Session

_log = logging.getLogger("engine.search")


def id_of_file(store: Session, file_hash: bytes, wanted: IdSet | None) -> int | None:
    """The image of a file with this SHA-256, or None; a SHA-256 needs no further verification."""
    id_ = store.snapshot.ids_of_files([file_hash])[0]
    return id_ if id_ is not None and (wanted is None or id_ in wanted) else None


def rows_of_pixels(
    store: Session, key: bytes, form: Buffer, known: set[int], wanted: IdSet | None
) -> Iterator[tuple[ImageRow, str]]:
    """The rows of images with the canonical ``form``, without ``known`` ids, and how each was verified.

    ``key`` is the key of ``form`` in this store.
    """
    for row in store.snapshot.image_of(key):
        if row.id in known or (wanted is not None and row.id not in wanted):
            continue
        verified = verify(store, row, form)
        if verified:
            yield row, verified


def identical_ids(store: Session, rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The id of the image equal to each row, verified, or -1: (n, canonical bytes) → (n,) int64."""
    n, limits = len(rows), store.limits
    store.snapshot.count_lookups(n)
    ids = np.empty(n, np.int64)
    at, size = 0, limits.lookup_probe if n > 4 * limits.lookup_probe else n
    cold = False
    while at < n:
        block = rows[at : at + size]
        ids[at : at + size], seconds = _identical_ids(store, block, cold)
        cold = seconds > len(block) * limits.cold_key_seconds
        at, size = at + size, limits.lookup_rows
    return ids


def _identical_ids(
    store: Session, rows: npt.NDArray[np.uint8], cold: bool
) -> tuple[npt.NDArray[np.int64], float]:
    """The ids of some rows (n, canonical bytes), and the seconds that finding their keys took.

    With ``cold``, keys are expected to come from disk, so many threads read them.
    """
    n, length = rows.shape
    canonical = list(rows)
    keys = hashing.keys(canonical, store.snapshot.settings.hash_seed)
    started = perf_counter()
    columns = store.snapshot.image_columns(keys, spread=cold)
    seconds = perf_counter() - started
    ids = np.full(n, -1, np.int64)
    at = np.flatnonzero(columns.found)
    kept = columns.kept & columns.canonical
    easy = kept & (columns.lengths == length) & ~columns.shared
    same = np.zeros(len(at), np.bool_)
    if easy.any():
        wanted = [canonical[i] for i in at[easy].tolist()]
        # If some are damaged, all are verified one by one below.
        with contextlib.suppress(StoreDamagedError):
            same[easy] = store.snapshot.kept_pixels.equal(
                columns.extents[easy], columns.offsets[easy], wanted
            )
    bare = np.flatnonzero(~kept & ~columns.shared)
    if len(bare):
        proofs = hashing.proofs([canonical[i] for i in at[bare].tolist()])
        proof_columns = np.frombuffer(b"".join(proofs), np.uint8).reshape(-1, hashing.PROOF_BYTES)
        same[bare] = (proof_columns == columns.proofs[bare]).all(axis=1)
    ids[at[same]] = columns.ids[same]
    # A collision or damage: very rare.
    for i in at[~same]:
        for row in store.snapshot.image_of(keys[i]):
            if verify(store, row, canonical[i].tobytes()):
                ids[i] = row.id
    return ids, seconds


def verify(store: Session, row: ImageRow, canonical: Buffer) -> str | None:
    """How an image with the query's key was verified: "bytes", "digest", or None if it differs."""
    # Kept pixels of another length differ, so they are not read.
    if row.place is not None and row.canonical and row.place.length == len(canonical):
        try:
            kept = store.snapshot.kept(row.place)
        except StoreDamagedError as error:
            _log.warning("image %d: %s", row.id, error)
            kept = None
        if kept == (canonical if isinstance(canonical, bytes) else bytes(canonical)):
            return "bytes"
        if kept is not None:
            if hashing.proof(kept) == row.proof:
                return None  # another image with the same key: a collision
            _log.warning("image %d: its kept pixels are damaged; run 'engine check'", row.id)
    return "digest" if hashing.proof(canonical) == row.proof else None
