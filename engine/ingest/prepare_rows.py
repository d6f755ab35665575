"""A block of rows of an array to all that a store keeps of them: hashes, fingerprints, pixels.

Nothing here knows of a store, and everything can be pickled, as in ``engine.ingest.prepare``.
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
    """A block of rows of an array, or what one worker has prepared of it."""

    block: RowBlock
    shape: Pixels  # of each; its canonical bytes are empty
    keys: list[bytes]
    proofs: list[bytes]
    fingerprints: npt.NDArray[np.uint8]  # (n, 32)
    qualities: npt.NDArray[np.uint8]  # (n,)
    keeps: bool  # whether the pixels of those that are new are kept

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
    """Part number ``part`` of ``parts`` of a block, of about as many rows each.

    Its ``block`` is the whole one: see ``joined``.
    """
    at = [len(block.rows) * i // parts for i in (part, part + 1)]
    rows = block.rows[at[0] : at[1]]
    shape = canonical.from_canonical(memoryview(block.rows[0]))
    keys: list[bytes] = []
    proofs: list[bytes] = []
    for first in range(0, len(rows), _HASHED_ROWS):
        some = list(rows[first : first + _HASHED_ROWS])
        keys += hashing.keys(some, hash_seed)
        proofs += hashing.proofs(some)  # from the cache: they were just read
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
    """The parts of one block as one; None where there was no block."""
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
