"""Canonical pixels to a 256-bit fingerprint, which changes little when the picture changes little.

Stored for every image from the first on, so that looking for near copies never needs the images
again. Two kinds, told apart by the image's own kind, and never compared with each other:

8 and 16 bits   PDQ (Facebook, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing
                Algorithm", 2019) of a copy of 128 × 128, with PDQ's quality (0-100).
bits            256 of the image's bits at places drawn once for its size; noise in a bit image flips
                bits, which a frequency transform would smear over all 256. Of an image with little
                *ink* (values of the rarer sort) nearly all of them would be blank, and two such
                images near for being blank; so each bit is then a *pool*: whether there is ink at
                any of 4, 16, 64 or 256 places, as few as set a quarter of the bits (or all there
                are). Which value is the ink is settled once, by the single bits. Unrelated images
                differ in about 100 bits, then as otherwise. Quality is twice the share of the rarer
                value among the 256, in percent: a flat image is 0.

What the quality is for: below ``min_quality`` a fingerprint says nothing, and is compared with none.
Pictures need 10. Of 500 icons of 17 to 32 pixels a side, 34 pairs of different drawings are within 31
bits, 29 of them at 0: pictures that are white or flat. From 2 on there are 5 such pairs, and no floor
leaves fewer. PDQ's own 50, meant for pictures that were not shrunk to 64, loses 6 % of the photographs
and 13 % of the icons for nothing; 10 loses 1 and 7 %. A bit image needs ink in eight of the 256 bits:
two specks of dust may well fall into the same pools, six of eight do not.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.images.canonical import HEADER_BYTES
from engine.images.rgb_picture import to_rgb8
from engine.records import Kind, Pixels

FINGERPRINT_VERSION = 1
FINGERPRINT_BYTES = 32
FINGERPRINT_BITS = 256
# Shrunk to 64 a side and enlarged to 128: PDQ works on 64 × 64, and its own filter, which takes every
# other one of 128, finds more copies than none at 64. Of 65 to 128 pixels a side 97 % of the copies
# enlarged by half are found so, and 40 % if pictures are left as they are; a third of the size, 100
# and 89 % of photographs.
_SHRUNK, _SIDE = 64, 128
_POOLS = (1, 4, 16, 64, 256)  # places a bit; fewer where an image has fewer values
_ENOUGH = 64  # bits with ink, of 256
_AT_ONCE = 256  # images, or bytes for each of the 256 bits: what stays in the cache
_SHUFFLED = 1 << 17  # values up to which all places are put in order, and beyond which drawn
# The same in every store, so that fingerprints can be compared across shards.
_SEED = 0x656E67696E65
_PICTURE_QUALITY = 10
_BITS_QUALITY = 6  # 8 bits of 256

Bytes = npt.NDArray[np.uint8]
_NONE = np.empty((0, FINGERPRINT_BYTES), np.uint8)


def fingerprint(pixels: Pixels) -> tuple[bytes, int]:
    """The 32-byte fingerprint of one image and its quality (0-100)."""
    if pixels.kind is Kind.BITS:
        bits, quality = fingerprint_bits(*_packed(pixels), pixels.channels)
        return bits[0].tobytes(), int(quality[0])
    import pdqhash

    picture = Image.fromarray(to_rgb8(pixels))
    shrunk = min(picture.width, _SHRUNK), min(picture.height, _SHRUNK)
    picture = picture.resize(shrunk, Image.Resampling.BILINEAR)
    picture = picture.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    vector, quality = pdqhash.compute(np.asarray(picture))
    return np.packbits(vector.astype(np.uint8)).tobytes(), int(quality)


def fingerprint_bits(packed: Bytes, count: int, channels: int = 3) -> tuple[Bytes, Bytes]:
    """Fingerprints of packed rows of ``count`` bits each, ``channels`` of them a pixel.

    ``packed`` is (n, ceil(count / 8)) uint8; returns (n, 32) uint8 and the qualities (n,) uint8.
    """
    bits = _pooled(packed, count, channels, 1, zeros=False)
    ones = ones_of(bits)
    # Which value is the ink only single places tell: pools of four may set three quarters of the bits.
    rare_zeros = ones * 2 > FINGERPRINT_BITS
    for zeros in (False, True):
        poor = np.flatnonzero(rare_zeros == zeros)
        for each in _pools(count)[1:]:
            ink = ones_of(bits[poor])
            poor = poor[(FINGERPRINT_BITS - ink if zeros else ink) < _ENOUGH]
            step = max(1, _AT_ONCE // each)
            for at in range(0, len(poor), step):
                some = poor[at : at + step]
                bits[some] = _pooled(packed[some], count, channels, each, zeros=zeros)
    return bits, _quality(bits)


def candidates(pixels: Pixels, max_distance: int) -> Bytes:
    """The fingerprints that an image within ``max_distance`` bits of this one may have: (m, 32) uint8.

    One of a picture. Of a bit image those of each size of pool that such an image may have ended
    with, since it may have a little less or more ink, and of both values that may be its ink. None
    where this one's quality is too low.
    """
    if pixels.kind is not Kind.BITS:
        print_, quality = fingerprint(pixels)
        found = [np.frombuffer(print_, np.uint8)[None]]
        return np.concatenate(found if quality >= _PICTURE_QUALITY else [_NONE])
    packed, count = _packed(pixels)
    pools = _pools(count)
    bits = _pooled(packed, count, pixels.channels, 1, zeros=False)
    ones = int(ones_of(bits)[0])
    found = []
    if min(ones, 256 - ones) + max_distance >= _ENOUGH or len(pools) == 1:
        found.append(bits)
    for zeros in (False, True):
        ink = 256 - ones if zeros else ones
        for each in pools[1:]:
            if ink - max_distance >= _ENOUGH:
                break  # and so has any image that is near: it needs no larger pool
            bits = _pooled(packed, count, pixels.channels, each, zeros=zeros)
            ink = int(ones_of(bits)[0])
            ink = 256 - ink if zeros else ink
            if ink + max_distance >= _ENOUGH or each == pools[-1]:
                found.append(bits)
    return np.concatenate([_NONE, *[bits for bits in found if _quality(bits)[0] >= _BITS_QUALITY]])


def min_quality(kind: Kind) -> int:
    """The quality below which a fingerprint of an image of this kind says nothing."""
    return _BITS_QUALITY if kind is Kind.BITS else _PICTURE_QUALITY


def ones_of(bits: Bytes) -> npt.NDArray[np.int64]:
    """The number of ones of each fingerprint: (n, 32) uint8 → (n,)."""
    words = np.bitwise_count(np.ascontiguousarray(bits).view(np.uint64)).astype(np.int64)
    # Four columns and not a sum over the axis, which takes three times as long.
    return words[:, 0] + words[:, 1] + words[:, 2] + words[:, 3]


def _quality(bits: Bytes) -> Bytes:
    """Of bit images: (n, 32) → (n,)."""
    ones = ones_of(bits)
    return (np.minimum(ones, 256 - ones) * 200 >> 8).astype(np.uint8)


def _packed(pixels: Pixels) -> tuple[Bytes, int]:
    """A bit image as one packed row, and how many bits it has."""
    row = np.frombuffer(pixels.canonical, np.uint8)[None, HEADER_BYTES:]
    return row, pixels.height * pixels.width * pixels.channels


def _pools(count: int) -> list[int]:
    """How many places a bit may stand for, in an image of ``count`` values."""
    largest = min(max(count // FINGERPRINT_BITS, 1), _POOLS[-1])
    return [each for each in _POOLS if each < largest] + [largest]


def _pooled(packed: Bytes, count: int, channels: int, each: int, *, zeros: bool) -> Bytes:
    """Which pools of ``each`` places hold a one; with ``zeros``, which hold nothing but ones."""
    places, masks = _places(count, channels, each)
    bits = np.empty((len(packed), FINGERPRINT_BYTES), np.uint8)
    step = max(1, _AT_ONCE // each)
    for at in range(0, len(packed), step):
        values = packed[at : at + step].take(places, axis=1, mode="clip")
        if zeros:
            np.invert(values, out=values)
        values &= masks
        if each > 1:
            pools = values.reshape(-1, each, FINGERPRINT_BITS)
            values = np.bitwise_or.reduce(pools, axis=1)
        bits[at : at + len(values)].reshape(-1)[:] = np.packbits(values.reshape(-1))
    return ~bits if zeros else bits


@functools.lru_cache(maxsize=64)
def _places(count: int, channels: int, each: int) -> tuple[npt.NDArray[np.intp], Bytes]:
    """Byte and mask of each sampled value, ``each`` for each of the 256 bits: (each · 256,)."""
    # Independent of NumPy's generators, whose streams may change.
    draw = np.random.Philox(key=_SEED)
    drawn = draw.random_raw(4096) % np.uint64(count)
    # Pixels first that have none yet: the three channels of a grey image are one and the same.
    _, new = np.unique(drawn // np.uint64(channels), return_index=True)
    new.sort()
    first = _distinct(np.concatenate([drawn[new], drawn]))[:FINGERPRINT_BITS]
    # Sorted, so that memory is walked forwards; an image of fewer values gives them more than once.
    chosen = np.resize(np.sort(first), FINGERPRINT_BITS)
    if each > 1:
        if count <= _SHUFFLED:
            more = np.argsort(draw.random_raw(count), kind="stable").astype(np.uint64)
        else:
            more = _distinct(draw.random_raw(2 * each * FINGERPRINT_BITS) % np.uint64(count))
        more = more[~np.isin(more, first)]
        chosen = np.concatenate([chosen, more[: (each - 1) * FINGERPRINT_BITS]])
    values = chosen.astype(np.int64)
    return (values >> 3).astype(np.intp), (128 >> (values & 7)).astype(np.uint8)


def _distinct(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The values without repetitions, in the order in which they first come."""
    _, first = np.unique(values, return_index=True)
    return values[np.sort(first)]
