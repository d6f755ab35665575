"""The typed tables over RocksDB: what their rows mean, and how their keys are packed.

Rooms above storage do not name tables or pack keys. Inside storage, the modules that create, commit
and mend rows do. ``Tables`` has one attribute per table. ``scan`` yields rows as stored, for checks and
repairs; the other methods take and return parsed values. A ``RowChange`` is a row to put or to delete;
a transaction writes it. ``engine.storage.rows`` documents the layout of keys and values.
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

# Size and time of a source to be read again; no file has these values.
UNREAD = -1
_KEY = hashing.KEY_BYTES


class ImagesTable(Table):
    """Key of an image → id, proof and place of its kept pixels."""

    name = "images"

    def rows(self, key: bytes) -> list[ImageRow]:
        """Return the rows of all images that have a key (nearly always none or one)."""
        return self._rows(key, self.get(key))

    def rows_of_many(self, keys: list[bytes]) -> list[list[ImageRow]]:
        """Return ``rows`` for each of many keys, in one call to RocksDB."""
        return [
            self._rows(key, value) for key, value in zip(keys, self.get_many(keys), strict=True)
        ]

    def columns(self, keys: list[bytes]) -> ImageRows:
        """Return the first image of each of many keys, by column."""
        return ImageRows.unpack(self.get_many(keys))

    @staticmethod
    def further_key(key: bytes, id_: int) -> bytes:
        """Return the row key of another image with the same image key."""
        return key + u64(id_)

    @staticmethod
    def parts(key: bytes) -> tuple[bytes, int | None]:
        """Split a row's key into the image's key and the id after it; None for the first image."""
        image_key, id_ = key[:_KEY], key[_KEY:]
        return image_key, int.from_bytes(id_, "big") if id_ else None

    @staticmethod
    def is_key(key: bytes) -> bool:
        """Return whether a row can have this key."""
        return len(key) in (_KEY, _KEY + 8)

    def put(self, key: bytes, row: ImageRow) -> RowChange:
        """Return the change that puts the first image of a key."""
        return self.change(key, row.pack())

    def put_further(self, key: bytes, row: ImageRow) -> RowChange:
        """Return the change that puts another image with the same key."""
        return self.change(self.further_key(key, row.id), row.pack())

    def _rows(self, key: bytes, value: bytes | None) -> list[ImageRow]:
        if value is None:
            return []
        rows = [ImageRow.unpack(value)]
        if rows[0].shared:
            rows += [ImageRow.unpack(row) for name, row in self.scan(key) if len(name) > len(key)]
        return rows


class RecordsTable(Table):
    """Id → record of the image; up to 128 rows of an array share one."""

    name = "records"

    def of(self, id_: int) -> RecordRow | None:
        """Return the record of image ``id_``, or None if there is none."""
        row = self.row_over(id_)
        return record_in(*row, id_) if row is not None else None

    def row_over(self, id_: int) -> Row | None:
        """Return the stored row that may cover image ``id_``: the last that begins at or before it."""
        return self.at_or_before(u64(id_)) if 0 < id_ < MAX_IDS else None

    def ids(self) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the ids of the images of each stored row: (n,), ascending."""
        return (record_ids(key, value) for key, value in self.scan())

    def covers(self, id_: int) -> bool:
        """Return whether a stored row covers image ``id_``, even if the image was removed."""
        row = self.row_over(id_)
        if row is None or len(row[0]) != 8:
            return False
        return id_ < int.from_bytes(row[0], "big") + record_span(row[1])

    def files(self) -> Iterator[tuple[int, bytes]]:
        """Yield the id of each image that came as a file, and the file's SHA-256."""
        for key, value in self.scan():
            # Rows of arrays have no file.
            if not record_rows(value):
                record = RecordRow.unpack(value)
                if record.file_hash:
                    yield int.from_bytes(key, "big"), record.file_hash

    def metadata(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the id and the metadata of each image that has metadata."""
        for key, value in self.scan():
            said = metadata_in(value)
            if said is not None:
                yield first_id(key), said

    def is_shared(self, id_: int) -> bool:
        """Return whether image ``id_`` shares its row with others; such a row has no metadata."""
        row = self.row_over(id_)
        return row is not None and record_rows(row[1]) > 0

    def scan_from(self, id_: int) -> Iterator[Row]:
        """Yield the stored rows from the one that may cover image ``id_`` on."""
        if id_ >= MAX_IDS:
            return iter(())
        before = self.row_over(id_)
        return self.scan(start=before[0] if before else u64(max(id_, 0)))

    def image_keys(self) -> Iterator[tuple[int, bytes]]:
        """Yield the id of each image and the key of its row in ``images``; a vector's key is empty."""
        for key, value in self.scan():
            yield from record_keys(key, value)

    def put(self, id_: int, record: RecordRow) -> RowChange:
        """Return the change that puts the record of a single image."""
        return self.change(u64(id_), record.pack())


class SourcesTable(Table):
    """(Id, name of a file) → SHA-256 of the file."""

    name = "sources"

    def of(self, id_: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield the files in which an image was seen, and the SHA-256 of each, or nothing."""
        return ((key[8:], value) for key, value in self.scan(u64(id_)))

    def names_of(self, id_: int) -> Iterator[bytes]:
        """Yield the files in which an image was seen."""
        return (key[8:] for key in self.scan_keys(u64(id_)))

    def scan_from(self, id_: int) -> Iterator[Row]:
        """Yield the stored rows of image ``id_`` and of those after it."""
        return self.scan(start=u64(id_))

    def ids(self, start: int = 0) -> Iterator[int]:
        """Yield the image of each row, ascending, from image ``start`` on."""
        return (self.parts(key)[0] for key, _ in self.scan_from(start))

    @staticmethod
    def key(id_: int, name: bytes) -> bytes:
        """Return the key of a row."""
        return u64(id_) + name

    @classmethod
    def parts(cls, key: bytes) -> tuple[int, bytes]:
        """Split a key into id and name; raise ``StoreDamagedError`` if it is malformed."""
        if not cls.is_key(key):
            raise damaged_row(cls.name)
        return int.from_bytes(key[:8], "big"), key[8:]

    @staticmethod
    def is_key(key: bytes) -> bool:
        """Return whether a row can have this key."""
        return len(key) > 8 and int.from_bytes(key[:8], "big") < MAX_IDS


class NamesTable(Table):
    """Name of a file → its image when it was last read, and its stamp then."""

    name = "names"

    def put(self, name: bytes, row: NameRow) -> RowChange:
        """Return the change that puts a name's row."""
        return self.change(name, row.pack())

    def items(self, prefix: bytes = b"") -> Iterator[tuple[bytes, NameRow]]:
        """Yield each name that begins with ``prefix``, and its row."""
        return ((name, NameRow.unpack(value)) for name, value in self.scan(prefix))

    def rows(self, names: list[bytes]) -> list[NameRow | None]:
        """Return each name's row, or None."""
        values = self.get_many(names)
        return [NameRow.unpack(value) if value is not None else None for value in values]


class FilesTable(Table):
    """SHA-256 of a file → id."""

    name = "files"

    def put(self, file_hash: bytes, id_: int) -> RowChange:
        """Return the change that puts a file's image."""
        return self.change(file_hash, u64(id_))

    @staticmethod
    def is_value(value: bytes) -> bool:
        """Return whether a row can have this value."""
        return len(value) == 8

    def items(self) -> Iterator[tuple[bytes, int]]:
        """Yield each file's SHA-256 and image; a damaged row yields an id that no image has."""
        return ((file_hash, int.from_bytes(value, "big")) for file_hash, value in self.scan())

    def ids(self, hashes: list[bytes]) -> list[int | None]:
        """Return the image of each file, or None."""
        return [file_id(value) if value is not None else None for value in self.get_many(hashes)]


class ArraysTable(Table):
    """Name of an array, archive or table → how far it is committed; number of an array → name."""

    name = "arrays"
    ARRAY, NUMBER, ARCHIVE = b"n", b"#", b"a"

    def array(self, name: bytes) -> ArrayRow | None:
        """Return how far an array is committed, or None."""
        value = self.get(self.ARRAY + name)
        return ArrayRow.unpack(value) if value is not None else None

    def archive(self, name: bytes) -> ArchiveRow | None:
        """Return how far an archive is committed, or None."""
        value = self.get(self.ARCHIVE + name)
        return ArchiveRow.unpack(value) if value is not None else None

    def name_of(self, number: int) -> bytes | None:
        """Return the name of array ``number``, or None."""
        return self.get(self.number_key(number))

    def arrays(self, prefix: bytes = b"") -> Iterator[tuple[bytes, ArrayRow]]:
        """Yield the name and the row of each array whose name begins with ``prefix``."""
        for key, value in self.scan(self.ARRAY + prefix):
            yield key[1:], ArrayRow.unpack(value)

    def delete_array(self, name: bytes, number: int) -> list[RowChange]:
        """Return the changes that delete an array's rows."""
        keys = (self.array_key(name), self.number_key(number))
        return [self.change(key, None) for key in keys]

    def delete_archive(self, name: bytes) -> RowChange:
        """Return the change that deletes an archive's row."""
        return self.change(self.archive_key(name), None)

    def archive_names(self, prefix: bytes = b"") -> Iterator[bytes]:
        """Yield the names of archives that begin with ``prefix``."""
        return (key[1:] for key, _ in self.scan(self.ARCHIVE + prefix))

    @classmethod
    def array_key(cls, name: bytes) -> bytes:
        """Return the key of an array's row."""
        return cls.ARRAY + name

    @classmethod
    def archive_key(cls, name: bytes) -> bytes:
        """Return the key of an archive's row."""
        return cls.ARCHIVE + name

    @classmethod
    def number_key(cls, number: int) -> bytes:
        """Return the key of the row that names array ``number``."""
        return cls.NUMBER + number.to_bytes(4, "big")

    def put_array(self, name: bytes, row: ArrayRow) -> list[RowChange]:
        """Return the changes that put an array's rows: by its name, and its name by its number."""
        return [
            self.change(self.ARRAY + name, row.pack()),
            self.change(self.number_key(row.number), name),
        ]

    def require_whole(self) -> None:
        """Read every row; raise ``StoreDamagedError`` at a malformed one."""
        for key, value in self.scan():
            if key[:1] != self.NUMBER:
                (ArrayRow if key[:1] == self.ARRAY else ArchiveRow).unpack(value)

    def put_archive(self, name: bytes, row: ArchiveRow) -> RowChange:
        """Return the change that puts an archive's row."""
        return self.change(self.ARCHIVE + name, row.pack())


class RunsTable(Table):
    """The images that rows of arrays are: by array and row, and by id."""

    name = "runs"
    BY_ROW, BY_BUCKET = b"r", b"i"

    def of_array(self, number: int, start: int = 0) -> Iterator[Run]:
        """Yield an array's runs in row order, from the first that begins at or after ``start``."""
        prefix = self.array_prefix(number)
        for key, value in self.scan(prefix, start=prefix + u64(start)):
            yield Run.from_row(key, value)

    def over_row(self, number: int, row: int) -> Run | None:
        """Return the array's run that may cover ``row``: the last that begins at or before it."""
        prefix = self.array_prefix(number)
        found = self.at_or_before(prefix + u64(row))
        if found is None or not found[0].startswith(prefix):
            return None
        return Run.from_row(*found)

    def in_bucket(self, id_: int) -> Iterator[Run]:
        """Yield the runs of several images that may cover ``id_``, by their first ids."""
        return (Run.from_id(key, value) for key, value in self.scan(bucket_prefix(id_)))

    def of_one(self, id_: int) -> Iterator[Run]:
        """Yield the runs of image ``id_`` alone."""
        return (Run.from_id(key, value) for key, value in self.scan(ONE + u64(id_)))

    def of_one_from(self, id_: int) -> Iterator[Run]:
        """Yield the runs of single images, from image ``id_`` on."""
        return (Run.from_id(key, value) for key, value in self.scan(ONE, start=ONE + u64(id_)))

    def of_several(self, id_: int = 0) -> Iterator[Run]:
        """Yield the runs of several images by their first ids, from the bucket of ``id_`` on."""
        found = self.scan(self.BY_BUCKET, start=bucket_prefix(id_))
        return (Run.from_id(key, value) for key, value in found)

    def has_rows(self, number: int, without: Collection[bytes]) -> bool:
        """Return whether an array has a run whose key by row is not in ``without``."""
        prefix = self.array_prefix(number)
        last = self.at_or_before(prefix + b"\xff" * 8)
        if last is not None and last[0].startswith(prefix) and last[0] not in without:
            return True
        return any(key not in without for key, _ in self.scan(prefix))

    def over(self, ids: npt.NDArray[np.int64]) -> Iterator[Run]:
        """Yield the runs that may cover some of (n,) ascending ids, each run once."""
        for bucket in np.unique(ids >> BUCKET_BITS).tolist():
            yield from self.in_bucket(bucket << BUCKET_BITS)
        if len(ids):
            for run in self.of_one_from(int(ids[0])):
                if run.id > ids[-1]:
                    return
                yield run

    def scan_by_row(self) -> Iterator[Row]:
        """Yield the stored rows by array and row."""
        return self.scan(self.BY_ROW)

    def scan_by_id(self) -> Iterator[Row]:
        """Yield the stored rows by id: first those of several images, then those of single ones."""
        yield from self.scan(self.BY_BUCKET)
        yield from self.scan(ONE)

    @classmethod
    def array_prefix(cls, number: int) -> bytes:
        """Return the key prefix of an array's runs by row."""
        return cls.BY_ROW + number.to_bytes(4, "big")

    def put(self, run: Run) -> list[RowChange]:
        """Return the changes that put both rows of a run, which must lie in one bucket."""
        return [self.change(*run.by_row), self.change(*run.by_id)]

    def delete(self, run: Run) -> list[RowChange]:
        """Return the changes that delete both rows of a run."""
        return [self.change(run.by_row[0], None), self.change(run.by_id[0], None)]


class RejectsTable(Table):
    """Name of a source → why it could not be read, with its stamp and the decoder that was tried."""

    name = "rejects"

    def rows(self, names: list[bytes]) -> list[dict[str, Any] | None]:
        """Return each source's row, or None."""
        values = self.get_many(names)
        return [reject_in(value) if value is not None else None for value in values]

    def require_whole(self) -> None:
        """Read every row; raise ``StoreDamagedError`` at a malformed one."""
        for _, value in self.scan():
            reject_in(value)

    def items(self, prefix: bytes = b"") -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Yield each rejected source whose name begins with ``prefix``, and its row."""
        return ((name, reject_in(value)) for name, value in self.scan(prefix))

    def names(self, prefix: bytes = b"") -> Iterator[bytes]:
        """Yield the names of rejected sources that begin with ``prefix``."""
        return (key for key, _ in self.scan(prefix))

    def put(self, name: bytes, row: dict[str, Any]) -> RowChange:
        """Return the change that records why a source could not be read."""
        return self.change(name, json.dumps(row).encode())


class RemovedTable(Table):
    """Id >> 15 → the removed images among these 32,768 ids (``engine.storage.tombstones``)."""

    name = "removed"


class CommitsTable(Table):
    """Commit → every append of the chunk with its checksum."""

    name = "commits"

    def rows(self) -> Iterator[CommitRow]:
        """Yield the row of each commit; ``StoreDamagedError`` at a malformed one."""
        return (CommitRow.unpack(key, value) for key, value in self.scan())

    def row(self, commit: int) -> CommitRow | None:
        """Return the row of one commit, or None."""
        value = self.get(u64(commit))
        return CommitRow.unpack(u64(commit), value) if value is not None else None

    def put(self, row: CommitRow) -> RowChange:
        """Return the change that puts a row, or deletes it if it has no appends."""
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
