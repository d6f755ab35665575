"""Opens an image file through Pillow, without its limit of pixels and before anything is decoded.

``PIL.Image.MAX_IMAGE_PIXELS`` is one for the whole process, and belongs to the program that embeds the
engine: ``Image.open`` warns above it and raises above its double. What counts here is memory, so the
formats' own classes are called as ``Image.open`` calls them, without that check. Nothing global changes.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import IO

from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError, _imaging

from engine.images.decoding import avif, gif, jpeg, jpeg2000, tiff
from engine.images.decoding.records import Structure

_BY_SIGNATURE = (
    (b"\xff\xd8\xff", jpeg.structure),
    (b"GIF8", gif.structure),
    (b"II*\0", tiff.structure),
    (b"MM\0*", tiff.structure),
    (b"MM*\0", tiff.structure),
    (b"II\0*", tiff.structure),
    (b"II+\0", tiff.structure),
    (b"MM\0+", tiff.structure),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", jpeg2000.structure),
    (b"\xff\x4f\xff\x51", jpeg2000.structure),
)


class _TiffFile(TiffImagePlugin.TiffImageFile):
    """A TIFF that does not ask for the limit a second time, when its pixels are loaded."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = _imaging.new(self.mode, getattr(self, "_tile_size", self.size))
        super().load_prepare()


def structure(data: bytes) -> Structure:
    """What the headers of a file say about its cost, before Pillow reads them.

    Raises ``ImageError`` for a file that would take out of all proportion long to open or to decode.
    """
    for signature, read in _BY_SIGNATURE:
        if data.startswith(signature):
            return read(data)
    return avif.structure(data) if data[4:8] == b"ftyp" else Structure()


def open_image(data: bytes | IO[bytes], formats: Sequence[str]) -> ImageFile.ImageFile:
    """What ``Image.open(io.BytesIO(data), formats=formats)`` gives, whatever its number of pixels.

    ``data`` may be a stream, too; the plugins of all ``formats`` must be imported. Raises
    ``UnidentifiedImageError`` if no format accepts it, and whatever a plugin raises.
    """
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    stream.seek(0)
    prefix = stream.read(16)
    for name in formats:
        factory, accept = Image.OPEN[name]
        accepted = accept(prefix) if accept is not None else True
        # A string is the reason why this build of Pillow cannot read the format.
        if isinstance(accepted, str) or not accepted:
            continue
        stream.seek(0)
        try:
            return _TiffFile(stream, "") if name == "TIFF" else factory(stream, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
    raise UnidentifiedImageError("cannot identify image file")
