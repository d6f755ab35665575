"""Proves a store whole: reads everything that is committed and compares what says the same twice.

1. extents     header; length at least what is committed; the xxh64 of every append
2. images      each record has its key and each key its record; kept pixels lie in committed bytes,
               and where an append is damaged, which images' are; their number is the committed one
3. sources     each name has an image that names it back; their number is the committed one
4. vectors     as many ids as vectors, ascending, each of a known image; their encoder
5. segments    checksum
6. leftovers   bytes that an interrupted writer left behind: no damage, and gone with the next write

What it finds it also keeps as ``Damage``, for ``engine.repair``.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from engine import digest
from engine.errors import StoreDamagedError
from engine.records import CheckReport, Place, Problem
from engine.storage import extents, manifest, segments
from engine.storage.extents import ExtentReader, Family
from engine.storage.manifest import SegmentEntry
from engine.storage.rows import ONE, ImageRows, NameRow, Run, record_keys, u64
from engine.store import StoreFiles

T = TypeVar("T")
_BATCH = 1000
_READ = 8 << 20
_MOST_PROBLEMS = 1000  # listed; a store with more is to be restored, not read about
_MOST_NAMED = 20  # images named in one problem


@dataclass(slots=True)
class DamagedAppend:
    """One append whose bytes are not what was committed."""

    commit: bytes  # its row in ``commits``, and which of the appends there
    at: int
    family: Family
    place: Place


@dataclass(slots=True)
class Damage:
    """What ``Check`` found broken, in the terms of what can be mended."""

    appends: list[DamagedAppend] = field(default_factory=list)
    images: list[int] = field(default_factory=list)  # whose kept pixels are damaged
    segments: list[SegmentEntry] = field(default_factory=list)
    encoder: bool = False


def unreadable(error: StoreDamagedError) -> CheckReport:
    """The report on a store that is too damaged to be opened."""
    return CheckReport(0, 0, 0, 0.0, (Problem("keys", str(error)),))


class Check:
    """One check of one store."""

    def __init__(self, store: StoreFiles) -> None:
        self._store = store
        self.damage = Damage()
        self._problems: list[Problem] = []
        self._bytes = 0
        self._images = 0
        self._sources = 0
        self._there = np.zeros(store.state.next_id // 8 + 1, np.uint8)  # a bit an image

    def run(self) -> CheckReport:
        """Look at everything."""
        started = time.perf_counter()
        steps = (
            self._extents,
            self._records,
            self._files,
            self._names,
            self._runs,
            self._vectors,
            self._segments,
        )
        for step in steps:
            try:
                step()
            except StoreDamagedError as error:  # a table or file that cannot be read at all
                self._say("keys", str(error))
        return CheckReport(
            images=self._images,
            vectors=self._store.vector_rows,
            bytes_read=self._bytes,
            seconds=round(time.perf_counter() - started, 3),
            problems=tuple(self._problems),
            leftover_bytes=self._store.leftover_bytes(),
        )

    def _say(self, part: str, what: str) -> None:
        if len(self._problems) < _MOST_PROBLEMS:
            self._problems.append(Problem(part, what))

    # --- extents ----------------------------------------------------------------------------------

    def _extents(self) -> None:
        store = self._store
        for family in store.families():
            for number in store.manifest.extents[family.name]:
                problem = store.header_problem(family, number)
                if problem:
                    self._say(store.part(family, number), problem)
        for name, pairs in store.state.extents.items():
            named = store.manifest.extents.get(name, [])
            for number, _ in pairs:
                if number not in named:
                    self._say(
                        "MANIFEST.json", f"it does not name {name} {number}, which is committed"
                    )
        readers = {family.name: ExtentReader(store.path, family) for family in store.families()}
        for key, value in store.keys.scan("commits"):
            for at, (name, number, offset, length, xxh64) in enumerate(json.loads(value)):
                if name in readers:
                    place = Place(number, offset, length)
                    if not self._append(readers[name], place, xxh64, key):
                        family = readers[name].family
                        self.damage.appends.append(DamagedAppend(key, at, family, place))
        for reader in readers.values():
            reader.close()

    def _append(self, reader: ExtentReader, place: Place, xxh64: int, commit: bytes) -> bool:
        where = self._store.part(reader.family, place.extent)
        at = f"bytes {place.offset:,} to {place.offset + place.length:,}"
        commit_number = int.from_bytes(commit, "big")
        try:
            check = digest.Checksum()
            for start in range(0, place.length, _READ):
                size = min(_READ, place.length - start)
                data = reader.read(Place(place.extent, place.offset + start, size))
                self._bytes += len(data)
                check.update(data)
        except StoreDamagedError as error:
            self._say(where, f"{at} of commit {commit_number} are lost: {error}")
            return False
        if check.value != xxh64:
            self._say(where, f"{at} of commit {commit_number} are damaged (wrong checksum)")
        return check.value == xxh64

    # --- images -----------------------------------------------------------------------------------

    def _records(self) -> None:
        store = self._store
        pairs = store.state.extents.get(extents.PIXELS.name, [])
        committed: dict[int, int] = dict(pairs)  # type: ignore[arg-type]
        damaged = [one.place for one in self.damage.appends if one.family == extents.PIXELS]
        records = (
            found for key, value in store.keys.scan("records") for found in record_keys(key, value)
        )
        for batch in _batches(records):
            ids = np.array([id_ for id_, _ in batch], np.int64)
            found = store.image_columns([key for _, key in batch])
            own = np.zeros(len(batch), np.bool_)
            own[found.found] = found.ids == ids[found.found]
            self._kept(found, committed, damaged)
            for i in np.flatnonzero(~own):  # none, or a key that several images share
                row = next((r for r in store.image_of(batch[i][1]) if r.id == ids[i]), None)
                if row is None:
                    self._say("keys", f"image {ids[i]} has a record and no key")
                else:
                    self._kept(ImageRows.unpack([row.pack()]), committed, damaged)
            self._mark(ids)
            self._images += len(batch)
        for rows in _batches(store.keys.scan("images")):
            ids = ImageRows.unpack([value for _, value in rows]).ids
            for id_ in ids[~self._are_there(ids)]:
                self._say("keys", f"image {id_} has a key and no record")
        if self._images != store.state.images:
            self._say(
                "keys", f"{store.state.images} images are committed, {self._images} are there"
            )
        prints = store.state.extents.get(extents.FINGERPRINTS.name, [])
        rows_kept = sum(size for _, size in prints) // extents.FINGERPRINTS.row_bytes
        if rows_kept != store.state.next_id - 1:
            self._say("fingerprints", f"{store.state.next_id - 1} are due, {rows_kept} are there")
        if self.damage.images:
            named = ", ".join(map(str, self.damage.images[:_MOST_NAMED]))
            more = len(self.damage.images) - _MOST_NAMED
            also = f" and {more} more" if more > 0 else ""
            self._say("pixels", f"the kept pixels of images {named}{also} are damaged or lost")

    def _kept(self, rows: ImageRows, committed: dict[int, int], damaged: list[Place]) -> None:
        """Whether the kept pixels of these images are where they can be, and whole."""
        ends = rows.offsets + rows.lengths
        limits = np.array([committed.get(int(extent), 0) for extent in rows.extents], np.int64)
        for id_ in rows.ids[rows.kept & (ends > limits)]:
            self._say("keys", f"the pixels of image {id_} lie behind what is committed")
        for place in damaged:
            inside = rows.kept & (rows.extents == place.extent)
            inside &= (rows.offsets >= place.offset) & (ends <= place.offset + place.length)
            for id_ in rows.ids[inside].tolist():
                if self._store.kept_whole(id_) is None:
                    self.damage.images.append(id_)

    def _files(self) -> None:
        for batch in _batches(self._store.keys.scan("files")):
            ids = np.array([int.from_bytes(id_, "big") for _, id_ in batch], np.int64)
            for id_ in ids[~self._are_there(ids)]:
                self._say("keys", f"a file names image {id_}, not there")
        for table in ("arrays", "rejects"):  # nothing to compare with; reading is what may fail
            for _ in self._store.keys.scan(table):
                pass

    # --- sources ----------------------------------------------------------------------------------

    def _names(self) -> None:
        store = self._store
        for batch in _batches(store.keys.scan("sources")):
            names = [key[8:] for key, _ in batch]
            values = self._values("names", names)
            for (key, _), name, value in zip(batch, names, values, strict=True):
                id_ = int.from_bytes(key[:8], "big")
                if value is None or NameRow.unpack(value).id != id_:
                    self._say("keys", f"image {id_} names a source that is not its own: {name!r}")
        for batch in _batches(store.keys.scan("names")):
            self._sources += len(batch)
            wanted = [u64(NameRow.unpack(value).id) + name for name, value in batch]
            for (name, _), value in zip(batch, self._values("sources", wanted), strict=True):
                if value is None:
                    self._say("keys", f"the source {name!r} names an image that does not name it")

    def _runs(self) -> None:
        store = self._store
        for batch in _batches(store.keys.scan("runs", b"r")):
            runs = [Run.from_row(key, value) for key, value in batch]
            twins = self._values("runs", [run.by_id[0] for run in runs])
            self._sources += sum(run.count for run in runs)
            for run, twin in zip(runs, twins, strict=True):
                if twin is None:
                    self._say("keys", f"rows {run.row} … of array {run.array} are not found by id")
                last = run.id + run.step * (run.count - 1)
                if last >= store.state.next_id:
                    self._say("keys", f"rows of array {run.array} name images that are not there")
        by_id = itertools.chain(store.keys.scan("runs", b"i"), store.keys.scan("runs", ONE))
        for batch in _batches(by_id):
            runs = [Run.from_id(key, value) for key, value in batch]
            twins = self._values("runs", [run.by_row[0] for run in runs])
            for run, twin in zip(runs, twins, strict=True):
                if twin != run.by_row[1]:
                    self._say("keys", f"rows {run.row} … of array {run.array} are found by id only")
        if self._sources != store.state.sources:
            self._say(
                "keys", f"{store.state.sources} sources are committed, {self._sources} are there"
            )

    # --- vectors ----------------------------------------------------------------------------------

    def _vectors(self) -> None:
        store = self._store
        encoder = store.manifest.encoder
        if encoder is None:
            return
        try:
            model = digest.file_hash((store.path / encoder.file).read_bytes()).hex()
        except OSError as error:
            model = str(error.strerror)
        if model != encoder.fingerprint:
            self.damage.encoder = True
            self._say(
                encoder.file,
                "it is gone or not the encoder that made the vectors: restore it from a copy",
            )
        for family in (
            extents.vectors(encoder.generation, encoder.dim),
            extents.vector_ids(encoder.generation),
        ):
            size = sum(size for _, size in store.state.extents.get(family.name, []))
            if size != store.vector_rows * family.row_bytes:
                self._say(family.folder, f"{store.vector_rows} rows are due, {size:,} bytes there")
                return
        index = store.index
        assert index is not None
        last = 0
        for start in range(0, store.vector_rows, _BATCH):
            rows = np.arange(start, min(start + _BATCH, store.vector_rows), dtype=np.int64)
            ids = index.vectors.ids(rows)
            ordered = bool((np.diff(ids) > 0).all()) and int(ids[0]) > last
            last = int(ids[-1])
            if not ordered or not self._are_there(ids).all():
                self._say("vectors", f"rows {start} to {start + len(ids)} name unknown images")

    def _segments(self) -> None:
        store = self._store
        bad = [
            (entry, problem)
            for entry in store.manifest.segments
            if (problem := segments.checksum(store.path, entry))
        ]
        self._bytes += sum(entry.bytes for entry in store.manifest.segments)
        if bad:  # a writer may have merged them while we read
            live = manifest.load(store.path).segments
            bad = [(entry, problem) for entry, problem in bad if entry in live]
        for entry, problem in bad:
            self.damage.segments.append(entry)
            self._say(f"{segments.FOLDER}/{entry.number:08d}", problem)

    # --- inside -----------------------------------------------------------------------------------

    def _mark(self, ids: npt.NDArray[np.int64]) -> None:
        """Remember that these images have records."""
        known = ids[(ids > 0) & (ids < self._store.state.next_id)]
        np.bitwise_or.at(self._there, known >> 3, (1 << (known & 7)).astype(np.uint8))

    def _are_there(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of these images have records."""
        inside = (ids > 0) & (ids < self._store.state.next_id)
        at = np.where(inside, ids, 0)
        there: npt.NDArray[np.bool_] = (self._there[at >> 3] >> (at & 7) & 1).astype(np.bool_)
        return inside & there

    def _values(self, table: str, keys: Iterable[bytes]) -> list[bytes | None]:
        return self._store.keys.get_many(table, list(keys))


def _batches(rows: Iterator[T]) -> Iterator[list[T]]:
    while batch := list(itertools.islice(rows, _BATCH)):
        yield batch
