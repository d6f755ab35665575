"""TIFF directories: counts pages, tags and strips, and measures a strip or tile.

Pillow goes through all pages to count them, and searches each one in a list of those before, so the time
grows with the square of their number. It makes Python objects for each strip of an uncompressed file.
"""

from __future__ import annotations

import struct

from engine.errors import ImageError
from engine.images.formats.cost import HeaderCost
from engine.images.formats.tiff_tags import (
    BITS,
    COMPRESSION,
    HEIGHT,
    RAW,
    ROWS_PER_STRIP,
    SAMPLES,
    STRIP_COUNTS,
    STRIP_OFFSETS,
    TILE_HEIGHT,
    TILE_OFFSETS,
    TILE_WIDTH,
    WIDTH,
)

MAX_PAGES = 10_000
"""The most pages: 35,000 took 5.7 s."""
MAX_TAGS = 250_000
"""The most tags in all pages: each takes about 10 µs."""
MAX_STRIPS = 500_000
"""The most strips or tiles of a page: 450,000 took 1.3 s."""

_RAW_STRIP_BYTES = 400  # Python objects for a strip that Pillow reads itself
_STRIP_BYTES = 100  # the same for a strip that libtiff reads
_TAG_BYTES = 512
# The strip as libtiff unpacks it, Pillow's copy of it, and the decompressor's own window.
_STRIP_COPIES = 3
_SIZES = {1: 1, 3: 2, 4: 4, 13: 4, 16: 8}  # bytes of a value: BYTE, SHORT, LONG, IFD, LONG8
_WANTED = frozenset(
    {WIDTH, HEIGHT, BITS, COMPRESSION, STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS}
    | {TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS}
)


class _Directories:
    """The directories of a classic or a big TIFF's pages."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        order = "<" if data[:2] == b"II" else ">"
        self._big = int.from_bytes(data[2:4], "little" if order == "<" else "big") == 43
        self._count = struct.Struct(order + ("Q" if self._big else "H"))
        self._entry = struct.Struct(order + ("HHQ8s" if self._big else "HHL4s"))
        self._offset = struct.Struct(order + ("Q" if self._big else "L"))
        self._order = order

    def walk(self) -> tuple[int, dict[int, tuple[int, int]]]:
        """Return the first page's number of tags, and (count, first value) by tag."""
        first: dict[int, tuple[int, int]] = {}
        pages = tags = tags_of_first = 0
        seen: set[int] = set()
        (at,) = self._offset.unpack_from(self._data, 8 if self._big else 4)
        while at and at not in seen and at + self._count.size <= len(self._data):
            seen.add(at)
            (count,) = self._count.unpack_from(self._data, at)
            pages, tags = pages + 1, tags + count
            if pages > MAX_PAGES:
                raise ImageError(f"a TIFF of more than {MAX_PAGES:,} pages: split it")
            if tags > MAX_TAGS:
                raise ImageError(f"a TIFF of more than {MAX_TAGS:,} tags")
            at += self._count.size
            if pages == 1:
                tags_of_first, first = count, self._tags(at, count)
            at += count * self._entry.size
            if at + self._offset.size > len(self._data):
                break
            (at,) = self._offset.unpack_from(self._data, at)
        return tags_of_first, first

    def _tags(self, at: int, count: int) -> dict[int, tuple[int, int]]:
        found: dict[int, tuple[int, int]] = {}
        for place in range(at, at + count * self._entry.size, self._entry.size):
            if place + self._entry.size > len(self._data):
                break
            tag, kind, values, inline = self._entry.unpack_from(self._data, place)
            if tag in _WANTED and kind in _SIZES and tag not in found:
                found[tag] = values, self._first_value(_SIZES[kind], values, inline)
        return found

    def _first_value(self, size: int, values: int, inline: bytes) -> int:
        if size * values > len(inline):
            (at,) = self._offset.unpack(inline)
            inline = self._data[at : at + size]
        order = "little" if self._order == "<" else "big"
        return int.from_bytes(inline[:size], order)  # type: ignore[arg-type]


def header_cost(data: bytes) -> HeaderCost:
    """Return the cost of decoding the first page; ``ImageError`` for too many pages, tags or strips."""
    try:
        tags, first = _Directories(data).walk()
    except struct.error:
        # Too short: Pillow reports what is wrong.
        return HeaderCost()
    value = {tag: found for tag, (_, found) in first.items()}
    strips = max(
        (first[tag][0] for tag in (STRIP_OFFSETS, TILE_OFFSETS, STRIP_COUNTS) if tag in first),
        default=0,
    )
    if strips > MAX_STRIPS:
        raise ImageError(
            f"a TIFF of more than {MAX_STRIPS:,} strips or tiles: save it with larger ones"
        )
    raw = value.get(COMPRESSION, RAW) == RAW
    bits = value.get(BITS, 1) * max(value.get(SAMPLES, 1), 1)
    if TILE_WIDTH in value or TILE_HEIGHT in value:
        pixels = value.get(TILE_WIDTH, 0) * value.get(TILE_HEIGHT, 0)
    else:
        height = value.get(HEIGHT, 0)
        pixels = value.get(WIDTH, 0) * min(value.get(ROWS_PER_STRIP, height) or height, height)
    unpacked = 0 if raw else _STRIP_COPIES * (pixels * bits // 8)
    each = _RAW_STRIP_BYTES if raw else _STRIP_BYTES
    return HeaderCost(parsing=strips * each + tags * _TAG_BYTES, decoder=unpacked)
