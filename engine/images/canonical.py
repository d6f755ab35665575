"""The canonical form of an image: images with equal canonical forms are identical.

Canonical form: a 16-byte header, then the pixels.

    offset  bytes  big-endian
    0       1      canonicalisation version (1)
    1       1      kind: 1 bits, 2 8-bit, 3 16-bit
    2       1      channels: 3 (RGB) or 4 (RGBA)
    3       1      0
    4       4      height
    8       4      width
    12      4      frames or pages in the file (1 for a still image; only the first is decoded)

Pixels are row-major with interleaved channels. Grey is RGB with three equal channels. Alpha is kept
only if some pixel is not opaque. The EXIF orientation is applied; colour profiles are ignored.
8-bit channels are bytes, and 16-bit channels little-endian words. Bits are packed eight to a byte, the
first in the highest bit, with zeros after the last. Samples of fewer than 8 bits are scaled to 8, and
those of 9 to 15 bits to 16, so that white stays white. ``engine.images.formats`` refuses layouts that
cannot be read like this. A file in which every channel value is 0 or 255 is a bit image. An array is one
if it is of bool, or if all of its values are 0 or 1.
"""

from __future__ import annotations

import functools
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import ImageError, UsageError
from engine.images.formats.samples import grey_to_rgb
from engine.records import Buffer, Kind, Pixels

CANONICAL_VERSION = 1
HEADER = struct.Struct(">BBBxIII")
HEADER_BYTES = HEADER.size
_PIXEL_KINDS = frozenset({Kind.BITS, Kind.U8, Kind.U16})


def from_samples(array: npt.NDArray[Any], frames: int, *, bits: bool = True) -> Pixels:
    """Return the canonical image of (H, W, 3 or 4) uint8 or uint16 samples.

    ``bits`` allows 0/255 to become bits. ``frames`` is the number of frames in the file. Raises
    ``ImageError`` for an image without pixels.
    """
    height, width, channels = array.shape
    if not height or not width:
        raise ImageError("an image without pixels")
    if channels == 4 and bool((array[..., 3] == np.iinfo(array.dtype).max).all()):
        array, channels = array[..., :3], 3
    body_type = "u1"
    if array.dtype == np.uint16:
        kind, body_type = Kind.U16, "<u2"
    elif bits and _only_0_and_255(array):
        kind, array = Kind.BITS, np.packbits(array.reshape(-1))
    else:
        kind = Kind.U8
    # One copy, into the place after the header.
    form = np.empty(HEADER_BYTES + array.itemsize * array.size, np.uint8)
    header = HEADER.pack(CANONICAL_VERSION, kind, channels, height, width, frames)
    form[:HEADER_BYTES] = np.frombuffer(header, np.uint8)
    form[HEADER_BYTES:].view(body_type).reshape(array.shape)[...] = array
    return Pixels(kind, height, width, channels, frames, form.data.toreadonly())


def from_array(array: npt.ArrayLike) -> Pixels:
    """Return the canonical image of an array: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).

    bool, and uint8 with only 0 and 1, becomes a bit image; other uint8 is 8-bit, and uint16 16-bit.
    Raises ``UsageError`` for another shape or dtype.
    """
    pixels = np.asarray(array)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise UsageError(
            f"an image of shape {pixels.shape}: (H, W), (H, W, 3) or (H, W, 4) is needed"
            f"{channels_last(pixels.shape)}"
        )
    if pixels.dtype == np.bool_ or (pixels.dtype == np.uint8 and pixels.max(initial=0) <= 1):
        return from_samples(grey_to_rgb(pixels.astype(np.uint8)) * np.uint8(255), 1)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UsageError(
            f"an image of dtype {pixels.dtype}: bool, uint8 or uint16 is needed{scaled(pixels)}"
        )
    return from_samples(grey_to_rgb(pixels), 1, bits=False)


def from_canonical(canonical: Buffer) -> Pixels:
    """Parse canonical bytes; raise ``ImageError`` if header and length disagree."""
    view = memoryview(canonical)
    if len(view) != canonical_bytes(view[:HEADER_BYTES]):
        raise ImageError("canonical bytes have the wrong length")
    _, kind, channels, height, width, frames = HEADER.unpack(view[:HEADER_BYTES])
    return Pixels(Kind(kind), height, width, channels, frames, canonical)


def canonical_bytes(header: Buffer) -> int:
    """Return the length of the canonical form with this header; ``ImageError`` if it is invalid."""
    if len(memoryview(header)) < HEADER_BYTES:
        raise ImageError("canonical bytes are cut short")
    version, kind, channels, height, width, frames = HEADER.unpack(header)
    known = kind in _PIXEL_KINDS and channels in (3, 4)
    if version != CANONICAL_VERSION or not known or not height or not width or not frames:
        raise ImageError("canonical bytes have an unknown header")
    values = height * width * channels
    body: int = {Kind.BITS: -(-values // 8), Kind.U8: values, Kind.U16: 2 * values}[Kind(kind)]
    return HEADER_BYTES + body


@functools.lru_cache(maxsize=64)
def rows_header(kind: Kind, height: int, width: int) -> bytes:
    """Return the canonical header that all rows of an array share (RGB, one frame)."""
    return HEADER.pack(CANONICAL_VERSION, kind, 3, height, width, 1)


def rows_from_array(rows: npt.NDArray[Any], kind: Kind) -> npt.NDArray[np.uint8]:
    """Return the canonical rows of a block of an array.

    ``rows`` is (n, H, W), (n, H, W, 1) or (n, H, W, 3): bool or 0/1 for ``Kind.BITS``, uint8 for
    ``Kind.U8``. Returns (n, 16 + pixel bytes) uint8, C-contiguous, one canonical form per row.
    """
    n, height, width = rows.shape[:3]
    if rows.ndim == 3 or rows.shape[3] == 1:
        rows = np.repeat(rows.reshape(n, height, width, 1), 3, axis=-1)
    header = np.frombuffer(rows_header(kind, height, width), np.uint8)
    flat = rows.reshape(n, height * width * 3)
    body = flat.shape[1] if kind is Kind.U8 else -(-flat.shape[1] // 8)
    out = np.empty((n, HEADER_BYTES + body), np.uint8)
    out[:, :HEADER_BYTES] = header
    out[:, HEADER_BYTES:] = flat if kind is Kind.U8 else np.packbits(flat, axis=1)
    return out


def array_kind(images: npt.NDArray[Any]) -> Kind:
    """Return whether n images are bits (bool, or only 0 and 1) or 8-bit (other uint8).

    Raises ``UsageError`` for another dtype, for a shape other than (n, H, W), (n, H, W, 1) or
    (n, H, W, 3), and for a shape that may be one image instead of n.
    """
    if not isinstance(images, np.ndarray):
        raise UsageError(f"images are an array or PackedBits, not a {type(images).__name__}")
    if not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))):
        raise UsageError(
            f"images of shape {images.shape}: (n, H, W), (n, H, W, 1) or (n, H, W, 3) is needed"
            f"{channels_last(images.shape)}"
        )
    if may_be_one_image(images.shape):
        raise UsageError(
            f"an array of shape {images.shape} {what_it_may_be(images.shape)}: say which"
        )
    if min(images.shape[1:]) < 1:
        raise UsageError(f"images of shape {images.shape} have no pixels")
    if images.dtype not in (np.bool_, np.uint8):
        raise UsageError(f"images of dtype {images.dtype}: bool or uint8 is needed{scaled(images)}")
    is_bits = images.dtype == np.bool_ or int(images.max(initial=0)) <= 1
    return Kind.BITS if is_bits else Kind.U8


def may_be_one_image(shape: tuple[int, ...]) -> bool:
    """Return whether an array could be one colour image as well as several grey ones, 3 or 4 wide."""
    return len(shape) == 3 and shape[2] in (3, 4)


def what_it_may_be(shape: tuple[int, ...]) -> str:
    """Return what an ambiguous array may be, and how to say which."""
    one = "array[None]"
    if shape[2] == 4:
        one += " of its colours, [(name, array)] with its alpha"
    return f"may be one image ({one}), or {shape[0]:,} that are {shape[2]} wide (array[..., None])"


def require_images(images: npt.NDArray[Any]) -> None:
    """Raise ``UsageError`` for n images with channels first, or with float values from 0 to 1."""
    wrong = channels_last(images.shape) if images.ndim == 4 else ""
    wrong = wrong or scaled(images)
    if wrong:
        raise UsageError(f"images of shape {images.shape} and dtype {images.dtype}{wrong}")


def channels_last(shape: tuple[int, ...]) -> str:
    """Return how to move the channels of one image, or of n, to the end; empty if they are there.

    An array (3, H, W) in place of n images counts as three grey images, not as channels first.
    """
    if len(shape) not in (3, 4) or shape[-3] not in (1, 3, 4) or shape[-1] in (1, 3, 4):
        return ""
    how = "numpy.moveaxis(array, 0, -1)" if len(shape) == 3 else "array.transpose(0, 2, 3, 1)"
    return f"; channels come last: {how}"


def scaled(array: npt.NDArray[Any]) -> str:
    """Return how to turn floats from 0 to 1 into 8-bit values; empty for any other array."""
    if array.dtype.kind != "f" or not array.size or array.min() < 0 or not array.max() <= 1:
        return ""
    return "; convert floats from 0 to 1 with (array * 255).astype(numpy.uint8)"


def _only_0_and_255(array: npt.NDArray[np.uint8]) -> bool:
    # 255 + 1 wraps to 0 and 0 + 1 is 1: two passes instead of three. For nearly every photograph, the
    # first few values are enough.
    head = array[:1, :1024]
    one = np.uint8(1)
    return int((head + one).max()) <= 1 and int((array + one).max()) <= 1
