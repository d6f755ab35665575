"""Canonical pixels to key and proof: the two hashes that decide identity.

Both are taken over an image's whole canonical form (header and pixels, see ``engine.images.canonical``):

key     xxh3-128 seeded per store, 16 bytes: where to look. Fast, and not safe against somebody who
        wants a collision, so a hit is always verified.
proof   SHA-256, 32 bytes: what a hit is verified with where the pixels themselves were not kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import repeat
from typing import Any

import xxhash

from engine.records import Buffer

KEY_BYTES = 16
PROOF_BYTES = 32


def key(canonical: Buffer, seed: int) -> bytes:
    """The 16-byte key of an image."""
    return xxhash.xxh3_128_digest(canonical, seed)


def keys(canonicals: Sequence[Any], seed: int) -> list[bytes]:
    """The key of each image; ``canonicals`` are bytes-like, such as the rows of an array."""
    return list(map(xxhash.xxh3_128_digest, canonicals, repeat(seed)))


def proofs(canonicals: Sequence[Any]) -> list[bytes]:
    """The proof of each image; ``canonicals`` are bytes-like."""
    return [hashlib.sha256(canonical).digest() for canonical in canonicals]


def proof(canonical: Buffer) -> bytes:
    """The 32-byte proof of an image."""
    return hashlib.sha256(canonical).digest()


def file_hash(data: Buffer) -> bytes:
    """The 32-byte hash of a whole file; an equal one means an equal file, so equal pixels."""
    return hashlib.sha256(data).digest()


def checksum(data: Buffer) -> int:
    """xxh64 of what was written, to find damage later; not for identity."""
    return xxhash.xxh64_intdigest(data)


def stamp(data: Buffer) -> int:
    """63 bits of xxh3 that tell whether something in memory is what it was; not for identity."""
    return xxhash.xxh3_64_intdigest(data) >> 1


class Stamp:
    """``stamp`` of something that comes in parts."""

    def __init__(self) -> None:
        self._hasher = xxhash.xxh3_64()

    def update(self, data: Buffer) -> None:
        """Take in the next part."""
        self._hasher.update(data)

    @property
    def value(self) -> int:
        """The stamp of everything so far."""
        return self._hasher.intdigest() >> 1


class Checksum:
    """``checksum`` of something that comes in parts."""

    def __init__(self) -> None:
        self._hasher = xxhash.xxh64()

    def update(self, data: Buffer) -> None:
        """Take in the next part."""
        self._hasher.update(data)

    @property
    def value(self) -> int:
        """The checksum of everything so far."""
        return self._hasher.intdigest()
