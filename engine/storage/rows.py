"""How rows are laid out among the keys; pure functions, integers big-endian so that bytes sort.

table     key                                  value
images    key(16)                              id, flags, place of the pixels, proof   (first image)
          key(16) id(8)                        the same, for each further image of that key
records   id(8)                                what is known of the image
sources   id(8) name                           SHA-256 of the file, or nothing
names     name                                 id, mtime_ns, size of the file
files     SHA-256 of a file (32)               id
arrays    "n" name                             JSON: number, mtime_ns, size, rows committed, kind
          "#" number(4)                        name
runs      "r" array(4) row(8)                  count, step, first id
          "i" bucket(8) id(8) array(4) row(8)  count, step  (runs over several images)
          "o" id(8) array(4) row(8)            count, step  (runs over one image)
rejects   name                                 JSON: reason, and the file's stamp
commits   commit(8)                            JSON: every append of the chunk with its xxh64
meta      "settings", "state"                  JSON

The first image of a key lies under the bare key, so that a lookup is a point read that a Bloom
filter answers, and a batch of lookups one call; a second image with the same xxh3-128 is next to
impossible, unless somebody wants it, and then costs a short scan.

A *run* says that ``count`` rows of an array, from ``row`` on, are the images ``id``, ``id + step``,
``id + 2·step`` …: one row for a chunk of an array instead of one an image (step 1), and for a
stretch of equal rows too (step 0). Runs are cut at multiples of 2^12 ids, so that the runs that
may cover an id lie in one bucket; those of a single image lie under that image, so that one that
is repeated a million times costs its neighbours nothing.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

from engine.config import KEEP_BITS_LIMIT
from engine.pixels import HEADER_BYTES
from engine.records import ImageRecord, Kind, Place

TABLES = (
    "images",
    "records",
    "sources",
    "names",
    "files",
    "arrays",
    "runs",
    "rejects",
    "commits",
    "meta",
)

BUCKET_BITS = 12
ONE = b"o"
_IMAGE = struct.Struct(">QBIQI32s")
_RECORD = struct.Struct(">BBBBIIIQ16sB")
_NAME = struct.Struct(">QqQ")
_RUN = struct.Struct(">IBQ")
_RUN_BY_ID = struct.Struct(">IB")
_RECORD_VERSION = 1
ARRAY = "array"  # the container of an image that is a row of an array
_SHARED_KEY = 1


def u64(value: int) -> bytes:
    """8 bytes, big-endian."""
    return value.to_bytes(8, "big")


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One row of ``images``: an image's id, proof and kept pixels, found by its key."""

    id: int
    proof: bytes
    place: Place | None
    shared: bool = False  # further images have the same key (only on the row under the bare key)

    def pack(self) -> bytes:
        """The row's value."""
        place = self.place or Place(0, 0, 0)
        flags = _SHARED_KEY if self.shared else 0
        return _IMAGE.pack(self.id, flags, place.extent, place.offset, place.length, self.proof)

    @classmethod
    def unpack(cls, value: bytes) -> ImageRow:
        """The row that ``pack`` wrote."""
        id_, flags, extent, offset, length, proof = _IMAGE.unpack(value)
        place = Place(extent, offset, length) if extent else None
        return cls(id_, proof, place, bool(flags & _SHARED_KEY))


def keeps_canonical(kind: Kind, size: int, container: str) -> bool:
    """Whether an image is kept in its canonical form: small bit images, and rows of arrays.

    ``size`` is that of the canonical form, for bit images. A large scan takes far less as its file.
    """
    return container == ARRAY or (kind is Kind.BITS and size <= HEADER_BYTES + KEEP_BITS_LIMIT)


@dataclass(frozen=True, slots=True)
class RecordRow:
    """One row of ``records``; with the image's row it makes an ``ImageRecord``."""

    kind: Kind
    height: int
    width: int
    channels: int
    frames: int
    quality: int
    file_bytes: int
    key: bytes
    file_hash: bytes  # 32 bytes, or none for a row of an array
    container: str
    decoder: str
    metadata: dict[str, Any] | None = None

    def pack(self) -> bytes:
        """The row's value."""
        head = _RECORD.pack(
            _RECORD_VERSION,
            self.kind,
            self.channels,
            self.quality,
            self.height,
            self.width,
            self.frames,
            self.file_bytes,
            self.key,
            len(self.file_hash),
        )
        names = b"\0".join((self.container.encode(), self.decoder.encode(), b""))
        tail = json.dumps(self.metadata).encode() if self.metadata else b""
        return head + self.file_hash + names + tail

    @classmethod
    def unpack(cls, value: bytes) -> RecordRow:
        """The row that ``pack`` wrote."""
        (_, kind, channels, quality, height, width, frames, size, key, hashed) = _RECORD.unpack(
            value[: _RECORD.size]
        )
        rest = value[_RECORD.size :]
        container, decoder, tail = rest[hashed:].split(b"\0", 2)
        return cls(
            Kind(kind),
            height,
            width,
            channels,
            frames,
            quality,
            size,
            key,
            rest[:hashed],
            container.decode(),
            decoder.decode(),
            json.loads(tail) if tail else None,
        )

    @property
    def keeps_canonical(self) -> bool:
        """Whether what is kept of it is its canonical form; else it is the file it came in."""
        bits = HEADER_BYTES + -(-self.height * self.width * self.channels // 8)
        return keeps_canonical(self.kind, bits, self.container)

    def with_image(self, image: ImageRow) -> ImageRecord:
        """The public record."""
        return ImageRecord(
            id=image.id,
            kind=self.kind,
            height=self.height,
            width=self.width,
            channels=self.channels,
            frames=self.frames,
            container=self.container,
            file_bytes=self.file_bytes,
            key=self.key,
            proof=image.proof,
            file_hash=self.file_hash,
            quality=self.quality,
            place=image.place,
            decoder=self.decoder,
            metadata=self.metadata,
        )


@dataclass(frozen=True, slots=True)
class NameRow:
    """One row of ``names``: which image a file was when it was last read, and its stamp then."""

    id: int
    mtime_ns: int
    size: int

    def pack(self) -> bytes:
        """The row's value."""
        return _NAME.pack(self.id, self.mtime_ns, self.size)

    @classmethod
    def unpack(cls, value: bytes) -> NameRow:
        """The row that ``pack`` wrote."""
        return cls(*_NAME.unpack(value))


@dataclass(frozen=True, slots=True)
class ArrayRow:
    """One array source: how far it is committed, and its file's stamp (0 for synthetic sets)."""

    number: int
    mtime_ns: int
    size: int
    rows: int
    kind: Kind

    def pack(self) -> bytes:
        """The row's value."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps(fields | {"kind": int(self.kind)}).encode()

    @classmethod
    def unpack(cls, value: bytes) -> ArrayRow:
        """The row that ``pack`` wrote."""
        fields = json.loads(value)
        return cls(**(fields | {"kind": Kind(fields["kind"])}))


@dataclass(frozen=True, slots=True)
class Run:
    """``count`` rows of an array from ``row`` on are the images ``id``, ``id + step``, …"""

    array: int
    row: int
    count: int
    step: int
    id: int

    def pieces(self) -> list[Run]:
        """The run cut where its ids cross into another bucket."""
        if self.step == 0:
            return [self]
        out, row, id_, left = [], self.row, self.id, self.count
        while left:
            inside = min(left, (((id_ >> BUCKET_BITS) + 1) << BUCKET_BITS) - id_)
            out.append(Run(self.array, row, inside, 1, id_))
            row, id_, left = row + inside, id_ + inside, left - inside
        return out

    @property
    def by_row(self) -> tuple[bytes, bytes]:
        """Its row in ``runs`` by array and row."""
        key = b"r" + self.array.to_bytes(4, "big") + u64(self.row)
        return key, _RUN.pack(self.count, self.step, self.id)

    @property
    def by_id(self) -> tuple[bytes, bytes]:
        """Its row in ``runs`` by image id."""
        several = self.step != 0 and self.count > 1
        prefix = bucket_prefix(self.id) if several else ONE
        key = prefix + u64(self.id) + self.array.to_bytes(4, "big") + u64(self.row)
        return key, _RUN_BY_ID.pack(self.count, self.step)

    @classmethod
    def from_row(cls, key: bytes, value: bytes) -> Run:
        """The run that ``by_row`` wrote."""
        count, step, id_ = _RUN.unpack(value)
        return cls(
            int.from_bytes(key[1:5], "big"), int.from_bytes(key[5:13], "big"), count, step, id_
        )

    @classmethod
    def from_id(cls, key: bytes, value: bytes) -> Run:
        """The run that ``by_id`` wrote."""
        count, step = _RUN_BY_ID.unpack(value)
        id_, array, row = key[-20:-12], key[-12:-8], key[-8:]
        return cls(
            int.from_bytes(array, "big"),
            int.from_bytes(row, "big"),
            count,
            step,
            int.from_bytes(id_, "big"),
        )

    def rows_of(self, id_: int) -> range:
        """Which rows of the array are image ``id_``."""
        if self.step == 0:
            return range(self.row, self.row + self.count) if id_ == self.id else range(0)
        at = self.row + id_ - self.id
        return range(at, at + 1) if self.id <= id_ < self.id + self.count else range(0)


def bucket_prefix(id_: int) -> bytes:
    """What all runs by id begin with that may cover ``id_``."""
    return b"i" + u64(id_ >> BUCKET_BITS)
