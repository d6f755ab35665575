"""PBM, PGM and PPM: scales samples of any maximum to 8 or 16 bits.

Pillow reduces 16-bit colour to 8 bits, and clips samples above the maximum.
"""

from __future__ import annotations

import re

import numpy as np
from PIL import ImageFile

from engine.errors import ImageError
from engine.images.formats.samples import Samples, grey_to_rgb, scaled, to_rgb, unsupported

_WHITESPACE = b" \t\n\v\f\r"
_END_OF_LINE = re.compile(rb"[\r\n]")
_COMMENT = re.compile(rb"#[^\r\n]*")
_PIECE = 1 << 16  # bytes of digits that are parsed at a time


def read(data: bytes, image: ImageFile.ImageFile) -> Samples:
    """Return the samples of an opened PNM."""
    magic = data[:2]
    if magic[1:] not in (b"1", b"2", b"3", b"4", b"5", b"6") or data[2:3] not in (
        *(bytes([each]) for each in _WHITESPACE),
        b"#",
    ):
        raise unsupported("a PNM of floating-point or other odd samples")
    if magic in (b"P1", b"P4"):
        return to_rgb(image)
    tile = image.tile[0]
    highest = _highest(tile.args, image.mode)
    if highest == 255 and tile.codec_name == "raw":
        return to_rgb(image)
    width, height = image.size
    shape = (height, width, 3) if magic in (b"P3", b"P6") else (height, width)
    count = int(np.prod(shape))
    if magic in (b"P2", b"P3"):
        values = _plain(data, tile.offset, count)
    else:
        dtype = np.dtype(">u2") if highest > 255 else np.dtype(np.uint8)
        if (len(data) - tile.offset) < count * dtype.itemsize:
            raise ImageError("broken image: the file was cut short")
        values = np.frombuffer(data, dtype, count, tile.offset)
    if int(values.max()) > highest:
        raise ImageError(f"broken image: a sample is above the highest value, {highest}")
    return grey_to_rgb(scaled(values.reshape(shape), highest))


def _highest(args: object, mode: str) -> int:
    if isinstance(args, tuple):
        return int(args[1])
    return 65535 if args == "I;16B" else 255


def _plain(data: bytes, offset: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """Parse ``count`` decimal numbers, a piece of the file at a time."""
    values = np.empty(count, np.uint16)
    done, at = 0, offset
    while done < count:
        if at >= len(data):
            raise ImageError("broken image: the file was cut short")
        if data[at] == ord("#"):
            line = _END_OF_LINE.search(data, at)
            at = line.end() if line is not None else len(data)
            continue
        stop = min(at + _PIECE, len(data))
        if stop < len(data):
            stop = _end_of_piece(data, at, stop)
        words = _COMMENT.sub(b" ", data[at:stop]).split()[: count - done]
        if any(len(word) > 10 or not word.isdigit() for word in words):
            raise ImageError("broken image: not a number where a sample should be")
        numbers = np.array(words, dtype="S10").astype(np.int64) if words else np.empty(0, np.int64)
        if len(numbers) and int(numbers.max()) > 65535:
            raise ImageError("broken image: a sample is above the highest value")
        values[done : done + len(numbers)] = numbers
        done += len(numbers)
        at = stop
    return values


def _end_of_piece(data: bytes, at: int, stop: int) -> int:
    """Return where a piece up to ``stop`` may end without cutting a number or a comment."""
    line = max(data.rfind(each, at, stop) for each in (b"\n", b"\r"))
    comment = data.find(b"#", max(line, at), stop)
    if comment >= 0:
        return comment
    last = max(data.rfind(bytes([each]), at, stop) for each in _WHITESPACE)
    if last < 0:
        raise ImageError("broken image: a number that does not end")
    return last + 1
