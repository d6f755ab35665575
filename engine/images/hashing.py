"""Key and proof of canonical pixels: the two hashes that decide identity.

Both are computed over an image's whole canonical form (see ``engine.images.canonical``):

key     xxh3-128 seeded per store, 16 bytes: finds candidates. It is fast but not safe against
        deliberate collisions, so a hit is always verified.
proof   SHA-256, 32 bytes: verifies a hit if the pixels themselves were not kept.
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
    """Return the 16-byte key of an image."""
    return xxhash.xxh3_128_digest(canonical, seed)


def keys(canonicals: Sequence[Any], seed: int) -> list[bytes]:
    """Return the key of each image; ``canonicals`` are bytes-like, such as the rows of an array."""
    return list(map(xxhash.xxh3_128_digest, canonicals, repeat(seed)))


def proofs(canonicals: Sequence[Any]) -> list[bytes]:
    """Return the proof of each image; ``canonicals`` are bytes-like."""
    return [hashlib.sha256(canonical).digest() for canonical in canonicals]


def proof(canonical: Buffer) -> bytes:
    """Return the 32-byte proof of an image."""
    return hashlib.sha256(canonical).digest()


def file_hash(data: Buffer) -> bytes:
    """Return the 32-byte hash of a whole file; equal hashes mean equal files, so equal pixels."""
    return hashlib.sha256(data).digest()


def checksum(data: Buffer) -> int:
    """Return the xxh64 of stored data, to find damage later; not for identity."""
    return xxhash.xxh64_intdigest(data)


def stamp(data: Buffer) -> int:
    """Return 63 bits of xxh3 that show whether data in memory has changed; not for identity."""
    return xxhash.xxh3_64_intdigest(data) >> 1


class Stamp:
    """``stamp`` of data that comes in parts."""

    def __init__(self) -> None:
        self._hasher = xxhash.xxh3_64()

    def update(self, data: Buffer) -> None:
        """Add the next part."""
        self._hasher.update(data)

    @property
    def value(self) -> int:
        """Return the stamp of all parts so far."""
        return self._hasher.intdigest() >> 1


class Checksum:
    """``checksum`` of data that comes in parts."""

    def __init__(self) -> None:
        self._hasher = xxhash.xxh64()

    def update(self, data: Buffer) -> None:
        """Add the next part."""
        self._hasher.update(data)

    @property
    def value(self) -> int:
        """Return the checksum of all parts so far."""
        return self._hasher.intdigest()
