"""The input of an encoder: how a picture of any size becomes a square of a fixed size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.images.rgb_picture import pil_rgb8, to_rgb8
from engine.records import Pixels

Picture = npt.NDArray[np.uint8]

# All interpolate with antialiasing.
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Resizes pictures for one encoder. What else a model needs, such as means, is in its graph.

    Without ``shorter_side``, the whole picture is resized to ``size`` × ``size``: the aspect ratio is
    lost, but nothing is cropped. With it, the shorter side is resized to so many pixels, and the
    square in the middle is the input. The pixels are those of torchvision's ``Resize`` and
    ``CenterCrop`` of a PIL image, but for rounding.
    """

    size: int  # pixels a side of the input
    shorter_side: int | None = None  # pixels, at least ``size``
    interpolation: str = "bilinear"  # one of ``INTERPOLATIONS``

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise ValueError(f"interpolation must be one of {known}, not {self.interpolation!r}")
        if self.shorter_side is not None and self.shorter_side < self.size:
            raise ValueError(
                f"shorter_side must be at least the input's size, {self.size}, not {self.shorter_side}"
            )

    def of(self, pixels: Pixels, picture: Image.Image | None = None) -> Picture:
        """The input for an image: (size, size, 3) uint8.

        ``picture`` is the ``pil_rgb8`` of it, if the caller has that.
        """
        if self._is_input(pixels.height, pixels.width):
            return to_rgb8(pixels)
        return self._resized(picture or pil_rgb8(pixels))

    def resize(self, picture: Picture) -> Picture:
        """The input for a picture, (H, W, 3) uint8: (size, size, 3) uint8."""
        height, width, _ = picture.shape
        if self._is_input(height, width):
            return picture
        return self._resized(Image.fromarray(picture))

    def _is_input(self, height: int, width: int) -> bool:
        return (height, width) == (self.size, self.size) and self.shorter_side in (None, self.size)

    def _resized(self, picture: Image.Image) -> Picture:
        shorter = self.shorter_side
        box = None if shorter is None else self._box(picture.width, picture.height, shorter)
        side = self.size, self.size
        return np.asarray(picture.resize(side, INTERPOLATIONS[self.interpolation], box))

    def _box(self, width: int, height: int, shorter: int) -> tuple[float, float, float, float]:
        """The part of a picture that becomes the input: left, upper, right, lower, in its pixels.

        To resize only this part costs no memory for the rest of a very long picture.
        """
        if width <= height:
            wide, high = shorter, shorter * height // width
        else:
            wide, high = shorter * width // height, shorter
        left, top = round((wide - self.size) / 2), round((high - self.size) / 2)
        across, down = width / wide, height / high
        return (
            left * across,
            top * down,
            (left + self.size) * across,
            (top + self.size) * down,
        )


def squash(picture: Picture, size: int) -> Picture:
    """Resize the whole of (H, W, 3) to (size, size, 3): bilinear, with antialiasing."""
    return Preprocessing(size).resize(picture)
