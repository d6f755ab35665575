"""GIF: how many extensions it has, each of which costs Pillow time and memory to go through."""

from __future__ import annotations

from engine.errors import ImageError
from engine.images.formats.cost import HeaderCost

MAX_EXTENSIONS = 250_000
"""The most extensions: of a real animation one or two a frame. 800,000 took 135 MiB."""

_EXTENSION_BYTES = 200
_EXTENSION, _IMAGE = 0x21, 0x2C


def header_cost(data: bytes) -> HeaderCost:
    """What going through a GIF takes; ``ImageError`` if it has too many extensions."""
    extensions = 0
    at = 13 + _table(data, 10)
    while at < len(data):
        if data[at] == _EXTENSION:
            extensions += 1
            if extensions > MAX_EXTENSIONS:
                raise ImageError(f"a GIF of more than {MAX_EXTENSIONS:,} extensions")
            at = _behind_blocks(data, at + 2)
        elif data[at] == _IMAGE:
            at = _behind_blocks(data, at + 11 + _table(data, at + 9))
        elif data[at] == 0:
            at += 1
        else:
            break
    return HeaderCost(parsing=extensions * _EXTENSION_BYTES)


def _table(data: bytes, at: int) -> int:
    """Bytes of the colour table that the flags at ``at`` announce."""
    flags = data[at] if at < len(data) else 0
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _behind_blocks(data: bytes, at: int) -> int:
    """Where the sub-blocks that begin at ``at`` end."""
    size = len(data)
    while at < size and (length := data[at]):
        at += 1 + length
    return at + 1
