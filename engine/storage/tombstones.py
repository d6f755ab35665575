"""Tombstones: the ids of removed images, in the table ``removed``, one row per 32,768 ids.

The table repeats what missing records say, and saves one read per id. A row is a bitmap, or a list of
ids while that is shorter. A removal of scattered images rewrites one row for each of them, and on a full
disk there is little room for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from engine.storage.bitmap import IdSet
from engine.storage.rocks.database import Keys
from engine.storage.rows import u64

TABLE = "removed"
_BITS = 15
_IDS = 1 << _BITS  # per row
_BITMAP = _IDS // 8  # bytes
_EACH = np.dtype(">u2")

Numbers = npt.NDArray[np.int64]


def rows_with(table: Keys, ids: Sequence[int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the rows to put when these images are removed too."""
    if not ids:
        return
    gone = np.unique(np.array(ids, np.int64))
    buckets, firsts = np.unique(gone >> _BITS, return_index=True)
    keys = [u64(bucket) for bucket in buckets.tolist()]
    values = table.get_many(TABLE, keys)
    parts = np.split(gone & (_IDS - 1), firsts[1:])
    for key, value, mine in zip(keys, values, parts, strict=True):
        before = _unpack(value) if value is not None else None
        # An unreadable row is left for ``check``, which then also finds the ids missing from it.
        yield key, _pack(np.union1d(before, mine) if before is not None else mine)


def rows_of(removed: IdSet) -> Iterator[tuple[bytes, bytes]]:
    """Yield all rows of the table."""
    for bucket in range(-(-len(removed.bits) // _BITMAP)):
        bits = removed.bits[bucket * _BITMAP : (bucket + 1) * _BITMAP]
        if bits.any():
            yield u64(bucket), _pack(np.flatnonzero(np.unpackbits(bits, bitorder="little")))


def read(table: Keys, size: int) -> tuple[IdSet, int]:
    """Return the removed ids among 1 .. ``size`` - 1, and the number of malformed rows."""
    found, bad = IdSet.none(size), 0
    for key, value in table.scan(TABLE):
        inside = _unpack(value)
        first = int.from_bytes(key, "big") << _BITS
        if inside is None or len(key) != 8 or first + int(inside[-1]) >= size:
            bad += 1
            continue
        found.add(inside + first)
    return found, bad


def _pack(inside: Numbers) -> bytes:
    """Return a row's value for ascending ids, relative to the row's first id."""
    if len(inside) * _EACH.itemsize < _BITMAP:
        return inside.astype(_EACH).tobytes()
    flags = np.zeros(_IDS, np.bool_)
    flags[inside] = True
    return np.packbits(flags, bitorder="little").tobytes()


def _unpack(value: bytes) -> Numbers | None:
    """Parse a value that ``_pack`` made; return None if it is malformed."""
    if len(value) == _BITMAP:
        flags = np.unpackbits(np.frombuffer(value, np.uint8), bitorder="little")
        inside = np.flatnonzero(flags)
    elif len(value) % _EACH.itemsize or len(value) > _BITMAP:
        return None
    else:
        inside = np.frombuffer(value, _EACH).astype(np.int64)
    whole = len(inside) and inside[-1] < _IDS and (np.diff(inside) > 0).all()
    return inside if whole else None
