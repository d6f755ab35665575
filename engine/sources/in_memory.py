"""Images in memory, under names that the caller chooses.

``array_of`` takes many images of one size, or vectors, as rows. ``members`` takes images of any size,
one by one from a stream. A source in memory is called "memory:NAME", and its stamp is a checksum of its
contents. So the same name with the same images is unchanged, and with other images it replaces the old
source, as a changed file does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.errors import ImageError, UsageError
from engine.images import canonical, hashing
from engine.images.canonical import HEADER_BYTES, array_kind, rows_from_array, rows_header
from engine.images.packed_bits import PackedBits
from engine.images.pil_images import from_image
from engine.records import Decoded, Kind
from engine.sources.items import ArrayItem, Member, Reject, RowBlock, VectorItem
from engine.sources.metadata import checked_metadata
from engine.sources.vectors import MemoryVectors, vector_of

PREFIX = "memory:"
_LIKE_A_ROW = re.compile(rb"#[0-9]+\Z")  # "memory:camera-3#17" is a row of an array

Images = PackedBits | npt.NDArray[np.uint8] | npt.NDArray[np.bool_]
VectorArray = npt.NDArray[np.floating[Any]]
OneImage = bytes | bytearray | memoryview | Image.Image | npt.NDArray[Any] | PackedBits
_MAX_NAME = 4096  # bytes, as for a path
# Decoding takes up to this many bytes per pixel, for a JPEG 2000 with transparency.
_PIXEL_BYTES = 26
_STAMPED = 1 << 20  # bytes of a non-contiguous array that are copied at a time


class MemoryArray:
    """n images of one size: ``PackedBits``, or an array (n, H, W), (n, H, W, 1) or (n, H, W, 3).

    An interrupted ingest of it goes on where it stopped.
    """

    def __init__(self, images: Images, name: str, *, stamp_bytes: int = _STAMPED) -> None:
        """Check array and name; ``UsageError`` if either is not valid.

        A non-contiguous array is copied in pieces of ``stamp_bytes`` for its checksum.
        """
        self.name = _checked_name(name)
        self._images = images
        self.count = len(images)
        if isinstance(images, PackedBits):
            self.kind = Kind.BITS
            header = rows_header(Kind.BITS, images.height, images.width)
            data = images.packed
            self._each = data.shape[1] + HEADER_BYTES
        else:
            self.kind = array_kind(images)
            header = rows_header(self.kind, *images.shape[1:3]) + bytes([images.ndim])
            data = images.view(np.uint8)
            self._each = int(np.prod(images.shape[1:3])) * 3
        self.row_bytes = self._each
        self.declared_kind = self.kind
        # The stamp includes the header, because the same bytes in another shape are other images.
        contents = _stamp(data, stamp_bytes) if self.count else 0
        self.mtime_ns = hashing.stamp(header + contents.to_bytes(8, "big"))
        self.size = data.nbytes

    def blocks(self, start: int, max_rows: int, max_bytes: int) -> Iterator[RowBlock]:
        """Canonical rows from ``start`` on."""
        step = max(1, min(max_rows, max_bytes // self._each))
        for at in range(start, self.count, step):
            part = self._images[at : at + step]
            if isinstance(part, PackedBits):
                yield RowBlock(at, part.canonical(), Kind.BITS)
            else:
                yield RowBlock(at, rows_from_array(part, self.kind), self.kind)


def array_of(source: Images | VectorArray, name: str) -> ArrayItem | VectorItem:
    """Many images of one size, or many vectors; ``UsageError`` for another array or an invalid name."""
    if isinstance(source, np.ndarray) and source.dtype.kind == "f":
        return MemoryVectors(source, _checked_name(name))
    return MemoryArray(source, name)  # type: ignore[arg-type]


def member(
    name: object, image: object, metadata: object, max_bytes: int, vector: object = None
) -> Member:
    """One image as an item of an ingest; the caller may change ``image`` as soon as this returns.

    ``image`` is a file's bytes, a PIL image, an array (H, W), (H, W, 3) or (H, W, 4) of bool, uint8 or
    uint16, or ``PackedBits`` of one image. ``max_bytes`` limits the memory for decoding it. ``vector``
    is (d,) of float32, or None. Raises ``UsageError`` for a wrong type or name, ``ImageError`` for an
    image that cannot be read.
    """
    called = _checked_name(name)
    said = checked_metadata(metadata)
    brought = vector_of(vector) if vector is not None else None
    if isinstance(image, bytes | bytearray | memoryview):
        data = bytes(image)
        return Member(called, _stamp_of(data, said), len(data), data, said, vector=brought)
    decoded = decoded_image(image, max_bytes)
    canonical = decoded.pixels.canonical
    stamp = _stamp_of(canonical, said)
    return Member(called, stamp, len(canonical), b"", said, decoded, vector=brought)


def members(
    stream: Iterable[object], max_bytes: int, *, strict: bool = False
) -> Iterator[Member | Reject]:
    """The images of a stream of (name, image[, metadata[, vector]]), read on demand.

    An unreadable image becomes a ``Reject``, and the stream goes on. So does an invalid element, unless
    ``strict`` is set or it is the first one, which raise ``UsageError``.
    """
    for number, element in enumerate(stream):
        # Its name until its own is read.
        called = f"{PREFIX}({number})".encode()
        try:
            if not isinstance(element, tuple | list) or len(element) not in (2, 3, 4):
                raise UsageError(
                    f"an element of a stream is (name, image), (name, image, metadata) or (name, "
                    f"image, metadata, vector), not {_what(element)}"
                )
            name, image, metadata, vector = (*element, None, None)[:4]
            called = _checked_name(name)
            yield member(name, image, metadata, max_bytes, vector)
        except UsageError as error:
            if strict or not number:
                raise
            yield Reject(called, str(error))
        except ImageError as error:
            yield Reject(called, str(error))


def unlike(value: object) -> str:
    """How to convert an array of another library; empty for anything else. Imports no library."""
    for kind in type(value).__mro__:
        if (
            kind.__module__.partition(".")[0] in ("torch", "tensorflow")
            and "Tensor" in kind.__name__
        ):
            library = kind.__module__.partition(".")[0]
            how = "detach().cpu().numpy()" if library == "torch" else "numpy()"
            return f"a {library} tensor: pass tensor.{how}"
    if not isinstance(value, np.ndarray | np.generic) and hasattr(type(value), "__array__"):
        return f"a {type(value).__name__}: pass numpy.asarray(it)"
    return ""


def is_image(source: object) -> bool:
    """Whether ``source`` is certainly one image; an array may hold many."""
    return isinstance(source, bytes | bytearray | memoryview | Image.Image)


def decoded_image(image: object, max_bytes: int) -> Decoded:
    """A PIL image, an array or ``PackedBits`` of one image, in at most ``max_bytes`` of memory.

    Raises ``UsageError`` for anything else, ``ImageError`` for an image that cannot be read.
    """
    if isinstance(image, PackedBits):
        return Decoded(image.only(), "array")
    if isinstance(image, np.ndarray):
        return Decoded(canonical.from_array(image), "array")
    if not isinstance(image, Image.Image):
        raise UsageError(
            f"an image must be bytes, a PIL image, an array or PackedBits, not {_what(image)}"
        )
    width, height = image.size
    if width * height * _PIXEL_BYTES > max_bytes:
        raise ImageError(f"{width} × {height} pixels are too many: raise memory=", retryable=True)
    return Decoded(from_image(image, max_bytes=max_bytes), "image")


def _checked_name(name: object) -> bytes:
    if not isinstance(name, str) or not name or "\0" in name:
        raise UsageError("images in memory need a name: name='camera-3'")
    try:
        called = os.fsencode(name)
    except UnicodeEncodeError:
        raise UsageError(f"the name {name!r} is not valid text") from None
    if _LIKE_A_ROW.search(called):
        raise UsageError(f"the name {name!r} ends like a row of an array: end it otherwise")
    if len(called) > _MAX_NAME:
        raise UsageError(f"a name of {len(called):,} bytes is over the limit of {_MAX_NAME:,}")
    return PREFIX.encode() + called


def _stamp(data: npt.NDArray[np.uint8], most: int) -> int:
    if data.flags.c_contiguous:
        return hashing.stamp(data.data)
    stamp = hashing.Stamp()
    step = max(1, most // max(1, data[0].nbytes))
    for at in range(0, len(data), step):
        stamp.update(np.ascontiguousarray(data[at : at + step]).data)
    return stamp.value


def _stamp_of(data: bytes | memoryview, metadata: dict[str, Any] | None) -> int:
    """The stamp of an image and its metadata, so that new metadata counts as a change."""
    stamp = hashing.stamp(data)
    if metadata is None:
        return stamp
    return hashing.stamp(stamp.to_bytes(8, "big") + json.dumps(metadata).encode())


def _what(value: object) -> str:
    many = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return unlike(value) or f"a {type(value).__name__}{many}"
