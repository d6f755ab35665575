"""JPEG 2000: how many tiles, code-blocks, precincts and packets OpenJPEG makes structures for.

All of them are settled by a few bytes of the headers: 180 bytes may ask for 65,535 tiles, which take
490 MiB, and code-blocks of 4 × 4 take a hundred bytes a pixel.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from engine.errors import ImageError
from engine.images.decoding.records import Structure

MAX_PACKETS = 20_000_000
"""The most packets (precinct × layer): a real file has thousands."""

# Measured with OpenJPEG 2.5.4, and rounded up.
_TILE_BYTES, _TILE_COMPONENT_BYTES = 8_192, 1_536
_BLOCK_BYTES = 512
_PRECINCT_BYTES = 8_192
_PACKET_BYTES = 2  # which packets have been seen

_SIZ, _COD, _COC, _SOT, _SOD = 0x51, 0x52, 0x53, 0x90, 0x93
_WHOLE = 15  # the exponent of a precinct that is not subdivided
_MAX_TILE_PARTS = 1 << 20


@dataclass(slots=True)
class _Style:
    """The smallest pieces that any tile or component may be cut into, as powers of two."""

    levels: int = 0
    block: int = 12  # log2 of the values of a code-block
    precinct: list[int] | None = None  # log2 of the values of a precinct, by resolution
    layers: int = 1

    def take(self, levels: int, parameters: bytes, *, precincts: bool) -> None:
        """Take in the parameters of a COD or COC marker, from the code-block's width on."""
        if len(parameters) < 4:
            return
        self.levels = max(self.levels, min(levels, 32))
        self.block = min(self.block, (parameters[0] & 15) + (parameters[1] & 15) + 4)
        if precincts:
            found = [(size & 15) + (size >> 4) for size in parameters[4 : 5 + levels]]
            known = self.precinct or []
            longest = max(len(found), len(known))
            whole = [2 * _WHOLE] * longest
            pairs = zip((found + whole)[:longest], (known + whole)[:longest], strict=True)
            self.precinct = [min(pair) for pair in pairs]


def codestream(data: bytes) -> int:
    """Where the codestream begins: at once, or in the box ``jp2c``; -1 if there is none."""
    if data[:4] == b"\xff\x4f\xff\x51":
        return 0
    at = 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if length == 1 and at + 16 <= len(data):
            (length,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        if kind == b"jp2c":
            return at + head
        if length < head:
            return -1
        at += length
    return -1


def structure(data: bytes) -> Structure:
    """What decoding the picture takes; ``ImageError`` if it has too many packets."""
    at = codestream(data)
    if at < 0 or len(data) < at + 42 or data[at + 2 : at + 4] != b"\xff\x51":
        return Structure()
    x1, y1, x0, y0, tile_width, tile_height, tile_x, tile_y, count = struct.unpack_from(
        ">8IH", data, at + 8
    )
    if not (tile_width and tile_height and count and x1 > x0 and y1 > y0):
        return Structure()
    tiles = -(-(x1 - tile_x) // tile_width) * -(-(y1 - tile_y) // tile_height)
    style = _style(data, at)
    width, height = min(tile_width, x1 - x0), min(tile_height, y1 - y0)
    values = width * height
    sides = width + height
    # At most: each resolution has a quarter of the values of the next, and pieces are cut at the edges.
    blocks = precincts = 0
    for level in range(style.levels + 1):
        down = style.levels - level
        each = style.precinct[min(level, len(style.precinct) - 1)] if style.precinct else 2 * _WHOLE
        precincts += _pieces(values >> (2 * down), sides >> down, each)
        blocks += _pieces(values >> (2 * down), sides >> down, min(style.block, each))
    precincts *= count
    blocks *= count
    if precincts * style.layers * tiles > MAX_PACKETS:
        raise ImageError(
            "a JPEG 2000 with more than "
            f"{MAX_PACKETS:,} packets: decoding would take out of all proportion long"
        )
    return Structure(
        parsing=tiles * (_TILE_BYTES + _TILE_COMPONENT_BYTES * count),
        decoder=blocks * _BLOCK_BYTES
        + precincts * (_PRECINCT_BYTES + _PACKET_BYTES * style.layers),
        tile_pixels=values,
    )


def _pieces(values: int, sides: int, exponent: int) -> int:
    """How many pieces of 2^exponent values an area may be cut into, with those at its edges."""
    side = 1 << (exponent // 2)
    return (values >> exponent) + 2 * (sides // side) + 4


def _style(data: bytes, start: int) -> _Style:
    """The smallest pieces that the main header or that of any part of a tile asks for."""
    style = _Style()
    wide = struct.unpack_from(">H", data, start + 40)[0] >= 257  # two bytes name a component
    at, part, end = start + 2, 0, 0
    for _ in range(_MAX_TILE_PARTS):
        if at + 4 > len(data) or data[at] != 0xFF:
            break
        marker, (length,) = data[at + 1], struct.unpack_from(">H", data, at + 2)
        body = data[at + 4 : at + 2 + length] if marker in (_COD, _COC, _SOT) else b""
        if marker == _COD and len(body) >= 10:
            style.layers = max(style.layers, int.from_bytes(body[2:4], "big"))
            style.take(body[5], body[6:], precincts=bool(body[0] & 1))
        elif marker == _COC and len(body) >= 7 + wide:
            style.take(body[2 + wide], body[3 + wide :], precincts=bool(body[1 + wide] & 1))
        elif marker == _SOT and len(body) >= 8:
            part, size = at, int.from_bytes(body[2:6], "big")
            end = part + size if size else len(data)
        elif marker == _SOD:
            if end <= part:
                break
            at = end
            continue
        at += 2 + max(length, 2)
    return style
