"""Draws a sheet of an encoder's worst cases: the query, the found picture and the right one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from engine.evaluation.pictures import Array

_CELL, _GAP, _TEXT = 192, 12, 16
_SHOWN, _FIRST = 30, 6  # characters below a picture, and how many of them from the beginning


@dataclass(frozen=True, slots=True)
class WorstCaseRow:
    """One case: three pictures (H, W, 3) uint8, or None for a missing one, and a line for each."""

    pictures: tuple[Array | None, Array | None, Array | None]
    lines: tuple[str, str, str]


def draw(title: str, rows: Sequence[WorstCaseRow]) -> Image.Image:
    """Draw the sheet, with a heading above each column."""
    width = 3 * (_CELL + _GAP) + _GAP
    high = _CELL + _TEXT + _GAP
    sheet = Image.new("RGB", (width, 3 * _TEXT + _GAP + len(rows) * high), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default()

    def write(x: int, y: int, text: str) -> None:
        # The built-in font may have only Latin-1.
        pen.text((x, y), text.encode("latin-1", "replace").decode("latin-1"), "black", font)

    write(_GAP, 4, title)
    for column, heading in enumerate(("query", "found", "right")):
        write(_GAP + column * (_CELL + _GAP), 4 + _TEXT, heading)
    for number, row in enumerate(rows):
        top = 2 * _TEXT + _GAP + number * high
        for column, (picture, text) in enumerate(zip(row.pictures, row.lines, strict=True)):
            left = _GAP + column * (_CELL + _GAP)
            if picture is not None:
                small = _fitted(picture)
                height, wide, _ = small.shape
                at = left + (_CELL - wide) // 2, top + (_CELL - height) // 2
                sheet.paste(Image.fromarray(small), at)
            write(left, top + _CELL, _cut(text))
    return sheet


def _cut(text: str) -> str:
    """A text cut to fit below a picture: the beginning, which is a score, and the end."""
    if len(text) <= _SHOWN:
        return text
    return f"{text[:_FIRST]}...{text[_FIRST + 3 - _SHOWN :]}"


def _fitted(picture: Array) -> Array:
    height, width, _ = picture.shape
    factor = _CELL / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
