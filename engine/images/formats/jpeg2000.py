"""JPEG 2000: depth and sign as the codestream has them, palettes, and what Pillow passes over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import ImageFile

from engine.errors import ImageError
from engine.images.formats.boxes import boxes
from engine.images.formats.common import (
    Samples,
    grey_to_rgb,
    looked_up,
    scaled,
    to_rgb,
    unsupported,
)

_START = b"\xff\x4f\xff\x51"  # of the codestream, and of its SIZ segment
_BANDS = {"L": 1, "I;16": 1, "P": 1, "LA": 2, "PA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}
_SYCC = 18


@dataclass(frozen=True, slots=True)
class _Layout:
    size: tuple[int, int]
    depths: tuple[int, ...]
    palette: Samples | None
    sycc: bool


def read(data: bytes, image: ImageFile.ImageFile) -> Samples:
    """The samples of an opened JPEG 2000."""
    # OpenJPEG makes up what is missing; only the end-of-codestream marker tells.
    if b"\xff\xd9" not in data:
        raise ImageError("broken image: the file was cut short")
    layout = _layout(memoryview(data))
    if layout.size != image.size or len(layout.depths) != _BANDS.get(image.mode):
        raise ImageError("broken image: its header and its codestream disagree")
    highest = 16 if image.mode == "I;16" else 8
    if max(layout.depths) > highest:
        raise unsupported(
            f"JPEG 2000 with {max(layout.depths)} bits a channel (grey has 16 at most, others 8)"
        )
    if image.mode in ("P", "PA"):
        return _coloured(np.asarray(image), layout)
    if set(layout.depths) == {highest}:
        return _grey16(image) if highest == 16 else to_rgb(image)
    if image.mode == "CMYK" or layout.sycc:
        raise unsupported(f"JPEG 2000 of {image.mode} with less than 8 bits a channel")
    # Pillow shifts samples of fewer bits up, where white would no longer be white.
    array = np.asarray(image)
    array = array.reshape(*array.shape[:2], -1)
    channels = [
        scaled(array[..., i] >> (highest - depth), (1 << depth) - 1)
        if highest == 8
        else _up_to_16(array[..., i], depth)
        for i, depth in enumerate(layout.depths)
    ]
    if len(channels) <= 2:
        channels = [channels[0], channels[0], channels[0], *channels[1:]]
    return np.stack(channels, axis=-1)


def _grey16(image: ImageFile.ImageFile) -> Samples:
    return grey_to_rgb(np.asarray(image).astype(np.uint16))


def _up_to_16(values: Samples, depth: int) -> Samples:
    return scaled(values.astype(np.uint16) >> (16 - depth), (1 << depth) - 1)


def _coloured(array: Samples, layout: _Layout) -> Samples:
    """Indices, or indices and alpha, as colours."""
    table = layout.palette
    if table is None or set(layout.depths) != {8}:
        raise unsupported("JPEG 2000 with a palette of this layout")
    indices = array if array.ndim == 2 else array[..., 0]
    if int(indices.max()) >= len(table):
        raise ImageError("broken image: a pixel has a colour that its palette lacks")
    colours = looked_up(indices, table)
    if array.ndim == 2:
        return colours
    if table.shape[1] != 3:
        raise unsupported("JPEG 2000 with a palette of this layout")
    return np.concatenate([colours, array[..., 1:]], axis=-1)


def _layout(view: memoryview) -> _Layout:
    if view[:4] == _START:
        size, depths = _codestream(view)
        return _Layout(size, depths, None, False)
    header: memoryview | None = None
    for name, content in boxes(view):
        if name == b"jp2h":
            if header is not None:
                raise ImageError("broken image: two JPEG 2000 headers")
            header = content
        elif name == b"jp2c":
            if header is None:
                raise ImageError(
                    "broken image: a JPEG 2000 file without a header before its pixels"
                )
            size, depths = _codestream(content)
            palette, sycc = _colours(header, len(depths))
            return _Layout(size, depths, palette, sycc)
    raise ImageError("broken image: a JPEG 2000 file without pixels")


def _codestream(view: memoryview) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Width and height, and the depth of each component, of the SIZ segment that begins it."""
    if view[:4] != _START or len(view) < 42:
        raise ImageError("broken image: no JPEG 2000 codestream where one should be")
    right, bottom, left, top = (int.from_bytes(view[i : i + 4], "big") for i in range(8, 24, 4))
    count = int.from_bytes(view[40:42], "big")
    parts = bytes(view[42 : 42 + 3 * count : 3])
    if not count or len(parts) != count:
        raise ImageError("broken image: a JPEG 2000 codestream without its components")
    if any(part & 0x80 for part in parts):
        raise unsupported("JPEG 2000 with signed samples")
    return (right - left, bottom - top), tuple((part & 0x7F) + 1 for part in parts)


def _colours(header: memoryview, components: int) -> tuple[Samples | None, bool]:
    """The palette (n, 3 or 4), if there is one, and whether colours are sYCC."""
    found = dict(reversed(list(boxes(header))))  # of each name the first
    colour = found.get(b"colr", memoryview(b""))
    sycc = bytes(colour[:1]) == b"\1" and int.from_bytes(colour[3:7], "big") == _SYCC
    definition = found.get(b"cdef")
    if definition is not None:
        _refuse_other_channels(definition)
    palette = found.get(b"pclr")
    if palette is None:
        return None, sycc
    entries, columns = int.from_bytes(palette[:2], "big"), palette[2] if len(palette) > 2 else 0
    depths, body = bytes(palette[3 : 3 + columns]), palette[3 + columns :]
    plain = set(depths) == {7} and columns == 3 and len(body) >= entries * columns
    if not plain or components > 2 or not entries:
        raise unsupported("JPEG 2000 with a palette of this layout")
    table = np.frombuffer(body, np.uint8, entries * columns).reshape(entries, columns)
    return table, sycc


def _refuse_other_channels(definition: memoryview) -> None:
    """Refuse channels in another order than Pillow takes them in, and associated alpha."""
    count = int.from_bytes(definition[:2], "big")
    for i in range(count):
        entry = definition[2 + 6 * i : 8 + 6 * i]
        channel, kind, of = (int.from_bytes(entry[j : j + 2], "big") for j in (0, 2, 4))
        ordered = (kind == 0 and of == channel + 1) or (kind == 1 and of == 0 and channel in (1, 3))
        if not ordered:
            raise unsupported("JPEG 2000 with channels in this order")
