"""Image bytes or arrays to canonical pixels, with limits: what "the very same image" means.

Canonical form: a 16-byte header, then the pixels.

    offset  bytes  big-endian
    0       1      canonicalisation version (1)
    1       1      kind: 1 bits, 2 8-bit, 3 16-bit
    2       1      channels: 3 (RGB) or 4 (RGBA)
    3       1      0
    4       4      height
    8       4      width
    12      4      frames or pages in the file (1 for a still image; only the first is decoded)

Pixels are row-major with interleaved channels. Grey is RGB with three equal channels. Alpha is kept
only where some pixel is not opaque. The EXIF orientation is applied; colour profiles are ignored.
8-bit channels are bytes, 16-bit channels little-endian words, bits are packed eight to a byte, the
first in the highest bit, with zeros behind the last. Samples of fewer than 8 bits are scaled to 8, and
those of 9 to 15 to 16, so that white stays white; ``engine.images.formats`` refuses layouts that
cannot be read so. A file in which every channel value is 0 or 255 is a bit image; an array is
one if it is of bool, or if it holds nothing but 0 and 1.
"""

from __future__ import annotations

import functools
import re
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
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
    __version__,
)

from engine.config import whole
from engine.errors import ImageError, UsageError
from engine.images.decoding import cost
from engine.images.decoding.opening import open_image, structure
from engine.images.decoding.records import Structure
from engine.images.formats import avif, files, opened, png
from engine.images.formats.common import grey_to_rgb, keyed, to_rgb
from engine.records import Buffer, Decoded, Kind, Pixels

CANONICAL_VERSION = 1
HEADER = struct.Struct(">BBBxIII")
HEADER_BYTES = HEADER.size
# The second number is of what the engine itself makes of the formats; with a new one, files that were
# rejected are tried again.
DECODER = f"pillow-{__version__}-2"
_PIXEL_KINDS = frozenset({Kind.BITS, Kind.U8, Kind.U16})

MAX_PIXELS = 128_000_000
"""The most pixels (width × height) an image may have where no memory is named: a guard against bombs."""

# A drawing in white on transparency would be a blank page on white. Which ground it gets depends on the
# mean luma (0-255) of what is opaque, weighted by alpha, which a smaller or compressed copy keeps to one
# or two. No rule is without a value where the ground changes: one whose ground moved smoothly with the
# picture would somewhere meet it. This one lies between the lumas that drawings often have: below it
# light grey (211), gainsboro (220) and yellow (226), above it #eee (238), white smoke (245) and white.
_ABOUT_WHITE = 232

# Raster formats whose decoders stand up to hostile input; EPS, PDF and the like run interpreters.
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

SUFFIXES = frozenset(
    [
        ".png",
        ".apng",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".avif",
        ".jp2",
        ".j2k",
        ".jpx",
        ".jpf",
        ".tga",
        ".mpo",
    ]
)

# Of errors that Pillow's parsers raise without a word.
_SILENT: dict[type[Exception], str] = {
    AssertionError: "its header contradicts itself",
    EOFError: "the file ends too early",
    IndexError: "the file ends too early",
    struct.error: "the file ends too early",
    RecursionError: "its parts are nested too deep",
    OverflowError: "a number in it is too large",
}
_ERROR_NUMBER = re.compile(r"decoder error -?\d+")
_ORIENTATION_TAG = 0x0112


def looks_like_image(head: bytes) -> bool:
    """Whether a file that begins with ``head`` (≥ 16 bytes) is signed as an image of a known format."""
    return (
        head.startswith(
            (
                b"\x89PNG\r\n\x1a\n",
                b"\xff\xd8\xff",
                b"GIF87a",
                b"GIF89a",
                b"II*\x00",
                b"MM\x00*",
                b"II+\x00",  # BigTIFF
                b"MM\x00+",
                b"\x00\x00\x00\x0cjP  \r\n\x87\n",
                b"\xff\x4f\xff\x51",
            )
        )
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"))
        or (head[:2] == b"BM" and head[6:10] == b"\0\0\0\0")
        or (
            head[:1] == b"P" and head[1:2].isdigit() and head[2:3].isspace() and head[3:4].isdigit()
        )
    )


def decode(data: bytes, *, max_pixels: int | None = None, max_bytes: int | None = None) -> Decoded:
    """Decode an image file's bytes to canonical pixels.

    Raises ``ImageError`` with a one-line reason for anything that is not a whole image of a known
    format within ``max_pixels`` (width × height) and ``max_bytes`` (of memory while it is decoded and
    looked at), for work out of all proportion, and for samples that would have to be reduced. Without
    either limit, ``MAX_PIXELS`` is one.
    """
    if not data:
        raise ImageError("the file is empty (0 bytes)")
    if max_pixels is None and max_bytes is None:
        max_pixels = MAX_PIXELS
    try:
        array, frames, container = _decode(data, max_pixels, max_bytes)
        return Decoded(_canonical(array, frames), container)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError("not enough memory to decode it", retryable=True) from None
    except UnidentifiedImageError:
        signed = looks_like_image(data[:32])
        why = files.why_unknown(data, FORMATS) if signed else None
        raise why or ImageError("not an image in a known format") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"too many pixels for Pillow: {_words(error)}") from None
    # Pillow's decoders raise whatever their parsing trips over: SyntaxError, struct.error, KeyError …
    except Exception as error:
        raise ImageError(f"broken image: {_words(error)}") from None


def decoding_bytes(data: bytes) -> int:
    """Memory that decoding an image file takes, by its header; 0 if it has no readable one."""
    try:
        found = structure(data)
        with _open(data, head_only=True)[0] as image:
            return _decoding_bytes(image, found, len(data))
    except Exception:  # decode will say what is wrong
        return 0


def _decoding_bytes(image: ImageFile.ImageFile, found: Structure, file_bytes: int) -> int:
    one_byte = cost.PILLOW.get(image.mode, 4) < 4 or image.mode in ("I", "F")
    return cost.decoding_bytes(
        image.format or "",
        image.mode,
        image.size,
        found,
        channels=4 if image.has_transparency_data else 1 if one_byte else 3,
        deep=files.is_deep(image),
        file_bytes=file_bytes,
    )


def _words(error: Exception) -> str:
    """What an error of Pillow's says, in a line; words of ours where it says nothing."""
    said = " ".join(str(error).split())
    if isinstance(error, KeyError):  # says no more than the key
        said = f"there is no {said}" if said else ""
    if _ERROR_NUMBER.search(said):
        said = "what it holds is damaged, or cut short"
    return said or _SILENT.get(type(error), "its data contradict one another")


def measured(data: bytes) -> tuple[int, int]:
    """Height and width of an image file as it lies, by its header; ``ImageError`` if it has none."""
    try:
        with _open(data, head_only=True)[0] as image:
            return image.height, image.width
    except ImageError:
        raise
    except Exception as error:  # Pillow's parsers raise whatever they trip over
        raise ImageError(f"broken image: {_words(error)}") from None


def from_array(array: npt.ArrayLike) -> Pixels:
    """One image as an array: (H, W), (H, W, 3) or (H, W, 4) of bool, uint8 or uint16.

    bool, and uint8 that holds nothing but 0 and 1, is a bit image; uint8 is otherwise 8-bit.
    Raises ``UsageError`` for another shape or dtype.
    """
    pixels = np.asarray(array)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise UsageError(
            f"an image of shape {pixels.shape}: (H, W), (H, W, 3) or (H, W, 4) is needed"
        )
    if pixels.dtype == np.bool_ or (pixels.dtype == np.uint8 and pixels.max(initial=0) <= 1):
        return _canonical(grey_to_rgb(pixels.astype(np.uint8)) * np.uint8(255), 1)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UsageError(f"an image of dtype {pixels.dtype}: bool, uint8 or uint16 is needed")
    return _canonical(grey_to_rgb(pixels), 1, bits=False)


def from_image(image: Image.Image, *, max_bytes: int | None = None) -> Pixels:
    """A PIL image (its current frame).

    Of one that ``Image.open`` gave it is what ``decode`` makes of the file: turned as EXIF says and with
    the number of frames, if it is at the first. Until its pixels are loaded, the file itself is read, in
    full depth and in at most ``max_bytes`` of memory. What was made of an opened image (a copy, another
    mode, a crop) is taken as it is.

    Raises ``UsageError`` for a mode that is not supported, ``ImageError`` if it cannot be read.
    """
    data = opened.unread_file(image, FORMATS)
    if data is not None:
        return decode(data, max_bytes=max_bytes).pixels
    if opened.is_reduced(image):
        raise UsageError(
            "a loaded PIL image whose pixels Pillow has reduced or not made right: give the file, or "
            "the image before its pixels are loaded"
        )
    if image.mode.startswith("I;16"):
        array: npt.NDArray[Any] = grey_to_rgb(np.asarray(image).astype(np.uint16))
        if isinstance(image.info.get("transparency"), int):
            array = keyed(array, image.info["transparency"])
    elif image.mode == "I" and image.format == "PPM":
        array = grey_to_rgb(np.asarray(image).astype(np.uint16))
    elif image.mode in ("I", "F"):
        raise UsageError(
            f"a PIL image of mode {image.mode}: at most 16 bits a channel are supported"
        )
    elif files.is_deep(image):  # an opened file whose pixels are not loaded yet
        raise UsageError(
            "a 16-bit picture that Pillow would reduce to 8 bits: give the file or an array"
        )
    else:
        try:
            array = to_rgb(image)
        except (OSError, ValueError, SyntaxError) as error:
            raise ImageError(f"a PIL image that cannot be read: {error}") from None
    if opened.is_opened(image):
        array = _oriented(array, _orientation(image))
    return _canonical(array, opened.frames_of(image), bits=array.dtype != np.uint16)


@functools.lru_cache(maxsize=64)
def rows_header(kind: Kind, height: int, width: int) -> bytes:
    """The canonical header that all rows of one array share (RGB, one frame)."""
    return HEADER.pack(CANONICAL_VERSION, kind, 3, height, width, 1)


def rows_from_array(rows: npt.NDArray[Any], kind: Kind) -> npt.NDArray[np.uint8]:
    """Canonical rows of a block of an array.

    ``rows`` is (n, H, W), (n, H, W, 1) or (n, H, W, 3): for ``Kind.BITS`` bool or 0/1, for
    ``Kind.U8`` uint8.
    Returns (n, 16 + pixel bytes) uint8, C-contiguous, each row an image's canonical form.
    """
    n, height, width = rows.shape[:3]
    if rows.ndim == 3 or rows.shape[3] == 1:
        rows = np.repeat(rows.reshape(n, height, width, 1), 3, axis=-1)
    header = np.frombuffer(rows_header(kind, height, width), np.uint8)
    flat = rows.reshape(n, height * width * 3)
    body = flat.shape[1] if kind is Kind.U8 else -(-flat.shape[1] // 8)
    out = np.empty((n, HEADER_BYTES + body), np.uint8)
    out[:, :HEADER_BYTES] = header
    out[:, HEADER_BYTES:] = flat if kind is Kind.U8 else np.packbits(flat, axis=1)
    return out


def array_kind(images: npt.NDArray[Any]) -> Kind:
    """Whether an array of n images is of bits (bool, or nothing but 0 and 1) or 8-bit (other uint8).

    Raises ``UsageError`` for another dtype, or a shape that is not (n, H, W), (n, H, W, 1) or
    (n, H, W, 3), or that may be one image and not n.
    """
    if not isinstance(images, np.ndarray):
        raise UsageError(f"images are an array or PackedBits, not a {type(images).__name__}")
    if not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))):
        raise UsageError(f"images of shape {images.shape}: (n, H, W) or (n, H, W, 3) is needed")
    if may_be_one_image(images.shape):
        raise UsageError(
            f"an array of shape {images.shape} {what_it_may_be(images.shape)}: say which"
        )
    if min(images.shape[1:]) < 1:
        raise UsageError(f"images of shape {images.shape} have no pixels")
    if images.dtype not in (np.bool_, np.uint8):
        raise UsageError(f"images of dtype {images.dtype}: bool or uint8 is needed")
    is_bits = images.dtype == np.bool_ or int(images.max(initial=0)) <= 1
    return Kind.BITS if is_bits else Kind.U8


def may_be_one_image(shape: tuple[int, ...]) -> bool:
    """Whether an array is of one image in colour as likely as of several grey ones, 3 or 4 wide."""
    return len(shape) == 3 and shape[2] in (3, 4)


def what_it_may_be(shape: tuple[int, ...]) -> str:
    """What such an array may be, and how to say which."""
    one = "array[None]"
    if shape[2] == 4:
        one += " of its colours, [(name, array)] with its alpha"
    return f"may be one image ({one}), or {shape[0]:,} that are {shape[2]} wide (array[..., None])"


class PackedBits:
    """n bit images of one size, eight values to a byte, as they are hashed, stored and compared.

    ``packed`` is (n, ceil(height · width · 3 / 8)) uint8: the values of each image row by row, three
    channels interleaved, the first value in the highest bit, zeros behind the last one; what
    ``numpy.packbits(images.reshape(n, -1), axis=1)`` gives. Slices of it are ``PackedBits`` too.

    Raises ``UsageError`` if ``packed`` has another shape or dtype, or ones behind the last value.
    """

    __slots__ = ("height", "packed", "width")

    def __init__(self, packed: npt.NDArray[np.uint8], height: int, width: int) -> None:
        if not isinstance(packed, np.ndarray):
            raise UsageError(f"packed bits are an array of uint8, not a {type(packed).__name__}")
        try:
            sides = whole(height), whole(width)
        except TypeError:
            sides = 0, 0
        if min(sides) < 1:
            raise UsageError(f"a height and width of {height!r} and {width!r}: whole numbers ≥ 1")
        height, width = sides
        values = height * width * 3
        size = -(-values // 8)
        if packed.ndim != 2 or packed.shape[1] != size or packed.dtype != np.uint8:
            raise UsageError(
                f"packed bits of shape {packed.shape} and dtype {packed.dtype}: for images of "
                f"{height} × {width} (n, {size}) uint8 is needed"
            )
        unused = 8 * size - values
        if unused and (packed[:, -1] & ((1 << unused) - 1)).any():
            raise UsageError(f"packed bits: the last {unused} bits of an image must be 0")
        self.packed = packed
        self.height = height
        self.width = width

    @classmethod
    def pack(cls, images: npt.NDArray[Any]) -> PackedBits:
        """Pack (n, H, W), (n, H, W, 1) or (n, H, W, 3) of bool or of 0 and 1; grey becomes RGB."""
        if array_kind(images) is not Kind.BITS:
            raise UsageError("images with values above 1 are no bit images: pass images > 0")
        n, height, width = images.shape[:3]
        packed = np.empty((n, -(-height * width * 3 // 8)), np.uint8)
        for at in range(0, n, 256):  # unpacked, a grey image takes three bytes a pixel
            rows = rows_from_array(images[at : at + 256], Kind.BITS)
            packed[at : at + len(rows)] = rows[:, HEADER_BYTES:]
        return cls(packed, height, width)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.packed)

    def __getitem__(self, which: slice | int) -> PackedBits:
        """Some of the images, or one, as ``PackedBits`` of one."""
        if not isinstance(which, slice):
            which = range(len(self))[which]  # IndexError, and counting from the end
            which = slice(which, which + 1)
        return PackedBits(self.packed[which], self.height, self.width)

    def only(self) -> Pixels:
        """The image, of which there must be one."""
        if len(self.packed) != 1:
            raise UsageError(f"{len(self.packed)} images, where one is needed")
        canonical = rows_header(Kind.BITS, self.height, self.width) + self.packed[0].tobytes()
        return Pixels(Kind.BITS, self.height, self.width, 3, 1, canonical)

    def canonical(self) -> npt.NDArray[np.uint8]:
        """The canonical form of each: (n, 16 + bytes) uint8, copied."""
        out = np.empty((len(self.packed), HEADER_BYTES + self.packed.shape[1]), np.uint8)
        out[:, :HEADER_BYTES] = np.frombuffer(
            rows_header(Kind.BITS, self.height, self.width), np.uint8
        )
        out[:, HEADER_BYTES:] = self.packed
        return out


def from_canonical(canonical: Buffer) -> Pixels:
    """The image that canonical bytes describe; ``ImageError`` if header and length disagree."""
    view = memoryview(canonical)
    if len(view) != canonical_bytes(view[:HEADER_BYTES]):
        raise ImageError("canonical bytes have the wrong length")
    _, kind, channels, height, width, frames = HEADER.unpack(view[:HEADER_BYTES])
    return Pixels(Kind(kind), height, width, channels, frames, canonical)


def canonical_bytes(header: Buffer) -> int:
    """How long the canonical form with this header is; ``ImageError`` if it is none."""
    if len(memoryview(header)) < HEADER_BYTES:
        raise ImageError("canonical bytes are cut short")
    version, kind, channels, height, width, frames = HEADER.unpack(header)
    known = kind in _PIXEL_KINDS and channels in (3, 4)
    if version != CANONICAL_VERSION or not known or not height or not width or not frames:
        raise ImageError("canonical bytes have an unknown header")
    values = height * width * channels
    body: int = {Kind.BITS: -(-values // 8), Kind.U8: values, Kind.U16: 2 * values}[Kind(kind)]
    return HEADER_BYTES + body


def to_rgb8(pixels: Pixels) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 for looking at: bits as 0 and 255, 16 bits as the upper 8, alpha over a ground.

    The ground is white, or black where what is opaque is about white (``_ABOUT_WHITE``).
    """
    shape = (pixels.height, pixels.width, pixels.channels)
    body = np.frombuffer(pixels.canonical, np.uint8)[HEADER_BYTES:]
    if pixels.kind is Kind.BITS:
        count = pixels.height * pixels.width * pixels.channels
        array = (np.unpackbits(body, count=count) * np.uint8(255)).reshape(shape)
    elif pixels.kind is Kind.U16:
        array = (body.view("<u2") >> 8).astype(np.uint8).reshape(shape)
    else:
        array = body.reshape(shape)
    if pixels.channels == 3:
        return array
    alpha = array[..., 3:].astype(np.uint16)
    colour = array[..., :3] * alpha
    red, green, blue = (int(total) for total in colour.sum(axis=(0, 1), dtype=np.uint64))
    luma = 299 * red + 587 * green + 114 * blue
    if luma <= _ABOUT_WHITE * 1000 * int(alpha.sum(dtype=np.uint64)):
        colour += 255 * (255 - alpha)
    colour //= 255
    return colour.astype(np.uint8)


def squash(picture: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """The whole of (H, W, 3) as (size, size, 3): what encoders look at, in training and after it.

    Bilinear with antialiasing; the shape of the picture is lost, nothing at its edges is.
    """
    if picture.shape[:2] == (size, size):
        return picture
    image = Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _decode(
    data: bytes, max_pixels: int | None, max_bytes: int | None
) -> tuple[npt.NDArray[Any], int, str]:
    found = structure(data)
    if max_bytes is not None and found.parsing > max_bytes:
        raise ImageError(
            f"its header takes {found.parsing >> 20:,} MiB to read, over the limit of "
            f"{max_bytes >> 20:,} MiB: raise memory=",
            retryable=True,
        )
    image, frames = _open(data)
    with image:
        container = (image.format or "").lower()
        width, height = image.size
        if max_pixels is not None and width * height > max_pixels:
            raise ImageError(
                f"too many pixels: {width} × {height} are over the limit of {max_pixels:,}"
            )
        if (
            max_bytes is not None
            and (takes := _decoding_bytes(image, found, len(data))) > max_bytes
        ):
            raise ImageError(
                f"{width} × {height} pixels take {takes >> 20:,} MiB to decode, over the limit of "
                f"{max_bytes >> 20:,} MiB: raise memory=",
                retryable=True,
            )
        if ImageFile.LOAD_TRUNCATED_IMAGES:
            raise ImageError(
                "Pillow is set to fill up truncated images (ImageFile.LOAD_TRUNCATED_IMAGES), "
                "which would make different images equal: unset it",
                retryable=True,
            )
        if frames is None:
            frames = files.frames_of(image)
            # Counting may seek; the count must not change which frame is decoded.
            image.seek(0)
        array = files.samples(data, image, lambda: _open(data)[0])
        # After loading: Pillow's TIFF reader applies the tag itself and then drops it.
        orientation = _orientation(image)
    return _oriented(array, orientation), frames, container


def _open(data: bytes, *, head_only: bool = False) -> tuple[ImageFile.ImageFile, int | None]:
    """The file as Pillow opens it, and the number of its frames where that is not Pillow's to say."""
    if data.startswith(png.SIGNATURE):
        stream, frames = png.opened(data, head_only=head_only)
        return open_image(stream, ("PNG",)), frames
    try:
        return open_image(data, FORMATS), None
    except Exception:
        other = avif.without_exif(data) if data[4:8] == b"ftyp" else None
        if other is None:
            raise
        return open_image(other, FORMATS), None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a broken EXIF block does not make the pixels unreadable
        return 1


def _oriented(array: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Apply an EXIF orientation (TIFF 6.0, tag 274) to (H, W, C)."""
    if orientation in (5, 6, 7, 8):
        array = array.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _canonical(array: npt.NDArray[Any], frames: int, *, bits: bool = True) -> Pixels:
    """Canonical form of (H, W, 3 or 4) uint8 or uint16; ``bits`` allows 0/255 to become bits."""
    height, width, channels = array.shape
    if not height or not width:
        raise ImageError("an image without pixels")
    if channels == 4 and bool((array[..., 3] == np.iinfo(array.dtype).max).all()):
        array, channels = array[..., :3], 3
    array = np.ascontiguousarray(array)
    if array.dtype == np.uint16:
        kind, body = Kind.U16, array.astype("<u2", copy=False).tobytes()
    elif bits and _only_0_and_255(array.reshape(-1)):
        kind, body = Kind.BITS, np.packbits(array.reshape(-1)).tobytes()
    else:
        kind, body = Kind.U8, array.tobytes()
    header = HEADER.pack(CANONICAL_VERSION, kind, channels, height, width, frames)
    return Pixels(kind, height, width, channels, frames, header + body)


def _only_0_and_255(flat: npt.NDArray[np.uint8]) -> bool:
    # 255 + 1 wraps to 0 and 0 + 1 is 1: two passes instead of three. Nearly every photograph is
    # settled by its first few values.
    head = flat[:4096]
    one = np.uint8(1)
    return int((head + one).max()) <= 1 and int((flat + one).max()) <= 1
