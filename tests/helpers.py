"""What tests make: pictures, masks, and files of them."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    """An 8-bit picture of noise, (height, width, channels) uint8, unlike that of another seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def mask(seed: int, height: int = 16, width: int = 16) -> np.ndarray:
    """A bit image of noise, (height, width, 3) bool, unlike that of another seed."""
    return np.random.default_rng(seed).integers(0, 2, (height, width, 3)).astype(np.bool_)


def save(path: Path, array: np.ndarray, mtime: int | None = None) -> Path:
    """Write the file of a picture or a mask, in new folders where there are none.

    ``mtime``: seconds; a change within a tick of the clock would not show.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    as_image(array).save(path)
    if mtime is not None:
        os.utime(path, (mtime, mtime))
    return path


def encoded(image: np.ndarray | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image's file, of Pillow's format ``form``."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else as_image(image)).save(file, form, **options)
    return file.getvalue()


def as_image(array: np.ndarray) -> Image.Image:
    """Pillow's image of a picture, or of a mask in black and white."""
    return Image.fromarray(array.astype(np.uint8) * 255 if array.dtype == np.bool_ else array)
