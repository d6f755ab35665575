"""PNG: selects the chunks that affect pixels, verifies them, and reads 16-bit transparency.

Text, profiles and the like do not affect pixels. Pillow reads them all the same, and refuses a file
with much text, or with a wrong checksum in it. So it gets the file without them. The later frames of an
animation are left out too: the first one is the still image, and one chunk has the number of frames.
"""

from __future__ import annotations

import io
import zlib
from typing import IO, cast

import numpy as np
from PIL import ImageFile

from engine.errors import ImageError
from engine.images.formats.cost import HeaderCost
from engine.images.formats.joined_file import JoinedFile
from engine.images.formats.samples import (
    Samples,
    both_bytes,
    grey_to_rgb,
    indexed_to_rgb,
    keyed,
    raw_mode,
    set_raw_modes,
    unsupported,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IMAGE = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_ONCE = (b"IHDR", b"PLTE", b"tRNS")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# These texts may have an orientation; Pillow looks for it there.
_ORIENTATION_KEYS = (b"XML:com.adobe.xmp", b"Raw profile type exif", b"exif", b"xmp")
_MAX_METADATA = 1 << 20  # bytes of a text that may have an orientation, inflated
_MAX_TEXTS = 8  # of these
_MAX_KEY = 80  # bytes of a text's name, with its end
_MAX_EXIF = 1 << 24
_MAX_FRAMES = 1 << 31
_MAX_CHUNKS = 300_000  # a picture of 1 GiB, in chunks of 4 KiB, has fewer
_CHUNK_BYTES = 125  # of memory, if every second one is left out


def header_cost(data: bytes) -> HeaderCost:
    """Return the most that parsing a PNG's chunks takes; ``ImageError`` if there are too many."""
    chunks, at = 0, len(SIGNATURE)
    while at + 12 <= len(data):
        chunks += 1
        _refuse_many(chunks)
        if data[at + 4 : at + 8] == b"IEND":
            break
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return HeaderCost(parsing=chunks * _CHUNK_BYTES)


def pixels_only(data: bytes, *, head_only: bool = False) -> tuple[IO[bytes], int]:
    """Return the part of a PNG that its pixels need, as a file, and the number of its frames.

    With ``head_only`` it reads chunks up to the first pixels, and does not count frames. Raises
    ``ImageError`` for a wrong checksum in a chunk that matters, and for an unknown critical chunk.
    """
    view = memoryview(data)
    parts: list[memoryview] = [view[:8]]
    seen: set[bytes] = set()
    depth = colour = 0
    frames, default_image, texts = 0, True, 0
    start = at = 8  # all chunks from ``start`` on are kept
    chunks = 0
    while at + 12 <= len(view):
        chunks += 1
        _refuse_many(chunks)
        length = int.from_bytes(view[at : at + 4], "big")
        name = bytes(view[at + 4 : at + 8])
        end = at + 12 + length
        if end > len(view) or not name.isalpha():
            # Cut short, or followed by garbage: Pillow reports whether the pixels are complete.
            break
        if head_only and name == b"IDAT":
            break
        before_pixels = b"IDAT" not in seen
        body = view[at + 8 : end - 4]
        if name[:1].isupper() and name not in _IMAGE:
            raise unsupported(f"a PNG with a chunk {name.decode('ascii')}")
        counts = name in _IMAGE or (name in (b"tRNS", b"acTL") and before_pixels)
        if counts and not _is_whole(view, at, end):
            raise ImageError(
                f"broken image: wrong checksum in the PNG chunk {name.decode('ascii')}"
            )
        if counts and name in _ONCE and name in seen:
            raise ImageError(f"broken image: two PNG chunks {name.decode('ascii')}")
        twice = name in seen
        seen.add(name)
        # Replaces the chunk itself.
        keep: memoryview | None = None
        kept = name in _IMAGE and (name != b"PLTE" or before_pixels)
        if name == b"IHDR" and length >= 10:
            depth, colour = body[8], body[9]
        elif name == b"IDAT" and colour == 3 and b"PLTE" not in seen:
            raise ImageError("broken image: a PNG without its palette")
        elif name == b"tRNS" and before_pixels and colour in (0, 2, 3):
            kept = True
            if colour != 3 and length == (2 if colour == 0 else 6):
                keep = _chunk(name, _transparent(body, depth))
        elif name == b"acTL" and before_pixels and length >= 8:
            count = int.from_bytes(body[:4], "big")
            # With two of them it is not an animation, and its still image is shown.
            frames = count if 0 < count <= _MAX_FRAMES and not twice else 0
        elif name == b"fcTL" and before_pixels:
            # The still image is the first frame.
            default_image = False
        elif name == b"eXIf" and length <= _MAX_EXIF:
            kept = _is_whole(view, at, end)
        elif name in _TEXTS and texts < _MAX_TEXTS and _may_turn(body):
            # A text that is too long counts too: finding that out takes as long as reading it.
            texts += 1
            kept = _is_whole(view, at, end) and _is_short(name, body)
        if not kept or keep is not None:
            if at > start:
                parts.append(view[start:at])
            if keep is not None:
                parts.append(keep)
            start = end
        at = end
        if name == b"IEND":
            break
    if b"IEND" not in seen:
        at = len(view)
    elif b"IDAT" not in seen:
        raise ImageError("broken image: a PNG without pixels")
    parts.append(view[start:at])
    count = frames + default_image if frames else 1
    if len(parts) == 2:
        return io.BytesIO(data), count
    return cast("IO[bytes]", JoinedFile(parts)), count


def read(image: ImageFile.ImageFile, again: ImageFile.ImageFile) -> Samples:
    """Return the samples of a PNG that was opened twice."""
    raw = raw_mode(image.tile[0])
    if not raw.endswith("16B"):
        return indexed_to_rgb(image)
    if raw == "LA;16B":
        # Four bytes per pixel, like 8-bit RGBA, so both bytes of each channel come at once.
        set_raw_modes(image, ["RGBA"])
        pairs = np.ascontiguousarray(np.asarray(image)).view(">u2")
        both = np.empty((*pairs.shape[:2], 4), np.uint16)
        both[..., :3], both[..., 3] = pairs[..., :1], pairs[..., 1]
        return both
    if raw == "I;16B":
        deep: Samples = grey_to_rgb(np.asarray(image).astype(np.uint16))
    else:
        deep = both_bytes(image, again)
    transparent = image.info.get("transparency")
    return deep if transparent is None else keyed(deep, transparent)


def _refuse_many(chunks: int) -> None:
    if chunks > _MAX_CHUNKS:
        raise ImageError(f"broken image: a PNG of more than {_MAX_CHUNKS:,} chunks")


def _is_whole(view: memoryview, at: int, end: int) -> bool:
    return zlib.crc32(view[at + 4 : end - 4]) == int.from_bytes(view[end - 4 : end], "big")


def _chunk(name: bytes, body: bytes) -> memoryview:
    crc = zlib.crc32(name + body).to_bytes(4, "big")
    return memoryview(len(body).to_bytes(4, "big") + name + body + crc)


def _transparent(body: memoryview, depth: int) -> bytes:
    """Return the transparent colour (only its low bits count) at the scale of Pillow's pixels."""
    values = [
        int.from_bytes(body[i : i + 2], "big") & ((1 << depth) - 1) for i in range(0, len(body), 2)
    ]
    if 1 < depth < 8:
        values = [value * 255 // ((1 << depth) - 1) for value in values]
    return b"".join(value.to_bytes(2, "big") for value in values)


def _may_turn(body: memoryview) -> bool:
    """Return whether a text is of the kind that may have an orientation."""
    key, zero, _ = bytes(body[:_MAX_KEY]).partition(b"\0")
    return bool(zero) and key in _ORIENTATION_KEYS and len(body) <= _MAX_METADATA


def _is_short(name: bytes, body: memoryview) -> bool:
    """Return whether a text that may have an orientation is short enough to read, inflated."""
    rest = bytes(body).partition(b"\0")[2]
    if name == b"iTXt":
        if rest[:2] != b"\x01\0":
            return rest[:1] == b"\0"
        rest = rest[2:].split(b"\0", 2)[-1]
    elif name == b"zTXt":
        if rest[:1] != b"\0":
            return False
        rest = rest[1:]
    else:
        return True
    inflate = zlib.decompressobj()
    try:
        inflate.decompress(rest, _MAX_METADATA)
    except zlib.error:
        return False
    return not inflate.unconsumed_tail
