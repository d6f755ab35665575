"""AVIF: how large the pictures are that an AV1 decoder will make, whatever the container says.

A file of 1 KB may claim 64 × 64 and hold a picture of 8,000 × 8,000, which is decoded before the two
are compared. The size is in the sequence header that begins each coded picture (AV1 specification 5.5);
those are looked for that follow a temporal delimiter or begin a box.
"""

from __future__ import annotations

import re

from engine.images.decoding.records import Structure

# A temporal delimiter, or the box in which a picture or its configuration lies; then the first byte of a
# sequence header that has a length.
_SEQUENCE = re.compile(rb"(?:\x12\x00|av1C.{4}|mdat)\x0a(?=.{4})", re.DOTALL)
_MAX_SEQUENCES = 4096
_PIXEL_BYTES = 4  # planes without subsampling, and alpha


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError
        return (self._value >> self._left) & ((1 << count) - 1)


def structure(data: bytes) -> Structure:
    """What the largest coded picture takes."""
    largest = 0
    for number, found in enumerate(_SEQUENCE.finditer(data)):
        if number >= _MAX_SEQUENCES:
            break
        try:
            largest = max(largest, _pixels(data[found.end() : found.end() + 80]))
        except ValueError:
            continue
    return Structure(decoder=_PIXEL_BYTES * largest)


def _pixels(header: bytes) -> int:
    """The most pixels of a frame, of a sequence header with its length in front."""
    at = 0
    while header[at : at + 1] and header[at] & 0x80:
        at += 1
    bits = _Bits(header[at + 1 :])
    bits.take(4)  # profile, still picture
    if bits.take(1):  # reduced header
        bits.take(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return (bits.take(width_bits) + 1) * (bits.take(height_bits) + 1)


def _skip_operating_points(bits: _Bits) -> None:
    delay = 0  # bits of a buffer's delay, where there is a decoder model
    if bits.take(1):  # timing
        bits.take(64)
        if bits.take(1):  # equal intervals, whose length has as many zeros in front as digits
            zeros = 0
            while not bits.take(1):
                zeros += 1
            bits.take(min(zeros, 32))
        if bits.take(1):
            delay = bits.take(5) + 1
            bits.take(42)
    display = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delay and bits.take(1):
            bits.take(2 * delay + 1)
        if display and bits.take(1):
            bits.take(4)
