"""How rows are laid out among the keys; pure functions, integers big-endian so that bytes sort.

table     key                                  value
images    key(16)                              flags, id, proof, place of the pixels   (first image)
          key(16) id(8)                        the same, for each further image of that key
records   id(8)                                what is known of the image, or of up to 128 rows of an
                                               array from this id on: they differ in key and quality;
                                               of one that was removed the quality is 255;
                                               vectors that were brought have no key
sources   id(8) name                           SHA-256 of the file, or nothing
names     name                                 id, mtime_ns, size of the file
files     SHA-256 of a file (32)               id
arrays    "n" name                             JSON: number, mtime_ns, size, rows committed, kind
          "#" number(4)                        name
          "a" name of an archive               JSON: mtime_ns, size, members done, what they were
runs      "r" array(4) row(8)                  count, step, first id
          "i" bucket(8) id(8) array(4) row(8)  count, step  (runs over several images)
          "o" id(8) array(4) row(8)            count, step  (runs over one image)
rejects   name                                 JSON: reason, and the file's stamp
removed   bucket(8): id >> 15                  a bitmap of its ids that are of removed images, or 2 bytes
                                               for each of them (engine.storage.tombstones)
commits   commit(8)                            JSON: every append of the chunk with its xxh64
meta      "settings", "state"                  JSON
          "roots"                              JSON: folders that ingests were given

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engine.errors import StoreDamagedError
from engine.records import ImageRecord, Kind, Pixels, Place
from engine.storage.json_values import MAX_64, loads, members, number, truth

TABLES = (
    "images",
    "records",
    "sources",
    "names",
    "files",
    "arrays",
    "runs",
    "rejects",
    "removed",
    "commits",
    "meta",
)

BUCKET_BITS = 12
ONE = b"o"
RECORD_BLOCK = 128  # rows of an array that share a record: 2 KiB, half a block of RocksDB
_RECORD = struct.Struct(">BBBBIIIQ16sB")
_RECORDS = struct.Struct(">BBBBIIIB")  # version, kind, channels, 0, height, width, frames, count
_MAX_ARRAY = (1 << 32) - 1
_MAX_IDS = 1 << 48  # rows have 6 bytes for an id
_FIRST_IMPOSSIBLE = _MAX_IDS.to_bytes(8, "big")
_MAX_ROW = 1 << 63
_MAX_STAMP = 1 << 80  # nanoseconds: file systems have years that 64 bits do not
_OF_ARCHIVES = ("done", "images", "rejected", "skipped")
_NAME = struct.Struct(">QqQ")
_RUN = struct.Struct(">IBQ")
_RUN_BY_ID = struct.Struct(">IB")
_RECORD_VERSION = 1
_RECORDS_VERSION = 2
ARRAY = "array"  # the container of an image that is a row of an array
_REMOVED = 255  # the quality of a row that was removed out of a shared record; others are 0-100

# The value of an image: flags, id, proof, and where pixels are kept their place.
_ID = slice(1, 7)
_PROOF = slice(7, 39)
_EXTENT, _OFFSET, _LENGTH = slice(39, 42), slice(42, 47), slice(47, 51)
_BARE, _KEPT = 39, 51
_BARE_VALUE = struct.Struct(">BHI32s")  # the same in integers that struct knows
_VALUE = struct.Struct(">BHI32sBHBII")
_SHARED_KEY = 1
_IN_RUNS = 2
_CANONICAL = 4


class RowError(StoreDamagedError):
    """A row of the keys makes no sense, though it is what was written."""


def u64(value: int) -> bytes:
    """8 bytes, big-endian."""
    return value.to_bytes(8, "big")


def file_id(value: bytes) -> int:
    """The image that a row of ``files`` names; ``StoreDamagedError`` if it is something else."""
    if len(value) != 8 or value[:2] != b"\0\0":  # rows of images have 6 bytes for an id
        raise _damaged("files")
    return int.from_bytes(value, "big")


class ImageRow(NamedTuple):
    """One row of ``images``: an image's id, proof and kept pixels, found by its key."""

    id: int
    proof: bytes
    place: Place | None
    shared: bool = False  # further images have the same key (only on the row under the bare key)
    in_runs: bool = False  # all its sources are rows of arrays, in runs of several images
    canonical: bool = False  # what is kept is its canonical form; else the file it came in

    def pack(self) -> bytes:
        """The row's value."""
        flags = _SHARED_KEY * self.shared | _IN_RUNS * self.in_runs | _CANONICAL * self.canonical
        value = bytes((flags,)) + self.id.to_bytes(6, "big") + self.proof
        if self.place is None:
            return value
        extent, offset, length = self.place.extent, self.place.offset, self.place.length
        return value + extent.to_bytes(3, "big") + offset.to_bytes(5, "big") + u64(length)[4:]

    @classmethod
    def unpack(cls, value: bytes) -> ImageRow:
        """The row that ``pack`` wrote; ``StoreDamagedError`` if it is something else."""
        if len(value) == _KEPT:
            flags, high, low, proof, extent_high, extent, at_high, at, length = _VALUE.unpack(value)
            place = Place(extent_high << 16 | extent, at_high << 32 | at, length)
        elif len(value) == _BARE:
            flags, high, low, proof = _BARE_VALUE.unpack(value)
            place = None
        else:
            raise _damaged("images")
        return cls(
            high << 32 | low,
            proof,
            place,
            flags & _SHARED_KEY != 0,
            flags & _IN_RUNS != 0,
            flags & _CANONICAL != 0,
        )


def no_image(id_: int) -> ImageRow:
    """What stands for the row in ``images`` that a vector does not have."""
    return ImageRow(id_, b"", None)


def pack_images(
    first_id: int,
    keys: Sequence[bytes],
    proofs: Sequence[bytes],
    first: Place | None,
    in_runs: npt.NDArray[np.bool_],
) -> tuple[list[bytes], list[bytes]]:
    """The rows of n new images with consecutive ids: keys and values, in the order of the keys.

    The values are what ``ImageRow.pack`` makes one by one. ``first`` is the place of the first one's
    canonical form, behind which the others lie without a gap and with the same length; ``in_runs``
    is (n,).
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
    # RocksDB takes rows that come in order in half the time. Half of a key is enough to sort by.
    order = np.argsort(key_bytes.view(">u8")[::2].astype(np.uint64))
    # The items of an array of void are bytes, made without a step through the interpreter.
    values = out.view(f"V{out.shape[1]}")[:, 0]
    return key_bytes[order].tolist(), values[order].tolist()


def _big_endian(values: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.uint8]:
    return values.astype(">u8").view(np.uint8).reshape(len(values), 8)[:, 8 - size :]


@dataclass(frozen=True, slots=True)
class ImageRows:
    """The rows found for n keys, by the column; ``found`` is (n,), the other columns are of these."""

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
        """Which keys have further images."""
        return self._has(_SHARED_KEY)

    @property
    def in_runs(self) -> npt.NDArray[np.bool_]:
        """Which images have no sources but rows of arrays, in runs of several images."""
        return self._has(_IN_RUNS)

    @property
    def canonical(self) -> npt.NDArray[np.bool_]:
        """Of which images the canonical form is kept."""
        return self._has(_CANONICAL)

    def _has(self, flag: int) -> npt.NDArray[np.bool_]:
        return (self.flags & np.uint8(flag)).astype(np.bool_)

    @classmethod
    def unpack(cls, values: Sequence[bytes | None]) -> ImageRows:
        """The values that were read for n keys, None where there is no row."""
        found = np.fromiter((value is not None for value in values), np.bool_, len(values))
        there = [value.ljust(_KEPT, b"\0") for value in values if value is not None]
        if any(len(value) != _KEPT for value in there):
            raise _damaged("images")
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
    """Big-endian integers of up to 7 bytes: (n, bytes) → (n,)."""
    out = np.zeros((len(digits), 8), np.uint8)
    out[:, 8 - digits.shape[1] :] = digits
    return out.view(">u8")[:, 0].astype(np.int64)


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
        """The row that ``pack`` wrote; ``StoreDamagedError`` if it is something else."""
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
            raise _damaged("records") from None

    def with_image(self, image: ImageRow) -> ImageRecord:
        """The public record; of a vector, ``image`` is ``no_image`` of its id."""
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
    """The rows of ``records`` for n new rows of an array, with consecutive ids and one ``shape``.

    ``keys`` are n, or of vectors none.
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
    """The id and the record of each image in one row of ``records``."""
    id_, count = _first_id(key), record_rows(value)
    if not count:
        yield id_, RecordRow.unpack(value)
        return
    for at in range(count):
        if value[_RECORDS.size + at] != _REMOVED:
            yield id_ + at, _record_of_row(value, at)


def record_keys(key: bytes, value: bytes) -> Iterator[tuple[int, bytes]]:
    """The id and the image key of each image in one row of ``records``; empty of a vector."""
    id_, count = _first_id(key), record_rows(value)
    if not count:
        yield id_, RecordRow.unpack(value).key
        return
    keys = _RECORDS.size + count
    for at in range(count):
        if value[_RECORDS.size + at] != _REMOVED:
            yield id_ + at, value[keys + 16 * at : keys + 16 * (at + 1)]


def record_ids(key: bytes, value: bytes | bytearray) -> npt.NDArray[np.int64]:
    """The ids of the images in one row of ``records``: (n,) int64, ascending."""
    first, count = _first_id(key), record_rows(value)
    if not count:
        return np.array([first], np.int64)
    qualities = np.frombuffer(value, np.uint8, count, _RECORDS.size)
    return first + np.flatnonzero(qualities != _REMOVED)


def record_without(key: bytes, value: bytes, ids: Sequence[int]) -> bytes | None:
    """One row of ``records`` without some of its images; None once it has none.

    Rows that share it keep their places: of one that goes, the key (if any) is zeroed and the quality
    says so.
    """
    first, count = _first_id(key), record_rows(value)
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
    """How many ids from its own on a row of ``records`` has, removed or not; 0 if it is of vectors."""
    return 0 if value[1:2] == bytes((Kind.VECTOR,)) else record_span(value)


def record_span(value: bytes) -> int:
    """How many ids from its own on a row of ``records`` is about, removed ones and vectors too."""
    return record_rows(value) or 1


def record_rows(value: bytes | bytearray) -> int:
    """How many ids share a row of ``records``, removed ones too; 0 if it is of one image alone."""
    if value[:1] != bytes((_RECORDS_VERSION,)):
        return 0
    if len(value) < _RECORDS.size:
        raise _damaged("records")
    count = value[_RECORDS.size - 1] + 1
    if len(value) not in (_RECORDS.size + count, _RECORDS.size + 17 * count):
        raise _damaged("records")
    return count


def _first_id(key: bytes) -> int:
    if len(key) != 8 or key >= _FIRST_IMPOSSIBLE:
        raise _damaged("records")
    return int.from_bytes(key, "big")


def record_in(key: bytes, value: bytes, id_: int) -> RecordRow | None:
    """The record of image ``id_``, if it is in this row of ``records``."""
    at, count = id_ - _first_id(key), record_rows(value)
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
        raise _damaged("records") from None
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
        """The row that ``pack`` wrote; ``StoreDamagedError`` if it is something else."""
        try:
            return cls(*_NAME.unpack(value))
        except struct.error:
            raise _damaged("names") from None


@dataclass(frozen=True, slots=True)
class ArrayRow:
    """One array source: how far it is committed, and its file's stamp (0 for synthetic sets)."""

    number: int
    mtime_ns: int
    size: int
    rows: int
    kind: Kind
    complete: bool = True  # all rows that it has are committed
    rejected: int = 0  # of these, vectors that are none

    def pack(self) -> bytes:
        """The row's value."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if not self.rejected:  # engines that know of no vectors read the others' rows
            del fields["rejected"]
        return json.dumps(fields | {"kind": int(self.kind)}).encode()

    @classmethod
    def unpack(cls, value: bytes) -> ArrayRow:
        """The row that ``pack`` wrote; ``StoreDamagedError`` if it is something else."""
        try:
            fields = members(loads(value))
            return cls(
                number=number(fields["number"], 0, _MAX_ARRAY),
                mtime_ns=number(fields["mtime_ns"], -_MAX_STAMP, _MAX_STAMP),
                size=number(fields["size"], -1, MAX_64),
                rows=number(fields["rows"], 0, MAX_64),
                kind=Kind(number(fields["kind"])),
                complete=truth(fields.get("complete", True)),
                rejected=number(fields.get("rejected", 0), 0, MAX_64),
            )
        except (ValueError, KeyError):
            raise _damaged("arrays") from None


@dataclass(frozen=True, slots=True)
class ArchiveRow:
    """One archive or table: how far it is committed, and its file's stamp."""

    mtime_ns: int
    size: int
    done: int = 0  # members from the first on, of whatever kind
    images: int = 0  # of these, what they were
    rejected: int = 0
    skipped: int = 0
    complete: bool = False  # read to its end

    def pack(self) -> bytes:
        """The row's value."""
        return json.dumps({n: getattr(self, n) for n in self.__dataclass_fields__}).encode()

    @classmethod
    def unpack(cls, value: bytes) -> ArchiveRow:
        """The row that ``pack`` wrote; ``StoreDamagedError`` if it is something else."""
        try:
            fields = members(loads(value))
            return cls(
                mtime_ns=number(fields["mtime_ns"], -_MAX_STAMP, _MAX_STAMP),
                size=number(fields["size"], -1, MAX_64),
                complete=truth(fields.get("complete", False)),
                **{name: number(fields.get(name, 0), 0, MAX_64) for name in _OF_ARCHIVES},
            )
        except (ValueError, KeyError):
            raise _damaged("arrays") from None


def reject_in(value: bytes) -> dict[str, Any]:
    """What was recorded of a source that could not be read; ``StoreDamagedError`` if it is nothing."""
    try:
        fields = members(loads(value))
        number(fields["mtime_ns"], -_MAX_STAMP, _MAX_STAMP)
        number(fields["size"], -1, MAX_64)
        if type(fields["reason"]) is not str:
            raise ValueError("a reason is text")
    except (ValueError, KeyError):
        raise _damaged("rejects") from None
    return fields


@dataclass(frozen=True, slots=True)
class Run:
    """``count`` rows of an array from ``row`` on are the images ``id``, ``id + step``, …"""

    array: int
    row: int
    count: int
    step: int
    id: int

    @property
    def several(self) -> bool:
        """Whether it is a run over several images, which lies in their bucket."""
        return self.step != 0 and self.count > 1

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
        prefix = bucket_prefix(self.id) if self.several else ONE
        key = prefix + u64(self.id) + self.array.to_bytes(4, "big") + u64(self.row)
        return key, _RUN_BY_ID.pack(self.count, self.step)

    @classmethod
    def from_row(cls, key: bytes, value: bytes) -> Run:
        """The run that ``by_row`` wrote; ``StoreDamagedError`` if it is something else."""
        if len(key) != len(b"r") + 4 + 8 or len(value) != _RUN.size:
            raise _damaged("runs")
        count, step, id_ = _RUN.unpack(value)
        array, row = int.from_bytes(key[1:5], "big"), int.from_bytes(key[5:], "big")
        return cls(array, row, count, step, id_)._checked()

    @classmethod
    def from_id(cls, key: bytes, value: bytes) -> Run:
        """The run that ``by_id`` wrote; ``StoreDamagedError`` if it is something else."""
        if len(key) < len(ONE) + 8 + 4 + 8 or len(value) != _RUN_BY_ID.size:
            raise _damaged("runs")
        count, step = _RUN_BY_ID.unpack(value)
        id_, array, row = key[-20:-12], key[-12:-8], key[-8:]
        return cls(
            int.from_bytes(array, "big"),
            int.from_bytes(row, "big"),
            count,
            step,
            int.from_bytes(id_, "big"),
        )._checked()

    def _checked(self) -> Run:
        """Itself: what goes through its images relies on there being no more than a bucket's."""
        images = self.count if self.step else 1
        able = self.count and self.step <= 1 and self.id + images <= _MAX_IDS
        if not able or self.row + self.count > _MAX_ROW:
            raise _damaged("runs")
        if self.id >> BUCKET_BITS != self.id + images - 1 >> BUCKET_BITS:
            raise _damaged("runs")
        return self

    def part(self, row: int, count: int) -> Run:
        """Of its rows, the ``count`` from ``row`` on."""
        return Run(self.array, row, count, self.step, self.id + self.step * (row - self.row))

    def rows_of(self, id_: int) -> range:
        """Which rows of the array are image ``id_``."""
        if self.step == 0:
            return range(self.row, self.row + self.count) if id_ == self.id else range(0)
        at = self.row + id_ - self.id
        return range(at, at + 1) if self.id <= id_ < self.id + self.count else range(0)


def _damaged(table: str) -> RowError:
    return RowError(f"the table {table!r} has a row that makes no sense; run 'engine check'")


def bucket_prefix(id_: int) -> bytes:
    """What all runs by id begin with that may cover ``id_``."""
    return b"i" + u64(id_ >> BUCKET_BITS)
