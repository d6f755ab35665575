"""The near tier: finds near copies of a query by fingerprints, and bit images by kept pixels too.

Only images of one sort are compared: pictures of 8 and 16 bits with each other, bit images with bit
images of the same size. What a distance D of 256 (``max_distance``) allows:

pictures      D of the 256 bits of the fingerprint, if both images have enough quality.
bit images    D of the 256 bits of the fingerprint. Where pixels are kept, also the same share of all
              values, and twice that share of the *ink* of both. Ink is the rarer value: two masks
              agree nearly everywhere because they are blank, and are alike only if their ink is.
              Twice, so that 31 of 256 allow about a quarter of the ink to differ.

The rule of the ink is applied twice: first to the 256 bits of the fingerprints, where the ink is the
rarer value in the query's fingerprint; then, where pixels are kept, to all values of the remaining
candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engine.errors import ImageError, StoreDamagedError
from engine.images import canonical, decode, fingerprint
from engine.images.fingerprint import FINGERPRINT_BITS
from engine.records import Kind, Pixels, Place
from engine.storage.bitmap import IdSet
from engine.storage.extents import FINGERPRINTS
from engine.storage.image_rows import ImageRow
from engine.storage.record_rows import SharedRecords
from engine.storage.session import Session

_AT_ONCE = 1024  # candidates whose records are in memory
_READ_BYTES = 4 << 20  # kept pixels in memory
_log = logging.getLogger("engine.search")

Numbers = npt.NDArray[np.int64]


class NearImages(NamedTuple):
    """The images near a query, nearest first, by their pixels where these are kept.

    Only numbers, since these may be all images of a store, and a record has up to 16 KiB of metadata.
    """

    ids: Numbers  # (n,)
    distances: Numbers  # (n,) bits of 256
    # (n,) values that differ; -1 for pictures, and for bit images without kept pixels.
    pixel_distances: Numbers


class _Alike(NamedTuple):
    """A candidate that may be compared with the query."""

    number: int  # its place among the candidates
    id: int
    key: bytes


def near_images(
    store: Session,
    query: Pixels,
    prints: npt.NDArray[np.uint8],
    most: int,
    taken: set[int],
    wanted: IdSet | None = None,
) -> NearImages:
    """The images within a distance of ``most`` (of 256) of ``query``, without ids in ``taken``.

    ``prints`` (m, 32) are the query's ``fingerprint.candidates``. ``wanted`` are the images that may be
    found, None for all.
    """
    if not len(prints):
        return NearImages(*np.empty((3, 0), np.int64))
    bits = query.kind is Kind.BITS
    ids, distances = _within(store, prints, most, wanted, ink=bits)
    fits = np.zeros(len(ids), np.bool_)
    unlike = np.full(len(ids), -1)
    for at in range(0, len(ids), _AT_ONCE):
        some = _alike(store, query, ids[at : at + _AT_ONCE], at, taken)
        if bits:
            for number, count in _by_pixels(store, query, most, list(some)):
                fits[number], unlike[number] = True, count
        else:
            fits[[one.number for one in some]] = True
    ids, distances, unlike = ids[fits], distances[fits], unlike[fits]
    by_pixels = unlike * FINGERPRINT_BITS / (query.height * query.width * query.channels)
    share = np.where(unlike < 0, distances, by_pixels)
    order = np.lexsort((ids, distances, share))
    return NearImages(ids[order], distances[order], unlike[order])


def _within(
    store: Session,
    prints: npt.NDArray[np.uint8],
    most: int,
    wanted: IdSet | None,
    *,
    ink: bool,
) -> tuple[Numbers, Numbers]:
    """The ids within ``most`` of any of the fingerprints, ascending, and their distances: (n,) each."""
    imported = store.snapshot.space.is_imported
    ones = fingerprint.ones_of(prints)
    removed = store.snapshot.removed_ids()
    ids, distances = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    committed = store.snapshot.state.extents.get(FINGERPRINTS.name, [])
    for part in store.snapshot.fingerprints.near(prints, most, committed, holes=imported):
        which = ~removed.has(part.rows + 1)
        if wanted is not None:
            which &= wanted.has(part.rows + 1)
        if ink:
            zeros = ones[part.query] * 2 > FINGERPRINT_BITS
            theirs = fingerprint.ones_of(part.prints)
            both = ones[part.query] + theirs
            both = 2 * FINGERPRINT_BITS - both if zeros else both
            which &= part.distances * FINGERPRINT_BITS <= 2 * most * both
        if imported and which.any() and not part.prints[which].any(axis=1).all():
            # The fingerprint of a vector is all zeros.
            which[which] = store.snapshot.may_be_images(part.rows[which] + 1)
        ids.append(part.rows[which] + 1)
        distances.append(part.distances[which])
    every, nearness = np.concatenate(ids), np.concatenate(distances)
    # An image near several of the query's fingerprints counts once, with its smallest distance.
    order = np.lexsort((nearness, every))
    every, nearness = every[order], nearness[order]
    first = np.flatnonzero(np.diff(every, prepend=0))
    return every[first], nearness[first]


def _alike(
    store: Session, query: Pixels, ids: Numbers, first: int, taken: set[int]
) -> Iterator[_Alike]:
    """The candidates that may be compared; ``ids`` are those from number ``first`` on."""
    at = 0
    while at < len(ids):
        id_ = int(ids[at])
        shared = store.snapshot.shared_records(id_)
        if shared is not None:
            end = int(np.searchsorted(ids, shared.ids.stop))
            yield from _alike_rows(query, shared, ids[at:end], first + at, taken)
            at = end
            continue
        record = store.snapshot.record(id_) if id_ not in taken else None
        # Taken by a stricter tier, removed, or an imported vector.
        if record is not None and record.kind is not Kind.VECTOR:
            size = (record.height, record.width, record.channels)
            if _is_like(query, record.kind, size) and record.quality >= fingerprint.min_quality(
                record.kind
            ):
                yield _Alike(first + at, id_, record.key)
        at += 1


def _alike_rows(
    query: Pixels, shared: SharedRecords, ids: Numbers, first: int, taken: set[int]
) -> Iterator[_Alike]:
    """``_alike`` for ``ids`` (n,) that are all rows of an array with shared records."""
    if shared.kind not in (Kind.BITS, Kind.U8, Kind.U16):
        return
    kind, size = Kind(shared.kind), (shared.height, shared.width, shared.channels)
    if not _is_like(query, kind, size):
        return
    at = ids - shared.ids.start
    able = shared.there[at] & (shared.qualities[at] >= fingerprint.min_quality(kind))
    for number in np.flatnonzero(able).tolist():
        id_ = int(ids[number])
        if id_ not in taken:
            yield _Alike(first + number, id_, shared.key(id_))


def _is_like(query: Pixels, kind: Kind, size: tuple[int, int, int]) -> bool:
    """Whether an image of this kind and size (height, width, channels) is compared with the query."""
    bits = query.kind is Kind.BITS
    if (kind is Kind.BITS) != bits:
        return False
    return not bits or size == (query.height, query.width, query.channels)


def _by_pixels(
    store: Session, query: Pixels, most: int, some: Sequence[_Alike]
) -> Iterator[tuple[int, int]]:
    """Same-size bit images whose kept pixels also match: number, and how many values differ.

    The count is -1 if the pixels are not kept or cannot be compared.
    """
    places: list[tuple[_Alike, Place]] = []
    rows = store.snapshot.images_of([one.key for one in some])
    for one, of_key in zip(some, rows, strict=True):
        row = next((row for row in of_key if row.id == one.id), None)
        if row is None or row.place is None:
            yield one.number, -1
        elif row.canonical:
            if row.place.length == len(query.canonical):
                places.append((one, row.place))
            # Damaged: the record has the query's size.
            else:
                yield one.number, -1
        else:
            kept = _decoded(store, row, query)
            if kept is None:
                yield one.number, -1
            else:
                yield from _compared(query, most, [one.number], [kept])
    places.sort(key=lambda pair: pair[1])
    store.snapshot.kept_pixels.announce(place for _, place in places)
    step = max(1, _READ_BYTES // len(query.canonical))
    for at in range(0, len(places), step):
        numbers, canonicals = [], []
        for one, place in places[at : at + step]:
            try:
                kept = store.snapshot.kept(place)
            except StoreDamagedError as error:
                _log.warning("image %d: %s", one.id, error)
                kept = b""
            if len(kept) == len(query.canonical):
                numbers.append(one.number)
                canonicals.append(kept)
            else:
                yield one.number, -1
        if numbers:
            yield from _compared(query, most, numbers, canonicals)


def _decoded(store: Session, row: ImageRow, query: Pixels) -> bytes | None:
    """The canonical form of an image kept as a file, or None if it cannot be compared."""
    try:
        if row.place is None or row.place.length > store.memory.max_file:
            return None
        kept = store.snapshot.kept(row.place)
        found = decode.decode(kept, max_bytes=store.memory.decoding).pixels
    except (ImageError, StoreDamagedError) as error:
        _log.warning("image %d: its kept file cannot be compared: %s", row.id, error)
        return None
    return bytes(found.canonical) if len(found.canonical) == len(query.canonical) else None


def _compared(
    query: Pixels, most: int, numbers: Sequence[int], canonicals: Sequence[bytes]
) -> Iterator[tuple[int, int]]:
    """The numbers of canonical forms within the distance of the query, and how many values differ.

    All ``canonicals`` have the length of the query's.
    """
    values = query.height * query.width * query.channels
    own = _words([query.canonical])
    theirs = _words(canonicals)
    unlike = np.bitwise_count(theirs ^ own).sum(axis=1, dtype=np.int64)
    ink = np.bitwise_count(own).sum(dtype=np.int64)
    both = ink + np.bitwise_count(theirs).sum(axis=1, dtype=np.int64)
    if 2 * ink > values:
        both = 2 * values - both
    fits = unlike * FINGERPRINT_BITS <= most * np.minimum(values, 2 * both)
    for i in np.flatnonzero(fits).tolist():
        yield numbers[i], int(unlike[i])


def _words(canonicals: Sequence[bytes | memoryview]) -> npt.NDArray[np.uint64]:
    """The pixels of n canonical forms of one length: (n, words) uint64, padded with zeros."""
    n = len(canonicals)
    size = len(canonicals[0]) - canonical.HEADER_BYTES
    out = np.zeros((n, -(-size // 8) * 8), np.uint8)
    for row, form in zip(out, canonicals, strict=True):
        row[:size] = np.frombuffer(form, np.uint8)[canonical.HEADER_BYTES :]
    return out.view(np.uint64)
