"""The typed tables over RocksDB: what their rows mean, and how their keys are packed.

Rooms above storage name no table and pack no key; within storage, what makes, commits and mends rows
does so too.
``Tables`` has one attribute a table. ``scan`` gives rows as they are stored, for those who check and
mend them; the other methods take and give what rows mean. A ``RowChange`` is a row to put or to
delete; a transaction writes it. The layout of keys and values is in ``engine.storage.rows``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.images import hashing
from engine.storage.commit_row import CommitRow
from engine.storage.image_rows import ImageRow, ImageRows
from engine.storage.meta_table import MetaTable
from engine.storage.record_rows import (
    RecordRow,
    first_id,
    metadata_in,
    record_ids,
    record_in,
    record_keys,
    record_rows,
    record_span,
)
from engine.storage.rocks.database import Keys
from engine.storage.rows import MAX_IDS, damaged_row, u64
from engine.storage.runs import BUCKET_BITS, ONE, Run, bucket_prefix
from engine.storage.source_rows import ArchiveRow, ArrayRow, NameRow, file_id, reject_in
from engine.storage.table import Row, RowChange, Table

UNREAD = -1  # size and time of a source that is to be read again: no file has these
_KEY = hashing.KEY_BYTES


class ImagesTable(Table):
    """Key of an image → id, proof and place of its kept pixels."""

    name = "images"

    def rows(self, key: bytes) -> list[ImageRow]:
        """The rows of all images that have a key (nearly always none or one)."""
        return self._rows(key, self.get(key))

    def rows_of_many(self, keys: list[bytes]) -> list[list[ImageRow]]:
        """``rows`` for each of many keys, in one call to RocksDB."""
        return [
            self._rows(key, value) for key, value in zip(keys, self.get_many(keys), strict=True)
        ]

    def columns(self, keys: list[bytes]) -> ImageRows:
        """The first image of each of many keys, by the column."""
        return ImageRows.unpack(self.get_many(keys))

    @staticmethod
    def further_key(key: bytes, id_: int) -> bytes:
        """The key of the row of another image with the same key."""
        return key + u64(id_)

    @staticmethod
    def parts(key: bytes) -> tuple[bytes, int | None]:
        """The image's key in the key of a row, and the id behind it; None of the first image."""
        image_key, id_ = key[:_KEY], key[_KEY:]
        return image_key, int.from_bytes(id_, "big") if id_ else None

    @staticmethod
    def is_key(key: bytes) -> bool:
        """Whether a row can have this key."""
        return len(key) in (_KEY, _KEY + 8)

    def put(self, key: bytes, row: ImageRow) -> RowChange:
        """The first image of a key."""
        return self.change(key, row.pack())

    def put_further(self, key: bytes, row: ImageRow) -> RowChange:
        """Another image with the same key."""
        return self.change(self.further_key(key, row.id), row.pack())

    def _rows(self, key: bytes, value: bytes | None) -> list[ImageRow]:
        if value is None:
            return []
        rows = [ImageRow.unpack(value)]
        if rows[0].shared:
            rows += [ImageRow.unpack(row) for name, row in self.scan(key) if len(name) > len(key)]
        return rows


class RecordsTable(Table):
    """Id → what is known of the image; rows of an array share one for up to 128 ids."""

    name = "records"

    def of(self, id_: int) -> RecordRow | None:
        """The record of image ``id_``, or None if there is none."""
        row = self.row_over(id_)
        return record_in(*row, id_) if row is not None else None

    def row_over(self, id_: int) -> Row | None:
        """The stored row that may cover image ``id_``: the last one that begins at or before it."""
        return self.at_or_before(u64(id_)) if 0 < id_ < MAX_IDS else None

    def ids(self) -> Iterator[npt.NDArray[np.int64]]:
        """The ids of the images of each stored row: (n,), ascending."""
        return (record_ids(key, value) for key, value in self.scan())

    def covers(self, id_: int) -> bool:
        """Whether a stored row is about image ``id_``, even if it says that it was removed."""
        row = self.row_over(id_)
        if row is None or len(row[0]) != 8:
            return False
        return id_ < int.from_bytes(row[0], "big") + record_span(row[1])

    def files(self) -> Iterator[tuple[int, bytes]]:
        """The id of each image that came as a file, and the SHA-256 of the file."""
        for key, value in self.scan():
            if not record_rows(value):  # rows of arrays have no file
                record = RecordRow.unpack(value)
                if record.file_hash:
                    yield int.from_bytes(key, "big"), record.file_hash

    def metadata(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The id and the metadata of each image that has some."""
        for key, value in self.scan():
            said = metadata_in(value)
            if said is not None:
                yield first_id(key), said

    def is_shared(self, id_: int) -> bool:
        """Whether the row of image ``id_`` is for several rows of an array, and so has no metadata."""
        row = self.row_over(id_)
        return row is not None and record_rows(row[1]) > 0

    def scan_from(self, id_: int) -> Iterator[Row]:
        """The stored rows from the one on that may cover image ``id_``."""
        if id_ >= MAX_IDS:
            return iter(())
        before = self.row_over(id_)
        return self.scan(start=before[0] if before else u64(max(id_, 0)))

    def image_keys(self) -> Iterator[tuple[int, bytes]]:
        """The id of each image and the key of its row in ``images``; empty for a vector."""
        for key, value in self.scan():
            yield from record_keys(key, value)

    def put(self, id_: int, record: RecordRow) -> RowChange:
        """The record of one image alone."""
        return self.change(u64(id_), record.pack())


class SourcesTable(Table):
    """(Id, name of a file) → SHA-256 of the file."""

    name = "sources"

    def of(self, id_: int) -> Iterator[tuple[bytes, bytes]]:
        """The files in which an image was seen, and the SHA-256 of each, or nothing."""
        return ((key[8:], value) for key, value in self.scan(u64(id_)))

    def names_of(self, id_: int) -> Iterator[bytes]:
        """The files in which an image was seen."""
        return (key[8:] for key in self.scan_keys(u64(id_)))

    def scan_from(self, id_: int) -> Iterator[Row]:
        """The stored rows of image ``id_`` and of those after it."""
        return self.scan(start=u64(id_))

    def ids(self, start: int = 0) -> Iterator[int]:
        """The image of each row, ascending, from image ``start`` on."""
        return (self.parts(key)[0] for key, _ in self.scan_from(start))

    @staticmethod
    def key(id_: int, name: bytes) -> bytes:
        """The key of a row."""
        return u64(id_) + name

    @classmethod
    def parts(cls, key: bytes) -> tuple[int, bytes]:
        """The id and the name in a key; ``StoreDamagedError`` if it is something else."""
        if not cls.is_key(key):
            raise damaged_row(cls.name)
        return int.from_bytes(key[:8], "big"), key[8:]

    @staticmethod
    def is_key(key: bytes) -> bool:
        """Whether a row can have this key."""
        return len(key) > 8 and int.from_bytes(key[:8], "big") < MAX_IDS


class NamesTable(Table):
    """Name of a file → the image it was when it was last read, and its stamp then."""

    name = "names"

    def put(self, name: bytes, row: NameRow) -> RowChange:
        """What a name stands for."""
        return self.change(name, row.pack())

    def items(self, prefix: bytes = b"") -> Iterator[tuple[bytes, NameRow]]:
        """Each name that begins with ``prefix``, and what it stands for."""
        return ((name, NameRow.unpack(value)) for name, value in self.scan(prefix))

    def rows(self, names: list[bytes]) -> list[NameRow | None]:
        """What each name stood for, or None."""
        values = self.get_many(names)
        return [NameRow.unpack(value) if value is not None else None for value in values]


class FilesTable(Table):
    """SHA-256 of a file → id."""

    name = "files"

    def put(self, file_hash: bytes, id_: int) -> RowChange:
        """The image that a file is."""
        return self.change(file_hash, u64(id_))

    @staticmethod
    def is_value(value: bytes) -> bool:
        """Whether a row can have this value."""
        return len(value) == 8

    def items(self) -> Iterator[tuple[bytes, int]]:
        """The SHA-256 of each file and its image: a number that no image has where that is damaged."""
        return ((file_hash, int.from_bytes(value, "big")) for file_hash, value in self.scan())

    def ids(self, hashes: list[bytes]) -> list[int | None]:
        """The image of each file, or None."""
        return [file_id(value) if value is not None else None for value in self.get_many(hashes)]


class ArraysTable(Table):
    """Name of an array, an archive or a table → how far it is committed; number of an array → name."""

    name = "arrays"
    ARRAY, NUMBER, ARCHIVE = b"n", b"#", b"a"

    def array(self, name: bytes) -> ArrayRow | None:
        """How far an array is committed."""
        value = self.get(self.ARRAY + name)
        return ArrayRow.unpack(value) if value is not None else None

    def archive(self, name: bytes) -> ArchiveRow | None:
        """How far an archive is committed."""
        value = self.get(self.ARCHIVE + name)
        return ArchiveRow.unpack(value) if value is not None else None

    def name_of(self, number: int) -> bytes | None:
        """What array ``number`` is called."""
        return self.get(self.number_key(number))

    def arrays(self, prefix: bytes = b"") -> Iterator[tuple[bytes, ArrayRow]]:
        """The name and the row of each array whose name begins with ``prefix``."""
        for key, value in self.scan(self.ARRAY + prefix):
            yield key[1:], ArrayRow.unpack(value)

    def delete_array(self, name: bytes, number: int) -> list[RowChange]:
        """The rows of an array, to go."""
        keys = (self.array_key(name), self.number_key(number))
        return [self.change(key, None) for key in keys]

    def delete_archive(self, name: bytes) -> RowChange:
        """The row of an archive, to go."""
        return self.change(self.archive_key(name), None)

    def archive_names(self, prefix: bytes = b"") -> Iterator[bytes]:
        """The names of archives that begin with ``prefix``."""
        return (key[1:] for key, _ in self.scan(self.ARCHIVE + prefix))

    @classmethod
    def array_key(cls, name: bytes) -> bytes:
        """The key of the row of an array."""
        return cls.ARRAY + name

    @classmethod
    def archive_key(cls, name: bytes) -> bytes:
        """The key of the row of an archive."""
        return cls.ARCHIVE + name

    @classmethod
    def number_key(cls, number: int) -> bytes:
        """The key of the row that names array ``number``."""
        return cls.NUMBER + number.to_bytes(4, "big")

    def put_array(self, name: bytes, row: ArrayRow) -> list[RowChange]:
        """The rows of an array: by its name, and its name by its number."""
        return [
            self.change(self.ARRAY + name, row.pack()),
            self.change(self.number_key(row.number), name),
        ]

    def require_whole(self) -> None:
        """Read every row; ``StoreDamagedError`` at one that makes no sense."""
        for key, value in self.scan():
            if key[:1] != self.NUMBER:
                (ArrayRow if key[:1] == self.ARRAY else ArchiveRow).unpack(value)

    def put_archive(self, name: bytes, row: ArchiveRow) -> RowChange:
        """The row of an archive."""
        return self.change(self.ARCHIVE + name, row.pack())


class RunsTable(Table):
    """Which rows of arrays are which images: by array and row, and by id."""

    name = "runs"
    BY_ROW, BY_BUCKET = b"r", b"i"

    def of_array(self, number: int, start: int = 0) -> Iterator[Run]:
        """The runs of an array in the order of its rows, from the first that begins at ``start``."""
        prefix = self.array_prefix(number)
        for key, value in self.scan(prefix, start=prefix + u64(start)):
            yield Run.from_row(key, value)

    def over_row(self, number: int, row: int) -> Run | None:
        """The run of an array that may cover ``row``: the last one that begins at or before it."""
        prefix = self.array_prefix(number)
        found = self.at_or_before(prefix + u64(row))
        if found is None or not found[0].startswith(prefix):
            return None
        return Run.from_row(*found)

    def in_bucket(self, id_: int) -> Iterator[Run]:
        """The runs of several images that may cover ``id_``, in the order of their first ids."""
        return (Run.from_id(key, value) for key, value in self.scan(bucket_prefix(id_)))

    def of_one(self, id_: int) -> Iterator[Run]:
        """The runs of image ``id_`` alone."""
        return (Run.from_id(key, value) for key, value in self.scan(ONE + u64(id_)))

    def of_one_from(self, id_: int) -> Iterator[Run]:
        """The runs of single images, from image ``id_`` on."""
        return (Run.from_id(key, value) for key, value in self.scan(ONE, start=ONE + u64(id_)))

    def of_several(self, id_: int = 0) -> Iterator[Run]:
        """The runs of several images in the order of their first ids, from the bucket of ``id_`` on."""
        found = self.scan(self.BY_BUCKET, start=bucket_prefix(id_))
        return (Run.from_id(key, value) for key, value in found)

    def has_rows(self, number: int, without: Collection[bytes]) -> bool:
        """Whether an array has a run whose row by array and row is not one of ``without``."""
        prefix = self.array_prefix(number)
        last = self.at_or_before(prefix + b"\xff" * 8)
        if last is not None and last[0].startswith(prefix) and last[0] not in without:
            return True
        return any(key not in without for key, _ in self.scan(prefix))

    def over(self, ids: npt.NDArray[np.int64]) -> Iterator[Run]:
        """The runs that may cover some of (n,) ids, ascending, each run once."""
        for bucket in np.unique(ids >> BUCKET_BITS).tolist():
            yield from self.in_bucket(bucket << BUCKET_BITS)
        if len(ids):
            for run in self.of_one_from(int(ids[0])):
                if run.id > ids[-1]:
                    return
                yield run

    def scan_by_row(self) -> Iterator[Row]:
        """The stored rows by array and row."""
        return self.scan(self.BY_ROW)

    def scan_by_id(self) -> Iterator[Row]:
        """The stored rows by id: of several images first, then of single ones."""
        yield from self.scan(self.BY_BUCKET)
        yield from self.scan(ONE)

    @classmethod
    def array_prefix(cls, number: int) -> bytes:
        """What the keys of an array's runs by row begin with."""
        return cls.BY_ROW + number.to_bytes(4, "big")

    def put(self, run: Run) -> list[RowChange]:
        """Both rows of a run that lies in one bucket."""
        return [self.change(*run.by_row), self.change(*run.by_id)]

    def delete(self, run: Run) -> list[RowChange]:
        """Both rows of a run, to go."""
        return [self.change(run.by_row[0], None), self.change(run.by_id[0], None)]


class RejectsTable(Table):
    """Name of a source → why it could not be read, with its stamp and the decoder that was asked."""

    name = "rejects"

    def rows(self, names: list[bytes]) -> list[dict[str, Any] | None]:
        """What was recorded of each source, or None."""
        values = self.get_many(names)
        return [reject_in(value) if value is not None else None for value in values]

    def require_whole(self) -> None:
        """Read every row; ``StoreDamagedError`` at one that makes no sense."""
        for _, value in self.scan():
            reject_in(value)

    def items(self, prefix: bytes = b"") -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Each rejected source whose name begins with ``prefix``, and what was recorded of it."""
        return ((name, reject_in(value)) for name, value in self.scan(prefix))

    def names(self, prefix: bytes = b"") -> Iterator[bytes]:
        """The names of rejected sources that begin with ``prefix``."""
        return (key for key, _ in self.scan(prefix))

    def put(self, name: bytes, row: dict[str, Any]) -> RowChange:
        """Why a source could not be read."""
        return self.change(name, json.dumps(row).encode())


class RemovedTable(Table):
    """Id >> 15 → which of these 32,768 ids are of removed images (``engine.storage.tombstones``)."""

    name = "removed"


class CommitsTable(Table):
    """Commit → every append of the chunk with its checksum."""

    name = "commits"

    def rows(self) -> Iterator[CommitRow]:
        """The row of each commit; ``StoreDamagedError`` at one that cannot be read."""
        return (CommitRow.unpack(key, value) for key, value in self.scan())

    def row(self, commit: int) -> CommitRow | None:
        """The row of one commit."""
        value = self.get(u64(commit))
        return CommitRow.unpack(u64(commit), value) if value is not None else None

    def put(self, row: CommitRow) -> RowChange:
        """A row; one without appends goes."""
        return self.change(row.key, row.pack() if row.appends else None)


class Tables:
    """All tables of one open database."""

    def __init__(self, keys: Keys) -> None:
        self.images = ImagesTable(keys)
        self.records = RecordsTable(keys)
        self.sources = SourcesTable(keys)
        self.names = NamesTable(keys)
        self.files = FilesTable(keys)
        self.arrays = ArraysTable(keys)
        self.runs = RunsTable(keys)
        self.rejects = RejectsTable(keys)
        self.removed = RemovedTable(keys)
        self.commits = CommitsTable(keys)
        self.meta = MetaTable(keys)

    def all(self) -> Sequence[Table]:
        """Every table."""
        return tuple(vars(self).values())
