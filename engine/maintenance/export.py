"""Writes the contents of a store as tables that other tools read: one state, whole, without a lock.

    images.csv        id, kind, width, height, channels, frames, container, file_bytes, key, proof,
                      file_hash, fingerprint, quality, source_count, metadata; a row for each image
    sources.csv       id, source, source_hex; a row for each file, member or row of an array in which
                      an image was seen, ordered by groups of 4,096 ids
    vectors.npy       float32 (n, dim), unit vectors of the live encoder; imported ones unchanged
    vector_ids.npy    int64 (n,), the id of each

The first two may be Parquet instead, with the same columns. A vector without pixels has empty cells in
the columns about pixels. Hashes and fingerprints are hexadecimal. Metadata is JSON, or an empty cell.
Ids have gaps where images were removed.

The CSV is that of RFC 4180, in UTF-8. A file's name is bytes and may not be UTF-8. In ``source`` such
bytes become U+FFFD, so that any tool can read the table; ``source_hex`` then has all of the name's
bytes, and is empty otherwise. No cell begins with a character that makes a spreadsheet read it as a
formula ("=", "+", "-", "@"), so names are written as they are: sources are absolute paths or begin with
"memory:" or "synthetic:", metadata begins with "{", and nothing else comes from outside.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from engine.errors import StoreError, UsageError
from engine.maintenance.table_files import CsvFile, ExportTable, ParquetFile, pyarrow_modules
from engine.records import ExportReport, ImageRecord, Kind
from engine.storage import extents
from engine.storage.extent_reader import ExtentReader
from engine.storage.live_ids import live
from engine.storage.scan import BUCKET, records_from, sources_of_bucket
from engine.storage.session import Session
from engine.storage.staging import check_place, made_aside

KIND = "export"
FORMATS = ("csv", "parquet")
IMAGES = {
    "id": int,
    "kind": str,
    "width": int,
    "height": int,
    "channels": int,
    "frames": int,
    "container": str,
    "file_bytes": int,
    "key": str,
    "proof": str,
    "file_hash": str,
    "fingerprint": str,
    "quality": int,
    "source_count": int,
    "metadata": str,
}
SOURCES = {"id": int, "source": str, "source_hex": str}
_VECTORS, _VECTOR_IDS = "vectors.npy", "vector_ids.npy"
_NPY_HEADER = 128  # bytes


class Export:
    """One export of one store. ``run`` may be called once."""

    def __init__(
        self,
        store: Session,
        dest: Path,
        *,
        format: str = "csv",
        vectors: bool = True,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> None:
        """``progress(done, total)`` counts images."""
        if format not in FORMATS:
            raise UsageError(f"the format is one of {', '.join(FORMATS)}, not {format!r}")
        if format == "parquet":
            # Fails before anything is written if pyarrow is missing.
            pyarrow_modules()
        self._store = store
        self._dest = dest
        self._format = format
        self._vectors = vectors
        self._progress = progress or (lambda done, total: None)
        self._images = self._sources = self._vector_rows = 0

    def run(self) -> ExportReport:
        """Write everything; returns a report of it.

        Raises ``UsageError`` where ``dest`` cannot be used, ``StoreDamagedError``, or ``StoreError``.
        Then nothing is left at ``dest``.
        """
        started = time.perf_counter()
        if self._dest.resolve().is_relative_to(self._store.path.resolve()):
            raise UsageError(f"{self._dest} lies inside of the store: name another place")
        tables = (f"images.{self._format}", f"sources.{self._format}")
        parts = (_VECTORS, _VECTOR_IDS, *reversed(tables))
        check_place(self._dest, KIND, parts)
        try:
            with made_aside(self._dest, KIND, parts) as made:
                self._write_tables(made / tables[0], made / tables[1])
                if self._vectors:
                    self._write_vectors(made)
                written = [made / name for name in parts if (made / name).exists()]
                size = sum(path.stat().st_size for path in written)
        except OSError as error:
            raise StoreError(
                f"{self._dest} cannot be made: {error.strerror or error}; nothing was left there"
            ) from None
        return ExportReport(
            path=str(self._dest),
            images=self._images,
            sources=self._sources,
            vectors=self._vector_rows,
            bytes=size,
            seconds=round(time.perf_counter() - started, 3),
        )

    # --- tables -----------------------------------------------------------------------------------

    def _table(self, path: Path, columns: dict[str, type]) -> ExportTable:
        if self._format == "csv":
            return CsvFile(path, columns)
        return ParquetFile(path, columns, self._store.limits.table_rows)

    def _write_tables(self, images: Path, sources: Path) -> None:
        store = self._store
        prints = ExtentReader(store.path, extents.FINGERPRINTS)
        with contextlib.ExitStack() as stack:
            stack.callback(prints.close)
            # Map all of them now: a writer may delete files later, and mapped ones stay readable.
            kept = store.snapshot.state.extents.get(extents.FINGERPRINTS.name, [])
            width = extents.FINGERPRINTS.row_bytes
            # Plain arrays: reading a row of a memory map costs five times as much.
            found = [
                np.asarray(prints.rows(number, size // width, np.uint8)) for number, size in kept
            ]
            into = [self._table(images, IMAGES), self._table(sources, SOURCES)]
            for one in into:
                stack.callback(one.close)
            for bucket in range(-(-store.snapshot.state.next_id // BUCKET)):
                there = live(store.snapshot.keys, bucket * BUCKET, BUCKET)
                counts = np.zeros(BUCKET, np.int64)
                into[1].write(self._source_rows(bucket, there, counts))
                self._sources += int(counts.sum())
                for records in self._records(bucket):
                    into[0].write([_image_row(record, counts, found) for record in records])
                    self._images += len(records)
                    self._progress(self._images, store.snapshot.state.images)

    def _records(self, bucket: int) -> Iterator[list[ImageRecord]]:
        start, end = bucket * BUCKET, (bucket + 1) * BUCKET
        while start < end:
            records = records_from(
                self._store.snapshot, start, min(self._store.limits.read_records, end - start)
            )
            start = records[-1].id + 1 if records else end
            mine = [record for record in records if record.id < end]
            if mine:
                yield mine

    def _source_rows(
        self, bucket: int, there: npt.NDArray[np.bool_], counts: npt.NDArray[np.int64]
    ) -> Iterator[tuple[Any, ...]]:
        """The rows of a bucket's sources; ``counts`` (``BUCKET``,) gains the number for each image."""
        first = bucket * BUCKET
        for id_, name in sources_of_bucket(self._store.snapshot, bucket, there):
            counts[id_ - first] += 1
            try:
                yield id_, name.decode(), None
            except UnicodeDecodeError:
                yield id_, name.decode(errors="replace"), name.hex()

    # --- vectors ----------------------------------------------------------------------------------

    def _write_vectors(self, made: Path) -> None:
        space = self._store.snapshot.space
        if not space.exists:
            return
        vectors = self._store.snapshot.open_vectors()
        try:
            # A writer may delete files later; open ones stay readable.
            vectors.open_all()
            with (made / _VECTORS).open("xb") as rows, (made / _VECTOR_IDS).open("xb") as ids:
                rows.write(bytes(_NPY_HEADER))
                ids.write(bytes(_NPY_HEADER))
                at = 0
                for block in vectors.blocks(0, vectors.rows, BUCKET):
                    named = vectors.ids(np.arange(at, at + len(block), dtype=np.int64))
                    there = self._are_there(named)
                    rows.write(np.ascontiguousarray(block[there]).data)
                    ids.write(named[there].data)
                    self._vector_rows += int(there.sum())
                    at += len(block)
                    vectors.let_go()
                _put_header(rows, np.float32, (self._vector_rows, space.dim))
                _put_header(ids, np.int64, (self._vector_rows,))
        finally:
            vectors.close()

    def _are_there(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether each of (n,) ids, in any order, is an image that is there: (n,)."""
        there = np.zeros(len(ids), np.bool_)
        buckets = ids // BUCKET
        for bucket in np.unique(buckets).tolist():
            mine = buckets == bucket
            first = bucket * BUCKET
            there[mine] = live(self._store.snapshot.keys, first, BUCKET)[ids[mine] - first]
        return there


def _image_row(
    record: ImageRecord,
    counts: npt.NDArray[np.int64],
    fingerprints: list[npt.NDArray[np.uint8]],
) -> tuple[Any, ...]:
    extent, row = divmod(record.id - 1, len(fingerprints[0]))
    return (
        record.id,
        record.kind.name.lower(),
        record.width,
        record.height,
        record.channels,
        record.frames,
        record.container,
        record.file_bytes,
        record.key.hex() or None,
        record.proof.hex() or None,
        record.file_hash.hex() or None,
        None if record.kind is Kind.VECTOR else fingerprints[extent][row].tobytes().hex(),
        record.quality,
        int(counts[record.id % BUCKET]),
        json.dumps(record.metadata) if record.metadata else None,
    )


def _put_header(file: IO[bytes], kind: type[np.generic], shape: tuple[int, ...]) -> None:
    """Write the header of a .npy file into the bytes reserved for it."""
    described = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": shape}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, described)
    # NumPy pads the header to 128 bytes for any number of rows.
    assert header.tell() == _NPY_HEADER
    file.seek(0)
    file.write(header.getvalue())
