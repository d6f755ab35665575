"""Makes the tables of the keys agree again, where rows of them were lost.

Each row is held against the others that say the same. What one table lacks is put there from
another, from kept pixels or from a source (engine.maintenance.recover_images); an image that has
lost its record or its key for good goes, and is named. Deletions may have been lost with a row:
what ``removed`` has of an id counts more than a record of it. In the end all counts are those of
what is there, and where rows may be missing that nothing tells of, arrays and archives are read
again by the next ingest.

Every step leaves the keys no worse than they were, and the mark of a rescue goes with the last one: a
process that is killed in between leaves what the next run goes on with.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import numpy as np

from engine.errors import StoreDamagedError
from engine.maintenance import recover_images
from engine.maintenance.recover_images import Unkeyed
from engine.records import Kind, Pixels, Problem
from engine.storage import tombstones, unrecorded_commits
from engine.storage.bitmap import IdSet
from engine.storage.changeset import Chunk, Rekept
from engine.storage.commit_evidence import MARK
from engine.storage.extents import PIXELS
from engine.storage.live_ids import blocks_of, sources_in
from engine.storage.rows import (
    ONE,
    ArchiveRow,
    ArrayRow,
    ImageRow,
    ImageRows,
    NameRow,
    RecordRow,
    RowError,
    Run,
    pack_records,
    record_in,
    record_keys,
    record_span,
    record_without,
    reject_in,
    u64,
)
from engine.storage.writer import StoreFiles

T = TypeVar("T")
_KEY, _ID = 16, 8  # bytes
_BATCH = 1000
_WINDOW = 1 << 16  # images without a key that are looked for at a time
_IDS = 1 << 16  # ids of vectors at a time
_NAMED = 20  # ids or sources in one line
_UNREAD = -1  # the stamp of what is to be read again
_BAD = (
    RowError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    OverflowError,
    AttributeError,
    struct.error,
)


class Reconcile:
    """One pass over all keys of a store, by its writer."""

    def __init__(self, store: StoreFiles, *, ids_whole: bool = True) -> None:
        """``ids_whole``: whether the ids of vectors are what was committed."""
        self._store = store
        self._ids_whole = ids_whole
        self._keys = store.keys
        self._size = store.state.next_id
        self._rows: list[tuple[str, bytes, bytes | None]] = []
        self._there = IdSet.none(self._size)
        self._gone, bad = tombstones.read(self._keys, self._size)
        self._changed = bad > 0  # rows were missing, or said what others do not
        self._lost_names: list[bytes] = []
        self._lost_name_count = 0
        self._restored = 0
        self._problems: list[Problem] = []
        mark = self._keys.get("meta", MARK)
        self._rescued = mark is not None
        with suppress(*_BAD):
            self._changed |= mark is not None and bool(json.loads(mark)["lost"])

    def run(self) -> list[Problem]:
        """Reconcile; what was lost for good."""
        self._records()
        self._vectors()
        self._images()
        self._unkeyed()
        self._strays()
        self._sources()
        self._names()
        self._files()
        self._runs()
        self._arrays()
        self._tell()
        self._finish()
        return self._problems

    # --- records and keys -------------------------------------------------------------------------

    def _records(self) -> None:
        """Which ids have a record; those that were removed have none."""
        for key, value in self._keys.scan("records"):
            try:
                found = list(record_keys(key, value))
                good = len(key) == _ID and all(len(k) in (0, _KEY) for _, k in found)
                good = good and record_in(key, value, found[0][0]) is not None if found else False
            except _BAD:
                good = False
            if not good:
                self._delete("records", key)
                continue
            self._there.add(np.array([id_ for id_, _ in found], np.int64))
            over = [id_ for id_, _ in found if not 0 < id_ < self._size]
            if over:
                self._put("records", key, record_without(key, value, over))
        self._flush()
        both = IdSet(self._there.bits & self._gone.bits, self._size)
        absent = self._size - 1 - len(self._there)
        if not len(both):
            return
        if not self._rescued and absent == self._store.state.removed:
            # As many have no record as were removed: it is the bitmap that is wrong.
            self._gone = self._gone.without(both)
            return
        for ids in both.blocks():
            for key, value, mine in blocks_of(self._keys, ids.tolist()):
                self._put("records", key, record_without(key, value, mine.tolist()))
        self._flush()
        self._there = self._there.without(both)

    def _vectors(self) -> None:
        """Each vector that was brought has a record, and each record of one a vector."""
        store, encoder = self._store, self._store.manifest.encoder
        if encoder is None or not encoder.given or not self._ids_whole:
            return
        with suppress(StoreDamagedError):
            vectors = store.open_vectors()
            named = IdSet.none(self._size)
            try:
                for block in vectors.id_blocks(0, vectors.rows, _IDS):
                    named.add(block[block > 0])
            finally:
                vectors.close()
            self._drop_without_vector(named)
            missing = named.without(self._there).without(self._gone)
            shape = Pixels(Kind.VECTOR, 1, encoder.dim, 1, 1, b"")
            for ids in missing.blocks():
                free = ids[~self._are_covered(ids.tolist())]
                for part in np.split(free, np.flatnonzero(np.diff(free) > 1) + 1):
                    if len(part):
                        qualities = np.zeros(len(part), np.uint8)
                        for key, value in pack_records(int(part[0]), shape, [], qualities):
                            self._put("records", key, value)
                self._there.add(free)
                self._flush()
                self._changed = True

    def _drop_without_vector(self, named: IdSet) -> None:
        """Drop the records of vectors that are gone: the vector is all that such an image is."""
        lost = IdSet.none(self._size)
        for ids in self._there.without(named).blocks():
            lost.add(ids[~self._store.may_be_images(ids)])
        if not len(lost):
            return
        for ids in lost.blocks():
            for key, value, mine in blocks_of(self._keys, ids.tolist()):
                self._put("records", key, record_without(key, value, mine.tolist()))
        self._flush()
        self._there = self._there.without(lost)
        self._changed = True

    def _are_covered(self, ids: list[int]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which ids lie inside of a row of records that says that they are gone."""
        return np.array([self._is_covered(id_) for id_ in ids], np.bool_)

    def _is_covered(self, id_: int) -> bool:
        row = self._keys.at_or_before("records", u64(id_))
        if row is None or len(row[0]) != _ID:
            return False
        return id_ < int.from_bytes(row[0], "big") + record_span(row[1])

    def _images(self) -> None:
        """Rows of ``images``: of images that are there, under the keys that lead to them."""
        limits = {pair[0]: pair[1] for pair in self._store.state.extents.get(PIXELS.name, [])}
        first: tuple[bytes, ImageRow] | None = None  # under a bare key
        for key, value in self._keys.scan("images"):
            try:
                row: ImageRow | None = ImageRow.unpack(value)
            except _BAD:
                row = None
            bare = key[:_KEY]
            if row is None or len(key) not in (_KEY, _KEY + _ID) or not self._is_image(bare, row):
                self._delete("images", key)
                self._changed = True
                continue
            before = row
            if row.place is not None:
                end = row.place.offset + row.place.length
                if end > limits.get(row.place.extent, 0):
                    row = row._replace(place=None)
            if len(key) == _KEY:
                first = key, row
            elif first is None or first[0] != bare:  # the first image of the key is lost
                self._delete("images", key)
                self._put("images", bare, row._replace(shared=False).pack())
                first = bare, row
                continue
            elif not first[1].shared:
                first = bare, first[1]._replace(shared=True)
                self._put("images", *_packed(first))
            if row != before:
                self._put("images", key, row.pack())
        self._flush()

    def _is_image(self, key: bytes, row: ImageRow) -> bool:
        """Whether an image is there, if need be with a record that is made again."""
        id_ = row.id
        if self._has(self._there, id_):
            return True
        if not 0 < id_ < self._size or self._has(self._gone, id_) or self._is_covered(id_):
            return False
        record = recover_images.record_of(self._store, id_, key, row)
        if record is None:
            return False
        self._put("records", u64(id_), record.pack())
        self._there.add(np.array([id_], np.int64))
        self._restored += 1
        self._changed = True
        return True

    def _unkeyed(self) -> None:
        """Find the row in ``images`` of each record again; without one an image is lost."""
        window: list[Unkeyed] = []
        for batch in _batches(self._with_key()):
            rows = self._store.images_of([key for _, key in batch])
            for (id_, key), found in zip(batch, rows, strict=True):
                if id_ not in [row.id for row in found]:
                    record = self._store.record(id_)
                    if record is not None and record.key == key:
                        window.append(Unkeyed(id_, record))
            if len(window) >= _WINDOW:
                self._find(window)
                window = []
        self._find(window)

    def _with_key(self) -> Iterator[tuple[int, bytes]]:
        for key, value in self._keys.scan("records"):
            yield from ((id_, image) for id_, image in record_keys(key, value) if image)

    def _find(self, window: list[Unkeyed]) -> None:
        if not window:
            return
        self._changed = True
        keys = {one.id: one.record.key for one in window}
        for id_, row, keep in recover_images.rows_of(self._store, window):
            key = keys.pop(id_)
            self._flush()
            before = self._store.image_of(key)
            if before:
                self._put("images", key, before[0]._replace(shared=True).pack())
                key += u64(id_)
            self._put("images", key, row.pack())
            if keep is not None:
                self._flush()
                self._store.commit(Chunk(rekept=[Rekept(key, row, keep)]))
            self._restored += 1
        for key, value, mine in blocks_of(self._keys, sorted(keys)):
            self._put("records", key, record_without(key, value, mine.tolist()))
        self._flush()
        lost = IdSet.of(np.array(sorted(keys), np.int64), self._size)
        self._there = self._there.without(lost)

    def _strays(self) -> None:
        """Take away rows of images whose record has another key: more rows than records with one."""
        with_key = sum(1 for _ in self._with_key())
        if sum(1 for _ in self._keys.scan("images")) == with_key:
            return
        for batch in _batches(self._keys.scan("images")):
            for key, value in batch:
                row = ImageRow.unpack(value)
                record = self._store.record(row.id)
                if record is None or record.key != key[:_KEY]:
                    self._delete("images", key)
                    self._changed = True
        self._flush()

    # --- sources ----------------------------------------------------------------------------------

    def _sources(self) -> None:
        """Each source is of an image that is there, and its name leads to it."""
        for batch in _batches(self._keys.scan("sources")):
            names = [key[_ID:] for key, _ in batch]
            values = self._keys.get_many("names", names)
            single = []
            for (key, _), name, value in zip(batch, names, values, strict=True):
                id_ = int.from_bytes(key[:_ID], "big")
                if len(key) <= _ID or not self._has(self._there, id_):
                    self._delete("sources", key)
                    self._changed = True
                    if not self._has(self._gone, id_):
                        self._lose(name)
                    continue
                other = _name_row(value)
                if other is not None and other.id != id_ and self._names_back(other.id, name):
                    self._delete("sources", key)
                    self._changed = True
                    continue
                single.append(id_)
                if other is None or other.id != id_:
                    self._put("names", name, NameRow(id_, _UNREAD, 0).pack())
                    self._changed = True
            self._leave_runs(single)
        self._flush()

    def _names_back(self, id_: int, name: bytes) -> bool:
        there = self._has(self._there, id_)
        return there and self._keys.get("sources", u64(id_) + name) is not None

    def _leave_runs(self, ids: Iterable[int]) -> None:
        """Images with a source outside of runs of several: their rows may be old and say otherwise."""
        if not self._rescued:
            return
        keys = {}
        for key, value, mine in blocks_of(self._keys, sorted(set(ids))):
            for id_ in mine.tolist():
                record = record_in(key, value, id_)
                if record is not None and record.key:
                    keys[id_] = record.key
        rows = self._store.images_of(list(keys.values()))
        for (id_, key), found in zip(keys.items(), rows, strict=True):
            if found and found[0].id == id_ and found[0].in_runs:
                self._put("images", key, found[0]._replace(in_runs=False).pack())

    def _names(self) -> None:
        for batch in _batches(self._keys.scan("names")):
            rows = [(name, _name_row(value)) for name, value in batch]
            wanted = [u64(row.id) + name if row else b"" for name, row in rows]
            found = self._keys.get_many("sources", wanted)
            for (name, row), source, value in zip(rows, wanted, found, strict=True):
                if row is None or not self._has(self._there, row.id):
                    self._delete("names", name)
                    self._changed = True
                    if row is not None and not self._has(self._gone, row.id):
                        self._lose(name)
                elif value is None:
                    self._put("sources", source, b"")
                    self._changed = True
        self._flush()

    def _files(self) -> None:
        """Each file leads to an image that is there, and each image's own file to it."""
        for key, value in self._keys.scan("files"):
            id_ = int.from_bytes(value, "big")
            if len(value) != _ID or not self._has(self._there, id_):
                self._delete("files", key)
        self._flush()
        for batch in _batches(self._hashed()):
            found = self._keys.get_many("files", [file_hash for _, file_hash in batch])
            for (id_, file_hash), named in zip(batch, found, strict=True):
                if named is None:
                    self._put("files", file_hash, u64(id_))
        self._flush()

    def _hashed(self) -> Iterator[tuple[int, bytes]]:
        for key, value in self._keys.scan("records"):
            if value[0] == 1:  # rows of arrays have no file
                record = RecordRow.unpack(value)
                if record.file_hash:
                    yield int.from_bytes(key, "big"), record.file_hash

    def _runs(self) -> None:
        """Runs are found by row and by id, and are of images that are there, of arrays with a name."""
        names: dict[int, bool] = {}
        for batch in _batches(self._keys.scan("runs", b"r")):
            for key, value in batch:
                run = _run(key, value)
                if run is None or not self._is_run(run, names):
                    self._delete("runs", key)
                    if run is not None:
                        self._delete("runs", run.by_id[0])
                    self._changed = True
                elif self._keys.get("runs", run.by_id[0]) != run.by_id[1]:
                    self._put("runs", *run.by_id)
                    self._changed = True
        self._flush()
        alone = []
        by_id = itertools.chain(self._keys.scan("runs", b"i"), self._keys.scan("runs", ONE))
        for key, value in by_id:
            run = _run(key, value)
            twin = self._keys.get("runs", run.by_row[0]) if run is not None else None
            if run is not None and twin is None and self._is_run(run, names):
                self._put("runs", *run.by_row)
                self._changed = True
            elif run is None or twin != run.by_row[1]:
                self._delete("runs", key)
                self._changed = True
                continue
            if not run.several:
                alone.append(run.id)
            if len(alone) >= _BATCH:
                self._leave_runs(alone)
                alone = []
        self._leave_runs(alone)
        self._flush()

    def _is_run(self, run: Run, names: dict[int, bool]) -> bool:
        if run.array not in names:
            by_number = b"#" + run.array.to_bytes(4, "big")
            names[run.array] = self._keys.get("arrays", by_number) is not None
        images = run.count if run.step else 1
        whole = run.count > 0 and run.id > 0 and run.id + images <= self._size
        return names[run.array] and whole and bool(self._are_there(run.id, images).any())

    def _arrays(self) -> None:
        """Each array's number leads to its name and back; where rows are lost, it is read again."""
        given = self._store.manifest.encoder is not None and self._store.manifest.encoder.given
        for key, value in self._keys.scan("arrays"):
            try:
                if key[:1] == b"#":
                    number = int.from_bytes(key[1:], "big")
                    row = self._keys.get("arrays", b"n" + value)
                    if row is None:
                        kind = Kind.VECTOR if given else Kind.BITS
                        marked = ArrayRow(number, _UNREAD, _UNREAD, 0, kind)
                        self._put("arrays", b"n" + value, marked.pack())
                elif key[:1] == b"n":
                    array = ArrayRow.unpack(value)
                    by_number = b"#" + array.number.to_bytes(4, "big")
                    if self._keys.get("arrays", by_number) is None:
                        self._put("arrays", by_number, key[1:])
                    if self._changed and array.size != _UNREAD:
                        marked = replace(array, mtime_ns=_UNREAD, size=_UNREAD)
                        self._put("arrays", key, marked.pack())
                else:
                    ArchiveRow.unpack(value)
                    if self._changed:
                        self._put("arrays", key, ArchiveRow(_UNREAD, _UNREAD).pack())
            except _BAD:
                self._delete("arrays", key)
        for key, value in self._keys.scan("rejects"):
            try:
                reject_in(value)
            except _BAD:
                self._delete("rejects", key)
        self._flush()

    # --- counts -----------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Commit counts that are those of what is there, and what extents hold by whom."""
        store, state = self._store, self._store.state.next()
        every = IdSet.none(self._size)
        every.add_span(1, self._size - 1)
        missing = every.without(self._there)
        rows: list[tuple[str, bytes, bytes | None]] = []
        rows += [(tombstones.TABLE, key, None) for key, _ in self._keys.scan(tombstones.TABLE)]
        rows += [(tombstones.TABLE, *row) for row in tombstones.rows_of(missing)]
        state.images, state.removed = len(self._there), len(missing)
        runs = (Run.from_row(*row) for row in self._keys.scan("runs", b"r"))
        state.sources = sum(sources_in(self._keys, run) for run in runs)
        state.sources += sum(1 for _ in self._keys.scan("names"))
        state.dead = self._dead()
        appends = unrecorded_commits.mended(store, state.commit)
        rows += [("commits", key, found) for key, found in appends]
        numbers = [int.from_bytes(key, "big") for key, found in appends if found is not None]
        state.commit = max([state.commit, *numbers])
        rows.append(("meta", b"manifest", store.manifest.dump()))
        rows.append(("meta", MARK, None))
        store.put_rows(rows, state)

    def _dead(self) -> dict[str, int]:
        live: Counter[int] = Counter()
        for batch in _batches(self._keys.scan("images")):
            found = ImageRows.unpack([value for _, value in batch])
            for number in np.unique(found.extents[found.kept]).tolist():
                mine = found.kept & (found.extents == number)
                live[number] += int(found.lengths[mine].sum())
        committed = self._store.state.extents.get(PIXELS.name, [])
        return {str(n): size - live[n] for n, size in committed if size > live[n]}

    def _tell(self) -> None:
        """Say which images are lost, and which of their sources are known."""
        every = IdSet.none(self._size)
        every.add_span(1, self._size - 1)
        lost = every.without(self._there).without(self._gone)
        if len(lost) and (
            self._rescued or len(every) - len(self._there) != self._store.state.removed
        ):
            shown = ", ".join(map(str, next(lost.blocks())[:_NAMED].tolist()))
            more = f" and {len(lost) - _NAMED:,} more" if len(lost) > _NAMED else ""
            what = f"{len(lost):,} images are lost ({shown}{more})"
            if self._lost_name_count:
                names = ", ".join(os.fsdecode(name) for name in self._lost_names)
                others = self._lost_name_count - len(self._lost_names)
                names += f" and {others:,} more" if others else ""
                what += f"; they were seen in {names}"
            again = f"{what}; ingest the same sources again"
            self._problems.append(Problem("keys", again, fixed=True))
        if self._restored:
            what = f"what was lost of {self._restored:,} images was found again in the images"
            self._problems.append(Problem("keys", what, fixed=True))

    def _lose(self, name: bytes) -> None:
        if name not in self._lost_names:
            self._lost_name_count += 1
            if len(self._lost_names) < _NAMED:
                self._lost_names.append(name)

    # --- inside -----------------------------------------------------------------------------------

    def _has(self, ids: IdSet, id_: int) -> bool:
        return 0 < id_ < self._size and bool(ids.bits[id_ >> 3] >> (id_ & 7) & 1)

    def _are_there(self, first: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return self._there.has(np.arange(first, first + count, dtype=np.int64))

    def _put(self, table: str, key: bytes, value: bytes | None) -> None:
        self._rows.append((table, key, value))
        if len(self._rows) >= _BATCH:
            self._flush()

    def _delete(self, table: str, key: bytes) -> None:
        self._put(table, key, None)

    def _flush(self) -> None:
        if self._rows:
            self._store.put_rows(self._rows)
            self._rows = []


def _packed(first: tuple[bytes, ImageRow]) -> tuple[bytes, bytes]:
    return first[0], first[1].pack()


def _name_row(value: bytes | None) -> NameRow | None:
    try:
        return NameRow.unpack(value) if value is not None else None
    except _BAD:
        return None


def _run(key: bytes, value: bytes) -> Run | None:
    """The run of a row; None where it is none, or does not lie where it would."""
    try:
        run = Run.from_row(key, value) if key[:1] == b"r" else Run.from_id(key, value)
        return run if (run.by_row if key[:1] == b"r" else run.by_id)[0] == key else None
    except _BAD:
        return None


def _batches(rows: Iterator[T]) -> Iterator[list[T]]:
    while batch := list(itertools.islice(rows, _BATCH)):
        yield batch
