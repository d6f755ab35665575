"""PIL images that ``Image.open`` gave: the file behind them, and what their file says besides pixels."""

from __future__ import annotations

import io
from collections.abc import Collection
from typing import Any

import numpy.typing as npt
from PIL import Image, ImageFile


def is_opened(image: Image.Image) -> bool:
    """Whether it is a file's image itself; copies and what was made of it are not."""
    return isinstance(image, ImageFile.ImageFile)


def unread_file(image: Image.Image, formats: Collection[str]) -> bytes | None:
    """The whole file of an opened image whose pixels nobody has loaded or changed yet; else None."""
    if not isinstance(image, ImageFile.ImageFile) or image._im is not None or not image.tile:
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
            # It may be wanted at another size or in another mode (``draft``, ``reduce``).
            with Image.open(io.BytesIO(data), formats=_readers(image)) as again:
                same = (again.size, again.mode) == (image.size, image.mode)
                same = same and not getattr(image, "_reduce", 0)
        finally:
            file.seek(at)
    except Exception:  # what cannot be read twice is read as an image, which will say what is wrong
        return None
    return data if same else None


def frames_of(image: Image.Image) -> int:
    """How many frames the file of an opened image has; 1 for any other, and for a later frame."""
    if not isinstance(image, ImageFile.ImageFile) or image.format == "MPO" or image.tell() != 0:
        return 1
    counted: Any = getattr(image, "_n_frames", None)
    if counted is None and hasattr(
        type(image), "n_frames"
    ):  # counting would seek, and lose changes
        file = getattr(image, "_fp", None) or image.fp
        if file is None or not hasattr(file, "seek") or getattr(file, "closed", True):
            return 1  # of a still image: the file of an animation stays open
        at = file.tell()
        try:
            with Image.open(file, formats=_readers(image)) as again:
                return int(getattr(again, "n_frames", 1))
        finally:
            file.seek(at)
    return int(counted if counted is not None else getattr(image, "n_frames", 1))


def is_ambiguous(image: Image.Image, array: npt.NDArray[Any]) -> bool:
    """Whether it may be a loaded PNG of 2 or 4 bits with a transparent value, which Pillow gets wrong.

    The value is then that of the file, and the pixels are 17 or 85 times theirs.
    """
    value = image.info.get("transparency")
    if not is_opened(image) or image.format != "PNG" or image.mode != "L" or value is None:
        return False
    return 0 < value < 16 and not (array[..., 0] % 17).any()


def _readers(image: ImageFile.ImageFile) -> tuple[str]:
    return ("JPEG" if image.format == "MPO" else str(image.format),)
