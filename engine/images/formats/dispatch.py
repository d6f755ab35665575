"""Calls the module of a file's format: for header costs, samples, and reasons of failure."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from PIL import Image, ImageFile, TiffImagePlugin

from engine.errors import ImageError
from engine.images.file_types import format_of
from engine.images.formats import (
    avif,
    bmp,
    gif,
    jpeg,
    jpeg2000,
    png,
    pnm,
    tiff,
    tiff_directories,
)
from engine.images.formats.cost import HeaderCost
from engine.images.formats.samples import (
    Samples,
    indexed_to_rgb,
    is_deep_layout,
    raw_mode,
    to_rgb,
)

_HEADER_COST = {
    "PNG": png.header_cost,
    "JPEG": jpeg.header_cost,
    "GIF": gif.header_cost,
    "TIFF": tiff_directories.header_cost,
    "JPEG2000": jpeg2000.header_cost,
}


def header_cost(data: bytes) -> HeaderCost:
    """Return what a file's headers say about its cost, before Pillow reads them.

    Raises ``ImageError`` for a file that would take far too long to open or to decode.
    """
    read = _HEADER_COST.get(format_of(data[:32]) or "")
    if read is not None:
        return read(data)
    # Files with another brand than AVIF's may be opened as AVIF too.
    return avif.header_cost(data) if data[4:8] == b"ftyp" else HeaderCost()


def samples(
    data: bytes, image: ImageFile.ImageFile, reopen: Callable[[], ImageFile.ImageFile]
) -> Samples:
    """Return every sample of an opened file, (H, W, 3 or 4) uint8 or uint16; ``reopen`` opens it again.

    Raises ``ImageError`` for a layout that cannot be read in full.
    """
    match image.format:
        case "PNG":
            if not is_deep(image):
                return png.read(image, image)
            with reopen() as again:
                return png.read(image, again)
        case "TIFF":
            tiff.prepare(image)
            if not is_deep(image):
                return tiff.read(image, None)
            with reopen() as again:
                tiff.prepare(again)
                return tiff.read(image, again)
        case "PPM":
            return pnm.read(data, image)
        case "BMP" | "DIB":
            return bmp.read(data, image)
        case "JPEG2000":
            return jpeg2000.read(data, image)
        case "JPEG" | "MPO":
            return jpeg.read(data, image)
        case "AVIF":
            avif.refuse_reduced(data)
            return to_rgb(image)
        case _:
            return indexed_to_rgb(image)


def is_deep(image: Image.Image) -> bool:
    """Return whether an opened file whose pixels are not loaded has more than 8 bits a channel."""
    tiles = getattr(image, "tile", None) or []
    if tiles and image.format == "PPM" and isinstance(tiles[0].args, tuple):
        return image.mode == "I" or int(tiles[0].args[-1]) > 255
    if tiles and isinstance(image, TiffImagePlugin.TiffImageFile) and tiff.is_deep(image):
        return True
    deep = image.mode in ("I", "F") or image.mode.startswith("I;")
    return deep or (bool(tiles) and is_deep_layout(raw_mode(tiles[0])))


def frames_of(image: ImageFile.ImageFile) -> int:
    """Return the number of frames or pages that Pillow finds; counting may seek."""
    # The other images of an MPO are a preview, a gain map or another eye's view.
    return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))


def why_unknown(data: bytes, formats: Sequence[str]) -> ImageError | None:
    """Return why Pillow cannot open a file with a signature of ``formats``; None without one."""
    for name in formats:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(data[:16]) is not True:
            continue
        try:
            factory(io.BytesIO(data), "")
        except MemoryError:
            return ImageError("not enough memory to decode it", retryable=True)
        # Pillow's parsers raise any error that they meet.
        except Exception as error:
            reason = " ".join(str(error).split()) or "no reason given"
            known = tiff.refusal(data, reason) if name == "TIFF" else None
            return known or ImageError(f"broken image, or not supported: {reason}")
    return None
