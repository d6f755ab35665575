"""GIF: counts its parts, because Pillow takes time and memory for each of them."""

from __future__ import annotations

from engine.errors import ImageError
from engine.images.formats.cost import HeaderCost

MAX_PARTS = 250_000
"""The most extensions and frames: a real animation has one or two extensions per frame.

800,000 extensions took 135 MiB, and 20,000 frames took 0.2 seconds.
"""

_PART_BYTES = 200
_EXTENSION, _IMAGE = 0x21, 0x2C


def header_cost(data: bytes) -> HeaderCost:
    """Return the cost of parsing a GIF; ``ImageError`` if it has too many parts."""
    parts = 0
    at = 13 + _table(data, 10)
    while at < len(data):
        if data[at] in (_EXTENSION, _IMAGE):
            parts += 1
            if parts > MAX_PARTS:
                raise ImageError(f"a GIF of more than {MAX_PARTS:,} extensions and frames")
        if data[at] == _EXTENSION:
            at = _behind_blocks(data, at + 2)
        elif data[at] == _IMAGE:
            at = _behind_blocks(data, at + 11 + _table(data, at + 9))
        elif data[at] == 0:
            at += 1
        else:
            break
    return HeaderCost(parsing=parts * _PART_BYTES)


def _table(data: bytes, at: int) -> int:
    """Return the bytes of the colour table that the flags at ``at`` announce."""
    flags = data[at] if at < len(data) else 0
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _behind_blocks(data: bytes, at: int) -> int:
    """Return where the sub-blocks that begin at ``at`` end."""
    size = len(data)
    while at < size and (length := data[at]):
        at += 1 + length
    return at + 1
