"""AVIF: how deep the samples are that the decoder gets, which Pillow gives at 8 bits whatever they are.

What a file says of its depth (``av1C``) and what its bitstream has (the sequence header) may differ; so
both are looked at, of the items and tracks that the decoder reads and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from engine.errors import ImageError
from engine.images.formats.boxes import boxes, first
from engine.images.formats.common import unsupported

_SEQUENCE_HEADER = 1
_MAX_ITEMS = 4096
_MAX_UNITS = 65536


@dataclass(slots=True)
class _Item:
    kind: bytes = b""
    extents: list[tuple[bool, int, int]] = field(default_factory=list)  # in idat, offset, length
    properties: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)  # of a grid


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
    view = memoryview(data)
    try:
        infos = first(view, b"meta")
        infos = first(infos[4:], b"iinf") if infos is not None else None
        found = []
        for name, info in boxes(infos[6 if infos[0] == 0 else 8 :]) if infos is not None else ():
            at = 8 if info[0] == 2 else 10  # of the kind of the item
            if name == b"infe" and bytes(info[at : at + 4]) == b"Exif":
                found.append(bytes(info))
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


# --- items ----------------------------------------------------------------------------------------


def _item_depths(view: memoryview, meta: memoryview) -> Iterator[int]:
    primary = first(meta, b"pitm")
    if primary is None:
        return
    main = _number(primary, 4, 2 if primary[0] == 0 else 4)
    items, alphas = _items(meta)
    properties = first(meta, b"iprp", b"ipco")
    configurations = list(boxes(properties)) if properties is not None else []
    inside = first(meta, b"idat")
    # With its alpha, and the tiles of both.
    wanted = [main, *alphas.get(main, [])]
    wanted += [part for each in wanted for part in items.get(each, _Item()).parts]
    # The alpha of a grid may be given tile by tile.
    wanted += [alpha for each in wanted[1:] for alpha in alphas.get(each, [])]
    for number in dict.fromkeys(wanted):
        item = items.get(number, _Item())
        if item.kind != b"av01":
            continue
        for index in item.properties:
            if 0 < index <= len(configurations) and configurations[index - 1][0] == b"av1C":
                yield _configured(configurations[index - 1][1])
        parts = []
        for within, offset, length in item.extents:
            source = inside if within else view
            if source is None or offset > len(source):
                raise ValueError
            end = offset + length if length else len(source)
            parts.append(source[offset:end])
        yield from _bitstream(parts[0] if len(parts) == 1 else memoryview(b"".join(parts)))


def _items(meta: memoryview) -> tuple[dict[int, _Item], dict[int, list[int]]]:
    """The items by number, and the alpha items of each."""
    items: dict[int, _Item] = {}
    infos = first(meta, b"iinf")
    if infos is not None:
        for name, info in boxes(infos[6 if infos[0] == 0 else 8 :]):
            if name == b"infe" and info[0] >= 2:
                wide = 2 if info[0] == 2 else 4
                item = items.setdefault(_number(info, 4, wide), _Item())
                item.kind = bytes(info[6 + wide : 10 + wide])
    _locate(first(meta, b"iloc"), items)
    associations = first(meta, b"iprp")
    if associations is not None:
        for name, content in boxes(associations):
            if name == b"ipma":
                _associate(content, items)
    alphas: dict[int, list[int]] = {}
    references = first(meta, b"iref")
    if references is not None:
        wide = 2 if references[0] == 0 else 4
        for name, content in boxes(references[4:]):
            source, count = _number(content, 0, wide), _number(content, wide, 2)
            targets = [_number(content, wide + 2 + wide * i, wide) for i in range(count)]
            if name == b"dimg":
                items.setdefault(source, _Item()).parts += targets
            elif name == b"auxl":
                for target in targets:
                    alphas.setdefault(target, []).append(source)
    return items, alphas


def _locate(content: memoryview | None, items: dict[int, _Item]) -> None:
    if content is None:
        return
    version = content[0]
    offset_size, length_size = content[4] >> 4, content[4] & 15
    base_size, index_size = content[5] >> 4, content[5] & 15 if version in (1, 2) else 0
    wide = 2 if version < 2 else 4
    count, at = _number(content, 6, wide), 6 + wide
    for _ in range(min(count, _MAX_ITEMS)):
        number, at = _number(content, at, wide), at + wide
        within = False
        if version in (1, 2):
            within, at = _number(content, at, 2) & 15 == 1, at + 2
        at += 2  # data reference
        base, at = _number(content, at, base_size), at + base_size
        extents, at = _number(content, at, 2), at + 2
        item = items.setdefault(number, _Item())
        for _ in range(extents):
            at += index_size
            offset, at = _number(content, at, offset_size), at + offset_size
            length, at = _number(content, at, length_size), at + length_size
            item.extents.append((within, base + offset, length))


def _associate(content: memoryview, items: dict[int, _Item]) -> None:
    wide, large = (2 if content[0] < 1 else 4), content[3] & 1
    count, at = _number(content, 4, 4), 8
    for _ in range(min(count, _MAX_ITEMS)):
        item, at = items.setdefault(_number(content, at, wide), _Item()), at + wide
        properties, at = content[at], at + 1
        for _ in range(properties):
            value, at = _number(content, at, 1 + large), at + 1 + large
            item.properties.append(value & (0x7FFF if large else 0x7F))


# --- tracks ---------------------------------------------------------------------------------------


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
                    yield _configured(content)
    if not found:
        return  # of sound, say
    sizes, places, wide = first(table, b"stsz"), first(table, b"stco"), 4
    if places is None:
        places, wide = first(table, b"co64"), 8
    if sizes is None or places is None:
        raise ValueError
    size = _number(sizes, 4, 4) or _number(sizes, 12, 4)
    offset = _number(places, 8, wide)
    yield from _bitstream(view[offset : offset + size])


# --- AV1 ------------------------------------------------------------------------------------------


def _configured(content: memoryview) -> int:
    """The depth that an AV1 configuration tells: high_bitdepth and twelve_bit."""
    return (12 if content[2] & 0x20 else 10) if content[2] & 0x40 else 8


def _bitstream(view: memoryview) -> Iterator[int]:
    """The depth in each sequence header of a bitstream; there must be one."""
    at, found = 0, False
    for _ in range(_MAX_UNITS):
        if at >= len(view):
            break
        header = view[at]
        at += 2 if header & 4 else 1
        size = len(view) - at
        if header & 2:
            size, at = _leb128(view, at)
        if header >> 3 & 15 == _SEQUENCE_HEADER:
            found = True
            yield _sequence_depth(_Bits(view[at : at + size]))
        at += size
    if not found or at < len(view):
        raise ValueError


def _leb128(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << 7 * i
        if not byte & 0x80:
            break
    return value, at


class _Bits:
    """A bitstream, read from the highest bit of each byte on; ``IndexError`` behind its end."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def take(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | (self._view[self._at >> 3] >> (7 - (self._at & 7)) & 1)
            self._at += 1
        return value


def _sequence_depth(bits: _Bits) -> int:
    """AV1 specification, 5.5.1 and 5.5.2, as far as ``twelve_bit``."""
    profile = bits.take(3)
    bits.take(1)  # still_picture
    reduced = bits.take(1)
    if reduced:
        bits.take(5)
    else:
        _operating_points(bits)
    width, height = bits.take(4) + 1, bits.take(4) + 1
    bits.take(width)
    bits.take(height)
    if not reduced and bits.take(1):  # frame_id_numbers_present_flag
        bits.take(7)
    bits.take(3)  # superblocks of 128, filter_intra, intra_edge_filter
    if not reduced:
        bits.take(4)  # interintra, masked compound, warped motion, dual filter
        order = bits.take(1)
        if order:
            bits.take(2)
        screen = 2 if bits.take(1) else bits.take(1)
        if screen and not bits.take(1):
            bits.take(1)
        if order:
            bits.take(3)
    bits.take(3)  # superres, cdef, restoration
    if not bits.take(1):
        return 8
    return 12 if profile == 2 and bits.take(1) else 10


def _operating_points(bits: _Bits) -> None:
    delay = 0
    decoder_model = 0
    if bits.take(1):  # timing_info_present_flag
        bits.take(64)
        if bits.take(1):  # equal_picture_interval
            _uvlc(bits)
        decoder_model = bits.take(1)
        if decoder_model:
            delay = bits.take(5) + 1
            bits.take(32 + 5 + 5)
    display_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if decoder_model and bits.take(1):
            bits.take(2 * delay + 1)
        if display_delay and bits.take(1):
            bits.take(4)


def _uvlc(bits: _Bits) -> None:
    zeros = 0
    while not bits.take(1):
        zeros += 1
        if zeros > 32:
            raise ValueError
    if zeros < 32:
        bits.take(zeros)


def _number(view: memoryview, at: int, size: int) -> int:
    """A big-endian number of ``size`` bytes; ``IndexError`` where it is not there."""
    if at + size > len(view):
        raise IndexError
    return int.from_bytes(view[at : at + size], "big")
