"""Finds the ids of images that exist: those that have a record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from engine.storage.record_rows import record_ids
from engine.storage.rocks.database import Keys
from engine.storage.rows import u64
from engine.storage.runs import Run


def live(table: Keys, first: int, count: int) -> npt.NDArray[np.bool_]:
    """Return which of the ``count`` ids from ``first`` on have a record: (count,) bool."""
    out = np.zeros(count, np.bool_)
    before = table.at_or_before("records", u64(first))
    for key, value in table.scan("records", start=before[0] if before else u64(first)):
        if int.from_bytes(key, "big") >= first + count:
            break
        ids = record_ids(key, value) - first
        out[ids[(ids >= 0) & (ids < count)]] = True
    return out


def sources_in(table: Keys, run: Run) -> int:
    """Return how many sources a run stands for: its rows whose images exist."""
    if not run.several:
        return run.count
    return int(live(table, run.id, run.count).sum())


def blocks_of(
    table: Keys, ids: Sequence[int]
) -> Iterator[tuple[bytes, bytes, npt.NDArray[np.int64]]]:
    """Yield key and value of each ``records`` row with some of ``ids`` (ascending), and those ids."""
    wanted = np.array(ids, np.int64)
    at = 0
    while at < len(wanted):
        row = table.at_or_before("records", u64(int(wanted[at])))
        if row is None:
            at += 1
            continue
        there = record_ids(*row)
        # Damage: removing a row's last image removes the row.
        if not len(there):
            at += 1
            continue
        end = max(at + 1, int(np.searchsorted(wanted, there[-1], "right")))
        held = np.intersect1d(wanted[at:end], there, assume_unique=True)
        if len(held):
            yield *row, held
        at = end
