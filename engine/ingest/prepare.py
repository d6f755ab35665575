"""Prepares one image for a store: hashes, a fingerprint, kept pixels, a picture to encode.

Nothing here uses a store. Settings, arguments and results can be pickled, so that this half of an
ingest may run in another process.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.config import KEEP_BITS_LIMIT
from engine.errors import ImageError
from engine.images import decode, fingerprint, hashing
from engine.images.canonical import HEADER_BYTES
from engine.images.preprocessing import Preprocessing
from engine.images.rgb_picture import pil_rgb8
from engine.records import Buffer, Decoded, Kind, Pixels
from engine.storage.changeset import NewImage

Picture = npt.NDArray[np.uint8]  # (size, size, 3), the input of the encoder


@dataclass(frozen=True, slots=True)
class PrepareSettings:
    """The settings of a store and its encoder that preparing an image depends on."""

    hash_seed: int  # 64 bits
    keep_pixels: str  # one of ``engine.config.KEEP_PIXELS``
    max_decoding_bytes: int  # for decoding one image
    preprocessing: Preprocessing | None  # of the encoder; None: no pictures are made


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """One image, ready to be committed to a store with the same hash seed."""

    image: NewImage
    picture: Picture | None  # resized for the encoder


def prepare(data: bytes, file_hash: bytes, settings: PrepareSettings) -> PreparedImage:
    """Prepare the image in a file's bytes, whose ``hashing.file_hash`` is ``file_hash``.

    Raises ``ImageError`` if it cannot be decoded, ``MemoryError`` if there is too little memory.
    """
    decoded = decode.decode(data, max_bytes=settings.max_decoding_bytes)
    return _prepared(decoded, data, file_hash, settings)


def prepare_decoded(decoded: Decoded, settings: PrepareSettings) -> PreparedImage:
    """Prepare an image that came without a file."""
    return _prepared(decoded, b"", b"", settings)


def _prepared(
    decoded: Decoded, data: bytes, file_hash: bytes, settings: PrepareSettings
) -> PreparedImage:
    found = decoded.pixels
    form = found.canonical
    # Both are made of one copy of the picture, which is dropped before the rest.
    shown = pil_rgb8(found) if found.kind is not Kind.BITS else None
    print_, quality = fingerprint.fingerprint(found, shown)
    picture = (
        settings.preprocessing.of(found, shown) if settings.preprocessing is not None else None
    )
    del shown
    keep, keeps_canonical = _kept(found, data, settings.keep_pixels)
    image = NewImage(
        # Without the pixels, so that only kept bytes stay in memory until the commit.
        pixels=Pixels(found.kind, found.height, found.width, found.channels, found.frames, b""),
        key=hashing.key(form, settings.hash_seed),
        proof=hashing.proof(form),
        container=decoded.container,
        decoder=decode.DECODER if data else "",
        file_bytes=len(data),
        file_hash=file_hash,
        fingerprint=print_,
        quality=quality,
        keep=keep,
        keeps_canonical=keeps_canonical,
    )
    return PreparedImage(image, picture)


def _kept(found: Pixels, data: bytes, keep_pixels: str) -> tuple[Buffer | None, bool]:
    """The bytes to keep of an image, and whether the canonical form is what would be kept."""
    form = found.canonical
    small = found.kind is Kind.BITS and len(form) <= HEADER_BYTES + KEEP_BITS_LIMIT
    # Without a file, only the canonical form can be kept.
    if keep_pixels == "yes" and not data:
        small = True
    if keep_pixels == "no":
        return None, small
    # The file of a large scan is far smaller than its canonical form.
    if small:
        return bytes(form), small
    if keep_pixels != "yes":
        return None, small
    if len(data) >> 32:
        raise ImageError(
            'a file of 4 GiB or more cannot be kept: leave keep_pixels="yes" out', retryable=True
        )
    return data, small
