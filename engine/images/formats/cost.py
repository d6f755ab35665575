"""Bytes of memory to decode an image and process it, by format, mode and size.

    peak = max(load, kept + convert, look) × pixels + what the headers of the file add + fixed

*load* is the decoder's own peak, with Pillow's image. *kept* is the memory that the decoder keeps until
the file is closed. *convert* is the memory from Pillow's image to canonical pixels. *look* is the memory
from these to a fingerprint and an encoder's picture. Each number is anonymous memory as the kernel
counts it, measured on pictures of 3 and 12 megapixels in a process of its own, and rounded up.
``python -m bench.questions.decode_cost`` measures all of them again and compares them with this model.
"""

from __future__ import annotations

from typing import NamedTuple

FIXED_BYTES = 512 << 10
"""The cost of every image in addition to its pixels: parsed headers, tables, the shrunk copies."""


class HeaderCost(NamedTuple):
    """The costs in a file's headers: bytes that do not follow from size and mode."""

    parsing: int = 0  # Python objects made by opening it
    decoder: int = 0  # buffers of the decoder, in addition to those for each pixel
    multiple_scans: bool = False  # JPEG: coefficients of the whole picture are kept
    tile_pixels: int = 0  # JPEG 2000: the largest tile; 0 if unknown


class Way(NamedTuple):
    """Bytes per pixel on the way to canonical pixels, and from them to what is compared."""

    convert: float
    look: float
    fixed: int = 0  # bytes of ``look``: freed blocks that stay in the heap


class Decoder(NamedTuple):
    """Bytes per pixel that a decoder takes at its peak (with Pillow's image), and keeps until closed."""

    load: float
    kept: float
    fixed: int = 0


GREY, PALETTE, COLOUR, ALPHA = (
    Way(11.1, 7.1),
    Way(12.1, 7.1),
    Way(14.1, 7.1),
    Way(17.1, 21.1, 13 << 20),
)
# Turning as EXIF says takes one more copy.
DEEP_GREY, DEEP_COLOUR, DEEP_ALPHA = Way(24.1, 21.1), Way(26.1, 21.1), Way(34.1, 30.1, 13 << 20)

PILLOW = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
"""Bytes per pixel of Pillow's own images; all other modes have four."""

DECODERS = {
    ("WEBP", 3): Decoder(16.2, 8.3),
    ("WEBP", 4): Decoder(16.2, 8.3),
    ("AVIF", 1): Decoder(3.7, 1.7, 4 << 20),
    ("AVIF", 3): Decoder(11.1, 4.0, 4 << 20),
    ("AVIF", 4): Decoder(14.1, 5.7, 4 << 20),
}
"""By format and channels, for decoders that take more than Pillow's image."""

# A progressive JPEG: coefficients of 16 bits, for up to four channels without subsampling.
_COEFFICIENTS = 8.1
# JPEG 2000: 32 bits per value, and the bytes that Pillow reads them from.
_JPEG2000_VALUE = {1: 5.2, 2: 6.2}  # by bytes per channel


def decoding_bytes(
    form: str,
    mode: str,
    size: tuple[int, int],
    headers: HeaderCost,
    *,
    channels: int,
    deep: bool = False,
    file_bytes: int = 0,
) -> int:
    """Return the peak memory of decoding an image file and processing it, in bytes.

    ``form`` and ``mode`` are Pillow's. ``channels`` is the picture's (1 grey, 3 colour, 4 with
    transparency), and ``deep`` means more than 8 bits per channel. ``file_bytes`` is the length of the
    file, which some decoders copy.
    """
    pixels = size[0] * size[1]
    pillow = PILLOW.get(mode, 4)
    decoder = DECODERS.get((form, channels), Decoder(pillow + 0.1, 0))
    load = decoder.load * pixels + headers.decoder
    if form == "JPEG2000":
        # Pillow's modes for it have as many letters as channels; 16-bit colour comes as 8 bits.
        values = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "YCbCr": 3}.get(mode, 1)
        each = _JPEG2000_VALUE[2 if deep or mode.startswith("I") else 1]
        tile = headers.tile_pixels or pixels
        load = (pillow + 0.1) * pixels + values * each * tile + headers.decoder
    elif headers.multiple_scans:
        load += _COEFFICIENTS * pixels
    way = _way(mode, channels, deep=deep)
    look = way.look * pixels + min(way.look * pixels, way.fixed)
    peak = max(load, (decoder.kept + way.convert) * pixels, look)
    return int(peak) + headers.parsing + decoder.fixed + FIXED_BYTES + file_bytes


def _way(mode: str, channels: int, *, deep: bool) -> Way:
    if deep:
        return DEEP_GREY if channels == 1 else DEEP_ALPHA if channels == 4 else DEEP_COLOUR
    if channels == 1:
        return PALETTE if mode == "P" else GREY
    return ALPHA if channels == 4 else COLOUR
