"""Fingerprints: 256 bits of the canonical pixels, which change little when the picture changes little.

Every image gets one when it is stored, so that a search for near copies never reads the images again.
There are two kinds, by the image's own kind; they are never compared with each other:

8 and 16 bits   PDQ (Facebook, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing
                Algorithm", 2019) of a copy of 128 × 128, with PDQ's quality (0-100).
bits            256 of the image's bits, at places drawn once for its size. Noise in a bit image flips
                bits, which a frequency transform would smear over all 256. In an image with little
                *ink* (values of the rarer sort) nearly all of these bits would be blank, and two such
                images would be near only for being blank. Then each bit is a *pool* instead: whether
                there is ink at any of 4, 16, 64 or 256 places. It takes the smallest pools that set a
                quarter of the bits, or the largest there are. The single bits decide once which value
                is the ink. Unrelated images differ in about 100 bits, with pools as without. The
                quality is twice the share of the rarer value among the 256, in percent: 0 if flat.

Below ``min_quality`` a fingerprint has no meaning and is compared with none. Pictures need 10. Among 500
icons of 17 to 32 pixels a side, 34 pairs of different drawings are within 31 bits, 29 of them at
quality 0: pictures that are white or flat. From 2 on there are 5 such pairs, and no higher floor leaves
fewer. PDQ's own floor is 50, for pictures that were not shrunk to 64. It would lose 6 % of the
photographs and 13 % of the icons without a gain; 10 loses 1 and 7 %. A bit image needs ink in eight
of the 256 bits: two specks of dust may well fall into the same pools, but six of eight do not.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.images.canonical import HEADER_BYTES
from engine.images.rgb_picture import pil_rgb8
from engine.records import Kind, Pixels

FINGERPRINT_VERSION = 1
FINGERPRINT_BYTES = 32
FINGERPRINT_BITS = 256
# Pictures are shrunk to 64 a side and enlarged to 128. PDQ works on 64 × 64. Its own filter, which
# takes every other pixel of 128, finds more copies than no filter at 64. For pictures of 65 to 128
# pixels a side, 97 % of the copies enlarged by half are found like this, and 40 % without resizing.
# For copies of photographs at a third of the size, it is 100 and 89 %.
_SHRUNK, _SIDE = 64, 128
_POOLS = (1, 4, 16, 64, 256)  # places per bit; fewer if an image has fewer values
_ENOUGH = 64  # bits with ink, of 256
# Images, or bytes for each of the 256 bits, per step: they stay in the cache.
_AT_ONCE = 256
# Up to this many values, all places are shuffled; beyond it, places are drawn.
_SHUFFLED = 1 << 17
# The same in every store, so that fingerprints can be compared across shards.
_SEED = 0x656E67696E65
_PICTURE_QUALITY = 10
_BITS_QUALITY = 6  # 8 bits of 256

Bytes = npt.NDArray[np.uint8]
_NONE = np.empty((0, FINGERPRINT_BYTES), np.uint8)


def fingerprint(pixels: Pixels, picture: Image.Image | None = None) -> tuple[bytes, int]:
    """Return the 32-byte fingerprint of an image, and its quality (0-100).

    ``picture`` is the ``pil_rgb8`` of it, if the caller has that.
    """
    if pixels.kind is Kind.BITS:
        bits, quality = fingerprint_bits(*_packed(pixels), pixels.channels)
        return bits[0].tobytes(), int(quality[0])
    import pdqhash

    picture = picture or pil_rgb8(pixels)
    shrunk = min(picture.width, _SHRUNK), min(picture.height, _SHRUNK)
    picture = picture.resize(shrunk, Image.Resampling.BILINEAR)
    picture = picture.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    vector, quality = pdqhash.compute(np.asarray(picture))
    return np.packbits(vector.astype(np.uint8)).tobytes(), int(quality)


def fingerprint_bits(packed: Bytes, count: int, channels: int = 3) -> tuple[Bytes, Bytes]:
    """Compute fingerprints of packed rows of ``count`` bits each, with ``channels`` bits per pixel.

    ``packed`` is (n, ceil(count / 8)) uint8; returns (n, 32) uint8 and the qualities, (n,) uint8.
    """
    bits = _pooled(packed, count, channels, 1, zeros=False)
    ones = ones_of(bits)
    # Only single places tell which value is the ink: pools of four may set three quarters of the bits.
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


def candidates(pixels: Pixels, max_distance: int, picture: Image.Image | None = None) -> Bytes:
    """Return the fingerprints that an image within ``max_distance`` bits may have: (m, 32) uint8.

    ``picture`` as for ``fingerprint``.

    A picture has one. A near bit image may have a little less or more ink, and either value may be its
    ink; so a bit image has one for each pool size with which a near image may have ended. There are none
    if this image's quality is too low.
    """
    if pixels.kind is not Kind.BITS:
        print_, quality = fingerprint(pixels, picture)
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
                # Any image that is near has enough ink too, and needs no larger pool.
                break
            bits = _pooled(packed, count, pixels.channels, each, zeros=zeros)
            ink = int(ones_of(bits)[0])
            ink = 256 - ink if zeros else ink
            if ink + max_distance >= _ENOUGH or each == pools[-1]:
                found.append(bits)
    return np.concatenate([_NONE, *[bits for bits in found if _quality(bits)[0] >= _BITS_QUALITY]])


def min_quality(kind: Kind) -> int:
    """Return the quality below which a fingerprint of an image of this kind has no meaning."""
    return _BITS_QUALITY if kind is Kind.BITS else _PICTURE_QUALITY


def ones_of(bits: Bytes) -> npt.NDArray[np.int64]:
    """Count the ones of each fingerprint: (n, 32) uint8 → (n,) int64."""
    words = np.bitwise_count(np.ascontiguousarray(bits).view(np.uint64)).astype(np.int64)
    # Four columns rather than a sum over the axis, which takes three times as long.
    return words[:, 0] + words[:, 1] + words[:, 2] + words[:, 3]


def _quality(bits: Bytes) -> Bytes:
    """Return the qualities of bit images: (n, 32) uint8 → (n,) uint8."""
    ones = ones_of(bits)
    return (np.minimum(ones, 256 - ones) * 200 >> 8).astype(np.uint8)


def _packed(pixels: Pixels) -> tuple[Bytes, int]:
    """Return a bit image as one packed row, and its number of bits."""
    row = np.frombuffer(pixels.canonical, np.uint8)[None, HEADER_BYTES:]
    return row, pixels.height * pixels.width * pixels.channels


def _pools(count: int) -> list[int]:
    """Return how many places a bit may stand for, in an image of ``count`` values."""
    largest = min(max(count // FINGERPRINT_BITS, 1), _POOLS[-1])
    return [each for each in _POOLS if each < largest] + [largest]


def _pooled(packed: Bytes, count: int, channels: int, each: int, *, zeros: bool) -> Bytes:
    """Return which pools of ``each`` places hold a one; with ``zeros``, which hold only ones."""
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
    """Return byte and mask of each sampled value, ``each`` values per bit: (each · 256,)."""
    # Philox, because the streams of NumPy's generators may change.
    draw = np.random.Philox(key=_SEED)
    drawn = draw.random_raw(4096) % np.uint64(count)
    # Prefer pixels not drawn yet: the three channels of a grey image are identical.
    _, new = np.unique(drawn // np.uint64(channels), return_index=True)
    new.sort()
    first = _distinct(np.concatenate([drawn[new], drawn]))[:FINGERPRINT_BITS]
    # Sorted, so that memory is read forwards; an image of fewer values repeats them.
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
    """Return the values without repetitions, in the order of their first occurrence."""
    _, first = np.unique(values, return_index=True)
    return values[np.sort(first)]
