"""Canonical pixels to key and proof: the two hashes that decide identity.

Both are taken over an image's whole canonical form (header and pixels, see ``engine.pixels``):

key     xxh3-128 seeded per store, 16 bytes: where to look. Fast, and not safe against somebody who
        wants a collision, so a hit is always verified.
proof   SHA-256, 32 bytes: what a hit is verified with where the pixels themselves were not kept.
"""

from __future__ import annotations

import hashlib

import xxhash

from engine.records import Buffer

KEY_BYTES = 16
PROOF_BYTES = 32


def key(canonical: Buffer, seed: int) -> bytes:
    """The 16-byte key of an image."""
    return xxhash.xxh3_128_digest(canonical, seed)


def proof(canonical: Buffer) -> bytes:
    """The 32-byte proof of an image."""
    return hashlib.sha256(canonical).digest()


def file_hash(data: Buffer) -> bytes:
    """The 32-byte hash of a whole file; an equal one means an equal file, so equal pixels."""
    return hashlib.sha256(data).digest()


def checksum(data: Buffer) -> int:
    """xxh64 of what was written, to find damage later; not for identity."""
    return xxhash.xxh64_intdigest(data)


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
