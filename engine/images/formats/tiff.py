"""TIFF: the layouts that Pillow reads in full, and the corrections that they need.

Layouts come from the tags as Pillow has parsed them, because this module corrects Pillow's reading of
them. The cost of a file must be known before Pillow opens it: see ``tiff_directories``.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import ImageFile, TiffImagePlugin

from engine.errors import ImageError
from engine.images.formats.samples import (
    Samples,
    both_bytes,
    grey_to_rgb,
    looked_up,
    raw_mode,
    scaled,
    set_raw_modes,
    straight,
    to_rgb,
    unsupported,
)
from engine.images.formats.tiff_tags import (
    ASSOCIATED_ALPHA,
    BITS,
    CMYK,
    COLORMAP,
    COMPRESSION,
    EXTRA_SAMPLES,
    FILL_ORDER,
    HEIGHT,
    JPEG,
    LAB,
    OLD_JPEG,
    PHOTOMETRIC,
    PLANAR,
    RAW,
    SAMPLE_FORMAT,
    SAMPLES,
    SEPARATE_PLANES,
    WHITE_IS_ZERO,
    WIDTH,
    YCBCR,
)

_FORMATS = {
    1: "unsigned",
    2: "signed",
    3: "floating-point",
    4: "untyped",
    5: "complex",
    6: "complex",
}
_PHOTOMETRICS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}


def prepare(image: ImageFile.ImageFile) -> None:
    """Refuse layouts whose samples Pillow drops or misreads; correct how it reads others."""
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    tags = image.tag_v2
    if any(each != 1 for each in _several(tags.get(SAMPLE_FORMAT, 1))):
        raise unsupported(_described(tags))
    # Pillow skips samples of unknown meaning, which may be anything.
    if 0 in _several(tags.get(EXTRA_SAMPLES, ())):
        raise unsupported("a TIFF with extra samples that are not alpha")
    compression, photometric = tags.get(COMPRESSION, 1), tags.get(PHOTOMETRIC, 0)
    if photometric == LAB or (photometric == YCBCR and compression not in (OLD_JPEG, JPEG)):
        raise unsupported(f"a TIFF of {_PHOTOMETRICS[photometric]} samples")
    if tags.get(PLANAR, 1) == SEPARATE_PLANES:
        if len(_bits(tags)) == 1:
            # With one sample this is the same; Pillow would take a part of the layout's name.
            tags[PLANAR] = 1
            image._setup()
        else:
            _prepare_planes(image)
    if compression == RAW:
        _refuse_missing(image)


def read(image: ImageFile.ImageFile, again: ImageFile.ImageFile | None) -> Samples:
    """Return the samples of a prepared TIFF; 16-bit colour is opened (and prepared) twice."""
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    tags = image.tag_v2
    raw = raw_mode(image.tile[0])
    photometric = tags.get(PHOTOMETRIC, 0)
    associated = ASSOCIATED_ALPHA in _several(tags.get(EXTRA_SAMPLES, ()))
    if image.mode in ("P", "PA"):
        table = _palette(tags)
        if image.mode == "P":
            return _coloured(np.asarray(image), table)
        pairs = np.asarray(image)
        colours = _coloured(pairs[..., 0], table)
        if colours.dtype != np.uint8:
            raise unsupported("a TIFF with alpha and a 16-bit palette")
        return np.concatenate([colours, pairs[..., 1:]], axis=-1)
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16)
        if raw == "I;12":
            return grey_to_rgb(scaled(grey, 4095))
        # Pillow inverts only 8-bit samples; without an inversion these would equal their negative.
        return grey_to_rgb(65535 - grey if photometric == WHITE_IS_ZERO else grey)
    if ";16" in raw:
        if again is None or not raw.startswith(("RGB", "R;")):
            raise unsupported(_described(tags))
        if associated:
            for each in (image, again):
                modes = [raw_mode(tile).replace("RGBa", "RGBA") for tile in each.tile]
                set_raw_modes(each, modes)
        deep: Samples = both_bytes(image, again)
        return straight(deep) if associated else deep
    if image.mode in ("I", "F"):
        raise unsupported(_described(tags))
    if associated and image.mode == "RGBA":
        set_raw_modes(image, [raw_mode(tile).replace("RGBa", "RGBA") for tile in image.tile])
        return straight(np.asarray(image))
    if image.mode == "La":
        pairs = np.asarray(image)
        return straight(pairs[..., [0, 0, 0, 1]])
    return to_rgb(image)


def is_deep(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Return whether its samples, or the colours of its palette, may have more than 8 bits."""
    tags = image.tag_v2
    if image.mode in ("P", "PA"):
        colours = np.asarray(tags.get(COLORMAP, ()), np.uint32)
        return bool((colours % 257).any() and (colours % 256).any())
    return max(_bits(tags)) > 8


def refusal(data: bytes, reason: str) -> ImageError | None:
    """Describe the layout of a TIFF if ``reason`` is that Pillow does not know it; else None."""
    # The last reason is for planes that Pillow has no name for.
    if not reason.startswith(("unknown", "Invalid value for samples", "string index")):
        return None
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:16] if data[2:3] == b"+" else data[:8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        return unsupported(_described(tags))
    # Pillow's parsers raise any error that they meet.
    except Exception:
        return None


def _prepare_planes(image: TiffImagePlugin.TiffImageFile) -> None:
    """Accept only separate planes that Pillow puts into the right channels; refuse the others."""
    tags = image.tag_v2
    bits = _bits(tags)
    plain = {2: ("RGB", "RGBA"), CMYK: ("CMYK",)}.get(tags.get(PHOTOMETRIC, 0), ())
    if (
        image.mode not in plain
        or tags.get(FILL_ORDER, 1) != 1
        or ASSOCIATED_ALPHA in _several(tags.get(EXTRA_SAMPLES, ()))
    ):
        raise unsupported("a TIFF with separate planes of this layout")
    if set(bits) == {8}:
        return
    if tags.get(COMPRESSION, 1) != RAW or set(bits) != {16} or image.mode == "CMYK":
        raise unsupported("a TIFF with separate planes of more than 8 bits")
    # Pillow would read every second byte of a plane; "R" has become "R;16L".
    order = "16L" if tags.prefix == TiffImagePlugin.II else "16B"
    set_raw_modes(image, [f"{raw_mode(tile)[:1]};{order}" for tile in image.tile])


def _refuse_missing(image: TiffImagePlugin.TiffImageFile) -> None:
    """Refuse a file without some of its strips or tiles, which Pillow leaves black."""
    planes: dict[str, int] = {}
    for tile in image.tile:
        left, top, right, bottom = tile.extents or (0, 0, 0, 0)
        layer = raw_mode(tile)
        planes[layer] = planes.get(layer, 0) + (right - left) * (bottom - top)
    width, height = image.tag_v2[WIDTH], image.tag_v2[HEIGHT]
    separate = image.tag_v2.get(PLANAR, 1) == SEPARATE_PLANES
    wanted = len(image.getbands()) if separate else 1
    if len(planes) < wanted or any(area < width * height for area in planes.values()):
        raise ImageError("broken image: some of its strips or tiles are missing")


def _palette(tags: Any) -> Samples:
    """Return the palette's colours as written: (n, 3) uint16."""
    values = np.asarray(tags[COLORMAP], np.uint16)
    if len(values) != 3 << _bits(tags)[0]:
        raise ImageError(f"broken image: {len(values):,} values in the palette of a TIFF")
    return np.ascontiguousarray(values.reshape(3, -1).T)


def _coloured(indices: Samples, table: Samples) -> Samples:
    """Return colours at 8 bits if each used one is an 8-bit value written in 16 bits, else at 16."""
    used = np.unique(indices)
    if int(used[-1]) >= len(table):
        raise ImageError("broken image: a pixel has a colour that its palette lacks")
    for factor in (257, 256):
        if not (table[used] % factor).any():
            return looked_up(indices, (table // factor).astype(np.uint8))
    return looked_up(indices, table)


def _bits(tags: Any) -> tuple[int, ...]:
    """Return the bits of each sample; the tag may have more values than samples, or a single one."""
    count = int(tags.get(SAMPLES, 1))
    bits = _several(tags.get(BITS, 1))
    return tuple(bits[:count]) if len(bits) > 1 else tuple(bits) * max(1, min(count, 64))


def _several(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _described(tags: Any) -> str:
    bits = sorted(set(_bits(tags)))
    form = sorted({_FORMATS.get(each, "odd") for each in _several(tags.get(SAMPLE_FORMAT, 1))})
    colour = _PHOTOMETRICS.get(tags.get(PHOTOMETRIC, 0), "other")
    return (
        f"a TIFF of {len(_bits(tags))} {colour} samples of {' and '.join(map(str, bits))} bits "
        f"({' and '.join(form)})"
    )
