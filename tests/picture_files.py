"""Pictures in files that tests of images share, also such as Pillow cannot write."""

import struct
import zlib

import numpy as np
import pytest
from layouts import chunk

from engine.errors import ImageError
from engine.images.decode import decode

RNG = np.random.default_rng(20240611)
PICTURE = RNG.integers(0, 256, (37, 41, 3), np.uint8)
SMOOTH = np.stack(np.broadcast_arrays(*np.ogrid[0:240:4, 0:250:5], 99), -1).astype(np.uint8)
LOSSLESS = {
    "png": ("PNG", {}),
    "bmp": ("BMP", {}),
    "dib": ("DIB", {}),
    "tiff": ("TIFF", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff-deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "bigtiff": ("TIFF", {"big_tiff": True}),
    "ppm": ("PPM", {}),
    "webp": ("WEBP", {"lossless": True}),
    "tga": ("TGA", {}),
    "tga-rle": ("TGA", {"compression": "tga_rle"}),
    "jpeg2000": ("JPEG2000", {}),
}


def canonical(data: bytes) -> bytes:
    return bytes(decode(data).pixels.canonical)


def reason(data: bytes, **limits) -> str:
    """Why ``data`` is refused: one line that is not empty."""
    with pytest.raises(ImageError) as caught:
        decode(data, **limits)
    text = str(caught.value)
    assert text.strip()
    assert len(text.splitlines()) == 1
    return text


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)


def png16(samples: np.ndarray, *more: bytes) -> bytes:
    """A 16-bit PNG of (H, W) grey or (H, W, 2 to 4) samples, which Pillow cannot write in colour."""
    height, width = samples.shape[:2]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[1 if samples.ndim == 2 else samples.shape[2]]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in samples)
    start = png_header(width, height, 16, colour) + b"".join(more)
    return start + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def tiff(samples: np.ndarray, *, order: str = "<", rows: int = 0, photometric: int = 2) -> bytes:
    """An uncompressed TIFF of (H, W, C) samples in strips of ``rows`` lines."""
    height, width, channels = samples.shape
    rows = rows or height
    typed = samples.astype(samples.dtype.newbyteorder(order))
    strips = [typed[y : y + rows].tobytes() for y in range(0, height, rows)]
    places = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    depth = samples.dtype.itemsize * 8
    tags = [
        (256, [width]),
        (257, [height]),
        (258, [depth] * channels),
        (259, [1]),
        (262, [photometric]),
        (273, places),
        (277, [channels]),
        (278, [rows]),
        (279, [len(strip) for strip in strips]),
    ]
    tags += [(338, [2])] if photometric == 2 and channels == 4 else []  # alpha
    at = 8 + sum(map(len, strips))
    outside, directory = b"", struct.pack(order + "H", len(tags))
    end = at + 2 + 12 * len(tags) + 4
    for tag, values in tags:
        data = struct.pack(f"{order}{len(values)}I", *values)
        if len(data) > 4:
            data, outside = struct.pack(order + "I", end + len(outside)), outside + data
        directory += struct.pack(order + "HHI", tag, 4, len(values)) + data
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at)
    return head + b"".join(strips) + directory + bytes(4) + outside
