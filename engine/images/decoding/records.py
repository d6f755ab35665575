"""What the headers of a file say about the cost of decoding it."""

from __future__ import annotations

from typing import NamedTuple


class Structure(NamedTuple):
    """Bytes of memory that do not follow from size and mode."""

    parsing: int = 0  # Python objects that opening it makes
    decoder: int = 0  # buffers of the decoder, beside those for each pixel
    multiple_scans: bool = False  # of a JPEG: coefficients of the whole picture are kept
    tile_pixels: int = 0  # of a JPEG 2000: the largest tile; 0 if unknown
