"""Rebuilds commit records for committed bytes of extents that no record covers any more.

The new records describe the bytes that are there. Only kept pixels can still prove that these are
the bytes that were committed.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from engine.errors import StoreDamagedError
from engine.images import hashing
from engine.records import Place
from engine.storage.commit_evidence import appends_of, possible_families
from engine.storage.extent_reader import ExtentReader
from engine.storage.extents import Family
from engine.storage.rows import u64
from engine.storage.snapshot import Snapshot

_ID = 8  # bytes of a commit's number
_PIECE = 4 << 20  # bytes of one append: a repair reads it whole


def mended(view: Snapshot, first: int) -> list[tuple[bytes, bytes | None]]:
    """Return the rows of ``commits`` to put (None: delete), so that one append covers each byte.

    New rows are numbered from ``first`` on, one for each family of extents.
    """
    lengths = {
        (name, number): size for name, pairs in view.state.extents.items() for number, size in pairs
    }
    known = {family.name: family for family in possible_families(view.manifest)}
    spans: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for key, value in view.keys.scan("commits"):
        for part in appends_of(value) if len(key) == _ID else ():
            if _fits(part, lengths):
                name, number, offset, length, _ = part
                spans.setdefault((name, number), []).append((offset, offset + length))
    twice = {extent for extent, found in spans.items() if _overlap(sorted(found))}
    rows: list[tuple[bytes, bytes | None]] = []
    for key, value in view.keys.scan("commits"):
        parts = appends_of(value) if len(key) == _ID else []
        left = [p for p in parts if _fits(p, lengths) and (p[0], p[1]) not in twice]
        if not left:
            rows.append((key, None))
        elif json.dumps(left).encode() != value:
            rows.append((key, json.dumps(left).encode()))
    for name, pairs in view.state.extents.items():
        gaps: list[list[Any]] = []
        for number, size in pairs if name in known else ():
            covered = [] if (name, number) in twice else spans.get((name, number), [])
            for start, end in _gaps(covered, size):
                gaps += _appends(view, known[name], number, start, end)
        if gaps:
            rows.append((u64(first), json.dumps(gaps).encode()))
            first += 1
    return rows


def _fits(part: list[Any], lengths: dict[tuple[str, int], int]) -> bool:
    """Return whether an append lies in committed bytes."""
    name, number, offset, length, _ = part
    return bool(0 < length <= lengths.get((name, number), 0) - offset)


def _overlap(spans: list[tuple[int, int]]) -> bool:
    return any(first[1] > second[0] for first, second in itertools.pairwise(spans))


def _gaps(spans: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    out, at = [], 0
    for start, end in sorted(spans):
        if start > at:
            out.append((at, start))
        at = max(at, end)
    if at < size:
        out.append((at, size))
    return out


def _appends(view: Snapshot, family: Family, number: int, start: int, end: int) -> list[list[Any]]:
    rows = max(1, _PIECE // family.row_bytes) if family.row_bytes else 0
    step = rows * family.row_bytes or _PIECE
    out: list[list[Any]] = []
    reader = ExtentReader(view.path, family)
    try:
        for at in range(start, end, step):
            place = Place(number, at, min(step, end - at))
            try:
                check = hashing.checksum(reader.read(place))
            # The check finds this as damage, and a repair mends it then.
            except StoreDamagedError:
                check = 0
            out.append([family.name, number, place.offset, place.length, check])
    finally:
        reader.close()
    return out
