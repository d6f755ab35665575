"""Opens an image file through Pillow, without Pillow's limit of pixels and before any decoding.

``PIL.Image.MAX_IMAGE_PIXELS`` applies to the whole process, and belongs to the program that embeds the
engine. ``Image.open`` warns above it and raises above its double. The engine limits memory instead. So
it calls the formats' own classes as ``Image.open`` does, without that check, and changes no global
state.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import IO

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TgaImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
    _imaging,
)

from engine.images.formats import avif, png

# Raster formats with decoders that withstand hostile input; EPS, PDF and the like run interpreters.
# The plugins are imported here because Pillow's own loading on first use is not safe in threads.
_PLUGINS = {
    "PNG": PngImagePlugin,
    "JPEG": JpegImagePlugin,
    "WEBP": WebPImagePlugin,
    "GIF": GifImagePlugin,
    "BMP": BmpImagePlugin,
    "DIB": BmpImagePlugin,
    "TIFF": TiffImagePlugin,
    "PPM": PpmImagePlugin,
    "AVIF": AvifImagePlugin,
    "JPEG2000": Jpeg2KImagePlugin,
    "TGA": TgaImagePlugin,
}
FORMATS = tuple(_PLUGINS)


class _TiffFile(TiffImagePlugin.TiffImageFile):
    """A TIFF that does not check the limit of pixels again when its pixels are loaded."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = _imaging.new(self.mode, getattr(self, "_tile_size", self.size))
        super().load_prepare()


def open_file(data: bytes, *, head_only: bool = False) -> tuple[ImageFile.ImageFile, int | None]:
    """Return the file as Pillow opens it, and its number of frames; None if Pillow has to count them.

    With ``head_only`` a PNG is read up to its pixels, and its frames are not counted. Raises
    ``ImageError`` for a file that must not be opened, ``UnidentifiedImageError`` if no format accepts
    it, and whatever a plugin raises.
    """
    if data.startswith(png.SIGNATURE):
        stream, frames = png.pixels_only(data, head_only=head_only)
        return open_image(stream, ("PNG",)), frames
    try:
        return open_image(data, FORMATS), None
    except Exception:
        other = avif.without_exif(data) if data[4:8] == b"ftyp" else None
        if other is None:
            raise
        return open_image(other, FORMATS), None


def open_image(data: bytes | IO[bytes], formats: Sequence[str]) -> ImageFile.ImageFile:
    """Do ``Image.open(io.BytesIO(data), formats=formats)`` for any number of pixels.

    ``data`` may be a stream too; the plugins of all ``formats`` must be imported. Raises
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
