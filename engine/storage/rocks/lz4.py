"""Decompresses one LZ4 block as RocksDB stores it, to read a table that RocksDB cannot open."""

from __future__ import annotations

_MIN_MATCH = 4
_LONG = 15  # a 4-bit length that continues in the next bytes


def decompress(data: bytes, size: int) -> bytes:
    """Return the ``size`` bytes that the block ``data`` holds; ``ValueError`` if it is malformed."""
    out = bytearray()
    at = 0
    try:
        while True:
            token = data[at]
            at += 1
            literals, at = _length(data, at, token >> 4)
            out += data[at : at + literals]
            at += literals
            if at >= len(data):
                break
            distance = data[at] | data[at + 1] << 8
            length, at = _length(data, at + 2, token & _LONG)
            length += _MIN_MATCH
            start = len(out) - distance
            if not distance or start < 0 or len(out) + length > size:
                raise ValueError("a match lies outside of the block")
            if distance >= length:
                out += out[start : start + length]
            else:
                # The match overlaps its own output.
                piece = bytes(out[start:])
                out += (piece * (length // distance + 1))[:length]
    except IndexError:
        raise ValueError("the block is cut short") from None
    if at != len(data) or len(out) != size:
        raise ValueError("the block has another length")
    return bytes(out)


def _length(data: bytes, at: int, start: int) -> tuple[int, int]:
    """Return a length that begins with 4 bits, and where it ends."""
    length = start
    if start == _LONG:
        while True:
            more = data[at]
            at += 1
            length += more
            if more != 255:
                break
    return length, at
