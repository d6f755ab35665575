"""Draws a sheet of pictures: queries, each with its nearest images beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

_SIDE = 112  # pixels of a picture on the sheet
_GAP = 6
_PAPER = (255, 255, 255)

Array = npt.NDArray[np.uint8]


def sheet(rows: Sequence[Sequence[Array]]) -> Image.Image:
    """Draw a row of pictures for each query. The query comes first, with a wider gap after it.

    Pictures are (H, W, 3) uint8 of any size; rows may differ in length.
    """
    cell = _SIDE + _GAP
    longest = max(map(len, rows))
    paper = Image.new("RGB", ((longest + 1) * cell, len(rows) * cell + _GAP), _PAPER)
    for down, row in enumerate(rows):
        for right, picture in enumerate(row):
            left = _GAP + right * cell + (_SIDE // 2 if right else 0)
            small = Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
            paper.paste(small, (left, _GAP + down * cell))
    return paper
