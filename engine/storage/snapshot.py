"""A snapshot: the store as of one commit. All reads go through it; it writes nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.config import SOURCES_SHOWN, Limits, MemoryBudget, StructuralSettings
from engine.errors import StoreDamagedError, StoreError, UnknownImageError
from engine.images import hashing
from engine.records import ImageRecord, Kind, Place
from engine.storage import extents, families, file_names, nofollow, tombstones
from engine.storage.bitmap import IdSet
from engine.storage.extent_reader import ExtentReader
from engine.storage.extents import Family
from engine.storage.fingerprints import Fingerprints
from engine.storage.image_rows import ImageRow, ImageRows, no_image
from engine.storage.image_sources import ImageSources
from engine.storage.json_values import items, loads
from engine.storage.live_ids import blocks_of
from engine.storage.manifest import Manifest
from engine.storage.open_files import OpenFiles
from engine.storage.record_rows import (
    RecordRow,
    SharedRecords,
    images_in,
    record_in,
    record_span,
    shared_records,
)
from engine.storage.rocks.database import Keys
from engine.storage.runs import Run
from engine.storage.source_rows import ArchiveRow, ArrayRow, NameRow
from engine.storage.state import State
from engine.storage.table import Row
from engine.storage.tables import Tables
from engine.storage.vector_space import VectorSpace
from engine.storage.vectors import Vectors

# Numbers from here on are reserved for several files that are made at once.
_LAST_INDEX = file_names.MAX_NUMBER - (1 << 20)


class Snapshot:
    """The committed images of one store, as of one commit.

    ``manifest`` and ``state`` never change. Its caches are of this commit, so a writer makes a new
    snapshot with each commit. Successive snapshots of a writer share ``files``.
    """

    def __init__(
        self,
        path: Path,
        memory: MemoryBudget,
        limits: Limits,
        manifest: Manifest,
        state: State,
        files: OpenFiles,
    ) -> None:
        self.path = path
        self.memory = memory
        self.limits = limits
        self.manifest = manifest
        self.state = state
        self.files = files
        self._sources = ImageSources(files, state.commit)
        # Rows of an array share one, and callers nearly always ask for one after another.
        self._last_records: tuple[int, int, Row | None] = (0, 0, None)
        self._alive: IdSet | None = None
        self._wanted: tuple[IdSet, IdSet] | None = None
        self._removed: IdSet | None = None

    def with_manifest(self, manifest: Manifest) -> Snapshot:
        """Return the same commit with another index, or with newly begun extents."""
        return Snapshot(self.path, self.memory, self.limits, manifest, self.state, self.files)

    def with_files(self, files: OpenFiles) -> Snapshot:
        """Return the same commit, read from reopened files."""
        return Snapshot(self.path, self.memory, self.limits, self.manifest, self.state, files)

    def with_index_of(self, found: Manifest) -> Snapshot | None:
        """Return the same commit with a newer manifest's index; None if the index is the same."""
        if found.space != self.space:
            return None
        changed = replace(
            self.manifest,
            segments=found.segments,
            quantizers=found.quantizers,
            measured=found.measured,
        )
        return self.with_manifest(changed) if changed != self.manifest else None

    @property
    def tables(self) -> Tables:
        """Return the open tables; ``StoreError`` if they are closed."""
        return self.files.tables

    @property
    def keys(self) -> Keys:
        """Return the open database; ``StoreError`` if it is closed."""
        return self.files.keys

    @property
    def settings(self) -> StructuralSettings:
        """Return the settings that the store was created with."""
        return self.manifest.settings

    # --- images -----------------------------------------------------------------------------------

    def image_of(self, key: bytes) -> list[ImageRow]:
        """Return the rows of all images that have a key (nearly always none or one)."""
        return self.tables.images.rows(key)

    def images_of(self, wanted: list[bytes]) -> list[list[ImageRow]]:
        """Return ``image_of`` for each of many keys, with one call to RocksDB."""
        return self.tables.images.rows_of_many(wanted)

    def image_columns(self, wanted: list[bytes], *, spread: bool = False) -> ImageRows:
        """Return the first image of each of many keys, by column.

        ``spread``: use many threads, for rows that come from disk; one thread would wait for each read.
        """
        return self.files.image_columns(wanted) if spread else self.tables.images.columns(wanted)

    def count_lookups(self, count: int) -> None:
        """Count lookups; after many of them, the keys are read ahead."""
        self.files.count_lookups(count, self.memory.read_ahead)

    def record(self, id_: int) -> RecordRow | None:
        """Return the record of image ``id_``, or None if there is none."""
        row = self._records_over(id_)
        return record_in(*row, id_) if row is not None else None

    def shared_records(self, id_: int) -> SharedRecords | None:
        """Return the shared records of array rows that cover, or covered, image ``id_``; else None."""
        row = self._records_over(id_)
        found = shared_records(*row) if row is not None else None
        return found if found is not None and id_ in found.ids else None

    def _records_over(self, id_: int) -> Row | None:
        first, end, row = self._last_records
        if row is None or not first <= id_ < end:
            row = self.tables.records.row_over(id_)
            if row is not None:
                first = int.from_bytes(row[0], "big")
                self._last_records = (first, first + record_span(row[1]), row)
        return row

    def get(self, id_: int) -> ImageRecord:
        """Return the record of image ``id_``; ``UnknownImageError`` if the store has no such image."""
        record = self.record(id_)
        if record is None:
            raise UnknownImageError(f"{self.path} has no image {id_}")
        rows = self.images_of([record.key])[0] if record.key else [no_image(id_)]
        for row in rows:
            if row.id == id_:
                return record.with_image(row)
        raise StoreDamagedError(f"image {id_} has a record and no key; run 'engine check'")

    # --- kept pixels ------------------------------------------------------------------------------

    @property
    def kept_pixels(self) -> ExtentReader:
        """Return the extents of kept pixels."""
        return self.files.pixels

    @property
    def fingerprints(self) -> Fingerprints:
        """Return the extents of fingerprints."""
        return self.files.fingerprints

    def kept(self, place: Place) -> bytes:
        """Return the bytes kept at ``place``; ``MovedError`` if a newer commit has moved them."""
        return self.files.pixels.read(place)

    def kept_whole(self, id_: int) -> tuple[bytes, bool] | None:
        """Return the kept bytes of image ``id_``, and whether they are its canonical form.

        Returns None if nothing is kept, or if it is damaged.
        """
        record = self.get(id_)
        if record.kind is Kind.VECTOR:
            return None
        row = next(row for row in self.image_of(record.key) if row.id == id_)
        if row.place is None:
            return None
        try:
            kept = self.kept(row.place)
        except StoreDamagedError:
            return None
        if row.canonical:
            return (kept, True) if hashing.proof(kept) == row.proof else None
        return (kept, False) if hashing.file_hash(kept) == record.file_hash else None

    # --- ids --------------------------------------------------------------------------------------

    def those_there(self, ids: list[int]) -> list[int]:
        """Return those of ``ids`` (ascending) that belong to images."""
        able = [id_ for id_ in ids if 0 < id_ < 1 << 63]
        return [id_ for _, _, held in blocks_of(self.keys, able) for id_ in held.tolist()]

    def removed_ids(self) -> IdSet:
        """Return the ids of all removed images; read once per commit."""
        if self._removed is None:
            if self.state.removed:
                found, bad = tombstones.read(self.keys, self.state.next_id)
                if bad:
                    raise StoreDamagedError(
                        f"{self.path}: the table of removed images cannot be read; run 'engine check "
                        f"--fix'"
                    )
                self._removed = found
            else:
                self._removed = IdSet.none(self.state.next_id)
        return self._removed

    def dead_ids(self) -> IdSet:
        """Return the ids that no search finds: removed images, and 0, for vectors with a lost id."""
        gone = self.removed_ids()
        made = IdSet(gone.bits.copy(), gone.size)
        made.add(np.zeros(1, np.int64))
        return made

    def alive(self) -> IdSet | None:
        """Return the ids of existing images; None if no image with a vector was removed."""
        if not self.state.dead_vectors:
            return None
        if self._alive is None:
            every = IdSet.none(self.state.next_id)
            every.add_span(1, self.state.next_id - 1)
            self._alive = every.without(self.removed_ids())
        return self._alive

    def those_alive(self, wanted: IdSet) -> IdSet:
        """Return those of the wanted ids whose images exist; an equal question gets the same set."""
        if not self.state.dead_vectors:
            return wanted
        if self._wanted is None or self._wanted[0] is not wanted:
            self._wanted = wanted, wanted.without(self.removed_ids())
        return self._wanted[1]

    def may_be_images(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which of (n,) ascending ids may be images: neither vectors nor in a deleted row."""
        if not len(ids) or not self.space.is_imported:
            return np.ones(len(ids), np.bool_)
        starts, counts = [0], [0]
        for key, value in self.tables.records.scan_from(int(ids[0])):
            first = int.from_bytes(key, "big")
            if first > ids[-1]:
                break
            starts.append(first)
            counts.append(images_in(value))
        at = np.searchsorted(starts, ids, "right") - 1
        inside: npt.NDArray[np.bool_] = ids < np.array(starts)[at] + np.array(counts)[at]
        return inside

    # --- sources ----------------------------------------------------------------------------------

    def sources_of(
        self, id_: int, most: int = SOURCES_SHOWN, *, in_runs: bool = False
    ) -> tuple[list[bytes], int]:
        """Return the first ``most`` sources of image ``id_``, and the number of all its sources.

        ``in_runs``: the flag of the image's row; it saves two scans.
        """
        return self._sources.of(id_, most, in_runs=in_runs)

    def runs_over(self, ids: npt.NDArray[np.int64]) -> Iterator[Run]:
        """Yield the runs that may cover some of (n,) ascending ids, each run once."""
        return self.tables.runs.over(ids)

    def array_name(self, number: int) -> bytes:
        """Return the name of array ``number`` in results."""
        return self._sources.array_name(number)

    def names(self, wanted: list[bytes]) -> list[NameRow | None]:
        """Return for each file name its image and stamp when last read, or None."""
        return self.tables.names.rows(wanted)

    def ids_of_files(self, hashes: list[bytes]) -> list[int | None]:
        """Return the image of each file by the file's SHA-256, or None."""
        ids = self.tables.files.ids(hashes)
        if self.state.removed:
            # The hash of a file that has changed since may still name a removed image.
            ids = [id_ if id_ is not None and self.record(id_) is not None else None for id_ in ids]
        return ids

    def roots(self) -> list[bytes]:
        """Return the folders that ingests took, as far as they were recorded."""
        value = self.tables.meta.roots()
        try:
            roots = items(loads(value)) if value is not None else []
            return [os.fsencode(root) for root in roots]
        # Roots only reduce the number of questions, so a damaged row is ignored.
        except (ValueError, TypeError):
            return []

    def array(self, name: bytes) -> ArrayRow | None:
        """Return how far an array source is committed."""
        return self.tables.arrays.array(name)

    def archive(self, name: bytes) -> ArchiveRow | None:
        """Return how far an archive is committed."""
        return self.tables.arrays.archive(name)

    def rejects(self, wanted: list[bytes]) -> list[dict[str, Any] | None]:
        """Return the records of sources that could not be read."""
        return self.tables.rejects.rows(wanted)

    # --- vectors ----------------------------------------------------------------------------------

    @property
    def space(self) -> VectorSpace:
        """Return the space of the vectors."""
        return self.manifest.space

    @property
    def vector_rows(self) -> int:
        """Return the number of committed vectors of the live space."""
        return self.state.vectors.get(self.space.key, 0) if self.space.exists else 0

    def open_vectors(self) -> Vectors:
        """Open the committed vectors of the live space; the caller closes them."""
        space = self.space
        if not space.exists:
            raise StoreError(f"{self.path} has no vectors")
        return Vectors(
            self.path,
            space.generation,
            space.dim,
            self.state.vector_parts(space),
            self.files.is_behind,
        )

    def next_index_number(self) -> int:
        """Return a number that no index file has."""
        numbers = [entry.number for entry in self.manifest.segments]
        numbers += [entry.number for entry in self.manifest.quantizers]
        return file_names.next_number(numbers, _LAST_INDEX)

    # --- files ------------------------------------------------------------------------------------

    def families(self) -> list[Family]:
        """Return the families of extents that the manifest names."""
        return families.families(self.path, self.manifest)

    def header_problem(self, family: Family, number: int) -> str | None:
        """Return what is wrong with an extent's header, or None."""
        return extents.header_problem(self.path, family, number, bytes.fromhex(self.manifest.uuid))

    def leftover_bytes(self) -> int:
        """Return the bytes that an interrupted writer left, in extents or as files of their own."""
        return families.leftover_bytes(self.path, self.manifest, self.state)

    def data_files(self) -> set[str]:
        """Return the data files of the store, as paths relative to it."""
        return families.data_files(self.path)

    def encoder_file(self, name: str, most: int) -> bytes:
        """Read a file of the encoder's folder; ``OSError``, also if it exceeds ``most`` bytes."""
        encoder = self.space.encoder
        assert encoder is not None
        folder = file_names.encoder_folder(encoder.file, encoder.generation)
        if (nofollow.size(self.path, f"{folder}/{name}") or 0) > most:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(self.path / folder / name))
        return nofollow.read_file(self.path, f"{folder}/{name}", most)
