"""What a store holds as of one commit: everything that is read, and nothing that is written."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.config import SOURCES_SHOWN, Limits, MemoryBudget, StructuralSettings
from engine.errors import StoreDamagedError, StoreError, UsageError
from engine.images import hashing
from engine.index.search import VectorIndex
from engine.records import ImageRecord, Kind, Place
from engine.storage import extents, file_names, manifest, nofollow, tombstones
from engine.storage.bitmap import IdSet
from engine.storage.commit_file import Notice, commit_of, is_of_another_commit
from engine.storage.extents import ExtentReader, Family
from engine.storage.fingerprints import Fingerprints
from engine.storage.json_values import items, loads
from engine.storage.live_ids import blocks_of
from engine.storage.manifest import Manifest
from engine.storage.rocks import open_reader
from engine.storage.rocks.database import Keys
from engine.storage.rocks.pin import TRIES
from engine.storage.rows import (
    BUCKET_BITS,
    ONE,
    ArchiveRow,
    ArrayRow,
    ImageRow,
    ImageRows,
    NameRow,
    RecordRow,
    Run,
    bucket_prefix,
    file_id,
    images_in,
    no_image,
    record_in,
    reject_in,
    u64,
)
from engine.storage.state import State, settings_in
from engine.storage.tables import Tables
from engine.storage.vectors import Vectors

_log = logging.getLogger("engine")
_BUCKETS = 4096  # buckets of runs, and names of arrays, that are remembered
_INDEX_TRIES = 10  # to open an index, while a writer publishes others
_READERS = 16  # threads: reads in the disk's queue
_MANY_LOOKUPS = 1000  # after which one more block of keys at a time is the slow way
_BUCKET_RUNS = 16  # of a bucket that is remembered, at most


class StoreView:
    """The committed images of one store directory, as a reader sees them beside any writer."""

    def __init__(self, path: Path, memory: MemoryBudget, limits: Limits | None = None) -> None:
        """Open it for reading: the manifest first, then the keys."""
        self.path = path
        self.memory = memory
        self.limits = limits or Limits()
        self._keys: Keys | None = None
        self._index: VectorIndex | None = None
        self._failed: str | None = None
        self._notice = Notice(path)
        self._readers: ThreadPoolExecutor | None = None
        self._seen = b""
        self._open_reader()

    def _open_reader(self, tries: int = TRIES) -> None:
        started = time.perf_counter()
        seen = self._notice.read()  # before the keys: what is committed meanwhile is noticed again
        nofollow.require_kinds(self.path, file_names.FILES, file_names.FOLDERS)
        found = manifest.load(self.path)
        opened = open_reader.open_reader(self.path, self.memory, tries=tries)
        self._load(found, opened, commit_of(seen))
        self._seen = seen
        self._opened_at = time.perf_counter()
        self._opening_took = self._opened_at - started

    def _load(self, found: Manifest, table: Keys, told: int) -> None:
        """Go over to what was opened; ``told`` is the commit that the notice named before.

        Where it cannot be gone over to, what was open stays open.
        """
        try:
            state = self._read_state(found, table, told)
        except BaseException:
            table.close()
            raise
        self._close_files()
        self.manifest, self._keys, self.state = found, table, state
        self.tables = Tables(table)
        self._pixels = ExtentReader(self.path, extents.PIXELS, self.is_behind)
        self.fingerprints = Fingerprints(self.path)
        self._lookups = 0
        self._read_ahead = False
        self._forget()

    def _read_state(self, found: Manifest, table: Keys, told: int) -> State:
        value, settings = table.get("meta", b"state"), table.get("meta", b"settings")
        if value is None or settings is None:
            raise StoreDamagedError(f"{self.path}: its keys have no state; run 'engine check'")
        if settings_in(settings) != found.settings:
            raise StoreDamagedError(f"{self.path}: manifest and keys belong to different stores")
        try:
            state = State.unpack(value)
        except StoreDamagedError as error:
            raise StoreDamagedError(f"{self.path}: {error}") from None
        if state.commit < told:
            raise StoreDamagedError(
                f"{self.path}: its keys end with commit {state.commit}, and commit {told} was "
                f"made: restore the store from a copy, or go on without with 'engine check --fix'"
            )
        return state

    def _forget(self) -> None:
        """Drop what was remembered of the keys: they have changed."""
        # Bounded: a bucket's few runs answer for 4,096 images where their rows are one array's.
        self._buckets: dict[int, list[Run]] = {}
        self._array_names: dict[int, bytes] = {}
        self._alive: IdSet | None = None
        self._wanted: tuple[IdSet, IdSet] | None = None
        self._removed: IdSet | None = None

    def is_behind(self) -> bool:
        """Whether a writer has told of another commit since this one was opened."""
        return is_of_another_commit(self._notice.read(), self._seen)

    def read_index(self) -> bool:
        """Take the index from the manifest as it is now, and all else as it was; whether it changed."""
        found, before = manifest.load(self.path), self.manifest
        if found.encoder != before.encoder:
            return False
        self.manifest = replace(
            before,
            segments=found.segments,
            quantizers=found.quantizers,
            measured=found.measured,
        )
        return self.manifest != before

    def _forget_index(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None

    @property
    def is_open(self) -> bool:
        """Whether it is open; a failed write closes it."""
        return self._keys is not None

    @property
    def keys(self) -> Keys:
        """The open tables."""
        if self._keys is None:
            raise StoreError(f"{self.path} is closed" if not self._failed else self._failed)
        return self._keys

    def limit_cache(self, most: int) -> None:
        """Let the cache of the keys hold ``most`` bytes; until they are opened again."""
        keys = self._keys  # a failed write may close the store meanwhile
        if keys is not None:
            keys.limit_cache(most)

    @property
    def settings(self) -> StructuralSettings:
        """What the store was made with."""
        return self.manifest.settings

    def _close_files(self) -> None:
        if self._readers is not None:
            self._readers.shutdown()
            self._readers = None
        if self._keys is not None:
            table, self._keys = self._keys, None
            table.close()
            self._pixels.close()
            self.fingerprints.close()
            self._forget_index()

    def image_of(self, key: bytes) -> list[ImageRow]:
        """The rows of all images that have a key (nearly always none or one)."""
        return self._images_of(key, self.keys.get("images", key))

    def images_of(self, wanted: list[bytes]) -> list[list[ImageRow]]:
        """``image_of`` for each of many keys, in one call to the keys."""
        values = self.keys.get_many("images", wanted)
        return [self._images_of(key, value) for key, value in zip(wanted, values, strict=True)]

    def _images_of(self, key: bytes, value: bytes | None) -> list[ImageRow]:
        if value is None:
            return []
        rows = [ImageRow.unpack(value)]
        if rows[0].shared:
            more = self.keys.scan("images", key)
            rows += [ImageRow.unpack(row) for name, row in more if len(name) > len(key)]
        return rows

    def image_columns(self, wanted: list[bytes], *, spread: bool = False) -> ImageRows:
        """The first image of each of many keys, by the column.

        ``spread``: by many threads, where rows must come from disk and one would wait for each read.
        """
        if not spread:
            return ImageRows.unpack(self.keys.get_many("images", wanted))
        if self._readers is None:
            self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="engine-read")
        step = -(-len(wanted) // _READERS)
        parts = [wanted[at : at + step] for at in range(0, len(wanted), step)]
        found = self._readers.map(lambda part: self.keys.get_many("images", part), parts)
        return ImageRows.unpack([value for part in found for value in part])

    def count_lookups(self, count: int) -> None:
        """Take notice that this process asks for many images, and have the keys read ahead."""
        self._lookups += count
        if self._lookups >= _MANY_LOOKUPS and not self._read_ahead:
            self._read_ahead = True
            self.keys.read_ahead(self.memory.read_ahead)

    @property
    def kept_pixels(self) -> ExtentReader:
        """The extents of kept pixels."""
        return self._pixels

    def record(self, id_: int) -> RecordRow | None:
        """What is known of image ``id_``, or None if there is none."""
        row = self.keys.at_or_before("records", u64(id_)) if 0 < id_ < 1 << 63 else None
        return record_in(*row, id_) if row is not None else None

    def those_there(self, ids: list[int]) -> list[int]:
        """Those of some ids, in ascending order, that are of images."""
        able = [id_ for id_ in ids if 0 < id_ < 1 << 63]
        return [id_ for _, _, held in blocks_of(self.keys, able) for id_ in held.tolist()]

    def removed_ids(self) -> IdSet:
        """The ids of all images that were removed; read once for each commit."""
        if self._removed is None:
            if self.state.removed:
                found, bad = tombstones.read(self.keys, self.state.next_id)
                if bad:
                    raise StoreDamagedError(
                        f"{self.path}: which images were removed cannot be read; run 'engine check "
                        f"--fix'"
                    )
                self._removed = found
            else:
                self._removed = IdSet.none(self.state.next_id)
        return self._removed

    def dead_ids(self) -> IdSet:
        """The ids by which no vector is found: of removed images, and 0, where whose it is was lost."""
        gone = self.removed_ids()
        made = IdSet(gone.bits.copy(), gone.size)
        made.add(np.zeros(1, np.int64))
        return made

    def get(self, id_: int) -> ImageRecord:
        """The record of image ``id_``; ``UsageError`` if the store has no such image."""
        record = self.record(id_)
        if record is None:
            raise UsageError(f"{self.path} has no image {id_}")
        rows = self.images_of([record.key])[0] if record.key else [no_image(id_)]
        for row in rows:
            if row.id == id_:
                return record.with_image(row)
        raise StoreDamagedError(f"image {id_} has a record and no key; run 'engine check'")

    def kept(self, place: Place) -> bytes:
        """The bytes kept at ``place``; ``MovedError`` if a newer commit has them elsewhere."""
        return self._pixels.read(place)

    def kept_whole(self, id_: int) -> tuple[bytes, bool] | None:
        """What is kept of image ``id_`` if it is what was kept, and whether it is the canonical form."""
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

    def leftover_bytes(self) -> int:
        """Bytes that an interrupted writer left behind, in extents or as files of their own."""
        left = 0
        known = {str(path) for path in self.manifest.index_files(Path())}
        committed = {
            (name, number): size
            for name, pairs in self.state.extents.items()
            for number, size in pairs
        }
        for family in self.families():
            for number in self.manifest.extents[family.name]:
                known.add(family.inside(number))
                end = extents.HEADER_BYTES + committed.get((family.name, number), 0)
                left += max((nofollow.size(self.path, family.inside(number)) or 0) - end, 0)
        # A writer may be tidying up beside us.
        left += sum(nofollow.size(self.path, name) or 0 for name in self.data_files() - known)
        return left

    def data_files(self) -> set[str]:
        """The files in those folders whose files the manifest names, beneath the store.

        Files that are not called as ours are not among them. ``ForeignError`` where one of ours is none.
        """
        found = set()
        for top, ours in file_names.OF_FOLDER.items():
            for folder in self._data_folders(top):
                found |= {f"{folder}/{name}" for name in nofollow.files(self.path, folder, ours)}
        return found

    def _data_folders(self, top: str) -> list[str]:
        if top != file_names.VECTORS:
            return [top]
        there = nofollow.entries(self.path, top)
        ours = [one for one in there if file_names.GENERATION.fullmatch(one.name)]
        for one in ours:
            nofollow.is_folder(self.path, f"{top}/{one.name}")  # says what it is instead
        return [f"{top}/{one.name}" for one in ours]

    def encoder_file(self, name: str, most: int) -> bytes:
        """A file of the encoder's folder; ``OSError``, also where it has more than ``most`` bytes."""
        entry = self.manifest.encoder
        assert entry is not None
        folder = file_names.encoder_folder(entry.file, entry.generation)
        if (nofollow.size(self.path, f"{folder}/{name}") or 0) > most:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(self.path / folder / name))
        return nofollow.read_file(self.path, f"{folder}/{name}", most)

    def part(self, family: Family, number: int) -> str:
        """The path of an extent within the store."""
        return str(family.path(self.path, number).relative_to(self.path))

    def sources_of(
        self, id_: int, most: int = SOURCES_SHOWN, *, in_runs: bool = False
    ) -> tuple[list[bytes], int]:
        """The first ``most`` places where image ``id_`` was seen, and how many there are.

        ``in_runs``: what the image's row says; two scans less.
        """
        names: list[bytes] = []
        count = 0
        runs = self._bucket(id_)
        if not in_runs:
            for key, _ in self.keys.scan("sources", u64(id_)):
                count += 1
                if len(names) < most:
                    names.append(key[8:])
            alone = self.keys.scan("runs", ONE + u64(id_))
            runs = itertools.chain((Run.from_id(key, value) for key, value in alone), runs)
        for run in runs:
            rows = run.rows_of(id_)
            if rows:
                count += len(rows)
                if len(names) < most:
                    base = self.array_name(run.array)
                    names += [b"%s#%d" % (base, row) for row in rows[: most - len(names)]]
        return names, count

    def _bucket(self, id_: int) -> Iterable[Run]:
        """The runs of several images that image ``id_`` may be in."""
        runs = self._buckets.get(id_ >> BUCKET_BITS)
        return runs if runs is not None else self._read_bucket(id_)

    def _read_bucket(self, id_: int) -> Iterator[Run]:
        runs: list[Run] = []
        for key, value in self.keys.scan("runs", bucket_prefix(id_)):
            run = Run.from_id(key, value)
            if run.id > id_ and len(runs) > _BUCKET_RUNS:
                return
            runs.append(run)
            yield run
        if len(runs) <= _BUCKET_RUNS:
            if len(self._buckets) >= _BUCKETS:
                self._buckets.clear()
            self._buckets[id_ >> BUCKET_BITS] = runs

    def runs_over(self, ids: npt.NDArray[np.int64]) -> Iterator[Run]:
        """The runs that cover some of (n,) ids, ascending, each run once."""
        for bucket in np.unique(ids >> BUCKET_BITS).tolist():
            for key, value in self.keys.scan("runs", bucket_prefix(bucket << BUCKET_BITS)):
                yield Run.from_id(key, value)
        if len(ids):
            for key, value in self.keys.scan("runs", ONE, start=ONE + u64(int(ids[0]))):
                run = Run.from_id(key, value)
                if run.id > ids[-1]:
                    return
                yield run

    def array_name(self, number: int) -> bytes:
        """What array ``number`` is called in results."""
        name = self._array_names.get(number)
        if name is None:
            name = self.keys.get("arrays", b"#" + number.to_bytes(4, "big"))
            if name is None:
                raise StoreDamagedError(f"array {number} has no name; run 'engine check'")
            if len(self._array_names) >= _BUCKETS:
                self._array_names.clear()
            self._array_names[number] = name
        return name

    def names(self, wanted: list[bytes]) -> list[NameRow | None]:
        """What each file name stood for when it was last read."""
        values = self.keys.get_many("names", wanted)
        return [NameRow.unpack(value) if value is not None else None for value in values]

    def files(self, hashes: list[bytes]) -> list[int | None]:
        """The image of each file that is there, by the file's SHA-256."""
        values = self.keys.get_many("files", hashes)
        ids = [file_id(value) if value is not None else None for value in values]
        if self.state.removed:
            # A file that had changed since may still name an image that was removed.
            ids = [id_ if id_ is not None and self.record(id_) is not None else None for id_ in ids]
        return ids

    def roots(self) -> list[bytes]:
        """The folders that ingests were given, so far as they are remembered."""
        value = self.keys.get("meta", b"roots")
        try:
            roots = items(loads(value)) if value is not None else []
            return [os.fsencode(root) for root in roots]
        except (ValueError, TypeError):  # they only make questions fewer
            return []

    def array(self, name: bytes) -> ArrayRow | None:
        """How far an array source is committed."""
        value = self.keys.get("arrays", b"n" + name)
        return ArrayRow.unpack(value) if value is not None else None

    def archive(self, name: bytes) -> ArchiveRow | None:
        """How far an archive is committed."""
        value = self.keys.get("arrays", b"a" + name)
        return ArchiveRow.unpack(value) if value is not None else None

    def rejects(self, wanted: list[bytes]) -> list[dict[str, Any] | None]:
        """What was recorded of sources that could not be read."""
        values = self.keys.get_many("rejects", wanted)
        return [reject_in(value) if value is not None else None for value in values]

    @property
    def vector_rows(self) -> int:
        """Committed vectors of the live encoder."""
        encoder = self.manifest.encoder
        return self.state.vectors.get(str(encoder.generation), 0) if encoder else 0

    @property
    def index(self) -> VectorIndex | None:
        """The vectors with their segments; None for a store without an encoder."""
        encoder = self.manifest.encoder
        if self._keys is None:
            raise StoreError(self._failed or f"{self.path} is closed")
        if encoder is None:
            return None
        if self._index is None:
            self._index = self._open_index()
        return self._index

    def open_vectors(self) -> Vectors:
        """The committed vectors of the live encoder; whoever asks closes them."""
        encoder = self.manifest.encoder
        if encoder is None:
            raise StoreError(f"{self.path} has no vectors")
        return Vectors(
            self.path,
            encoder.generation,
            encoder.dim,
            self.state.vector_parts(encoder),
            self.is_behind,
        )

    def _open_index(self) -> VectorIndex:
        for _ in range(_INDEX_TRIES):
            if not self._has_index_files():
                self.read_index()  # the writer may have merged them since the manifest was read
            index = self._make_index()
            if self._has_index_files() or not self.read_index():
                break  # whole, or as damaged as the manifest has it
            index.close()
        else:
            index = self._make_index()
        for problem in index.problems:
            _log.warning("%s", problem)
        return index

    def _has_index_files(self) -> bool:
        inner = map(str, self.manifest.index_files(Path()))
        return all(nofollow.status(self.path, name) is not None for name in inner)

    def _make_index(self) -> VectorIndex:
        vectors = self.open_vectors()
        vectors.open_all()
        return VectorIndex(
            self.path,
            vectors,
            self.manifest.quantizers,
            self.state.live_segments(self.manifest),
            self.manifest.measured,
        )

    def search(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        *,
        recall: float | None = None,
        wanted: IdSet | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The k images whose vectors are closest to each query: scores and ids, (nq, k) each.

        Best first, padded with -inf and -1; of images that are there, and ``wanted`` if that is said.
        ``recall``: the share of them to be found, 1 for all. ``StoreError`` for a store without vectors.
        """
        index, among = self.to_search(wanted)
        with index:
            return index.search_ids(queries, k, recall=recall, wanted=among)

    def to_search(self, wanted: IdSet | None) -> tuple[VectorIndex, IdSet | None]:
        """The index, and which images it may find, if not all: those that are there and ``wanted``."""
        index = self.index
        if index is None:
            raise StoreError(f"{self.path} has no vectors")
        return index, self.alive() if wanted is None else self._those_alive(wanted)

    def _those_alive(self, wanted: IdSet) -> IdSet:
        """Those of the wanted images that are there; the same set for the same question."""
        if not self.state.dead_vectors:
            return wanted
        if self._wanted is None or self._wanted[0] is not wanted:
            self._wanted = wanted, wanted.without(self.removed_ids())
        return self._wanted[1]

    def alive(self) -> IdSet | None:
        """The images that are there; None where none of those with a vector was removed."""
        if not self.state.dead_vectors:
            return None
        if self._alive is None:
            every = IdSet.none(self.state.next_id)
            every.add_span(1, self.state.next_id - 1)
            self._alive = every.without(self.removed_ids())
        return self._alive

    def may_be_images(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of (n,) ids, in ascending order, are not of vectors, nor gone with their neighbours."""
        encoder = self.manifest.encoder
        if not len(ids) or encoder is None or not encoder.given:
            return np.ones(len(ids), np.bool_)
        starts, counts = [0], [0]
        before = self.keys.at_or_before("records", u64(int(ids[0])))
        for key, value in self.keys.scan("records", start=before[0] if before else b""):
            first = int.from_bytes(key, "big")
            if first > ids[-1]:
                break
            starts.append(first)
            counts.append(images_in(value))
        at = np.searchsorted(starts, ids, "right") - 1
        inside: npt.NDArray[np.bool_] = ids < np.array(starts)[at] + np.array(counts)[at]
        return inside

    def _family(self, name: str) -> Family:
        families = [extents.PIXELS, extents.FINGERPRINTS]
        if self.manifest.encoder:
            entry = self.manifest.encoder
            families.append(extents.vectors(entry.generation, entry.dim))
            families.append(extents.vector_ids(entry.generation))
        for family in families:
            if family.name == name:
                return family
        raise StoreDamagedError(f"{self.path / manifest.NAME} names unknown extents {name!r}")

    def families(self) -> list[Family]:
        """The families of extents that the manifest names."""
        return [self._family(name) for name in self.manifest.extents]

    def header_problem(self, family: Family, number: int) -> str | None:
        """What is wrong with an extent's header, or None."""
        return extents.header_problem(self.path, family, number, bytes.fromhex(self.manifest.uuid))
