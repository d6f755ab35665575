"""AV1 bitstreams: size and depth of a picture, from its sequence headers (AV1 specification 5.5)."""

from __future__ import annotations

from collections.abc import Iterator

SEQUENCE_HEADER = 1


class SequenceHeader:
    """A sequence header; raises ``IndexError`` or ``ValueError`` if it is cut short.

    The size is read at once. The depth, which comes after it, is read by ``depth``.
    """

    def __init__(self, data: memoryview) -> None:
        """``data`` begins with the header, after its type and length."""
        bits = self._bits = _Bits(data)
        self._profile = bits.take(3)
        bits.take(1)  # still_picture
        self._reduced = bits.take(1)
        if self._reduced:
            bits.take(5)
        else:
            _skip_operating_points(bits)
        width, height = bits.take(4) + 1, bits.take(4) + 1
        self.size = bits.take(width) + 1, bits.take(height) + 1
        """The largest width and height of a frame, in pixels."""

    def depth(self) -> int:
        """Return the bits per channel: 5.5.1 and 5.5.2, up to ``twelve_bit``. Call it once."""
        bits, reduced = self._bits, self._reduced
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
        return 12 if self._profile == 2 and bits.take(1) else 10


def units(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield type and content of each unit of a bitstream; ``IndexError`` if it is cut short."""
    at = 0
    while at < len(view):
        header = view[at]
        at += 2 if header & 4 else 1
        size = len(view) - at
        if header & 2:
            size, at = _leb128(view, at)
        yield header >> 3 & 15, view[at : at + size]
        at += size


def configured_depth(configuration: memoryview) -> int:
    """Return the depth in an AV1 configuration (``av1C``): high_bitdepth and twelve_bit."""
    return (12 if configuration[2] & 0x20 else 10) if configuration[2] & 0x40 else 8


class _Bits:
    """A bitstream, read from the highest bit of each byte on; ``IndexError`` after its end."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def take(self, count: int) -> int:
        end = self._at + count
        if end > 8 * len(self._view):
            raise IndexError
        value = int.from_bytes(self._view[self._at >> 3 : (end + 7) >> 3], "big")
        self._at = end
        return (value >> (-end & 7)) & ((1 << count) - 1)


def _leb128(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << 7 * i
        if not byte & 0x80:
            break
    return value, at


def _skip_operating_points(bits: _Bits) -> None:
    delay = 0  # bits of a buffer's delay, with a decoder model
    decoder_model = 0
    if bits.take(1):  # timing_info_present_flag
        bits.take(64)
        if bits.take(1):  # equal_picture_interval
            _skip_uvlc(bits)
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


def _skip_uvlc(bits: _Bits) -> None:
    """Skip a number that has as many leading zeros as digits."""
    zeros = 0
    while not bits.take(1):
        zeros += 1
        if zeros > 32:
            raise ValueError
    if zeros < 32:
        bits.take(zeros)
