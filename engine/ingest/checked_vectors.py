"""Checks which rows of a block are valid vectors, and says what is wrong with the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.config import CHECKED_NUMBERS
from engine.index.unit_vectors import normalized
from engine.sources.items import Reject, VectorBlock

_REASONS = (
    "",
    "holds values that are NaN, infinite or too large for float32",
    "has length zero, and so no direction: it cannot be normalized",
)


@dataclass(frozen=True, slots=True)
class CheckedBlock:
    """A checked block: ``rows`` (n, dim) as stored; ``wrong`` (n,) is 0 or why a row is not valid."""

    first: int
    rows: npt.NDArray[np.float32]
    wrong: npt.NDArray[np.uint8]

    def problems(self, name: bytes, mtime_ns: int, size: int) -> list[Reject]:
        """The rejects of array ``name``: one for each stretch of rows with the same fault."""
        found = []
        for at, end in stretches(self.wrong):
            if self.wrong[at]:
                first, last = self.first + at, self.first + end - 1
                which = f"#{first}-{last}" if last > first else f"#{first}"
                reason = _REASONS[self.wrong[at]]
                found.append(Reject(name + which.encode(), reason, mtime_ns, size, end - at))
        return found

    def halves(self) -> tuple[CheckedBlock, CheckedBlock]:
        """Its two halves, to be committed one after the other."""
        half = len(self.rows) // 2
        return (
            CheckedBlock(self.first, self.rows[:half], self.wrong[:half]),
            CheckedBlock(self.first + half, self.rows[half:], self.wrong[half:]),
        )


def checked(block: VectorBlock, *, normalize: bool, numbers: int = CHECKED_NUMBERS) -> CheckedBlock:
    """Check the rows of a block; with ``normalize``, divide the valid ones by their length.

    ``numbers`` is how many values are checked at a time.
    """
    n, dim = block.rows.shape
    rows = np.empty_like(block.rows) if normalize else block.rows
    wrong = np.zeros(n, np.uint8)
    step = max(1, numbers // dim)
    for at in range(0, n, step):
        some = block.rows[at : at + step]
        finite = np.isfinite(some).all(axis=1)
        wrong[at : at + step] = ~finite
        if normalize:
            units, lengths = normalized(some)
            rows[at : at + step] = units
            wrong[at : at + step][finite & (lengths == 0)] = 2
    return CheckedBlock(block.first, rows, wrong)


def reason_of(
    vector: npt.NDArray[np.float32], *, normalize: bool
) -> tuple[npt.NDArray[np.float32], str]:
    """One vector (dim,) as stored, and what is wrong with it; empty if it is valid."""
    found = checked(VectorBlock(0, vector[np.newaxis]), normalize=normalize)
    return found.rows[0], _REASONS[found.wrong[0]]


def stretches(values: npt.NDArray[np.uint8] | npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """The first and end index of each stretch of equal values."""
    if len(values):
        edges = (np.flatnonzero(values[1:] != values[:-1]) + 1).tolist()
        yield from zip([0, *edges], [*edges, len(values)], strict=True)
