"""BMP: restores palettes that Pillow takes for a grey ramp, which loses the bits per pixel."""

from __future__ import annotations

import numpy as np
from PIL import ImageFile, ImagePalette

from engine.errors import ImageError
from engine.images.formats.samples import (
    Samples,
    grey_to_rgb,
    indexed_to_rgb,
    raw_mode,
    set_raw_modes,
    to_rgb,
)

_FILE_HEADER = 14


def read(data: bytes, image: ImageFile.ImageFile) -> Samples:
    """Return the samples of an opened BMP or DIB."""
    if image.mode not in ("1", "L"):
        return indexed_to_rgb(image)
    start = _FILE_HEADER if image.format == "BMP" else 0
    core = int.from_bytes(data[start : start + 4], "little") == 12
    at = start + (10 if core else 14)
    bits = int.from_bytes(data[at : at + 2], "little")
    if image.tile[0].codec_name != "raw" or raw_mode(image.tile[0]) == {1: "1", 8: "L"}.get(bits):
        return to_rgb(image)
    # The palette is the ramp 0, 1, 2 …, or black and white, and Pillow has forgotten the depth of the
    # pixels: it would take one bit or one byte for each.
    ramp = image.mode == "L"
    image._mode = "P"
    set_raw_modes(image, [{1: "P;1", 4: "P;4", 8: "P"}[bits]])
    image.palette = ImagePalette.ImagePalette("RGB")
    indices = np.asarray(image)
    if ramp:
        return grey_to_rgb(indices.copy())
    if int(indices.max()) > 1:
        raise ImageError("broken image: a pixel has a colour that its palette lacks")
    return grey_to_rgb(indices * np.uint8(255))
