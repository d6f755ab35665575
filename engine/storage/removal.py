"""Works out which rows go when images, or some of their sources, are removed.

The fingerprint, vector and pixels of a removed image stay where they are, and runs over several images
may still cover it. Ids are not used again; a reader that meets an id without a record skips it. The
image's record, key, names and file rows are deleted. Arrays and archives that lose a source are marked,
so that the next ingest reads them again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.storage.changeset import Removal
from engine.storage.image_rows import ImageRow
from engine.storage.live_ids import blocks_of, live
from engine.storage.record_rows import record_in, record_without
from engine.storage.runs import BUCKET_BITS, Run
from engine.storage.snapshot import Snapshot
from engine.storage.source_rows import ArchiveRow, ArrayRow
from engine.storage.table import RowChange
from engine.storage.tables import UNREAD

# A name may hold more "#"; only this many are tried as the end of an archive's name.
_MAX_MARKS = 256


@dataclass(slots=True)
class RemovalRequest:
    """What one commit is to remove, without duplicates."""

    # Ascending. These images go with all their sources.
    ids: list[int] = field(default_factory=list)
    # A file name and the id of its image.
    names: list[tuple[bytes, int]] = field(default_factory=list)
    # A stored run, and the part of it that goes.
    rows: list[tuple[Run, Run]] = field(default_factory=list)
    # Arrays without rows, by name and number.
    arrays: list[tuple[bytes, int]] = field(default_factory=list)
    archives: list[bytes] = field(default_factory=list)
    rejects: list[bytes] = field(default_factory=list)
    # Counted as they are added, because the length is read after each.
    _images_of_rows: int = 0

    def add_rows(self, run: Run, part: Run) -> None:
        """Add a part of a stored run."""
        self.rows.append((run, part))
        self._images_of_rows += part.count if part.step else 1

    def __len__(self) -> int:
        """Return how many rows of the keys it affects; a run counts as its images."""
        others = len(self.names) + 2 * len(self.arrays) + len(self.archives) + len(self.rejects)
        return self._images_of_rows + len(self.ids) + others


@dataclass(slots=True)
class _Image:
    """An image that is removed, or loses a source."""

    id: int
    key: bytes
    file_hash: bytes
    # None if its key is damaged.
    row: ImageRow | None = None
    # Whether other images have the same key.
    shared: bool = False


def plan_removal(
    view: Snapshot, request: RemovalRequest, max_sources: int
) -> tuple[Removal, list[int]]:
    """Return the removal for ``request``, and the requested ids left for the next commit.

    Images that lose their last source go too. One commit removes about ``max_sources`` sources; an image
    with more of them goes in a later commit, after these.
    """
    return RemovalPlanner(view, max_sources).plan(request)


class RemovalPlanner:
    """Plans one commit of a removal. ``plan`` may be called once."""

    def __init__(self, view: Snapshot, max_sources: int) -> None:
        self._view = view
        self._keys = view.keys
        self._tables = view.tables
        self._max_sources = max_sources
        self._removal = Removal()
        self._images: dict[int, _Image] = {}
        # Key and value of each ``records`` row with images that are affected, and their ids.
        self._blocks: list[tuple[bytes, bytes, list[int]]] = []
        self._gone: set[int] = set()
        # Removed names: the image and the file hash of each.
        self._names: dict[bytes, tuple[int, bytes]] = {}
        # Runs that lose parts, by the run's row.
        self._cuts: dict[bytes, tuple[Run, list[Run]]] = {}
        # Parts of runs over several images, by bucket.
        self._parts: defaultdict[int, list[Run]] = defaultdict(list)
        # Arrays that lose rows.
        self._arrays: set[int] = set()
        self._deleted_runs: set[bytes] = set()
        # Arrays that certainly keep some rows.
        self._put_runs: set[int] = set()

    def plan(self, request: RemovalRequest) -> tuple[Removal, list[int]]:
        """Return the removal, and the requested ids left for the next commit."""
        for run, part in request.rows:
            self._cut(run, part)
        hashes = self._tables.sources.get_many(
            [self._tables.sources.key(id_, name) for name, id_ in request.names]
        )
        for (name, id_), hash_ in zip(request.names, hashes, strict=True):
            self._names[name] = (id_, hash_ or b"")
        touched = {id_ for _, id_ in request.names}
        for _, part in request.rows:
            touched.update(range(part.id, part.id + (part.count if part.step else 1)))
        touched.update(request.ids)
        self._load(sorted(touched))
        left = self._choose(request.ids)
        self._lose_last(touched)
        self._put_runs_left()
        self._put_names()
        self._put_records()
        self._put_images()
        self._put_arrays()
        for name, number in request.arrays:
            self._change_all(self._tables.arrays.delete_array(name, number))
        self._change_all(map(self._tables.arrays.delete_archive, request.archives))
        self._change_all(self._tables.rejects.change(name, None) for name in request.rejects)
        self._removal.images = sorted(self._gone)
        self._removal.vectors = self._count_vectors()
        return self._removal, left

    def _count_vectors(self) -> int:
        """Return how many of the removed images have a vector."""
        if not self._view.vector_rows:
            return 0
        vectors = self._view.open_vectors()
        try:
            gone = np.array(sorted(self._gone), np.int64)
            return int(vectors.have(gone, self._view.state.next_id).sum())
        finally:
            vectors.close()

    # --- what is removed --------------------------------------------------------------------------

    def _cut(self, run: Run, part: Run) -> None:
        self._cuts.setdefault(run.by_row[0], (run, []))[1].append(part)
        if run.several:
            self._parts[run.id >> BUCKET_BITS].append(part)

    def _load(self, ids: Sequence[int]) -> None:
        """Load the records and rows of these images."""
        for key, value, held in blocks_of(self._keys, ids):
            self._blocks.append((key, value, held.tolist()))
            for id_ in held.tolist():
                record = record_in(key, value, id_)
                assert record is not None
                self._images[id_] = _Image(id_, record.key, record.file_hash)
        found = [image for image in self._images.values() if image.key]
        rows = self._view.images_of([image.key for image in found])
        for image, candidates in zip(found, rows, strict=True):
            image.row = next((row for row in candidates if row.id == image.id), None)
            image.shared = bool(candidates) and candidates[0].shared

    def _in_runs(self, id_: int) -> bool:
        row = self._images[id_].row
        return row is not None and row.in_runs

    def _choose(self, ids: Sequence[int]) -> list[int]:
        """Take requested images with all their sources; return those left for later."""
        for at, id_ in enumerate(ids):
            if id_ not in self._images:
                continue
            if not self._in_runs(id_):
                for name, file_hash in self._tables.sources.of(id_):
                    if len(self._names) >= self._max_sources:
                        return list(ids[at:])
                    self._names[name] = (id_, file_hash)
                for run in self._tables.runs.of_one(id_):
                    if len(self._cuts) >= self._max_sources:
                        return list(ids[at:])
                    self._cut(run, run)
            self._gone.add(id_)
        return []

    def _lose_last(self, touched: Iterable[int]) -> None:
        """Take images that lose their last source, and count the sources that go."""
        alive = [id_ for id_ in sorted(touched) if id_ in self._images]
        named = self._gone.copy()
        for bucket, ids in _by_bucket(alive):
            cover = self._cover(bucket)
            for id_ in ids:
                rows = int(cover[id_ - (bucket << BUCKET_BITS)])
                if id_ in named:
                    self._removal.sources += rows
                elif not rows and (self._in_runs(id_) or not self._has_others(id_)):
                    self._gone.add(id_)

    def _cover(self, bucket: int) -> npt.NDArray[np.int64]:
        """Count the rows in runs of several that each image of a bucket keeps, and those that go."""
        base = bucket << BUCKET_BITS
        edges = np.zeros((1 << BUCKET_BITS) + 1, np.int64)
        for run in self._tables.runs.in_bucket(base):
            edges[run.id - base] += 1
            edges[run.id - base + run.count] -= 1
        for part in self._parts.get(bucket, []):
            edges[part.id - base] -= 1
            edges[part.id - base + part.count] += 1
            rows = range(part.id, part.id + part.count)
            self._removal.sources += sum(id_ in self._images for id_ in rows)
        return edges.cumsum()

    def _has_others(self, id_: int) -> bool:
        """Return whether an image keeps a name, or a run of its own."""
        if any(name not in self._names for name in self._tables.sources.names_of(id_)):
            return True
        for run in self._tables.runs.of_one(id_):
            parts = self._cuts.get(run.by_row[0], (run, []))[1]
            if sum(part.count for part in parts) < run.count:
                return True
        return False

    # --- runs and arrays --------------------------------------------------------------------------

    def _put_runs_left(self) -> None:
        # Images that keep a run of their own.
        alone: set[int] = set()
        for run, parts in list(self._cuts.values()):
            if not run.several:
                self._removal.sources += sum(part.count for part in parts)
                pieces = _pieces(run, parts) if run.id not in self._gone else []
                self._replace(run, pieces)
                alone |= {piece.id for piece in pieces}
        buckets = self._parts.keys() | {id_ >> BUCKET_BITS for id_ in self._gone}
        gone = np.array(sorted(self._gone), np.int64)
        for bucket in sorted(buckets):
            alone |= self._put_bucket(bucket, gone)
        self._leave_runs(alone)

    def _put_bucket(self, bucket: int, gone: npt.NDArray[np.int64]) -> set[int]:
        base = bucket << BUCKET_BITS
        # Most buckets have no runs, and reading records is expensive.
        if next(self._tables.runs.in_bucket(base), None) is None:
            return set()
        inside = gone[(gone >= base) & (gone < base + (1 << BUCKET_BITS))] - base
        there = live(self._keys, base, 1 << BUCKET_BITS)
        there[inside] = False
        before = np.zeros(len(there) + 1, np.int64)
        # The number of live images before each position.
        before[1:] = there.cumsum()
        alone: set[int] = set()
        for run in self._tables.runs.in_bucket(base):
            at = run.id - base
            cut = self._cuts.get(run.by_row[0])
            if cut is None and not len(inside):
                continue
            first, last = np.searchsorted(inside, [at, at + run.count])
            if cut is None and first == last:
                continue
            pieces = _pieces(run, cut[1]) if cut is not None else [run]
            pieces = [p for p in pieces if before[p.id - base + p.count] > before[p.id - base]]
            if pieces == [run]:
                self._arrays.add(run.array)
                self._put_runs.add(run.array)
            else:
                self._replace(run, pieces)
                alone |= {piece.id for piece in pieces if not piece.several}
        return alone

    def _replace(self, run: Run, pieces: Sequence[Run]) -> None:
        self._arrays.add(run.array)
        self._change_all(self._tables.runs.delete(run))
        self._deleted_runs.add(run.by_row[0])
        for piece in pieces:
            self._change_all(self._tables.runs.put(piece))
            self._put_runs.add(run.array)

    def _leave_runs(self, alone: Iterable[int]) -> None:
        """Clear the ``in_runs`` flag of images that now have a run of their own."""
        images = self._tables.images
        new = sorted(set(alone) - self._images.keys())
        for key, value, held in blocks_of(self._keys, new):
            for id_ in held.tolist():
                record = record_in(key, value, id_)
                assert record is not None
                for row in self._view.image_of(record.key)[:1]:
                    if row.id == id_ and row.in_runs:
                        self._change(images.put(record.key, row._replace(in_runs=False)))
        for id_ in alone:
            image = self._images.get(id_)
            if image is not None and image.row is not None and image.row.in_runs:
                self._change(images.put(image.key, image.row._replace(in_runs=False)))

    def _put_arrays(self) -> None:
        for number in sorted(self._arrays):
            arrays = self._tables.arrays
            name = arrays.name_of(number)
            if name is None:
                continue
            array = arrays.array(name)
            mine = array is not None and array.number == number
            keeps_rows = number in self._put_runs
            keeps_rows = keeps_rows or self._tables.runs.has_rows(number, self._deleted_runs)
            if not keeps_rows:
                self._change(arrays.change(arrays.number_key(number), None))
                if mine:
                    self._change(arrays.change(arrays.array_key(name), None))
            elif array is not None and mine and array.size != UNREAD:
                marked = ArrayRow(number, UNREAD, UNREAD, array.rows, array.kind)
                self._change(arrays.change(arrays.array_key(name), marked.pack()))

    # --- images and their names -------------------------------------------------------------------

    def _put_names(self) -> None:
        sources, arrays = self._tables.sources, self._tables.arrays
        names = list(self._names)
        values = self._view.names(names)
        archives: dict[bytes, None] = {}
        for name, row in zip(names, values, strict=True):
            id_ = self._names[name][0]
            self._change(sources.change(sources.key(id_, name), None))
            if row is not None and row.id == id_:
                self._change(self._tables.names.change(name, None))
                self._removal.sources += 1
            at = name.find(b"#")
            for _ in range(_MAX_MARKS):
                if at < 0:
                    break
                archives[arrays.archive_key(name[:at])] = None
                at = name.find(b"#", at + 1)
        marked = list(archives)
        # An archive that loses a member is read again by the next ingest.
        for key, value in zip(marked, arrays.get_many(marked), strict=True):
            if value:
                self._change(arrays.change(key, ArchiveRow(UNREAD, UNREAD).pack()))

    def _put_records(self) -> None:
        for key, value, held in self._blocks:
            mine = [id_ for id_ in held if id_ in self._gone]
            if mine:
                left = record_without(key, value, mine)
                self._change(self._tables.records.change(key, left))

    def _put_images(self) -> None:
        hashes: dict[bytes, int] = {}
        shared: dict[bytes, None] = {}
        for id_ in sorted(self._gone):
            image = self._images[id_]
            if image.file_hash:
                hashes[image.file_hash] = id_
            if image.row is None:
                continue
            if image.row.place is not None:
                self._removal.dead.append(image.row.place)
            if image.shared:
                shared[image.key] = None
            else:
                self._change(self._tables.images.change(image.key, None))
        for key in shared:
            self._share(key)
        for id_, value in self._names.values():
            if value and id_ in self._gone:
                hashes[value] = id_
        files = self._tables.files
        found = files.get_many(list(hashes))
        for (hash_, id_), named in zip(hashes.items(), found, strict=True):
            if named == files.put(hash_, id_).value:
                self._change(files.change(hash_, None))

    def _share(self, key: bytes) -> None:
        """Update the rows of a key that several images share, after some of these images go."""
        images = self._tables.images
        rows = self._view.image_of(key)
        left = [row for row in rows if row.id not in self._gone]
        for row in rows[1:]:
            if row not in left or row is left[0]:
                self._change(images.change(images.further_key(key, row.id), None))
        if left:
            self._change(images.put(key, left[0]._replace(shared=len(left) > 1)))
        else:
            self._change(images.change(key, None))

    def _change(self, change: RowChange) -> None:
        self._removal.rows.append(change)

    def _change_all(self, changes: Iterable[RowChange]) -> None:
        self._removal.rows.extend(changes)


def _by_bucket(ids: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    found: defaultdict[int, list[int]] = defaultdict(list)
    for id_ in ids:
        found[id_ >> BUCKET_BITS].append(id_)
    yield from found.items()


def _pieces(run: Run, parts: Sequence[Run]) -> list[Run]:
    """Return the parts of a run that remain without ``parts``, which do not overlap."""
    left, row = [], run.row
    for part in sorted(parts, key=lambda part: part.row):
        if part.row > row:
            left.append(run.part(row, part.row - row))
        row = part.row + part.count
    if row < run.row + run.count:
        left.append(run.part(row, run.row + run.count - row))
    return left
