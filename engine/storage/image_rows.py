"""Rows of the table ``images``: an image's id, proof and place of kept pixels, found by its key."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engine.records import Place
from engine.storage.rows import damaged_row, u64

# The value of an image: flags, id, proof, and the place of its kept pixels if there are any.
_ID = slice(1, 7)
_PROOF = slice(7, 39)
_EXTENT, _OFFSET, _LENGTH = slice(39, 42), slice(42, 47), slice(47, 51)
_BARE, _KEPT = 39, 51
# The same layout, in integers that struct knows.
_BARE_VALUE = struct.Struct(">BHI32s")
_VALUE = struct.Struct(">BHI32sBHBII")
_SHARED_KEY = 1
_IN_RUNS = 2
_CANONICAL = 4


class ImageRow(NamedTuple):
    """A row of ``images``: an image's id, proof and place of kept pixels, found by its key."""

    id: int
    proof: bytes
    place: Place | None
    # More images have the same key. Only the row under the bare key has this flag.
    shared: bool = False
    # All sources of the image are rows of arrays, in runs of several images.
    in_runs: bool = False
    # The kept bytes are the canonical form; otherwise they are the original file.
    canonical: bool = False

    def pack(self) -> bytes:
        """Return the row's value."""
        flags = _SHARED_KEY * self.shared | _IN_RUNS * self.in_runs | _CANONICAL * self.canonical
        value = bytes((flags,)) + self.id.to_bytes(6, "big") + self.proof
        if self.place is None:
            return value
        extent, offset, length = self.place.extent, self.place.offset, self.place.length
        return value + extent.to_bytes(3, "big") + offset.to_bytes(5, "big") + u64(length)[4:]

    @classmethod
    def unpack(cls, value: bytes) -> ImageRow:
        """Parse a value that ``pack`` wrote; raise ``StoreDamagedError`` if it is malformed."""
        if len(value) == _KEPT:
            flags, high, low, proof, extent_high, extent, at_high, at, length = _VALUE.unpack(value)
            place = Place(extent_high << 16 | extent, at_high << 32 | at, length)
        elif len(value) == _BARE:
            flags, high, low, proof = _BARE_VALUE.unpack(value)
            place = None
        else:
            raise damaged_row("images")
        return cls(
            high << 32 | low,
            proof,
            place,
            flags & _SHARED_KEY != 0,
            flags & _IN_RUNS != 0,
            flags & _CANONICAL != 0,
        )


def no_image(id_: int) -> ImageRow:
    """Return a placeholder row for a vector without an image, which has no row in ``images``."""
    return ImageRow(id_, b"", None)


def pack_images(
    first_id: int,
    keys: Sequence[bytes],
    proofs: Sequence[bytes],
    first: Place | None,
    in_runs: npt.NDArray[np.bool_],
) -> tuple[list[bytes], list[bytes]]:
    """Return the rows of n new images with consecutive ids: keys and values, in key order.

    The values equal those of ``ImageRow.pack``. ``first`` is the place of the first image's canonical
    form; the other forms follow it without a gap and have the same length. ``in_runs`` is (n,).
    """
    n = len(keys)
    out = np.empty((n, _BARE if first is None else _KEPT), np.uint8)
    out[:, 0] = in_runs * np.uint8(_IN_RUNS)
    out[:, _ID] = _big_endian(np.arange(first_id, first_id + n), 6)
    out[:, _PROOF] = np.frombuffer(b"".join(proofs), np.uint8).reshape(n, -1)
    if first is not None:
        out[:, 0] |= np.uint8(_CANONICAL)
        out[:, _EXTENT] = np.frombuffer(first.extent.to_bytes(3, "big"), np.uint8)
        out[:, _OFFSET] = _big_endian(first.offset + np.arange(n) * first.length, 5)
        out[:, _LENGTH] = np.frombuffer(first.length.to_bytes(4, "big"), np.uint8)
    key_bytes = np.frombuffer(b"".join(keys), "V16")
    # RocksDB takes sorted rows in half the time. Half of a key is enough to sort by.
    order = np.argsort(key_bytes.view(">u8")[::2].astype(np.uint64))
    # Items of a void array become bytes without a Python loop.
    values = out.view(f"V{out.shape[1]}")[:, 0]
    return key_bytes[order].tolist(), values[order].tolist()


def _big_endian(values: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.uint8]:
    return values.astype(">u8").view(np.uint8).reshape(len(values), 8)[:, 8 - size :]


@dataclass(frozen=True, slots=True)
class ImageRows:
    """The rows found for n keys, by column. ``found`` is (n,); other columns have one item per hit."""

    found: npt.NDArray[np.bool_]
    ids: npt.NDArray[np.int64]
    proofs: npt.NDArray[np.uint8]  # (hits, 32)
    flags: npt.NDArray[np.uint8]
    kept: npt.NDArray[np.bool_]
    extents: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @property
    def shared(self) -> npt.NDArray[np.bool_]:
        """Return which keys have more images."""
        return self._has(_SHARED_KEY)

    @property
    def in_runs(self) -> npt.NDArray[np.bool_]:
        """Return for which images all sources are rows of arrays, in runs of several images."""
        return self._has(_IN_RUNS)

    @property
    def canonical(self) -> npt.NDArray[np.bool_]:
        """Return for which images the kept bytes are the canonical form."""
        return self._has(_CANONICAL)

    def _has(self, flag: int) -> npt.NDArray[np.bool_]:
        return (self.flags & np.uint8(flag)).astype(np.bool_)

    @classmethod
    def unpack(cls, values: Sequence[bytes | None]) -> ImageRows:
        """Parse the values read for n keys; a value is None if the key has no row."""
        found = np.fromiter((value is not None for value in values), np.bool_, len(values))
        there = [value.ljust(_KEPT, b"\0") for value in values if value is not None]
        if any(len(value) != _KEPT for value in there):
            raise damaged_row("images")
        rows = np.frombuffer(b"".join(there), np.uint8).reshape(-1, _KEPT)
        lengths = _number(rows[:, _LENGTH])
        return cls(
            found=found,
            ids=_number(rows[:, _ID]),
            proofs=rows[:, _PROOF],
            flags=rows[:, 0],
            kept=lengths > 0,
            extents=_number(rows[:, _EXTENT]),
            offsets=_number(rows[:, _OFFSET]),
            lengths=lengths,
        )


def _number(digits: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Convert big-endian integers of up to 7 bytes: (n, bytes) → (n,)."""
    out = np.zeros((len(digits), 8), np.uint8)
    out[:, 8 - digits.shape[1] :] = digits
    return out.view(">u8")[:, 0].astype(np.int64)
