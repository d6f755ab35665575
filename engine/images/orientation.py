"""Reads and applies the EXIF orientation of a picture."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
from PIL import Image

_TAG = 0x0112


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation (1 to 8) of an image whose pixels are loaded; 1 without one.

    Raises ``MemoryError``.
    """
    try:
        return int(image.getexif().get(_TAG, 1))
    # Ignoring this error would store the image as another one, permanently.
    except MemoryError:
        raise
    # A broken EXIF block does not make the pixels unreadable.
    except Exception:
        return 1


def oriented(array: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Apply an EXIF orientation (TIFF 6.0, tag 274) to (H, W, C)."""
    if orientation in (5, 6, 7, 8):
        array = array.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array
