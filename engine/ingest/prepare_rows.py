"""Prepares blocks of rows of an array for a store: hashes, fingerprints, kept pixels.

Nothing here uses a store, and everything can be pickled, as in ``engine.ingest.prepare``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from engine.config import KEEP_BITS_LIMIT
from engine.images import canonical, fingerprint, hashing
from engine.images.canonical import HEADER_BYTES
from engine.records import Kind, Pixels
from engine.sources.items import RowBlock

_HASHED_ROWS = 64  # at a time


@dataclass(slots=True)
class PreparedRows:
    """A prepared block of rows of an array, or one worker's part of it."""

    block: RowBlock
    shape: Pixels  # kind and size of each row; its canonical bytes are empty
    keys: list[bytes]
    proofs: list[bytes]
    fingerprints: npt.NDArray[np.uint8]  # (n, 32)
    qualities: npt.NDArray[np.uint8]  # (n,)
    keeps: bool  # whether the pixels of new rows are kept

    def part(self, start: int, end: int) -> PreparedRows:
        """Rows [start, end) of the block."""
        block, at = self.block, slice(start, end)
        return replace(
            self,
            block=replace(block, first=block.first + start, rows=block.rows[at]),
            keys=self.keys[at],
            proofs=self.proofs[at],
            fingerprints=self.fingerprints[at],
            qualities=self.qualities[at],
        )


def prepare_rows(
    block: RowBlock, part: int, parts: int, *, hash_seed: int, keep_pixels: str
) -> PreparedRows:
    """Prepare part number ``part`` of a block divided into ``parts`` of about equal size.

    The ``block`` of the result is the whole block; see ``joined``.
    """
    at = [len(block.rows) * i // parts for i in (part, part + 1)]
    rows = block.rows[at[0] : at[1]]
    shape = canonical.from_canonical(memoryview(block.rows[0]))
    keys: list[bytes] = []
    proofs: list[bytes] = []
    for first in range(0, len(rows), _HASHED_ROWS):
        some = list(rows[first : first + _HASHED_ROWS])
        keys += hashing.keys(some, hash_seed)
        # The rows are in the processor's cache now.
        proofs += hashing.proofs(some)
    if block.kind is Kind.BITS:
        bits = shape.height * shape.width * shape.channels
        prints, qualities = fingerprint.fingerprint_bits(rows[:, HEADER_BYTES:], bits)
        small = rows.shape[1] <= HEADER_BYTES + KEEP_BITS_LIMIT
        keeps = keep_pixels == "yes" or (keep_pixels == "auto" and small)
    else:
        made = [fingerprint.fingerprint(canonical.from_canonical(memoryview(r))) for r in rows]
        joined_prints = np.frombuffer(b"".join(print_ for print_, _ in made), np.uint8)
        prints = joined_prints.reshape(len(made), fingerprint.FINGERPRINT_BYTES)
        qualities = np.array([quality for _, quality in made], np.uint8)
        keeps = keep_pixels == "yes"
    shape = shape._replace(canonical=b"")
    return PreparedRows(block, shape, keys, proofs, prints, qualities, keeps)


def joined(parts: Sequence[PreparedRows | None]) -> PreparedRows | None:
    """Join the parts of one block; None if there was no block."""
    there = [part for part in parts if part is not None and part.keys]
    if not there:
        return None
    if len(there) == 1:
        return there[0]
    return replace(
        there[0],
        keys=[key for part in there for key in part.keys],
        proofs=[proof for part in there for proof in part.proofs],
        fingerprints=np.concatenate([part.fingerprints for part in there]),
        qualities=np.concatenate([part.qualities for part in there]),
    )
