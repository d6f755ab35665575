"""A transaction: the changes of one commit of a writer, written as one batch of rows.

Data comes first: appends to extents are written and synced before the batch. Then one synced RocksDB
batch writes all rows and the new ``State``, with the committed lengths. A transaction that is not
committed has no effect; the writer cuts off its appends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.records import Kind, Pixels, Place
from engine.storage import extents, tombstones
from engine.storage.appender import Appender, count_appends
from engine.storage.bitmap import IdSet
from engine.storage.changeset import (
    Chunk,
    NewImage,
    NewName,
    NewRows,
    Rekept,
    Removal,
)
from engine.storage.commit_row import CommitRow
from engine.storage.extents import Append
from engine.storage.image_rows import ImageRow, pack_images
from engine.storage.live_ids import sources_in
from engine.storage.manifest import Manifest
from engine.storage.record_rows import ARRAY, RecordRow, pack_records
from engine.storage.rows import u64
from engine.storage.runs import Run
from engine.storage.snapshot import Snapshot
from engine.storage.source_counts import SourceCounts
from engine.storage.source_rows import ArchiveRow, ArrayRow, NameRow
from engine.storage.state import State
from engine.storage.vector_space import VectorSpace


@dataclass(slots=True)
class _Placed:
    """Where the kept bytes of a chunk will lie."""

    images: Iterator[Place]
    first_row: Place | None
    rekept: list[Place | None]


class Transaction:
    """The changes of one commit over ``snapshot``; made by ``Writer.begin`` and ``Writer.amend``.

    ``state`` is the state after the commit. ``begun`` says whether RocksDB got the batch; a failure
    after that leaves open whether it was committed.
    """

    def __init__(
        self, snapshot: Snapshot, appender: Appender, flusher: Executor, *, amend: bool
    ) -> None:
        """``amend``: change the newest commit; its number stays."""
        self.snapshot = snapshot
        self.tables = snapshot.tables
        self.state = replace(snapshot.state) if amend else snapshot.state.next()
        self.begun = False
        # The manifest that belongs to the commit, if it is not the live one.
        self.manifest: Manifest | None = None
        # The appends, if ``state`` already includes them.
        self.appended: Sequence[Append] | None = None
        self._appender = appender
        self._flusher = flusher
        self._keys = snapshot.files.keys
        self._batch = self._keys.batch()
        self._counts = SourceCounts(self.tables, snapshot.state.commit, snapshot.state.next_id)
        # Drop the appends of a transaction that was not committed.
        appender.take()

    def put(self, changes: Iterable[tuple[str, bytes, bytes | None]]) -> None:
        """Put rows, or delete those without a value, in this order."""
        for table, key, value in changes:
            self._counts.note(table, key, value)
            self._write(table, key, value)

    def _write(self, table: str, key: bytes, value: bytes | None) -> None:
        if value is None:
            self._batch.delete(table, key)
        else:
            self._batch.put(table, key, value)

    # --- chunks -----------------------------------------------------------------------------------

    def add(self, changes: Chunk) -> None:
        """Append the data of a chunk to the extents, and put its rows into the batch."""
        first_id = self.state.next_id
        placed = self._append(changes, first_id)
        # Both take time and are independent; only the commit needs both.
        flushed = self._flusher.submit(self._appender.flush)
        try:
            self._put_chunk(changes, first_id, placed)
        finally:
            flushed.result()
        rows = len(changes.rows) if changes.rows else 0
        imported = len(changes.imported) if changes.imported is not None else 0
        count = len(changes.images) + rows + imported
        self.state.next_id += count
        self.state.images += count
        numbers = (row.number + 1 for _, row in changes.arrays)
        self.state.next_array = max([self.state.next_array, *numbers])

    def _append(self, changes: Chunk, first_id: int) -> _Placed:
        """Append kept bytes, fingerprints and vectors; return where the kept bytes will lie."""
        images, rows, imported = changes.images, changes.rows, changes.imported
        assert imported is None or not (images or rows)
        put = self._appender.put
        kept = [image.keep for image in images if image.keep is not None]
        places = [put(extents.PIXELS, blob) for blob in kept]
        first_row = None
        if rows and rows.keep is not None:
            first_row = put(extents.PIXELS, rows.keep.reshape(-1).data)
        rekept = [
            put(extents.PIXELS, one.keep) if one.keep is not None else None
            for one in changes.rekept
        ]
        prints = b"".join(image.fingerprint for image in images)
        self._appender.put_rows(extents.FINGERPRINTS, prints)
        if rows:
            self._appender.put_rows(extents.FINGERPRINTS, rows.fingerprints.tobytes())
        if imported is not None:
            length = len(imported) * extents.FINGERPRINTS.row_bytes
            self._appender.put_zeros(extents.FINGERPRINTS, length)
        vectors = imported if imported is not None else changes.vectors
        space = self.snapshot.space
        if vectors is not None and space.exists and len(vectors):
            ids = np.arange(first_id, first_id + len(vectors), dtype=np.int64)
            self._append_vectors(space, vectors, ids)
        if changes.image_vectors is not None:
            assert vectors is None and space.exists
            self._append_vectors(space, changes.image_vectors.rows, changes.image_vectors.ids)
        return _Placed(iter(places), first_row, rekept)

    def _append_vectors(
        self, space: VectorSpace, vectors: npt.NDArray[np.float32], ids: npt.NDArray[np.int64]
    ) -> None:
        """Append (n, dim) vectors, and (n,) ids of their images, which may be changed."""
        block = np.ascontiguousarray(vectors, np.float32)
        assert block.shape == (len(ids), space.dim)
        if not space.is_imported and not (real := block.any(axis=1)).all():
            # The encoder gave no vector: the image is similar to nothing.
            ids[~real] = 0
            gone = self.state.removed_vectors.get(space.key, 0)
            self.state.removed_vectors[space.key] = gone + int((~real).sum())
        self._appender.put_rows(space.vector_family, block.reshape(-1).data)
        self._appender.put_rows(space.id_family, ids.tobytes())
        self.state.vectors[space.key] = self.state.vectors.get(space.key, 0) + len(block)

    def _put_chunk(self, changes: Chunk, first_id: int, placed: _Placed) -> None:
        """Put the rows of a chunk; a later row for a key overrides an earlier one."""
        images = self.tables.images
        # This comes before the rows that mark a key as shared.
        self.put(images.put(key, row._replace(in_runs=False)) for key, row in changes.out_of_runs)
        self._put_images(changes.images, first_id, placed.images)
        if changes.rows:
            self._put_rows(changes.rows, first_id + len(changes.images), placed.first_row)
        if changes.imported is not None:
            count, dim = changes.imported.shape
            shape = Pixels(Kind.VECTOR, 1, dim, 1, 1, b"")
            for key, value in pack_records(first_id, shape, [], np.zeros(count, np.uint8)):
                self._batch.put("records", key, value)
        self._put_rekept(changes.rekept, placed.rekept)
        if changes.removal is not None:
            self._remove(changes.removal)
        self._describe(changes.described)
        self._redescribe(changes.redescribed)
        self._put_names(changes.names)
        self._put_arrays(changes.arrays)
        self._put_archives(changes.archives)
        self._put_runs(changes.runs)
        self.put(self.tables.rejects.put(name, row) for name, row in changes.rejects)

    def _put_images(
        self, images: Sequence[NewImage], first_id: int, places: Iterator[Place]
    ) -> None:
        firsts: dict[bytes, ImageRow] = {}
        table = self.tables.images
        for id_, image in enumerate(images, first_id):
            place = next(places) if image.keep is not None else None
            row = ImageRow(id_, image.proof, place, canonical=image.keeps_canonical)
            first = firsts.get(image.key) or image.first
            if first is None:
                firsts[image.key] = row
                self.put([table.put(image.key, row)])
            else:
                # A collision: another image has the same key. Both are kept.
                firsts[image.key] = first._replace(shared=True)
                self.put([table.put(image.key, firsts[image.key])])
                self.put([table.put_further(image.key, row)])
            pixels = image.pixels
            record = RecordRow(
                pixels.kind,
                pixels.height,
                pixels.width,
                pixels.channels,
                pixels.frames,
                image.quality,
                image.file_bytes,
                image.key,
                image.file_hash,
                image.container,
                image.decoder,
                image.metadata,
            )
            self.put([self.tables.records.put(id_, record)])
            if image.file_hash:
                self._batch.put("files", image.file_hash, u64(id_))

    def _put_rows(self, rows: NewRows, first_id: int, first_row: Place | None) -> None:
        if first_row is not None:
            first_row = first_row._replace(length=first_row.length // len(rows))
        keys, values = pack_images(first_id, rows.keys, rows.proofs, first_row, rows.in_runs)
        self._batch.put_all("images", keys, values)
        for key, value in pack_records(first_id, rows.shape, rows.keys, rows.qualities):
            self._batch.put("records", key, value)

    def _put_rekept(self, rekept: Sequence[Rekept], places: Sequence[Place | None]) -> None:
        for one, place in zip(rekept, places, strict=True):
            self.put([self.tables.images.put(one.key, one.row._replace(place=place))])
            if one.row.place is not None:
                self.state.bury(one.row.place)

    def _remove(self, removal: Removal) -> None:
        self.put(removal.rows)
        for place in removal.dead:
            self.state.bury(place)
        for key, value in tombstones.rows_with(self._keys, removal.images):
            self._batch.put(tombstones.TABLE, key, value)
        self.state.images -= len(removal.images)
        self.state.removed += len(removal.images)
        self.state.sources -= removal.sources
        space = self.snapshot.space
        if removal.vectors and space.exists:
            gone = self.state.removed_vectors.get(space.key, 0)
            self.state.removed_vectors[space.key] = gone + removal.vectors

    def _describe(self, described: Sequence[tuple[int, dict[str, Any]]]) -> None:
        """Put metadata of images that have none; rows of arrays share records, so they are skipped."""
        for id_, metadata in described:
            record = self.snapshot.record(id_)
            if record is not None and record.metadata is None and record.container != ARRAY:
                self.put([self.tables.records.put(id_, replace(record, metadata=metadata))])

    def _redescribe(self, redescribed: Sequence[tuple[int, dict[str, Any] | None]]) -> None:
        """Replace the metadata of images that have records of their own."""
        for id_, metadata in redescribed:
            record = self.snapshot.record(id_)
            assert record is not None and not self.tables.records.is_shared(id_)
            self.put([self.tables.records.put(id_, replace(record, metadata=metadata))])

    def _put_names(self, names: Sequence[NewName]) -> None:
        sources = self.tables.sources
        for new in names:
            if new.before is None:
                self.state.sources += 1
            elif new.before.id != new.id:
                self.put([sources.change(sources.key(new.before.id, new.name), None)])
            self._batch.put("names", new.name, NameRow(new.id, new.mtime_ns, new.size).pack())
            self.put([sources.change(sources.key(new.id, new.name), new.file_hash)])
            if new.file_hash:
                self._batch.put("files", new.file_hash, u64(new.id))
            self._batch.delete("rejects", new.name)

    def _put_arrays(self, arrays: Sequence[tuple[bytes, ArrayRow]]) -> None:
        for name, array in arrays:
            before = self.snapshot.array(name)
            if before is not None and before.number != array.number:
                self._forget_runs(before.number)
            self.put(self.tables.arrays.put_array(name, array))
            self._batch.delete("rejects", name)

    def _forget_runs(self, array: int) -> None:
        """Delete the rows of an array that has changed."""
        for run in self.tables.runs.of_array(array):
            self.put(self.tables.runs.delete(run))
            some_removed = self.snapshot.state.removed
            self.state.sources -= sources_in(self._keys, run) if some_removed else run.count
        self._batch.delete("arrays", self.tables.arrays.number_key(array))

    def _put_archives(self, archives: Sequence[tuple[bytes, ArchiveRow]]) -> None:
        for name, archive in archives:
            self.put([self.tables.arrays.put_archive(name, archive)])
            self._batch.delete("rejects", name)

    def _put_runs(self, runs: Sequence[Run]) -> None:
        # Nothing was deleted where a run is put now.
        fresh = self._counts.is_empty
        for run in runs:
            self.state.sources += run.count
            for piece in run.pieces():
                rows = self.tables.runs.put(piece)
                if fresh:
                    self._counts.add(piece)
                    for row in rows:
                        self._write(*row)
                else:
                    self.put(rows)

    # --- single changes ---------------------------------------------------------------------------

    def set_roots(self, value: bytes) -> None:
        """Record the folders that ingests took: a JSON list of their names."""
        self._batch.put("meta", self.tables.meta.ROOTS, value)

    def set_counts(
        self,
        *,
        dead: dict[str, int] | None = None,
        removed_vectors: dict[str, int] | None = None,
    ) -> None:
        """For a repair: set unused bytes by extent, and vectors of removed images by encoder."""
        if dead is not None:
            self.state.dead = dead
        if removed_vectors is not None:
            self.state.removed_vectors = removed_vectors

    def set_checksums(self, found: Sequence[tuple[int, int, int]]) -> None:
        """For a repair: set checksums. Each item is (commit, index of its append, current xxh64)."""
        rows: dict[int, CommitRow] = {}
        for commit, at, xxh64 in found:
            row = rows.get(commit) or self.tables.commits.row(commit)
            assert row is not None
            rows[commit] = row.with_checksum(at, xxh64)
        self.put(map(self.tables.commits.put, rows.values()))

    def set_tombstones(self, found: IdSet) -> None:
        """For a repair: set the ids of removed images."""
        for key, _ in self.tables.removed.scan():
            self._batch.delete(tombstones.TABLE, key)
        for key, value in tombstones.rows_of(found):
            self._batch.put(tombstones.TABLE, key, value)

    def forget_appends(self, families: set[str], numbers: set[int]) -> None:
        """Drop the appends to some extents, which are about to go, from the commit records."""
        for row in self.tables.commits.rows():
            left = row.only(lambda a: a.family not in families or a.extent not in numbers)
            if len(left.appends) < len(row.appends) or not row.appends:
                self.put([self.tables.commits.put(left)])

    # --- commit -----------------------------------------------------------------------------------

    def finish(self, copy: Manifest | None) -> State:
        """Write the batch, synced; return the state after it.

        ``copy``: the manifest to copy into the keys, if it has changed.
        """
        appends = self.appended
        if appends is None:
            appends = self._appender.take()
            count_appends(self.state, appends)
        if appends:
            self.put([self.tables.commits.put(CommitRow(self.state.commit, tuple(appends)))])
        for change in self._counts.changes(self.state.commit):
            self._write(*change)
        meta = self.tables.meta
        self.begun = True
        self._batch.put(meta.name, meta.STATE, self.state.pack())
        if copy is not None:
            self._batch.put(meta.name, meta.MANIFEST, copy.dump())
        self._keys.commit(self._batch)
        return self.state
