"""Converts PIL images to canonical pixels; an opened file gives the same as ``decode``."""

from __future__ import annotations

import io
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from engine.errors import ImageError, UsageError
from engine.images.canonical import from_samples
from engine.images.decode import decode, reason_of
from engine.images.formats.dispatch import is_deep
from engine.images.formats.opening import FORMATS
from engine.images.formats.samples import grey_to_rgb, keyed, to_rgb
from engine.images.formats.tiff_tags import BITS, PHOTOMETRIC
from engine.images.orientation import orientation_of, oriented
from engine.records import Pixels


def from_image(image: Image.Image, *, max_bytes: int | None = None) -> Pixels:
    """Convert a PIL image (its current frame) to canonical pixels.

    An image from ``Image.open`` gives the same as ``decode`` of its file: turned as EXIF says, and with
    the number of frames if it is at the first one. Until its pixels are loaded, the file itself is read,
    in full depth and with at most ``max_bytes`` of memory. An image made from an opened one (a copy,
    another mode, a crop) is taken as it is.

    Raises ``UsageError`` for an unsupported mode, ``ImageError`` if the image cannot be read.
    """
    try:
        return _pixels_of(image, max_bytes)
    except (ImageError, UsageError):
        raise
    except MemoryError:
        raise ImageError("not enough memory to read it", retryable=True) from None
    # An opened file is decoded only now, and Pillow raises any error that its parsing meets.
    except Exception as error:
        raise ImageError(f"a PIL image that cannot be read: {reason_of(error)}") from None


def _pixels_of(image: Image.Image, max_bytes: int | None) -> Pixels:
    data = _unread_file(image, FORMATS)
    if data is not None:
        return decode(data, max_bytes=max_bytes).pixels
    if _is_reduced(image):
        raise UsageError(
            "a loaded PIL image whose pixels Pillow has reduced or converted wrongly: pass the file, or "
            "the image before its pixels are loaded"
        )
    if image.mode.startswith("I;16"):
        array: npt.NDArray[Any] = grey_to_rgb(np.asarray(image).astype(np.uint16))
        if isinstance(image.info.get("transparency"), int):
            array = keyed(array, image.info["transparency"])
    elif image.mode == "I" and image.format == "PPM":
        array = grey_to_rgb(np.asarray(image).astype(np.uint16))
    elif image.mode in ("I", "F"):
        raise UsageError(
            f"a PIL image of mode {image.mode}: at most 16 bits a channel are supported"
        )
    # An opened file whose pixels are not loaded yet.
    elif is_deep(image):
        raise UsageError(
            "a 16-bit picture that Pillow would reduce to 8 bits: pass the file or an array"
        )
    else:
        array = to_rgb(image)
    if _is_opened(image):
        array = oriented(array, orientation_of(image))
    return from_samples(array, _frames_of(image), bits=array.dtype != np.uint16)


def _is_opened(image: Image.Image) -> bool:
    """Return whether it is a file's own image, not a copy or made from one."""
    return isinstance(image, ImageFile.ImageFile)


def _unread_file(image: Image.Image, formats: Collection[str]) -> bytes | None:
    """Return the whole file of an opened image whose pixels are not loaded or changed yet; else None."""
    if not isinstance(image, ImageFile.ImageFile) or image._im is not None:
        return None
    known = image.format in formats or image.format == "MPO"
    file = image.fp
    if not known or file is None or file.closed or image.tell() != 0:
        return None
    try:
        at = file.tell()
        try:
            file.seek(0)
            data = file.read()
            # The caller may want another size or mode (``draft``, ``reduce``).
            with Image.open(io.BytesIO(data), formats=_readers(image)) as again:
                same = (again.size, again.mode) == (image.size, image.mode)
                same = same and not getattr(image, "_reduce", 0)
        finally:
            file.seek(at)
    except MemoryError:
        raise
    # A file that cannot be read twice is read as an image, which reports what is wrong.
    except Exception:
        return None
    return data if same else None


def _frames_of(image: Image.Image) -> int:
    """Return the number of frames of an opened image; 1 for any other, and for a later frame."""
    if not isinstance(image, ImageFile.ImageFile) or image.format == "MPO":
        return 1
    try:
        return _counted(image) if image.tell() == 0 else 1
    # A pickled image keeps only its current frame.
    except AttributeError:
        return 1


def _counted(image: ImageFile.ImageFile) -> int:
    counted: Any = getattr(image, "_n_frames", None)
    # Counting on the image itself would seek, and lose changes.
    if counted is None and hasattr(type(image), "n_frames"):
        file = getattr(image, "_fp", None) or image.fp
        if file is None or not hasattr(file, "seek") or getattr(file, "closed", True):
            # Only still images close their file; an animation's file stays open.
            return 1
        at = file.tell()
        try:
            with Image.open(file, formats=_readers(image)) as again:
                return int(getattr(again, "n_frames", 1))
        finally:
            file.seek(at)
    return int(counted if counted is not None else getattr(image, "n_frames", 1))


def _is_reduced(image: Image.Image) -> bool:
    """Return whether an opened image's loaded pixels differ from its file's, as far as that shows.

    Pillow may have reduced 16 bits to 8, or left out an inversion or a scaling.
    """
    if not isinstance(image, ImageFile.ImageFile):
        return False
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        bits = tags.get(BITS, (1,))
        deep = any(each > 8 for each in (bits if isinstance(bits, tuple) else (bits,)))
        white_is_zero = tags.get(PHOTOMETRIC, 0) == 0
        return deep and (not image.mode.startswith("I;16") or white_is_zero or 12 in bits)
    if image.format == "PNG":
        depth = _png_depth(image)
        if depth == 16 and not image.mode.startswith("I;16"):
            return True
        value = image.info.get("transparency")
        # The transparent value is then the file's, but pixels are 17 or 85 times the file's values.
        scaled = depth in (2, 4) or (depth is None and isinstance(value, int) and value < 16)
        return image.mode == "L" and bool(value) and scaled
    # 9 to 15 bits, shifted up.
    if image.format == "JPEG2000" and image.mode == "I;16":
        array = np.asarray(image)
        return bool(array.any()) and not bool((array & 1).any())
    return False


def _png_depth(image: ImageFile.ImageFile) -> int | None:
    """Return the depth in the file's header; None if the file cannot be read any more."""
    try:
        path = Path(os.fsdecode(image.filename))
        if not image.filename or not path.is_file():
            return None
        with path.open("rb") as file:
            head = file.read(25)
    except (OSError, ValueError):
        return None
    return head[24] if len(head) == 25 and head[12:16] == b"IHDR" else None


def _readers(image: ImageFile.ImageFile) -> tuple[str]:
    return ("JPEG" if image.format == "MPO" else str(image.format),)
