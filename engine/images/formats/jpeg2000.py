"""JPEG 2000: depth and sign as in the codestream, palettes, and layouts that Pillow misreads.

It also counts what OpenJPEG makes structures for: tiles, code-blocks, precincts and packets. A few bytes
of the headers decide their numbers: 180 bytes may declare 65,535 tiles, which take 490 MiB, and
code-blocks of 4 × 4 take a hundred bytes per pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import ImageFile

from engine.errors import ImageError
from engine.images.formats.boxes import boxes, walk
from engine.images.formats.cost import HeaderCost
from engine.images.formats.jpeg2000_codestream import START, precisions_of, sizes_of, style_of
from engine.images.formats.samples import (
    Samples,
    grey_to_rgb,
    looked_up,
    scaled,
    to_rgb,
    unsupported,
)

MAX_PACKETS = 20_000_000
"""The most packets (precincts × layers): a real file has thousands."""

# Measured with OpenJPEG 2.5.4, and rounded up.
_TILE_BYTES, _TILE_COMPONENT_BYTES = 8_192, 1_536
_BLOCK_BYTES = 512
_PRECINCT_BYTES = 8_192
_PACKET_BYTES = 2  # a record of which packets have been seen

_BANDS = {"L": 1, "I;16": 1, "P": 1, "LA": 2, "PA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}
_SYCC = 18


@dataclass(frozen=True, slots=True)
class _Layout:
    size: tuple[int, int]
    depths: tuple[int, ...]
    palette: Samples | None
    sycc: bool


def header_cost(data: bytes) -> HeaderCost:
    """Return the cost of decoding the picture; ``ImageError`` if it has too many packets."""
    codestream = _codestream_to_the_end(memoryview(data))
    sizes = sizes_of(codestream) if codestream is not None else None
    if codestream is None or sizes is None:
        return HeaderCost()
    width, height = sizes.right - sizes.left, sizes.bottom - sizes.top
    count = sizes.components
    if not (sizes.tile_width and sizes.tile_height and count and width > 0 and height > 0):
        return HeaderCost()
    tiles = -(-(sizes.right - sizes.tile_left) // sizes.tile_width)
    tiles *= -(-(sizes.bottom - sizes.tile_top) // sizes.tile_height)
    style = style_of(codestream, count)
    width, height = min(sizes.tile_width, width), min(sizes.tile_height, height)
    values = width * height
    sides = width + height
    # An upper bound: each resolution has a quarter of the next one's values, and edges cut pieces.
    blocks = precincts = 0
    for level in range(style.levels + 1):
        down = style.levels - level
        each = style.precinct(level)
        precincts += _pieces(values >> (2 * down), sides >> down, each)
        blocks += _pieces(values >> (2 * down), sides >> down, min(style.block, each))
    precincts *= count
    blocks *= count
    if precincts * style.layers * tiles > MAX_PACKETS:
        raise ImageError(
            f"a JPEG 2000 with more than {MAX_PACKETS:,} packets: decoding would take far too long"
        )
    return HeaderCost(
        parsing=tiles * (_TILE_BYTES + _TILE_COMPONENT_BYTES * count),
        decoder=blocks * _BLOCK_BYTES
        + precincts * (_PRECINCT_BYTES + _PACKET_BYTES * style.layers),
        tile_pixels=values,
    )


def _codestream_to_the_end(view: memoryview) -> memoryview | None:
    """Return the codestream as OpenJPEG reads it: to the end of the file, wherever its box ends."""
    if view[:4] == START:
        return view
    return next((view[box.start :] for box in walk(view) if box.name == b"jp2c"), None)


def _pieces(values: int, sides: int, exponent: int) -> int:
    """Return the most pieces of 2^exponent values that an area may be cut into, edges included."""
    side = 1 << (exponent // 2)
    return (values >> exponent) + 2 * (sides // side) + 4


def read(data: bytes, image: ImageFile.ImageFile) -> Samples:
    """Return the samples of an opened JPEG 2000."""
    # OpenJPEG invents missing pixels; only the end-of-codestream marker shows that none are missing.
    if b"\xff\xd9" not in data:
        raise ImageError("broken image: the file was cut short")
    layout = _layout(memoryview(data))
    if layout.size != image.size or len(layout.depths) != _BANDS.get(image.mode):
        raise ImageError("broken image: its header and its codestream disagree")
    highest = 16 if image.mode == "I;16" else 8
    if max(layout.depths) > highest:
        raise unsupported(
            f"JPEG 2000 with {max(layout.depths)} bits a channel (grey has 16 at most, others 8)"
        )
    if image.mode in ("P", "PA"):
        return _coloured(np.asarray(image), layout)
    if set(layout.depths) == {highest}:
        return _grey16(image) if highest == 16 else to_rgb(image)
    if image.mode == "CMYK" or layout.sycc:
        raise unsupported(f"JPEG 2000 of {image.mode} with less than 8 bits a channel")
    # Pillow shifts samples of fewer bits up, which would turn white into another value.
    array = np.asarray(image)
    array = array.reshape(*array.shape[:2], -1)
    channels = [
        scaled(array[..., i] >> (highest - depth), (1 << depth) - 1)
        if highest == 8
        else _up_to_16(array[..., i], depth)
        for i, depth in enumerate(layout.depths)
    ]
    if len(channels) <= 2:
        channels = [channels[0], channels[0], channels[0], *channels[1:]]
    return np.stack(channels, axis=-1)


def _grey16(image: ImageFile.ImageFile) -> Samples:
    return grey_to_rgb(np.asarray(image).astype(np.uint16))


def _up_to_16(values: Samples, depth: int) -> Samples:
    return scaled(values.astype(np.uint16) >> (16 - depth), (1 << depth) - 1)


def _coloured(array: Samples, layout: _Layout) -> Samples:
    """Return indices, or indices and alpha, as colours."""
    table = layout.palette
    if table is None or set(layout.depths) != {8}:
        raise unsupported("JPEG 2000 with a palette of this layout")
    indices = array if array.ndim == 2 else array[..., 0]
    if int(indices.max()) >= len(table):
        raise ImageError("broken image: a pixel has a colour that its palette lacks")
    colours = looked_up(indices, table)
    if array.ndim == 2:
        return colours
    if table.shape[1] != 3:
        raise unsupported("JPEG 2000 with a palette of this layout")
    return np.concatenate([colours, array[..., 1:]], axis=-1)


def _layout(view: memoryview) -> _Layout:
    if view[:4] == START:
        size, depths = _codestream(view)
        return _Layout(size, depths, None, False)
    header: memoryview | None = None
    for name, content in boxes(view):
        if name == b"jp2h":
            if header is not None:
                raise ImageError("broken image: two JPEG 2000 headers")
            header = content
        elif name == b"jp2c":
            if header is None:
                raise ImageError(
                    "broken image: a JPEG 2000 file without a header before its pixels"
                )
            size, depths = _codestream(content)
            palette, sycc = _colours(header, len(depths))
            return _Layout(size, depths, palette, sycc)
    raise ImageError("broken image: a JPEG 2000 file without pixels")


def _codestream(view: memoryview) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Return width and height, and each component's depth, from the SIZ segment at the start."""
    sizes = sizes_of(view) if view[:4] == START else None
    if sizes is None:
        raise ImageError("broken image: no JPEG 2000 codestream where one should be")
    parts = precisions_of(view, sizes.components)
    if not sizes.components or len(parts) != sizes.components:
        raise ImageError("broken image: a JPEG 2000 codestream without its components")
    if any(part & 0x80 for part in parts):
        raise unsupported("JPEG 2000 with signed samples")
    size = sizes.right - sizes.left, sizes.bottom - sizes.top
    return size, tuple((part & 0x7F) + 1 for part in parts)


def _colours(header: memoryview, components: int) -> tuple[Samples | None, bool]:
    """Return the palette (n, 3 or 4), if there is one, and whether colours are sYCC."""
    found = dict(reversed(list(boxes(header))))  # the first box of each name
    colour = found.get(b"colr", memoryview(b""))
    sycc = bytes(colour[:1]) == b"\1" and int.from_bytes(colour[3:7], "big") == _SYCC
    definition = found.get(b"cdef")
    if definition is not None:
        _refuse_other_channels(definition)
    palette = found.get(b"pclr")
    if palette is None:
        return None, sycc
    entries, columns = int.from_bytes(palette[:2], "big"), palette[2] if len(palette) > 2 else 0
    depths, body = bytes(palette[3 : 3 + columns]), palette[3 + columns :]
    plain = set(depths) == {7} and columns == 3 and len(body) >= entries * columns
    if not plain or components > 2 or not entries:
        raise unsupported("JPEG 2000 with a palette of this layout")
    table = np.frombuffer(body, np.uint8, entries * columns).reshape(entries, columns)
    return table, sycc


def _refuse_other_channels(definition: memoryview) -> None:
    """Refuse channels in an order that Pillow does not expect, and associated alpha."""
    count = int.from_bytes(definition[:2], "big")
    for i in range(count):
        entry = definition[2 + 6 * i : 8 + 6 * i]
        channel, kind, of = (int.from_bytes(entry[j : j + 2], "big") for j in (0, 2, 4))
        ordered = (kind == 0 and of == channel + 1) or (kind == 1 and of == 0 and channel in (1, 3))
        if not ordered:
            raise unsupported("JPEG 2000 with channels in this order")
