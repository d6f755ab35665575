"""AVIF: the depth of its samples, and the size of the pictures that its decoder will make.

The container alone is not enough for either. Pillow returns 8 bits per channel whatever the file has.
The depth that a file declares (``av1C``) and that of its bitstream (the sequence header) may differ, so
both are read, for exactly the items and tracks that the decoder reads. And a file of 1 KB may declare
64 × 64 but contain a picture of 8,000 × 8,000, which is decoded before the two are compared. So
the sizes in the same sequence headers count.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from engine.errors import ImageError
from engine.images.formats import av1
from engine.images.formats.avif_items import AvifItem, descriptions, items_of, kind_of, primary_of
from engine.images.formats.boxes import boxes, first, number
from engine.images.formats.cost import HeaderCost
from engine.images.formats.samples import unsupported

_PIXEL_BYTES = 4  # planes without subsampling, and alpha
_MAX_UNITS = 65536
"""The most units in all bitstreams of a file; a picture or a tile of it has about four."""


class _Picture(NamedTuple):
    """An item or track; the decoder reads its first picture."""

    bitstream: memoryview
    depths: tuple[int, ...]  # as configured
    size: tuple[int, int] | None  # width and height as the container says; None if it may be larger
    copied: int = 0  # bytes that lie in several extents and are joined for decoding


def header_cost(data: bytes) -> HeaderCost:
    """Return the size of the largest coded picture, and the bytes copied to decode it."""
    largest = copied = 0
    try:
        for picture, headers in _coded(memoryview(data)):
            copied += picture.copied
            for header in headers:
                width, height = header.size
                largest = max(largest, width * height)
    except (ImageError, IndexError, ValueError):
        # ``refuse_reduced`` reports what is wrong.
        pass
    return HeaderCost(parsing=copied, decoder=_PIXEL_BYTES * largest)


def refuse_reduced(data: bytes) -> None:
    """Raise ``ImageError`` for an AVIF whose samples would be reduced, or whose depth is unknown.

    The decoder returns 8 bits per channel, and scales a picture to the size that its container declares.
    """
    depths: list[int] = []
    try:
        for picture, headers in _coded(memoryview(data)):
            depths += picture.depths
            for header in headers:
                depths.append(header.depth())
                _refuse_larger(header.size, picture.size)
    except (IndexError, ValueError):
        raise ImageError("broken image: the structure of an AVIF file does not fit") from None
    if not depths:
        raise ImageError("broken image: an AVIF file of unknown depth")
    if max(depths) > 8:
        raise unsupported(f"AVIF with {max(depths)} bits a channel")


def without_exif(data: bytes) -> bytes | None:
    """Return a copy of an AVIF with its EXIF hidden; None if it has none.

    The decoder refuses a file with broken EXIF. The container says how the picture is turned.
    """
    changed, found = bytearray(data), False
    try:
        meta = first(memoryview(changed), b"meta")
        for info in descriptions(meta[4:]) if meta is not None else ():
            kind = kind_of(info)
            if bytes(kind) == b"Exif":
                kind[:] = b"free"
                found = True
    except (ImageError, IndexError, ValueError):
        return None
    return bytes(changed) if found else None


def _refuse_larger(coded: tuple[int, int], said: tuple[int, int] | None) -> None:
    if said is not None and (coded[0] > said[0] or coded[1] > said[1]):
        raise ImageError(
            f"broken image: an AVIF file says {said[0]} × {said[1]} pixels, and holds "
            f"{coded[0]} × {coded[1]}"
        )


def _coded(view: memoryview) -> Iterator[tuple[_Picture, list[av1.SequenceHeader]]]:
    """Yield each picture that the decoder reads, and its sequence headers.

    Raises ``ImageError``, ``IndexError`` or ``ValueError`` if the structure is inconsistent.
    """
    left = _MAX_UNITS
    for picture in _pictures(view):
        headers = []
        for kind, content in av1.units(picture.bitstream):
            left -= 1
            if left < 0:
                raise ImageError(f"broken image: an AVIF file of more than {_MAX_UNITS:,} units")
            if kind == av1.SEQUENCE_HEADER:
                headers.append(av1.SequenceHeader(content))
        if not headers:
            raise ValueError
        yield picture, headers


def _pictures(view: memoryview) -> Iterator[_Picture]:
    meta = first(view, b"meta")
    if meta is not None:
        yield from _of_items(view, meta[4:])
    movie = first(view, b"moov")
    if movie is not None:
        for name, track in boxes(movie):
            if name == b"trak" and (picture := _of_track(view, track)) is not None:
                yield picture


def _of_items(view: memoryview, meta: memoryview) -> Iterator[_Picture]:
    main = primary_of(meta)
    if main is None:
        return
    found = items_of(meta)
    content = first(meta, b"iprp", b"ipco")
    properties = list(boxes(content)) if content is not None else []
    inside = first(meta, b"idat")
    copied = 0
    for item in found.read_for(main):
        if item.kind != b"av01":
            continue
        has = [properties[index - 1] for index in item.properties if 0 < index <= len(properties)]
        parts = _parts_of(item, view, inside)
        length = sum(map(len, parts)) if len(parts) > 1 else 0
        copied += length
        # The extents overlap.
        if copied > len(view):
            raise ValueError
        yield _Picture(
            parts[0] if len(parts) == 1 else memoryview(b"".join(parts)),
            tuple(av1.configured_depth(content) for name, content in has if name == b"av1C"),
            _size_of(has),
            length,
        )


def _size_of(properties: list[tuple[bytes, memoryview]]) -> tuple[int, int] | None:
    """Return an item's declared size; None if it has several layers, which differ in size."""
    names = [name for name, _ in properties]
    if b"ispe" not in names or b"lsel" in names or b"a1op" in names:
        return None
    content = properties[names.index(b"ispe")][1]
    return number(content, 4, 4), number(content, 8, 4)


def _parts_of(item: AvifItem, view: memoryview, inside: memoryview | None) -> list[memoryview]:
    """Return an item's bytes, from the file or from ``inside``, its ``idat`` box."""
    parts = []
    for within, offset, length in item.extents:
        source = inside if within else view
        if source is None or offset > len(source):
            raise ValueError
        end = offset + length if length else len(source)
        parts.append(source[offset:end])
    return parts


def _of_track(view: memoryview, track: memoryview) -> _Picture | None:
    """Return the first picture of a track; None if it has none, such as a sound track."""
    table = first(track, b"mdia", b"minf", b"stbl")
    if table is None:
        return None
    described = first(table, b"stsd")
    if described is None:
        return None
    entries = [entry for name, entry in boxes(described[8:]) if name == b"av01"]
    if not entries:
        return None
    depths = tuple(
        av1.configured_depth(content)
        for entry in entries
        for name, content in boxes(entry[78:])
        if name == b"av1C"
    )
    sizes, places, wide = first(table, b"stsz"), first(table, b"stco"), 4
    if places is None:
        places, wide = first(table, b"co64"), 8
    head = first(track, b"tkhd")
    if sizes is None or places is None or head is None:
        raise ValueError
    length = number(sizes, 4, 4) or number(sizes, 12, 4)
    offset = number(places, 8, wide)
    # At the end of the header, as 16.16 fixed-point numbers.
    at = 76 if head[0] == 0 else 88
    size = number(head, at, 4) >> 16, number(head, at + 4, 4) >> 16
    return _Picture(view[offset : offset + length], depths, size)
