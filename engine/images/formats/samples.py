"""Turns Pillow's pixels into true samples; the readers of all formats use these functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from engine.errors import ImageError

Samples = npt.NDArray[np.unsignedinteger[Any]]  # of 8 or 16 bits

# For 16-bit colour, Pillow keeps one byte of each channel; the raw mode decides which one. So the
# file is decoded once for each byte. Converting would make 300 and 60000 the same value.
_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B"}


def unsupported(what: str) -> ImageError:
    """Return the reason of a reject: ``what`` is a layout that cannot be read in full."""
    return ImageError(f"{what} is not supported: convert it to PNG")


def to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return (H, W, 3) uint8, or (H, W, 4) if the image has transparency."""
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def indexed_to_rgb(image: ImageFile.ImageFile) -> npt.NDArray[np.uint8]:
    """Do ``to_rgb`` for an opened file; ``ImageError`` if a pixel's colour is not in the palette.

    Pillow makes all of these pixels black, so files that differ in them would become equal.
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
    """Return grey (H, W) as (H, W, 3); colour stays as it is."""
    return np.repeat(array[..., None], 3, axis=-1) if array.ndim == 2 else array


def scaled(values: npt.NDArray[Any], highest: int) -> Samples:
    """Scale samples from 0 .. ``highest`` to 8 bits, or to 16 above 255; no two become equal."""
    deep = highest > 255
    full = 65535 if deep else 255
    dtype: type[np.unsignedinteger[Any]] = np.uint16 if deep else np.uint8
    if highest == full:
        return values.astype(dtype, copy=False)
    # Rounded as Pillow does.
    table = np.rint(np.arange(highest + 1) / highest * full)
    return looked_up(values, table.astype(dtype))


def looked_up(indices: npt.NDArray[Any], table: Samples) -> Samples:
    """Return ``table[indices]``, some rows at a time: NumPy takes eight bytes for each index."""
    out = np.empty((*indices.shape, *table.shape[1:]), table.dtype)
    for rows in _bands(indices):
        out[rows] = table[indices[rows]]
    return out


def straight(array: Samples) -> Samples:
    """Return (H, W, 4) with the colours divided by the alpha that they were multiplied with.

    A colour above its alpha has no meaning, and would make different files equal: ``ImageError``.
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
    """Add to (H, W, 3) an alpha that is 0 where a pixel has exactly this ``colour`` (3 values, or 1)."""
    full = np.iinfo(array.dtype).max
    opaque = (array != np.asarray(colour, array.dtype)).any(axis=-1, keepdims=True)
    return np.concatenate([array, opaque.astype(array.dtype) * array.dtype.type(full)], axis=-1)


def raw_mode(tile: Any) -> str:
    """Return Pillow's name for the layout of a tile's samples in the file."""
    raw = tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args
    return raw if isinstance(raw, str) else ""


def is_deep_layout(raw: str) -> bool:
    """Return whether this layout has 16-bit samples; "BGR;16" has 16 bits per pixel."""
    return ";16" in raw and raw != "BGR;16"


def set_raw_modes(image: ImageFile.ImageFile, modes: list[str]) -> None:
    """Make Pillow read each tile as another layout; one mode per tile."""
    image.tile = [
        tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode)
        for tile, mode in zip(image.tile, modes, strict=True)
    ]


def both_bytes(image: ImageFile.ImageFile, again: ImageFile.ImageFile) -> npt.NDArray[np.uint16]:
    """Return (H, W, C) uint16 of a file of 16-bit colour that was opened twice."""
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
    """Return slices of some rows at a time."""
    step = max(1, (1 << 20) // max(1, array[0].size))
    return (slice(top, top + step) for top in range(0, len(array), step))
