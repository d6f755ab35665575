"""Finds again what the keys lost of single images: a record by its key's row, or the row by its record.

A row of ``images`` has the proof and the place of the kept pixels; a record the kind, the size and the
key. Each can be made of the other and the image itself, which is looked for among the kept pixels and
in the sources. It is accepted only where proof, key or the file's SHA-256 say that it is the very one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.config import KEEP_BITS_LIMIT
from engine.errors import EngineError, ImageError, StoreDamagedError
from engine.images import canonical, fingerprint, hashing
from engine.records import Buffer, Kind, Pixels, Place
from engine.sources.items import Problem as SourceProblem
from engine.sources.locate import Query, open_images
from engine.storage import extents
from engine.storage.rows import ARRAY, ImageRow, ImageRows, RecordRow
from engine.storage.writer import StoreFiles

_SOURCES = 100  # of one image that are tried
_BATCH = 4096
_MAX_SIZES = 256  # lengths of kept files that are tried at one place


@dataclass(frozen=True, slots=True)
class Unkeyed:
    """An image whose row in ``images`` is lost."""

    id: int
    record: RecordRow


def record_of(store: StoreFiles, id_: int, key: bytes, row: ImageRow) -> RecordRow | None:
    """The record of an image that has only a row in ``images``; its metadata stays lost."""
    kept = _kept(store, row)
    if kept is not None and row.in_runs:
        return _record(kept, key, container=ARRAY)
    for query, found, container in from_sources(store, id_):
        if hashing.proof(found.canonical) == row.proof:
            return _record(found, key, container, query.data or b"")
    return _record(kept, key, container="") if kept is not None else None


def _kept(store: StoreFiles, row: ImageRow) -> Pixels | None:
    """The kept pixels of an image, if they are its own."""
    if row.place is None:
        return None
    try:
        data = store.kept(row.place)
        if row.canonical:
            found = canonical.from_canonical(data)
        else:
            found = canonical.decode(data, max_bytes=store.memory.decoding).pixels
    except (StoreDamagedError, ImageError):
        return None
    return found if hashing.proof(found.canonical) == row.proof else None


def _record(found: Pixels, key: bytes, container: str, data: bytes = b"") -> RecordRow:
    return RecordRow(
        found.kind,
        found.height,
        found.width,
        found.channels,
        found.frames,
        fingerprint.fingerprint(found)[1],
        len(data),
        key,
        hashing.file_hash(data) if data else b"",
        container,
        canonical.DECODER if data else "",
    )


def from_sources(store: StoreFiles, id_: int) -> Iterator[tuple[Query, Pixels, str]]:
    """What the sources of an image hold by now: the query, its pixels and their container."""
    try:
        names = store.sources_of(id_, _SOURCES)[0]
    except StoreDamagedError:
        return
    for name in names:
        try:
            for query in open_images(os.fsdecode(name), store.memory.max_file):
                if not isinstance(query, SourceProblem) and query.vector is None:
                    decoded = query.decode(store.memory.decoding)
                    yield query, decoded.pixels, decoded.container
        except EngineError:
            continue


def rows_of(
    store: StoreFiles, lost: list[Unkeyed]
) -> Iterator[tuple[int, ImageRow, Buffer | None]]:
    """The rows in ``images`` of those of some images that are found again, by id.

    With each, what is to be kept of it: bit images, where the store keeps pixels.
    """
    wanted = {one.record.key: one for one in lost}
    keeps = bool(store.state.extents.get(extents.PIXELS.name))
    for key, row in _among_kept(store, wanted):
        yield wanted.pop(key).id, row, None
    for key, one in wanted.items():
        for query, found, _ in from_sources(store, one.id):
            same_file = query.data is None or not one.record.file_hash
            same_file |= hashing.file_hash(query.data or b"") == one.record.file_hash
            if same_file and hashing.key(found.canonical, store.settings.hash_seed) == key:
                small = len(found.canonical) <= canonical.HEADER_BYTES + KEEP_BITS_LIMIT
                keep = found.canonical if keeps and small and found.kind is Kind.BITS else None
                row = ImageRow(
                    one.id, hashing.proof(found.canonical), None, canonical=keep is not None
                )
                yield one.id, row, keep
                break


def _among_kept(
    store: StoreFiles, wanted: dict[bytes, Unkeyed]
) -> Iterator[tuple[bytes, ImageRow]]:
    """Look for wanted images in kept pixels that are of no image: the key and the row of each."""
    files: dict[int, list[Unkeyed]] = {}
    for one in wanted.values():
        if one.record.file_hash:
            files.setdefault(one.record.file_bytes, []).append(one)
    seen: set[bytes] = set()
    for extent, start, end in _gaps(store):
        at = start
        while at < end:
            found = _canonical_at(store, extent, at, end)
            if found is not None:
                key = hashing.key(found, store.settings.hash_seed)
                place = Place(extent, at, len(found))
                if key in wanted and key not in seen:
                    seen.add(key)
                    yield (
                        key,
                        ImageRow(wanted[key].id, hashing.proof(found), place, canonical=True),
                    )
                at += len(found)
                continue
            file = _file_at(store, extent, at, end, files)
            if file is None:
                break
            one, row = file
            assert row.place is not None
            if one.record.key not in seen:
                seen.add(one.record.key)
                yield one.record.key, row
            at += row.place.length


def _canonical_at(store: StoreFiles, extent: int, at: int, end: int) -> bytes | None:
    """The canonical form of an image that begins at a byte of an extent of kept pixels."""
    if end - at < canonical.HEADER_BYTES:
        return None
    try:
        head = store.kept(Place(extent, at, canonical.HEADER_BYTES))
        size = canonical.canonical_bytes(head)
        return store.kept(Place(extent, at, size)) if size <= end - at else None
    except (StoreDamagedError, ImageError):
        return None


def _file_at(
    store: StoreFiles, extent: int, at: int, end: int, files: dict[int, list[Unkeyed]]
) -> tuple[Unkeyed, ImageRow] | None:
    """The kept file of a wanted image that begins at a byte of an extent."""
    sizes = [end - at] if end - at in files else []
    if len(files) <= _MAX_SIZES:
        sizes += [size for size in files if 0 < size < end - at]
    for size in sizes:
        place = Place(extent, at, size)
        try:
            data = store.kept(place)
        except StoreDamagedError:
            continue
        hashed = hashing.file_hash(data)
        for one in files[size]:
            if one.record.file_hash == hashed:
                try:
                    found = canonical.decode(data, max_bytes=store.memory.decoding).pixels
                except ImageError:
                    continue
                if hashing.key(found.canonical, store.settings.hash_seed) == one.record.key:
                    return one, ImageRow(one.id, hashing.proof(found.canonical), place)
    return None


def _gaps(store: StoreFiles) -> Iterator[tuple[int, int, int]]:
    """The kept bytes that no image has: extent, first and end."""
    for number, size in store.state.extents.get(extents.PIXELS.name, []):
        starts, ends = _spans(store, number)
        ends = np.append(0, np.maximum.accumulate(ends))
        starts = np.append(starts, size)
        for at in np.flatnonzero(starts > ends).tolist():
            yield number, int(ends[at]), int(starts[at])


def _spans(store: StoreFiles, number: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where kept pixels of images lie in one extent, in order: first bytes and ends, (n,) each."""
    starts: list[npt.NDArray[np.int64]] = []
    lengths: list[npt.NDArray[np.int64]] = []
    values: list[bytes] = []
    for _, value in store.tables.images.scan():
        values.append(value)
        if len(values) == _BATCH:
            _take(values, number, starts, lengths)
            values = []
    _take(values, number, starts, lengths)
    offsets = np.concatenate([np.empty(0, np.int64), *starts])
    order = np.argsort(offsets)
    sizes = np.concatenate([np.empty(0, np.int64), *lengths])
    return offsets[order], (offsets + sizes)[order]


def _take(
    values: list[bytes],
    number: int,
    starts: list[npt.NDArray[np.int64]],
    lengths: list[npt.NDArray[np.int64]],
) -> None:
    if values:
        rows = ImageRows.unpack(values)
        mine = rows.kept & (rows.extents == number)
        starts.append(rows.offsets[mine])
        lengths.append(rows.lengths[mine])
