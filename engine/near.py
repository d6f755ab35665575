"""The images of a store that are near copies of a query: fingerprints first, pixels where they decide.

Only like is compared with like: pictures of 8 and 16 bits with each other, bit images with bit images
of their size. What a distance D of 256 (``--max-distance``) allows:

pictures      D of the 256 bits of the fingerprint, both fingerprints saying something (quality).
bit images    D of the 256 bits of the fingerprint; of the pixels, where they are kept, the same share
              of all values, and twice that share of the *ink* of both. Ink is the rarer value: two
              masks agree nearly everywhere by being blank, and are alike only if their ink is. Twice:
              31 of 256 leave a quarter, as if two shapes shared 3/4 of what they cover.

Where no pixels are kept, the rule of the ink is applied to the fingerprints' own bits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engine import fingerprint, pixels
from engine.errors import ImageError, StoreDamagedError
from engine.fingerprint import FINGERPRINT_BITS
from engine.records import Kind, Pixels, Place
from engine.storage.rows import ImageRow, RecordRow
from engine.store import StoreFiles

_AT_ONCE = 1024  # candidates whose records are in hand
_READ_BYTES = 4 << 20  # of kept pixels in hand
_log = logging.getLogger("engine")

Numbers = npt.NDArray[np.int64]


class Near(NamedTuple):
    """One image near the query."""

    id: int
    distance: int  # bits of 256
    pixel_distance: int | None  # values that differ; None for pictures and where no pixels are kept
    pixel_values: int | None  # of how many
    record: RecordRow

    @property
    def rank(self) -> tuple[float, int, int]:
        """Nearest first: by the pixels where they are known, which are what is meant."""
        share = float(self.distance)
        if self.pixel_distance is not None and self.pixel_values:
            share = self.pixel_distance * FINGERPRINT_BITS / self.pixel_values
        return share, self.distance, self.id


def near(store: StoreFiles, query: Pixels, most: int, taken: set[int]) -> list[Near]:
    """The images within ``most`` (of 256) of ``query``, nearest first, without those ``taken``."""
    prints = fingerprint.candidates(query, most)
    if not len(prints):
        return []
    ids, distances = _within(store, prints, most, ink=query.kind is Kind.BITS)
    found: list[Near] = []
    for at in range(0, len(ids), _AT_ONCE):
        part = slice(at, at + _AT_ONCE)
        some = list(_alike(store, query, ids[part], distances[part], taken))
        found += _by_pixels(store, query, most, some) if query.kind is Kind.BITS else some
    return sorted(found, key=lambda one: one.rank)


def _within(
    store: StoreFiles, prints: npt.NDArray[np.uint8], most: int, *, ink: bool
) -> tuple[Numbers, Numbers]:
    """The ids of the rows within ``most`` of any of the fingerprints, and their distances."""
    ones = fingerprint.ones_of(prints)
    ids, distances = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for part in store.fingerprints.near(prints, most, store.state.next_id - 1):
        which = slice(None)
        if ink:
            zeros = ones[part.query] * 2 > FINGERPRINT_BITS
            theirs = fingerprint.ones_of(part.prints)
            both = ones[part.query] + theirs
            both = 2 * FINGERPRINT_BITS - both if zeros else both
            which = part.distances * FINGERPRINT_BITS <= 2 * most * both
        ids.append(part.rows[which] + 1)
        distances.append(part.distances[which])
    every, nearness = np.concatenate(ids), np.concatenate(distances)
    # One that is near to several of the query's fingerprints counts once, with the least distance.
    order = np.lexsort((nearness, every))
    every, nearness = every[order], nearness[order]
    first = np.flatnonzero(np.diff(every, prepend=0))
    return every[first], nearness[first]


def _alike(
    store: StoreFiles, query: Pixels, ids: Numbers, distances: Numbers, taken: set[int]
) -> Iterator[Near]:
    """Those of the candidates that may be compared with the query."""
    for id_, distance in zip(ids.tolist(), distances.tolist(), strict=True):
        record = store.record(id_) if id_ not in taken else None
        if record is None:  # taken, or removed
            continue
        bits = query.kind is Kind.BITS
        if (record.kind is Kind.BITS) != bits:
            continue
        size = (record.height, record.width, record.channels)
        if bits and size != (query.height, query.width, query.channels):
            continue
        if record.quality >= fingerprint.least_quality(record.kind):
            yield Near(id_, distance, None, None, record)


def _by_pixels(store: StoreFiles, query: Pixels, most: int, some: Sequence[Near]) -> Iterator[Near]:
    """Of bit images of one size those whose pixels are near too, where they are kept."""
    places: list[tuple[Near, Place]] = []
    rows = store.images_of([one.record.key for one in some])
    for one, of_key in zip(some, rows, strict=True):
        row = next((row for row in of_key if row.id == one.id), None)
        if row is None or row.place is None:
            yield one
        elif row.canonical:
            places.append((one, row.place))
        else:
            kept = _decoded(store, row, query)
            yield from _compared(query, most, [one], [kept]) if kept is not None else [one]
    places.sort(key=lambda pair: pair[1])
    store.kept_pixels.announce(place for _, place in places)
    step = max(1, _READ_BYTES // len(query.canonical))
    for at in range(0, len(places), step):
        found, canonicals = [], []
        for one, place in places[at : at + step]:
            try:
                kept = store.kept(place)
            except StoreDamagedError as error:
                _log.warning("image %d: %s", one.id, error)
                kept = b""
            if len(kept) == len(query.canonical):
                found.append(one)
                canonicals.append(kept)
            else:
                yield one
        if found:
            yield from _compared(query, most, found, canonicals)


def _decoded(store: StoreFiles, row: ImageRow, query: Pixels) -> bytes | None:
    """The canonical form of what is kept as a file, if it can be had and is of the query's size."""
    try:
        if row.place is None:
            return None
        kept = store.kept(row.place)
        found = pixels.decode(kept, max_bytes=store.memory.decoding).pixels
    except (ImageError, StoreDamagedError) as error:
        _log.warning("image %d: its kept file cannot be compared: %s", row.id, error)
        return None
    return bytes(found.canonical) if len(found.canonical) == len(query.canonical) else None


def _compared(
    query: Pixels, most: int, some: Sequence[Near], canonicals: Sequence[bytes]
) -> Iterator[Near]:
    """Those whose canonical form, of the query's length, is within the distance of the query's."""
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
        yield some[i]._replace(pixel_distance=int(unlike[i]), pixel_values=values)


def _words(canonicals: Sequence[bytes | memoryview]) -> npt.NDArray[np.uint64]:
    """The pixels of canonical forms of one length: (n, words) uint64, with zeros behind them."""
    n = len(canonicals)
    size = len(canonicals[0]) - pixels.HEADER_BYTES
    out = np.zeros((n, -(-size // 8) * 8), np.uint8)
    for row, canonical in zip(out, canonicals, strict=True):
        row[:size] = np.frombuffer(canonical, np.uint8)[pixels.HEADER_BYTES :]
    return out.view(np.uint64)
