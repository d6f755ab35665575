"""JPEG 2000 codestreams: sizes, components, and how finely tiles are cut (ISO 15444-1, annex A)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

START = b"\xff\x4f\xff\x51"  # of the codestream and of its SIZ segment

_SIZES = struct.Struct(">8IH")
_COD, _COC, _SOT, _SOD = 0x52, 0x53, 0x90, 0x93
_WHOLE = 15  # the exponent of a precinct that is not subdivided
_MAX_TILE_PARTS = 1 << 20


class Sizes(NamedTuple):
    """The content of the SIZ segment: the image and its tiles on one grid, and the components."""

    right: int
    bottom: int
    left: int
    top: int
    tile_width: int
    tile_height: int
    tile_left: int
    tile_top: int
    components: int


def sizes_of(codestream: memoryview) -> Sizes | None:
    """Return the sizes at the start of a codestream; None if they are not there."""
    if len(codestream) < 42 or codestream[2:4] != START[2:]:
        return None
    return Sizes(*_SIZES.unpack_from(codestream, 8))


def precisions_of(codestream: memoryview, components: int) -> bytes:
    """Return a byte per existing component: its depth minus one; the highest bit marks signed ones."""
    return bytes(codestream[42 : 42 + 3 * components : 3])


@dataclass(slots=True)
class Style:
    """The smallest pieces into which any tile or component may be cut, as powers of two."""

    levels: int = 0
    block: int = 12  # log2 of the values of a code-block
    precincts: list[int] | None = None  # log2 of the values of a precinct, by resolution
    layers: int = 1

    def take(self, levels: int, parameters: memoryview, *, precincts: bool) -> None:
        """Add the parameters of a COD or COC marker, from the code-block's width on."""
        if len(parameters) < 4:
            return
        self.levels = max(self.levels, min(levels, 32))
        self.block = min(self.block, (parameters[0] & 15) + (parameters[1] & 15) + 4)
        if precincts:
            found = [(size & 15) + (size >> 4) for size in parameters[4 : 5 + levels]]
            known = self.precincts or []
            longest = max(len(found), len(known))
            whole = [2 * _WHOLE] * longest
            pairs = zip((found + whole)[:longest], (known + whole)[:longest], strict=True)
            self.precincts = [min(pair) for pair in pairs]

    def precinct(self, level: int) -> int:
        """Return log2 of the values of a precinct at this resolution."""
        if not self.precincts:
            return 2 * _WHOLE
        return self.precincts[min(level, len(self.precincts) - 1)]


def style_of(codestream: memoryview, components: int) -> Style:
    """Return the smallest pieces in the main header and in all tile-part headers."""
    style = Style()
    wide = components >= 257  # two bytes name a component
    at, part, end = 2, 0, 0
    for _ in range(_MAX_TILE_PARTS):
        if at + 4 > len(codestream) or codestream[at] != 0xFF:
            break
        marker, (length,) = codestream[at + 1], struct.unpack_from(">H", codestream, at + 2)
        is_read = marker in (_COD, _COC, _SOT)
        body = codestream[at + 4 : at + 2 + length] if is_read else codestream[:0]
        if marker == _COD and len(body) >= 10:
            style.layers = max(style.layers, int.from_bytes(body[2:4], "big"))
            style.take(body[5], body[6:], precincts=bool(body[0] & 1))
        elif marker == _COC and len(body) >= 7 + wide:
            style.take(body[2 + wide], body[3 + wide :], precincts=bool(body[1 + wide] & 1))
        elif marker == _SOT and len(body) >= 8:
            part, size = at, int.from_bytes(body[2:6], "big")
            end = part + size if size else len(codestream)
        elif marker == _SOD:
            if end <= part:
                break
            at = end
            continue
        at += 2 + max(length, 2)
    return style
