"""Synthetic bit images: 100×100 RGB with uniformly random bits; row r depends only on seed and r.

Rows come from NumPy's Philox, a counter-based generator (Salmon et al., "Parallel Random Numbers: As
Easy as 1, 2, 3", SC'11). Row r begins at counter 118·r, so any row can be made without the others, and
a set of n is the beginning of a set of 2n. Rows are made in packed form.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import parse_qsl

import numpy as np

from engine.errors import SourceError, UsageError
from engine.images.canonical import HEADER_BYTES, rows_header
from engine.records import Kind
from engine.sources.items import RowBlock, Rows

PREFIX = "synthetic:"
SIDE = 100
ROW_BYTES = SIDE * SIDE * 3 // 8
_AT_ONCE = 128  # rows drawn at a time, so that half a megabyte of words stays in the CPU cache
_COUNTERS = -(-ROW_BYTES // 32)  # a Philox counter gives four 64-bit words


class SyntheticBits:
    """The set ``synthetic:bits?n=N&seed=S``."""

    kind = declared_kind = Kind.BITS
    row_bytes = SIDE * SIDE * 3
    mtime_ns = 0
    size = 0

    def __init__(self, spec: str) -> None:
        """Parse ``spec``; ``UsageError`` if it is not valid."""
        what, _, query = spec.removeprefix(PREFIX).partition("?")
        values = dict(parse_qsl(query, keep_blank_values=True))
        unknown = set(values) - {"n", "seed"}
        if what != "bits" or unknown:
            raise UsageError(f"{spec!r} is not known: write 'synthetic:bits?n=1e6&seed=0'")
        self.count = whole_number(values.get("n", "1000"), "n", spec)
        self.seed = whole_number(values.get("seed", "0"), "seed", spec)
        self.name = f"{PREFIX}bits?seed={self.seed}".encode()

    def blocks(self, start: int, max_rows: int, max_bytes: int) -> Iterator[RowBlock]:
        """Canonical rows from ``start`` on."""
        step = max(1, min(max_rows, max_bytes // (HEADER_BYTES + ROW_BYTES)))
        for at in range(start, self.count, step):
            rows = generate(self.seed, at, min(step, self.count - at))
            yield RowBlock(at, rows, Kind.BITS)

    def row(self, number: int) -> Rows:
        """The canonical form of one row, (16 + 3750,) uint8; ``number`` may be n or more."""
        if not 0 <= number < 1 << 53:
            raise SourceError(f"has no row {number}")
        row: Rows = generate(self.seed, number, 1)[0]
        return row


def generate(seed: int, first: int, count: int) -> Rows:
    """Rows ``[first, first + count)``: (count, 16 + 3750) uint8, canonical."""
    out = np.empty((count, HEADER_BYTES + ROW_BYTES), np.uint8)
    out[:, :HEADER_BYTES] = np.frombuffer(rows_header(Kind.BITS, SIDE, SIDE), np.uint8)
    bits = np.random.Philox(key=seed, counter=first * _COUNTERS)
    for at in range(0, count, _AT_ONCE):
        rows = out[at : at + _AT_ONCE]
        words = bits.random_raw(len(rows) * _COUNTERS * 4).astype("<u8", copy=False)
        rows[:, HEADER_BYTES:] = words.view(np.uint8).reshape(len(rows), -1)[:, :ROW_BYTES]
    return out


def whole_number(text: str, name: str, spec: str) -> int:
    """The whole number in ``text``, such as 1000000, 1e6 or 1_000_000."""
    try:
        value = float(text)
        if value < 0 or value != int(value) or value >= 1 << 53:
            raise ValueError
        return int(text) if text.isdecimal() else int(value)
    except (ValueError, OverflowError):
        raise UsageError(f"{spec!r}: {name}={text} is not a whole number ≥ 0") from None
