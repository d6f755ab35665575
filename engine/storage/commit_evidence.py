"""Reconstructs what was committed, from all evidence on disk, after the keys have lost rows.

The row ``state`` may be lost, or older than other rows. Then the commit records give the lengths of
extents, and the ids in rows and fingerprints give the number of ids. ``engine.maintenance.reconcile``
recounts the rest, because it reads all rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.config import Limits
from engine.errors import StoreDamagedError
from engine.storage.extents import FINGERPRINTS, HEADER_BYTES, PIXELS, Family
from engine.storage.image_rows import ImageRows
from engine.storage.json_values import loads
from engine.storage.manifest import Manifest
from engine.storage.record_rows import record_span
from engine.storage.rocks.database import Keys
from engine.storage.rows import RowError
from engine.storage.source_rows import NameRow
from engine.storage.state import State

# A row of ``meta``: rows were lost, and the remaining ones are not reconciled yet.
MARK = b"rescued"
_END = b"\xff" * 8
_BATCH = 4096


def read_state(value: bytes | None) -> State | None:
    """Return the state in a row's value; None if the value is not a valid state."""
    if value is None:
        return None
    try:
        return State.unpack(value)
    except StoreDamagedError:
        return None


def appends_of(value: bytes) -> list[list[Any]]:
    """Return the appends in a ``commits`` row's value, without malformed ones."""
    try:
        parts = loads(value)
    except ValueError:
        return []
    return [part for part in parts if _is_append(part)] if isinstance(parts, list) else []


def _is_append(part: object) -> bool:
    return (
        isinstance(part, list)
        and len(part) == 5
        and isinstance(part[0], str)
        and all(type(number) is int and number >= 0 for number in part[1:])
    )


def state_of(
    table: Keys, store: Path, named: Manifest, published: int, limits: Limits | None = None
) -> State:
    """Return the state that matches the rows of ``table`` and the files of ``store``.

    ``published`` is the commit that COMMIT names; ``named`` is the manifest.
    """
    state = read_state(table.get("meta", b"state"))
    ends, last = _appended(table)
    if state is not None and state.commit >= max(last, published):
        # Counts may be wrong; reconciling finds that.
        return state
    found = state if state is not None else State()
    found.commit = max(found.commit, last)
    there = _named(store, named)
    for family, number in there:
        size = max(ends.get((family.name, number), 0), _length(found, family.name, number))
        _set_length(found, family.name, number, size)
    found.extents = {
        name: [pair for pair in pairs if pair[1] or _is_named(named, name, pair[0])]
        for name, pairs in found.extents.items()
    }
    _ids(found, table, store, named, limits or Limits())
    _vectors(found, named)
    numbers = [int.from_bytes(key[1:], "big") for key, _ in table.scan("arrays", b"#")]
    found.next_array = max([found.next_array, *(number + 1 for number in numbers)])
    return found


def _appended(table: Keys) -> tuple[dict[tuple[str, int], int], int]:
    """Return where the last append to each extent ended, and the last commit's number."""
    ends: dict[tuple[str, int], int] = {}
    last = 0
    for key, value in table.scan("commits"):
        last = max(last, int.from_bytes(key, "big")) if len(key) == len(_END) else last
        for name, number, offset, length, _ in appends_of(value):
            ends[name, number] = max(offset + length, ends.get((name, number), 0))
    return ends, last


def _named(store: Path, named: Manifest) -> Iterator[tuple[Family, int]]:
    """Yield the extents that the manifest names."""
    for family in possible_families(named):
        for number in sorted(named.extents.get(family.name, [])):
            yield family, number


def possible_families(named: Manifest) -> list[Family]:
    """Return the families of extents that a store with this manifest may have."""
    return [PIXELS, FINGERPRINTS, *named.space.families]


def _is_named(named: Manifest, name: str, number: int) -> bool:
    return number in named.extents.get(name, [])


def _length(state: State, name: str, number: int) -> int:
    return next((pair[1] for pair in state.extents.get(name, []) if pair[0] == number), 0)


def _set_length(state: State, name: str, number: int, size: int) -> None:
    pairs = state.extents.setdefault(name, [])
    for pair in pairs:
        if pair[0] == number:
            pair[1] = size
            return
    if size:
        pairs.append([number, size])
        pairs.sort()
    elif not pairs:
        del state.extents[name]


def _ids(state: State, table: Keys, store: Path, named: Manifest, limits: Limits) -> None:
    """Set the number of ids: as many as there are fingerprints, and at least the ids in rows."""
    numbers = sorted(named.extents.get(FINGERPRINTS.name, []))
    on_disk = 0
    for number in numbers:
        path = FINGERPRINTS.path(store, number)
        size = path.lstat().st_size - HEADER_BYTES if path.exists() else 0
        on_disk += max(size, 0) // FINGERPRINTS.row_bytes
    given = sum(_length(state, FINGERPRINTS.name, n) for n in numbers) // FINGERPRINTS.row_bytes
    # A committed row never has an id whose fingerprint was not written.
    most = max(state.next_id - 1, given, on_disk)
    state.next_id = max(state.next_id, given + 1, min(_greatest(table), most) + 1)
    left = (state.next_id - 1) * FINGERPRINTS.row_bytes
    capacity = limits.extent_rows * FINGERPRINTS.row_bytes
    for number in numbers:
        _set_length(state, FINGERPRINTS.name, number, min(left, capacity))
        left -= min(left, capacity)


def _greatest(table: Keys) -> int:
    """Return the greatest id in any row."""
    greatest = 0
    row = table.at_or_before("records", _END)
    if row is not None and len(row[0]) == len(_END):
        greatest = int.from_bytes(row[0], "big")
        greatest += _last_of(row[1])
    rows = table.scan("images")
    while True:
        values = [v for _, v in zip(range(_BATCH), (value for _, value in rows), strict=False)]
        if not values:
            break
        able = [value for value in values if len(value) in (39, 51)]
        if able:
            greatest = max(greatest, int(ImageRows.unpack(able).ids.max(initial=0)))
    for _, value in table.scan("names"):
        with contextlib.suppress(RowError):
            greatest = max(greatest, NameRow.unpack(value).id)
    return greatest


def _last_of(value: bytes) -> int:
    """Return how far a ``records`` row's last id is after its first."""
    try:
        return record_span(value) - 1
    except RowError:
        return 0


def _vectors(state: State, named: Manifest) -> None:
    """Make each vector extent's vectors and ids the same length: the longer of the two."""
    space = named.space
    if not space.exists:
        return
    rows_of = space.families
    numbers = {n for family in rows_of for n in named.extents.get(family.name, [])}
    total = 0
    for number in sorted(numbers):
        rows = max(_length(state, f.name, number) // f.row_bytes for f in rows_of)
        for family in rows_of:
            _set_length(state, family.name, number, rows * family.row_bytes)
        total += rows
    if total or space.key in state.vectors:
        state.vectors[space.key] = total
