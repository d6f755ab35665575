"""Pillow's pixels as true samples: what the readers of the formats share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from engine.errors import ImageError

Samples = npt.NDArray[np.unsignedinteger[Any]]  # of 8 or 16 bits

# 16-bit colour: Pillow keeps one byte of each channel, and which one depends on the raw mode. Decoding
# once for either byte gives both, where converting would make 300 and 60000 the same value.
_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B"}


def unsupported(what: str) -> ImageError:
    """The reason of a reject: ``what`` is a layout that cannot be read in full."""
    return ImageError(f"{what} is not supported: convert it to PNG")


def to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """(H, W, 3) or, where the image knows transparency, (H, W, 4) uint8."""
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def indexed_to_rgb(image: ImageFile.ImageFile) -> npt.NDArray[np.uint8]:
    """``to_rgb`` of an opened file, where no pixel may have a colour that the palette lacks.

    All of these are black to Pillow, so that files which differ in them would be equal.
    """
    if image.mode in ("P", "PA"):
        image.load()
        indices = np.asarray(image)
        indices = indices if image.mode == "P" else indices[..., 0]
        palette = image.palette
        if palette is None or int(indices.max()) >= len(palette.palette) // len(palette.mode):
            raise ImageError("broken image: a pixel has a colour that its palette lacks")
    return to_rgb(image)


def grey_to_rgb(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Grey (H, W) as (H, W, 3); colour stays as it is."""
    return np.repeat(array[..., None], 3, axis=-1) if array.ndim == 2 else array


def scaled(values: npt.NDArray[Any], highest: int) -> Samples:
    """Samples from 0 to ``highest`` at 8 bits, or 16 if they have more; no two become the same."""
    deep = highest > 255
    full = 65535 if deep else 255
    dtype: type[np.unsignedinteger[Any]] = np.uint16 if deep else np.uint8
    if highest == full:
        return values.astype(dtype, copy=False)
    table = np.rint(np.arange(highest + 1) / highest * full)  # as Pillow rounds
    return looked_up(values, table.astype(dtype))


def looked_up(indices: npt.NDArray[Any], table: Samples) -> Samples:
    """``table[indices]``, some rows at a time: NumPy takes eight bytes for each index."""
    out = np.empty((*indices.shape, *table.shape[1:]), table.dtype)
    for rows in _bands(indices):
        out[rows] = table[indices[rows]]
    return out


def straight(array: Samples) -> Samples:
    """(H, W, 4) without the alpha that its colours were multiplied with.

    A colour above its alpha has no meaning, and different ones would become the same.
    """
    full = np.uint32(np.iinfo(array.dtype).max)
    out = array.copy()
    for rows in _bands(array):
        colour, alpha = array[rows, :, :3], array[rows, :, 3:]
        if bool((colour > alpha).any()):
            raise ImageError(
                "broken image: its alpha is associated, and some colours are above their alpha"
            )
        out[rows, :, :3] = colour * full // np.maximum(alpha, 1)
    return out


def keyed(array: Samples, colour: Any) -> Samples:
    """(H, W, 3) with an alpha that is 0 where a pixel has exactly this ``colour`` (3 values, or 1)."""
    full = np.iinfo(array.dtype).max
    opaque = (array != np.asarray(colour, array.dtype)).any(axis=-1, keepdims=True)
    return np.concatenate([array, opaque.astype(array.dtype) * array.dtype.type(full)], axis=-1)


def raw_mode(tile: Any) -> str:
    """How the samples of a tile lie in the file, as Pillow calls it."""
    raw = tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args
    return raw if isinstance(raw, str) else ""


def is_deep_layout(raw: str) -> bool:
    """Whether samples that lie so have 16 bits; a pixel of "BGR;16" has them in all."""
    return ";16" in raw and raw != "BGR;16"


def set_raw_modes(image: ImageFile.ImageFile, modes: list[str]) -> None:
    """Have each tile read as of another layout; one mode a tile."""
    image.tile = [
        tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode)
        for tile, mode in zip(image.tile, modes, strict=True)
    ]


def both_bytes(image: ImageFile.ImageFile, again: ImageFile.ImageFile) -> npt.NDArray[np.uint16]:
    """(H, W, C) uint16 of a file of 16-bit colour that was opened twice."""
    modes = [raw_mode(tile) for tile in image.tile]
    others = []
    for mode in modes:
        base, _, order = mode.partition(";")
        if base not in ("RGB", "RGBA", "R", "G", "B", "A") or order not in _OTHER_BYTE:
            raise unsupported(f"{image.format} with 16-bit samples laid out as {mode or 'unknown'}")
        others.append(f"{base};{_OTHER_BYTE[order]}")
    set_raw_modes(again, others)
    high = np.asarray(image).astype(np.uint16)
    low = np.asarray(again)
    if high.shape != low.shape:
        raise ImageError("broken image: its 16-bit pixels could not be read in full")
    high <<= 8
    high |= low
    return high


def _bands(array: npt.NDArray[Any]) -> Iterator[slice]:
    """Some rows of it at a time."""
    step = max(1, (1 << 20) // max(1, array[0].size))
    return (slice(top, top + step) for top in range(0, len(array), step))
