"""Proves a store whole: reads everything that is committed and compares what says the same twice.

0. keys        every block of every live table of RocksDB, and what names them; the copies of the
               settings and of the manifest
1. extents     header; length at least what is committed; the xxh64 of every append, and that all
               bytes are of some append
2. images      each record has its key and each key its record: their sums are equal, else they are
               looked for one by one; kept pixels lie in committed bytes, and where an append is
               damaged, which images' are; what is kept of no image is what counts as dead; their
               number is the committed one, and with those removed that of all ids given; those
               without a record are the removed ones, and no others
3. sources     each name has an image that names it back; no run is of removed images only; their
               number is the committed one
4. vectors     as many ids as vectors, none twice, each of a known image; those of removed images are as
               many as count as such; their encoder can be loaded, or as many were given as have a record
5. segments    checksum
6. leftovers   bytes that an interrupted writer left behind: no damage, and gone with the next write

What it finds it also keeps as ``Damage``, for ``engine.maintenance.repair``.
"""

from __future__ import annotations

import collections
import itertools
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from engine.encoders import registry
from engine.encoders.onnx import OnnxEncoder
from engine.errors import EncoderError, StoreDamagedError
from engine.images import hashing
from engine.records import CheckReport, Place, Problem
from engine.storage import extents, manifest, nofollow, tombstones
from engine.storage.bitmap import IdSet
from engine.storage.commit_evidence import MARK
from engine.storage.extents import ExtentReader, Family
from engine.storage.index_files import file_problem, quantizer_path, segment_path
from engine.storage.manifest import DamagedManifestError
from engine.storage.rocks import database, files
from engine.storage.rows import (
    ONE,
    ArchiveRow,
    ArrayRow,
    ImageRows,
    NameRow,
    RowError,
    Run,
    record_keys,
    reject_in,
    u64,
)
from engine.storage.state import appends_in
from engine.storage.writer import StoreFiles

T = TypeVar("T")
_BATCH = 1000
_READ = 8 << 20
_BAD = (ValueError, KeyError, TypeError, IndexError, OverflowError, AttributeError, struct.error)
_MAX_PROBLEMS = 1000  # listed; a store with more is to be restored, not read about
_MAX_NAMED = 20  # images named in one problem
_KEY = hashing.KEY_BYTES
_SUM = (1 << 64) - 1
_EXTENT = np.uint64(40)  # bits of an offset, below the number of its extent
_ODD = np.uint64(0x9E3779B97F4A7C15)


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

    commit: int  # as of which
    appends: list[DamagedAppend] = field(default_factory=list)
    images: list[int] = field(default_factory=list)  # whose kept pixels are damaged
    images_known: bool = False  # whether these are all of them: the keys could be read
    dead: dict[str, int] | None = None  # what is to count as dead, where that is something else
    removed: IdSet | None = None  # which ids are of removed images, where something else is said
    removed_vectors: dict[str, int] | None = None  # the same of vectors
    index: list[Path] = field(default_factory=list)  # files of it
    encoder: bool = False
    tables: bool = False  # files of RocksDB: engine.maintenance.salvage mends them
    unknown_ids: bool = False  # vectors are named images that cannot have them
    rows: bool = False  # tables of the keys that can be read, and do not agree


def unreadable(error: StoreDamagedError) -> CheckReport:
    """The report on a store that is too damaged to be opened."""
    return CheckReport(0, 0, 0, 0.0, (Problem("keys", str(error)),))


class Check:
    """One check of one store."""

    def __init__(self, store: StoreFiles) -> None:
        self._store = store
        self.damage = Damage(store.state.commit)
        self._problems: list[Problem] = []
        self._bytes = 0
        self._images = 0
        self._given_vectors = 0  # of these, vectors without pixels
        self._sources = 0
        self._names_counted = False
        self._there = IdSet.none(store.state.next_id)  # those with a record
        self._all_there = False  # whether these bits are all
        # Its own: the store's may have a file open that is gone or replaced by now.
        self._pixels = ExtentReader(store.path, extents.PIXELS)
        self._live: collections.Counter[int] = collections.Counter()  # kept bytes, by extent

    def run(self) -> CheckReport:
        """Look at everything."""
        started = time.perf_counter()
        steps = (
            (self._key_files, "keys"),
            (self._copies, "keys"),
            (self._extents, "keys"),
            (self._records, "keys"),
            (self._removed, "keys"),
            (self._files, "keys"),
            (self._names, "keys"),
            (self._runs, "keys"),
            (self._encoder, "encoder"),
            (self._vectors, "vectors"),
            (self._index, manifest.INDEX_FOLDER),
        )
        for step, part in steps:
            try:
                step()
            except RowError as error:  # it can be read, and is none
                self._say("keys", str(error))
            except StoreDamagedError as error:  # a table or file that cannot be read at all
                self.damage.tables |= part == "keys"
                self._say(part, str(error))
            except _BAD as error:  # a row that is none
                self._say(part, f"a row cannot be read ({type(error).__name__}: {error})")
                self.damage.rows = True
        self._pixels.close()
        try:
            leftover = 0 if self._store.being_written() else self._store.leftover_bytes()
        except StoreDamagedError:  # the manifest names what cannot be, which was said
            leftover = 0
        return CheckReport(
            images=self._images,
            vectors=self._store.vector_rows,
            bytes_read=self._bytes,
            seconds=round(time.perf_counter() - started, 3),
            problems=tuple(self._problems),
            leftover_bytes=leftover,
        )

    def _say(self, part: str, what: str) -> None:
        self.damage.rows |= part == "keys"
        if len(self._problems) < _MAX_PROBLEMS:
            self._problems.append(Problem(part, what))

    # --- keys ---------------------------------------------------------------------------------------

    def _key_files(self) -> None:
        folder = self._store.path / database.FOLDER
        for found in files.problems(folder):
            self._say("keys", f"{found.name}: {found.what}")
            self.damage.tables = True
        self._bytes += files.table_bytes(folder)

    def _copies(self) -> None:
        """Whether the copies of settings and manifest among the keys can be read."""
        store = self._store
        copy = store.keys.get("meta", b"manifest")
        if copy is not None:
            try:
                named = manifest.parse(store.path, copy)
            except DamagedManifestError:
                self._say("keys", "the copy of the manifest cannot be read")
            else:
                if (named.uuid, named.settings) != (store.manifest.uuid, store.manifest.settings):
                    self._say("keys", "the copy of the manifest is another store's")
        if store.keys.get("meta", MARK) is not None:
            self._say("keys", "rows of them are lost, and what is left does not agree yet")

    # --- extents ----------------------------------------------------------------------------------

    def _extents(self) -> None:
        store = self._store
        for family in store.families():
            for number in store.manifest.extents[family.name]:
                problem = store.header_problem(family, number)
                if problem and not self._rewritten(family, number):
                    self._say(store.part(family, number), problem)
        for name, pairs in store.state.extents.items():
            named = store.manifest.extents.get(name, [])
            for number, size in pairs:
                if size and number not in named and not self._named_since(name, number):
                    self._say(
                        "MANIFEST.json", f"it does not name {name} {number}, which is committed"
                    )
        readers = {family.name: ExtentReader(store.path, family) for family in self._families()}
        covered: collections.Counter[tuple[str, int]] = collections.Counter()
        for key, value in store.keys.scan("commits"):
            try:
                parts = appends_in(value)
            except StoreDamagedError as error:
                self._say("keys", f"commit {int.from_bytes(key, 'big')}: {error}")
                continue
            for at, one in enumerate(parts):
                covered[one.family, one.extent] += one.length
                if one.family in readers:
                    place = Place(one.extent, one.offset, one.length)
                    if not self._append(readers[one.family], place, one.xxh64, key):
                        family = readers[one.family].family
                        self.damage.appends.append(DamagedAppend(key, at, family, place))
        for reader in readers.values():
            reader.close()
        for name, pairs in store.state.extents.items():
            for number, size in pairs:
                if covered[name, number] != size:
                    bytes_ = f"{size:,} bytes of {name} {number}"
                    self._say(
                        "keys", f"{bytes_} are committed, {covered[name, number]:,} by commits"
                    )

    def _families(self) -> list[Family]:
        """All that may be committed, whether the manifest names them or not."""
        families = [extents.PIXELS, extents.FINGERPRINTS]
        encoder = self._store.manifest.encoder
        if encoder is not None:
            families.append(extents.vectors(encoder.generation, encoder.dim))
            families.append(extents.vector_ids(encoder.generation))
        return families

    def _append(self, reader: ExtentReader, place: Place, xxh64: int, commit: bytes) -> bool:
        where = self._store.part(reader.family, place.extent)
        at = f"bytes {place.offset:,} to {place.offset + place.length:,}"
        commit_number = int.from_bytes(commit, "big")
        try:
            check = hashing.Checksum()
            for start in range(0, place.length, _READ):
                size = min(_READ, place.length - start)
                data = reader.read(Place(place.extent, place.offset + start, size))
                self._bytes += len(data)
                check.update(data)
        except StoreDamagedError as error:
            if self._rewritten(reader.family, place.extent):
                return True
            self._say(where, f"{at} of commit {commit_number} are lost: {error}")
            return False
        if check.value != xxh64:
            self._say(where, f"{at} of commit {commit_number} are damaged (wrong checksum)")
        return check.value == xxh64

    def _rewritten(self, family: Family, number: int) -> bool:
        """Whether an extent is gone because a writer has rewritten it while we read."""
        store = self._store
        if nofollow.status(store.path, family.inside(number)) is not None:
            return False
        # The manifest goes on naming what a commit has given up, until the writer has saved it.
        committed = any(n == number for n, _ in store.state.extents.get(family.name, ()))
        if committed and not store.is_behind():
            return False
        return number not in manifest.load(store.path).extents.get(family.name, [])

    def _named_since(self, name: str, number: int) -> bool:
        """Whether the manifest names an extent by now: it is read before the keys, which go on."""
        store = self._store
        return number in manifest.load(store.path).extents.get(name, []) or store.is_behind()

    # --- images -----------------------------------------------------------------------------------

    def _records(self) -> None:
        store = self._store
        by_id = self._read_records()
        self._all_there = True
        by_key = self._read_images()
        self.damage.images_known = True
        if by_id != by_key:
            self._pair()
        else:
            self._dead()
        if self._images != store.state.images:
            self._say(
                "keys", f"{store.state.images} images are committed, {self._images} are there"
            )
        given = store.state.next_id - 1
        if store.state.images + store.state.removed != given:
            self._say(
                "keys",
                f"{given} ids were given, and {store.state.images} images and "
                f"{store.state.removed} removed ones do not make them up",
            )
        prints = store.state.extents.get(extents.FINGERPRINTS.name, [])
        rows_kept = sum(size for _, size in prints) // extents.FINGERPRINTS.row_bytes
        if rows_kept != store.state.next_id - 1:
            self._say("fingerprints", f"{store.state.next_id - 1} are due, {rows_kept} are there")
        if self.damage.images:
            self.damage.images.sort()
            named = ", ".join(map(str, self.damage.images[:_MAX_NAMED]))
            more = len(self.damage.images) - _MAX_NAMED
            also = f" and {more} more" if more > 0 else ""
            images = "image" if len(self.damage.images) == 1 else "images"
            self._say("pixels", f"the kept pixels of {images} {named}{also} are damaged or lost")

    def _dead(self) -> None:
        """Whether what counts as dead of each extent of pixels is what no image has."""
        state = self._store.state
        committed = state.extents.get(extents.PIXELS.name, [])
        dead = {str(n): size - self._live[n] for n, size in committed if size != self._live[n]}
        if dead == state.dead:
            return
        self.damage.dead = dead
        for number in sorted(dead.keys() | state.dead.keys(), key=int):
            told, found = state.dead.get(number, 0), dead.get(number, 0)
            if told != found:
                part = self._store.part(extents.PIXELS, int(number))
                self._say(part, f"{told:,} bytes count as dead, {found:,} are of no image")

    def _removed(self) -> None:
        """Whether the ids that count as removed are those that have no record."""
        state = self._store.state
        found, bad = tombstones.read(self._store.keys, state.next_id)
        if bad:
            self._say("keys", f"{bad} rows of the ids of removed images are damaged")
        if not self._all_there:
            return
        missing = IdSet.none(state.next_id)
        missing.add_span(1, state.next_id - 1)
        missing = missing.without(self._there)
        few, many = missing.without(found), found.without(missing)
        if len(few):
            self._say("keys", f"{_first(few)} are not there and do not count as removed")
        if len(many):
            self._say("keys", f"{_first(many)} are there and count as removed")
        if (bad or len(few) or len(many)) and len(missing) == state.removed:
            self.damage.removed = missing  # else it is records that are damaged

    def _read_records(self) -> tuple[int, int]:
        """Read all records; how many images with a key they are of, and the sum of (id, key)."""
        total = 0
        records = (
            found
            for key, value in self._store.keys.scan("records")
            for found in record_keys(key, value)
        )
        for batch in _batches(records):
            ids = np.array([id_ for id_, _ in batch], np.int64)
            with_key = np.array([bool(key) for _, key in batch])  # vectors have none
            total += _sum(ids[with_key], [key for _, key in batch if key])
            self._there.add(ids)
            self._images += len(batch)
            self._given_vectors += int((~with_key).sum())
        return self._images - self._given_vectors, total & _SUM

    def _read_images(self) -> tuple[int, int]:
        """Read the rows of all images; how many there are, and the sum of (id, key)."""
        store = self._store
        committed = store.state.extents.get(extents.PIXELS.name, [])
        places = [one.place for one in self.damage.appends if one.family == extents.PIXELS]
        damaged = np.array(sorted(map(_span, places)), np.uint64).reshape(-1, 2)
        count = total = 0
        for batch in _batches(store.keys.scan("images")):
            rows = ImageRows.unpack([value for _, value in batch])
            total += _sum(rows.ids, [key[:_KEY] for key, _ in batch])
            count += len(batch)
            for id_ in rows.ids[~self._are_there(rows.ids)]:
                self._say("keys", f"image {id_} has a key and no record")
            self._kept(rows, committed, damaged)
            for number in np.unique(rows.extents[rows.kept]).tolist():
                mine = rows.kept & (rows.extents == number)
                self._live[number] += int(rows.lengths[mine].sum())
            for key in [key for key, _ in batch if len(key) > _KEY]:  # next to none
                id_ = int.from_bytes(key[_KEY:], "big")
                if id_ not in [row.id for row in store.image_of(key[:_KEY])]:
                    self._say("keys", f"image {id_} is not found by its key")
        return count, total & _SUM

    def _pair(self) -> None:
        """Look for the key of each record: some do not have theirs."""
        records = (
            found
            for key, value in self._store.keys.scan("records")
            for found in record_keys(key, value)
        )
        before = len(self._problems)
        for batch in _batches(record for record in records if record[1]):
            rows = self._store.images_of([key for _, key in batch])
            for (id_, _), found in zip(batch, rows, strict=True):
                if id_ not in [row.id for row in found]:
                    self._say("keys", f"image {id_} has a record and no key")
        if len(self._problems) == before:
            self._say("keys", "some keys are of images that have another one")

    def _kept(
        self, rows: ImageRows, committed: list[list[int]], damaged: npt.NDArray[np.uint64]
    ) -> None:
        """Whether the kept pixels of these images are where they can be, and whole.

        ``damaged`` is (n, 2): the spans of damaged appends, in order.
        """
        ends = rows.offsets + rows.lengths
        limits = np.zeros(len(ends), np.int64)
        for number, size in committed:
            limits[rows.extents == number] = size
        for id_ in rows.ids[rows.kept & (ends > limits)]:
            self._say("keys", f"the pixels of image {id_} lie behind what is committed")
        if len(damaged):
            starts = (rows.extents.astype(np.uint64) << _EXTENT) + rows.offsets.astype(np.uint64)
            at = np.searchsorted(damaged[:, 0], starts, "right") - 1
            inside = rows.kept & (at >= 0) & (starts < damaged[at, 1]) & self._are_there(rows.ids)
            for id_ in rows.ids[inside].tolist():
                if not self._is_whole(id_):
                    self.damage.images.append(id_)

    def _is_whole(self, id_: int) -> bool:
        """Whether what is kept of an image is what was kept."""
        try:
            record = self._store.get(id_)
        except StoreDamagedError:  # its key is gone, which is told elsewhere
            return True
        assert record.place is not None
        try:
            kept = self._pixels.read(record.place)
        except StoreDamagedError:
            return False
        return record.proof == hashing.proof(kept) or record.file_hash == hashing.file_hash(kept)

    def _files(self) -> None:
        for batch in _batches(self._store.keys.scan("files")):
            ids = np.array([int.from_bytes(id_, "big") for _, id_ in batch], np.int64)
            # After a removal, a file that had changed since may go on naming an image that is gone.
            there = self._given(ids) if self._store.state.removed else self._are_there(ids)
            for id_ in ids[~there]:
                self._say("keys", f"a file names image {id_}, not there")
        # There is nothing to compare these with.
        for key, value in self._store.keys.scan("arrays"):
            if key[:1] != b"#":
                (ArrayRow if key[:1] == b"n" else ArchiveRow).unpack(value)
        for _, value in self._store.keys.scan("rejects"):
            reject_in(value)

    # --- sources ----------------------------------------------------------------------------------

    def _names(self) -> None:
        store = self._store
        for batch in _batches(store.keys.scan("sources")):
            names = [key[8:] for key, _ in batch]
            values = self._values("names", names)
            ids = [int.from_bytes(key[:8], "big") for key, _ in batch]
            there = self._are_there(np.array(ids, np.int64)).tolist()
            for id_, is_there, name, value in zip(ids, there, names, values, strict=True):
                if not is_there:
                    self._say("keys", f"the source {name!r} is of image {id_}, which is not there")
                elif value is None or NameRow.unpack(value).id != id_:
                    self._say("keys", f"image {id_} names a source that is not its own: {name!r}")
        for batch in _batches(store.keys.scan("names")):
            self._sources += len(batch)
            wanted = [u64(NameRow.unpack(value).id) + name for name, value in batch]
            for (name, _), value in zip(batch, self._values("sources", wanted), strict=True):
                if value is None:
                    self._say("keys", f"the source {name!r} names an image that does not name it")
        self._names_counted = True

    def _runs(self) -> None:
        store = self._store
        for batch in _batches(store.keys.scan("runs", b"r")):
            runs = [Run.from_row(key, value) for key, value in batch]
            twins = self._values("runs", [run.by_id[0] for run in runs])
            for run, twin in zip(runs, twins, strict=True):
                if twin is None:
                    self._say("keys", f"rows {run.row} … of array {run.array} are not found by id")
                images = run.count if run.step else 1
                there = int(self._are_there(np.arange(run.id, run.id + images)).sum())
                self._sources += there if run.step else run.count
                # A run of several may go on covering images that were removed.
                whole = run.id + images <= store.state.next_id and there
                if not whole or (there < images and not store.state.removed):
                    self._say("keys", f"rows of array {run.array} name images that are not there")
        by_id = itertools.chain(store.keys.scan("runs", b"i"), store.keys.scan("runs", ONE))
        for batch in _batches(by_id):
            runs = [Run.from_id(key, value) for key, value in batch]
            twins = self._values("runs", [run.by_row[0] for run in runs])
            for run, twin in zip(runs, twins, strict=True):
                if twin != run.by_row[1]:
                    self._say("keys", f"rows {run.row} … of array {run.array} are found by id only")
        if self._names_counted and self._sources != store.state.sources:
            self._say(
                "keys", f"{store.state.sources} sources are committed, {self._sources} are there"
            )

    # --- vectors ----------------------------------------------------------------------------------

    def _encoder(self) -> None:
        entry = self._store.manifest.encoder
        if entry is None or entry.given:
            return
        folder = (self._store.path / entry.file).parent
        try:
            found = registry.read(folder, self._store.encoder_file)
            if found.sha256 != entry.fingerprint:
                raise EncoderError(f"{found.model} is not the encoder that made the vectors")
            OnnxEncoder(found, threads=1)  # proves the rest of the description
        except EncoderError as error:
            self.damage.encoder = True
            part = str(folder.relative_to(self._store.path))
            what = str(error).removesuffix(": copy it again")
            self._say(part, f"{what}; copy the files of the encoder {entry.name!r} to {folder}")

    def _vectors(self) -> None:
        store = self._store
        encoder = store.manifest.encoder
        if encoder is None:
            return
        for family in (
            extents.vectors(encoder.generation, encoder.dim),
            extents.vector_ids(encoder.generation),
        ):
            size = sum(size for _, size in store.state.extents.get(family.name, []))
            if size != store.vector_rows * family.row_bytes:
                self._say(family.folder, f"{store.vector_rows} rows are due, {size:,} bytes there")
                return
        vectors = store.open_vectors()
        live = 0
        seen = IdSet.none(store.state.next_id)
        known = True
        for start in range(0, store.vector_rows, _BATCH):
            rows = np.arange(start, min(start + _BATCH, store.vector_rows), dtype=np.int64)
            ids = vectors.ids(rows)
            ids = ids[ids != 0]  # of no image any more: set aside by a repair
            again = seen.has(ids).any() or len(np.unique(ids)) < len(ids)
            seen.add(ids)
            there = self._given(ids) if store.state.removed else self._are_there(ids)
            live += int(self._are_there(ids).sum())
            if again or not there.all():
                known = False
                self._say("vectors", f"rows {start} to {start + len(ids)} name unknown images")
                self.damage.unknown_ids = True
        vectors.close()
        ids_whole = all(
            one.family != extents.vector_ids(encoder.generation) for one in self.damage.appends
        )
        if known and ids_whole and self._all_there:
            self._removed_vectors(store.vector_rows - live)
            if encoder.given and live != self._given_vectors:
                what = f"{self._given_vectors} vectors have a record, {live} are there"
                self._say("vectors", what)
                self.damage.rows = True

    def _removed_vectors(self, found: int) -> None:
        """Whether as many vectors as are of removed images count as such."""
        encoder, told = self._store.manifest.encoder, self._store.state.removed_vectors
        assert encoder is not None
        removed = {str(encoder.generation): found} if found else {}
        if removed != told:
            self.damage.removed_vectors = removed
            counted = sum(told.values())
            self._say(
                "vectors", f"{counted} count as of removed images, {found} are of removed images"
            )

    def _index(self) -> None:
        store, named = self._store, self._store.manifest
        found = [
            (segment_path(store.path, entry.number), entry.bytes, entry.xxh64)
            for entry in named.segments
        ]
        found += [
            (quantizer_path(store.path, entry.number), entry.bytes, entry.xxh64)
            for entry in named.quantizers
        ]
        bad = [(path, what) for path, *sums in found if (what := file_problem(path, *sums))]
        self._bytes += sum(size for _, size, _ in found)
        if bad:  # a writer may have merged them while we read
            live = manifest.load(store.path).index_files(store.path)
            bad = [(path, what) for path, what in bad if path in live]
        for path, what in bad:
            self.damage.index.append(path)
            self._say(str(path.relative_to(store.path)), what)

    # --- inside -----------------------------------------------------------------------------------

    def _are_there(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of these images have records; where not all could be read, which may have."""
        return self._there.has(ids) if self._all_there else self._given(ids)

    def _given(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of these ids were ever given to an image."""
        given: npt.NDArray[np.bool_] = (ids > 0) & (ids < self._store.state.next_id)
        return given

    def _values(self, table: str, keys: Iterable[bytes]) -> list[bytes | None]:
        return self._store.keys.get_many(table, list(keys))


def _first(ids: IdSet) -> str:
    """ "images 3, 7 and 12 more"."""
    named = ", ".join(map(str, next(ids.blocks())[:_MAX_NAMED].tolist()))
    more = len(ids) - _MAX_NAMED
    return f"images {named}" + (f" and {more} more" if more > 0 else "")


def _span(place: Place) -> tuple[int, int]:
    """Where a place begins and ends, as numbers that are in the order of extents and offsets."""
    start = (place.extent << int(_EXTENT)) + place.offset
    return start, start + place.length


def _sum(ids: npt.NDArray[np.int64], keys: Iterable[bytes]) -> int:
    """A sum over (id, key), the same in any order; mixed, so that swapped ones have another."""
    halves = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)
    mixed = (halves[:, 0] ^ (ids.astype(np.uint64) * _ODD)) * _ODD
    mixed ^= mixed >> np.uint64(32)
    return int(((mixed + halves[:, 1]) * _ODD).sum(dtype=np.uint64))


def _batches(rows: Iterator[T]) -> Iterator[list[T]]:
    while batch := list(itertools.islice(rows, _BATCH)):
        yield batch
