"""The child of ``engine bench`` that finds copies with pdqhash, comparing all fingerprints in memory."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from engine import PackedBits
from engine.config import DEFAULT_MAX_DISTANCE
from engine.images.decode import decode
from engine.images.rgb_picture import to_rgb8

from ..data import bit_images, image_sets
from ..harness.errors import BenchError
from ..harness.process import answer

_BYTES = 32  # of a fingerprint


def ask(n: int, count: int, set: dict[str, Any], max_seconds: float) -> dict[str, Any]:
    """Fingerprint a set, then look up copies: seconds of the build and of each lookup, share found.

    ``BenchError`` if the fingerprints would take longer than ``max_seconds``.
    """
    chosen = image_sets.make(set)
    prints = np.empty((n, _BYTES), np.uint8)
    started = time.perf_counter()
    rows: dict[str, int] = {}
    for first in range(0, n, bit_images.CHUNK):
        for name, image in chosen.named(first, min(bit_images.CHUNK, n - first)):
            prints[len(rows)] = np.frombuffer(_fingerprint(image * chosen.white), np.uint8)
            rows[name] = len(rows)
        spent = time.perf_counter() - started
        if spent > max_seconds:
            whole = spent / (first + bit_images.CHUNK) * n
            raise BenchError(f"fingerprints of all images would take {whole:,.0f} s")
    build = time.perf_counter() - started
    words = prints[: len(rows)].view(np.uint64)
    times, found = [], 0
    for wanted, query in chosen.copies(n, count):
        began = time.perf_counter()  # with unpacking or decoding, as in the engine's lookups
        picture = (
            _unpacked(query) if isinstance(query, PackedBits) else to_rgb8(decode(query).pixels)
        )
        own = np.frombuffer(_fingerprint(picture), np.uint64)
        apart = np.bitwise_count(words ^ own).sum(axis=1)
        near = np.flatnonzero(apart <= DEFAULT_MAX_DISTANCE)
        times.append(time.perf_counter() - began)
        found += wanted is not None and rows.get(wanted, -1) in near
    return {"build": build, "seconds": times, "found": found / max(1, len(times))}


def _fingerprint(picture: bit_images.Images) -> bytes:
    import pdqhash

    bits, _ = pdqhash.compute(np.ascontiguousarray(picture))
    return np.packbits(bits.astype(bool)).tobytes()


def _unpacked(bits: PackedBits) -> bit_images.Images:
    values = np.unpackbits(bits.packed[0])[: bits.height * bits.width * 3]
    picture: bit_images.Images = values.reshape(bits.height, bits.width, 3) * np.uint8(255)
    return picture


if __name__ == "__main__":
    answer(ask)
