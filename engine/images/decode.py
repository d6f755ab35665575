"""Decodes image files to canonical pixels, within limits of memory and time."""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError, __version__

from engine.errors import ImageError
from engine.images.canonical import from_samples
from engine.images.file_types import looks_like_image
from engine.images.formats import cost, dispatch
from engine.images.formats.cost import HeaderCost
from engine.images.formats.dispatch import header_cost
from engine.images.formats.opening import FORMATS, open_file
from engine.images.orientation import orientation_of, oriented
from engine.records import Decoded

# The second number is the version of the engine's own readers. With a new one, rejected files are tried
# again.
DECODER = f"pillow-{__version__}-2"

MAX_PIXELS = 128_000_000
"""The most pixels (width × height) of an image without a memory limit: a guard against bombs."""

# Reasons for errors that Pillow's parsers raise without a message.
_SILENT: dict[type[Exception], str] = {
    AssertionError: "its header contradicts itself",
    EOFError: "the file ends too early",
    IndexError: "the file ends too early",
    struct.error: "the file ends too early",
    RecursionError: "its parts are nested too deep",
    OverflowError: "a number in it is too large",
}
_ERROR_NUMBER = re.compile(r"decoder error -?\d+")
# Pillow's words for a file that ends too early. They say what Pillow did, not what is wrong.
_CUT_SHORT = re.compile(
    r"unpack_from requires|could not create decoder object|Expected to read \d+ bytes|"
    r"Truncated File Read|Reached EOF"
)


def decode(data: bytes, *, max_pixels: int | None = None, max_bytes: int | None = None) -> Decoded:
    """Decode an image file's bytes to canonical pixels.

    Raises ``ImageError`` with a one-line reason unless the data is a complete image of a known format.
    It also raises it above ``max_pixels`` (width × height) or ``max_bytes`` (memory while the image is
    decoded and processed), for files that would take far too long, and for samples that would be
    reduced. If neither limit is set, ``MAX_PIXELS`` applies.
    """
    if not data:
        raise ImageError("the file is empty (0 bytes)")
    if max_pixels is None and max_bytes is None:
        max_pixels = MAX_PIXELS
    try:
        array, frames, container = _decode(data, max_pixels, max_bytes)
        return Decoded(from_samples(array, frames), container)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError("not enough memory to decode it", retryable=True) from None
    except UnidentifiedImageError:
        signed = looks_like_image(data[:32])
        why = dispatch.why_unknown(data, FORMATS) if signed else None
        raise why or ImageError("not an image in a known format") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"too many pixels for Pillow: {reason_of(error)}") from None
    # Pillow's decoders raise any error that their parsing meets: SyntaxError, struct.error, KeyError …
    except Exception as error:
        raise ImageError(f"broken image: {reason_of(error)}") from None


def memory_to_decode(data: bytes) -> int:
    """Return the memory that decoding an image file takes, by its header; 0 without a readable header.

    Raises ``MemoryError``.
    """
    try:
        headers = header_cost(data)
        with open_file(data, head_only=True)[0] as image:
            return _memory_of(image, headers, len(data))
    except MemoryError:
        raise
    # ``decode`` reports what is wrong.
    except Exception:
        return 0


def _memory_of(image: ImageFile.ImageFile, headers: HeaderCost, file_bytes: int) -> int:
    one_byte = cost.PILLOW.get(image.mode, 4) < 4 or image.mode in ("I", "F")
    return cost.decoding_bytes(
        image.format or "",
        image.mode,
        image.size,
        headers,
        channels=4 if image.has_transparency_data else 1 if one_byte else 3,
        deep=dispatch.is_deep(image),
        file_bytes=file_bytes,
    )


def reason_of(error: Exception) -> str:
    """Return a Pillow error as one line; our own words if it has no message."""
    said = " ".join(str(error).split())
    # The message is only the key.
    if isinstance(error, KeyError):
        said = f"there is no {said}" if said else ""
    if _ERROR_NUMBER.search(said) or _CUT_SHORT.search(said):
        said = "its data is damaged, or cut short"
    return said or _SILENT.get(type(error), "its data contradicts itself")


def size_of(data: bytes) -> tuple[int, int]:
    """Return an image file's height and width before EXIF turns it; ``ImageError`` without a header."""
    try:
        with open_file(data, head_only=True)[0] as image:
            return image.height, image.width
    except (ImageError, MemoryError):
        raise
    # Pillow's parsers raise any error that they meet.
    except Exception as error:
        raise ImageError(f"broken image: {reason_of(error)}") from None


def _decode(
    data: bytes, max_pixels: int | None, max_bytes: int | None
) -> tuple[npt.NDArray[Any], int, str]:
    headers = header_cost(data)
    if max_bytes is not None and headers.parsing > max_bytes:
        raise ImageError(
            f"its header takes {headers.parsing >> 20:,} MiB to read, over the limit of "
            f"{max_bytes >> 20:,} MiB: raise memory=",
            retryable=True,
        )
    image, frames = open_file(data)
    with image:
        container = (image.format or "").lower()
        width, height = image.size
        if max_pixels is not None and width * height > max_pixels:
            raise ImageError(
                f"too many pixels: {width} × {height} are over the limit of {max_pixels:,}"
            )
        if max_bytes is not None and (takes := _memory_of(image, headers, len(data))) > max_bytes:
            raise ImageError(
                f"{width} × {height} pixels take {takes >> 20:,} MiB to decode, over the limit of "
                f"{max_bytes >> 20:,} MiB: raise memory=",
                retryable=True,
            )
        if ImageFile.LOAD_TRUNCATED_IMAGES:
            raise ImageError(
                "Pillow is set to fill up truncated images (ImageFile.LOAD_TRUNCATED_IMAGES), "
                "which would make different images equal: unset it",
                retryable=True,
            )
        if frames is None:
            frames = dispatch.frames_of(image)
            # Counting may seek; the count must not change which frame is decoded.
            image.seek(0)
        array = dispatch.samples(data, image, lambda: open_file(data)[0])
        # After loading: Pillow's TIFF reader applies the tag itself and then drops it.
        orientation = orientation_of(image)
    return oriented(array, orientation), frames, container
