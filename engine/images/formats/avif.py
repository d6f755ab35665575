"""AVIF: how deep its samples are, and how large the pictures that its decoder will make.

Neither can be taken from the container alone. Pillow gives 8 bits a channel whatever the file has; what
a file says of its depth (``av1C``) and what its bitstream has (the sequence header) may differ, so both
are looked at, of the items and tracks that the decoder reads and nowhere else. And a file of 1 KB may
claim 64 × 64 and hold a picture of 8,000 × 8,000, which is decoded before the two are compared; so sizes
are looked for in every sequence header that follows a temporal delimiter or begins a box.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.errors import ImageError
from engine.images.formats import av1
from engine.images.formats.avif_items import AvifItem, descriptions, items_of, kind_of, primary_of
from engine.images.formats.boxes import boxes, first, number
from engine.images.formats.cost import HeaderCost
from engine.images.formats.samples import unsupported

_PIXEL_BYTES = 4  # planes without subsampling, and alpha


def header_cost(data: bytes) -> HeaderCost:
    """What the largest coded picture takes."""
    sizes = (found.size for found in av1.sequence_headers_anywhere(data))
    largest = max((width * height for width, height in sizes), default=0)
    return HeaderCost(decoder=_PIXEL_BYTES * largest)


def refuse_deep(data: bytes) -> None:
    """Raise ``ImageError`` for an AVIF with more than 8 bits a channel, or none that can be made out."""
    view = memoryview(data)
    try:
        found = list(_depths(view))
    except (IndexError, ValueError):
        raise ImageError("broken image: the structure of an AVIF file does not fit") from None
    if not found:
        raise ImageError("broken image: an AVIF file whose depth cannot be made out")
    if max(found) > 8:
        raise unsupported(f"AVIF with {max(found)} bits a channel")


def without_exif(data: bytes) -> bytes | None:
    """A copy of an AVIF whose EXIF nobody reads; None if it has none.

    The decoder refuses a file for EXIF that is broken. How the picture is turned says the container.
    """
    try:
        meta = first(memoryview(data), b"meta")
        infos = descriptions(meta[4:]) if meta is not None else ()
        found = [bytes(info) for info in infos if kind_of(info) == b"Exif"]
    except (ImageError, IndexError, ValueError):
        return None
    changed = data
    for entry in found:
        changed = changed.replace(entry, entry.replace(b"Exif", b"free", 1), 1)
    return changed if found else None


def _depths(view: memoryview) -> Iterator[int]:
    meta = first(view, b"meta")
    if meta is not None:
        yield from _item_depths(view, meta[4:])
    movie = first(view, b"moov")
    if movie is not None:
        for name, track in boxes(movie):
            if name == b"trak":
                yield from _track_depths(view, track)


def _item_depths(view: memoryview, meta: memoryview) -> Iterator[int]:
    main = primary_of(meta)
    if main is None:
        return
    found = items_of(meta)
    properties = first(meta, b"iprp", b"ipco")
    configurations = list(boxes(properties)) if properties is not None else []
    inside = first(meta, b"idat")
    for item in found.read_for(main):
        if item.kind != b"av01":
            continue
        for index in item.properties:
            if 0 < index <= len(configurations) and configurations[index - 1][0] == b"av1C":
                yield av1.configured_depth(configurations[index - 1][1])
        yield from _bitstream_depths(_bytes_of(item, view, inside))


def _bytes_of(item: AvifItem, view: memoryview, inside: memoryview | None) -> memoryview:
    """The bytes of an item, out of the file or what lies ``inside`` its ``meta`` box."""
    parts = []
    for within, offset, length in item.extents:
        source = inside if within else view
        if source is None or offset > len(source):
            raise ValueError
        end = offset + length if length else len(source)
        parts.append(source[offset:end])
    return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def _track_depths(view: memoryview, track: memoryview) -> Iterator[int]:
    table = first(track, b"mdia", b"minf", b"stbl")
    if table is None:
        return
    described = first(table, b"stsd")
    if described is None:
        return
    found = False
    for name, entry in boxes(described[8:]):
        if name == b"av01":
            found = True
            for inner, content in boxes(entry[78:]):
                if inner == b"av1C":
                    yield av1.configured_depth(content)
    if not found:
        return  # of sound, say
    sizes, places, wide = first(table, b"stsz"), first(table, b"stco"), 4
    if places is None:
        places, wide = first(table, b"co64"), 8
    if sizes is None or places is None:
        raise ValueError
    size = number(sizes, 4, 4) or number(sizes, 12, 4)
    offset = number(places, 8, wide)
    yield from _bitstream_depths(view[offset : offset + size])


def _bitstream_depths(view: memoryview) -> Iterator[int]:
    return (header.depth() for header in av1.sequence_headers(view))
