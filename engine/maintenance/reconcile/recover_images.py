"""Makes lost rows of single images again: a record from its row in ``images``, or the other way round.

A row of ``images`` has the proof and the place of the kept pixels; a record has the kind, the size and
the key. Each can be made from the other and the image itself, which is searched for in the kept pixels
and in the sources. A found image is accepted only if its proof, key or file SHA-256 is the right one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.config import KEEP_BITS_LIMIT
from engine.errors import ImageError, StoreDamagedError
from engine.images import canonical, decode, fingerprint, hashing
from engine.records import Buffer, Kind, Pixels, Place
from engine.search.stored_query import in_sources
from engine.storage import extents
from engine.storage.image_rows import ImageRow, ImageRows
from engine.storage.record_rows import ARRAY, RecordRow
from engine.storage.session import Session
from engine.storage.table import in_batches

_BATCH = 4096
_MAX_SIZES = 256  # lengths of kept files tried at one place


@dataclass(frozen=True, slots=True)
class Unkeyed:
    """An image whose row in ``images`` is lost."""

    id: int
    record: RecordRow


def record_of(store: Session, id_: int, key: bytes, row: ImageRow) -> RecordRow | None:
    """Make the record of an image from its row in ``images``, or None; its metadata stays lost."""
    kept = _kept(store, row)
    if kept is not None and row.in_runs:
        return _record(kept, key, container=ARRAY)
    for query, decoded in in_sources(store, id_):
        if hashing.proof(decoded.pixels.canonical) == row.proof:
            return _record(decoded.pixels, key, decoded.container, query.data or b"")
    return _record(kept, key, container="") if kept is not None else None


def _kept(store: Session, row: ImageRow) -> Pixels | None:
    """The kept pixels of an image, or None if they cannot be read or are another image's."""
    if row.place is None:
        return None
    try:
        data = store.snapshot.kept(row.place)
        if row.canonical:
            found = canonical.from_canonical(data)
        else:
            found = decode.decode(data, max_bytes=store.memory.decoding).pixels
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
        decode.DECODER if data else "",
    )


def rows_of(store: Session, lost: list[Unkeyed]) -> Iterator[tuple[int, ImageRow, Buffer | None]]:
    """Make the rows in ``images`` of ``lost`` images again: id, row, and bytes to keep, or None.

    Images that are not found are left out. Bit images are kept, if the store keeps pixels.
    """
    wanted = {one.record.key: one for one in lost}
    keeps = bool(store.snapshot.state.extents.get(extents.PIXELS.name))
    for key, row in _among_kept(store, wanted):
        yield wanted.pop(key).id, row, None
    for key, one in wanted.items():
        for query, decoded in in_sources(store, one.id):
            found = decoded.pixels
            same_file = query.data is None or not one.record.file_hash
            same_file |= hashing.file_hash(query.data or b"") == one.record.file_hash
            if same_file and hashing.key(found.canonical, store.snapshot.settings.hash_seed) == key:
                small = len(found.canonical) <= canonical.HEADER_BYTES + KEEP_BITS_LIMIT
                keep = found.canonical if keeps and small and found.kind is Kind.BITS else None
                row = ImageRow(
                    one.id, hashing.proof(found.canonical), None, canonical=keep is not None
                )
                yield one.id, row, keep
                break


def _among_kept(store: Session, wanted: dict[bytes, Unkeyed]) -> Iterator[tuple[bytes, ImageRow]]:
    """Search kept pixels that belong to no image for wanted images: the key and row of each."""
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
                key = hashing.key(found, store.snapshot.settings.hash_seed)
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


def _canonical_at(store: Session, extent: int, at: int, end: int) -> bytes | None:
    """The canonical form of an image that begins at byte ``at`` of an extent, or None."""
    if end - at < canonical.HEADER_BYTES:
        return None
    try:
        head = store.snapshot.kept(Place(extent, at, canonical.HEADER_BYTES))
        size = canonical.canonical_bytes(head)
        return store.snapshot.kept(Place(extent, at, size)) if size <= end - at else None
    except (StoreDamagedError, ImageError):
        return None


def _file_at(
    store: Session, extent: int, at: int, end: int, files: dict[int, list[Unkeyed]]
) -> tuple[Unkeyed, ImageRow] | None:
    """The wanted image whose kept file begins at byte ``at`` of an extent, or None."""
    sizes = [end - at] if end - at in files else []
    if len(files) <= _MAX_SIZES:
        sizes += [size for size in files if 0 < size < end - at]
    for size in sizes:
        place = Place(extent, at, size)
        try:
            data = store.snapshot.kept(place)
        except StoreDamagedError:
            continue
        hashed = hashing.file_hash(data)
        for one in files[size]:
            if one.record.file_hash == hashed:
                try:
                    found = decode.decode(data, max_bytes=store.memory.decoding).pixels
                except ImageError:
                    continue
                if (
                    hashing.key(found.canonical, store.snapshot.settings.hash_seed)
                    == one.record.key
                ):
                    return one, ImageRow(one.id, hashing.proof(found.canonical), place)
    return None


def _gaps(store: Session) -> Iterator[tuple[int, int, int]]:
    """The kept bytes that belong to no image: extent, first and end."""
    numbers, starts, ends = _spans(store)
    for number, size in store.snapshot.state.extents.get(extents.PIXELS.name, []):
        first, last = np.searchsorted(numbers, (number, number + 1))
        after = np.append(0, np.maximum.accumulate(ends[first:last]))
        before = np.append(starts[first:last], size)
        for at in np.flatnonzero(before > after).tolist():
            yield number, int(after[at]), int(before[at])


def _spans(store: Session) -> tuple[npt.NDArray[np.int64], ...]:
    """The places of all kept pixels, in order: extents, first bytes and ends, (n,) each."""
    parts = [np.empty((3, 0), np.int64)]
    for batch in in_batches(store.snapshot.tables.images.scan(), _BATCH):
        rows = ImageRows.unpack([value for _, value in batch])
        ends = rows.offsets + rows.lengths
        parts.append(np.stack([rows.extents, rows.offsets, ends])[:, rows.kept])
    spans = np.concatenate(parts, axis=1)
    return tuple(spans[:, np.lexsort((spans[1], spans[0]))])
