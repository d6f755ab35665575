"""Rows of the table ``records``: the record of one image, or of up to 128 rows of an array."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engine.records import ImageRecord, Kind, Pixels
from engine.storage.image_rows import ImageRow
from engine.storage.json_values import members
from engine.storage.rows import MAX_IDS, damaged_row, u64

RECORD_BLOCK = 128  # rows of an array that share a record: 2 KiB, half a RocksDB block
_RECORD = struct.Struct(">BBBBIIIQ16sB")
_RECORDS = struct.Struct(">BBBBIIIB")  # version, kind, channels, 0, height, width, frames, count
_FIRST_IMPOSSIBLE = MAX_IDS.to_bytes(8, "big")
_RECORD_VERSION = 1
_RECORDS_VERSION = 2
# The container of an image that is a row of an array.
ARRAY = "array"
# The quality of a row that was removed from a shared record; other qualities are 0-100.
_REMOVED = 255


@dataclass(frozen=True, slots=True)
class RecordRow:
    """A row of ``records``; with the image's row it makes an ``ImageRecord``."""

    kind: Kind
    height: int
    width: int
    channels: int
    frames: int
    quality: int
    file_bytes: int
    key: bytes
    file_hash: bytes  # 32 bytes, or empty for a row of an array
    container: str
    decoder: str
    metadata: dict[str, Any] | None = None

    def pack(self) -> bytes:
        """Return the row's value."""
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
        """Parse a value that ``pack`` wrote; raise ``StoreDamagedError`` if it is malformed."""
        try:
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
                members(json.loads(tail)) if tail else None,
            )
        except (ValueError, RecursionError, struct.error):
            raise damaged_row("records") from None

    def with_image(self, image: ImageRow) -> ImageRecord:
        """Return the public record; for a vector, ``image`` is ``no_image`` of its id."""
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


def pack_records(
    first_id: int,
    shape: Pixels,
    keys: Sequence[bytes],
    qualities: npt.NDArray[np.uint8],
) -> list[tuple[bytes, bytes]]:
    """Return the rows of ``records`` for n new rows of an array, with consecutive ids and one ``shape``.

    ``keys`` has n items, or is empty for vectors.
    """
    out = []
    for at in range(0, len(qualities), RECORD_BLOCK):
        mine = qualities[at : at + RECORD_BLOCK]
        head = _RECORDS.pack(
            _RECORDS_VERSION,
            shape.kind,
            shape.channels,
            0,
            shape.height,
            shape.width,
            shape.frames,
            len(mine) - 1,
        )
        tail = mine.tobytes() + b"".join(keys[at : at + RECORD_BLOCK])
        out.append((u64(first_id + at), head + tail))
    return out


def unpack_records(key: bytes, value: bytes) -> Iterator[tuple[int, RecordRow]]:
    """Yield the id and the record of each image in a row of ``records``."""
    id_, count = first_id(key), record_rows(value)
    if not count:
        yield id_, RecordRow.unpack(value)
        return
    for at in range(count):
        if value[_RECORDS.size + at] != _REMOVED:
            yield id_ + at, _record_of_row(value, at)


def record_keys(key: bytes, value: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the id and the image key of each image in a row of ``records``; a vector's key is empty."""
    id_, count = first_id(key), record_rows(value)
    if not count:
        yield id_, RecordRow.unpack(value).key
        return
    keys = _RECORDS.size + count
    for at in range(count):
        if value[_RECORDS.size + at] != _REMOVED:
            yield id_ + at, value[keys + 16 * at : keys + 16 * (at + 1)]


def record_ids(key: bytes, value: bytes | bytearray) -> npt.NDArray[np.int64]:
    """Return the ids of the images in a row of ``records``: (n,) int64, ascending."""
    first, count = first_id(key), record_rows(value)
    if not count:
        return np.array([first], np.int64)
    qualities = np.frombuffer(value, np.uint8, count, _RECORDS.size)
    return first + np.flatnonzero(qualities != _REMOVED)


def metadata_in(value: bytes) -> dict[str, Any] | None:
    """Return the metadata of a single image's row; None without metadata, or for a shared row."""
    # The null byte that ends the names is nearly always the last.
    if value.endswith(b"\0") or record_rows(value):
        return None
    return RecordRow.unpack(value).metadata


def record_without(key: bytes, value: bytes, ids: Sequence[int]) -> bytes | None:
    """Return a row of ``records`` without some of its images; None if none is left.

    In a shared row the other images keep their places. The key of a removed image (if any) is zeroed,
    and its quality marks the removal.
    """
    first, count = first_id(key), record_rows(value)
    if not count:
        return None
    left = bytearray(value)
    keys = _RECORDS.size + count
    for id_ in ids:
        at = id_ - first
        left[_RECORDS.size + at] = _REMOVED
        if len(value) > keys:
            left[keys + 16 * at : keys + 16 * (at + 1)] = bytes(16)
    return bytes(left) if len(record_ids(key, left)) else None


def images_in(value: bytes) -> int:
    """Return how many ids a ``records`` row covers, removed ones included; 0 if it is of vectors."""
    return 0 if value[1:2] == bytes((Kind.VECTOR,)) else record_span(value)


def record_span(value: bytes) -> int:
    """Return how many ids a ``records`` row covers, removed ones and vectors included."""
    return record_rows(value) or 1


def record_rows(value: bytes | bytearray) -> int:
    """Return how many ids share a ``records`` row, removed ones included; 0 for a single image's row."""
    if value[:1] != bytes((_RECORDS_VERSION,)):
        return 0
    if len(value) < _RECORDS.size:
        raise damaged_row("records")
    count = value[_RECORDS.size - 1] + 1
    if len(value) not in (_RECORDS.size + count, _RECORDS.size + 17 * count):
        raise damaged_row("records")
    return count


def first_id(key: bytes) -> int:
    """Return the id in a row's key; raise ``StoreDamagedError`` if the key is malformed."""
    if len(key) != 8 or key >= _FIRST_IMPOSSIBLE:
        raise damaged_row("records")
    return int.from_bytes(key, "big")


class SharedRecords(NamedTuple):
    """The records of consecutive rows of an array: their common and their separate fields."""

    ids: range
    kind: int
    height: int
    width: int
    channels: int
    qualities: npt.NDArray[np.uint8]  # (n,)
    there: npt.NDArray[np.bool_]  # (n,): true if not removed
    keys: bytes  # 16 bytes each; empty for vectors

    def key(self, id_: int) -> bytes:
        """Return the key of image ``id_``."""
        at = 16 * (id_ - self.ids.start)
        return self.keys[at : at + 16]


def shared_records(key: bytes, value: bytes) -> SharedRecords | None:
    """Parse a row of ``records`` that up to 128 images share; None for a single image's row."""
    first, count = first_id(key), record_rows(value)
    if not count:
        return None
    _, kind, channels, _, height, width, _, _ = _RECORDS.unpack_from(value)
    qualities = np.frombuffer(value, np.uint8, count, _RECORDS.size)
    keys = value[_RECORDS.size + count :]
    ids = range(first, first + count)
    return SharedRecords(ids, kind, height, width, channels, qualities, qualities != _REMOVED, keys)


def record_in(key: bytes, value: bytes, id_: int) -> RecordRow | None:
    """Return the record of image ``id_`` if this row of ``records`` has it, else None."""
    at, count = id_ - first_id(key), record_rows(value)
    if not count:
        return RecordRow.unpack(value) if at == 0 else None
    if not 0 <= at < count or value[_RECORDS.size + at] == _REMOVED:
        return None
    return _record_of_row(value, at)


def _record_of_row(value: bytes, at: int) -> RecordRow:
    _, kind, channels, _, height, width, frames, last = _RECORDS.unpack_from(value)
    keys = _RECORDS.size + last + 1
    try:
        kind = Kind(kind)
    except ValueError:
        raise damaged_row("records") from None
    return RecordRow(
        kind,
        height,
        width,
        channels,
        frames,
        value[_RECORDS.size + at],
        0,
        value[keys + 16 * at : keys + 16 * (at + 1)],
        b"",
        ARRAY,
        "",
    )
