"""Checks the images: records against keys, kept pixels, dead bytes and removed ids."""

from __future__ import annotations

import collections
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from engine.errors import StoreDamagedError
from engine.images import hashing
from engine.maintenance.check.findings import Findings
from engine.maintenance.check.known_images import KnownImages
from engine.records import Place
from engine.storage import extents, tombstones
from engine.storage.bitmap import IdSet
from engine.storage.extent_reader import ExtentReader
from engine.storage.image_rows import ImageRows
from engine.storage.session import Session
from engine.storage.table import in_batches

_MAX_NAMED = 20  # images named in one problem
_KEY = hashing.KEY_BYTES
_SUM = (1 << 64) - 1
_EXTENT = np.uint64(40)  # bits of an offset, below the number of its extent
_ODD = np.uint64(0x9E3779B97F4A7C15)


class ImagesCheck:
    """The check of the records, keys and kept pixels of all images."""

    def __init__(self, store: Session, findings: Findings, known: KnownImages) -> None:
        self._store = store
        self._findings = findings
        self._known = known
        # A new reader, since the session's may have a deleted or replaced file open.
        self._pixels = ExtentReader(store.path, extents.PIXELS)
        self._live: collections.Counter[int] = collections.Counter()  # bytes of images, by extent

    def close(self) -> None:
        """Close the extents of pixels."""
        self._pixels.close()

    def records(self) -> None:
        """Check that records and keys match, and that their counts are the committed ones."""
        by_id = self._read_records()
        self._known.complete = True
        by_key = self._read_images()
        self._findings.damage.images_known = True
        if by_id != by_key:
            self._pair()
        else:
            self._dead()
        self._counts()
        damaged = self._findings.damage.images
        if damaged:
            damaged.sort()
            named = ", ".join(map(str, damaged[:_MAX_NAMED]))
            more = len(damaged) - _MAX_NAMED
            also = f" and {more} more" if more > 0 else ""
            images = "image" if len(damaged) == 1 else "images"
            what = f"the kept pixels of {images} {named}{also} are damaged or lost"
            self._findings.report("pixels", what)

    def removed(self) -> None:
        """Check that exactly the ids without a record count as removed."""
        state = self._store.snapshot.state
        found, bad = tombstones.read(self._store.snapshot.keys, state.next_id)
        if bad:
            what = f"{bad} rows of tombstones are damaged"
            self._findings.report("keys", what)
        if not self._known.complete:
            return
        missing = self._known.missing()
        few, many = missing.without(found), found.without(missing)
        if len(few):
            what = f"{_first(few)} are not there and do not count as removed"
            self._findings.report("keys", what)
        if len(many):
            self._findings.report("keys", f"{_first(many)} are there and count as removed")
        # With another number of missing ids, the records are damaged, not the tombstones.
        if (bad or len(few) or len(many)) and len(missing) == state.removed:
            self._findings.damage.removed = missing

    def _counts(self) -> None:
        state = self._store.snapshot.state
        if self._known.count != state.images:
            what = f"{state.images} images are committed, {self._known.count} are there"
            self._findings.report("keys", what)
        given = state.next_id - 1
        if state.images + state.removed != given:
            self._findings.report(
                "keys",
                f"{given} ids were given, but there are {state.images} images and "
                f"{state.removed} removed ones",
            )
        prints = state.extents.get(extents.FINGERPRINTS.name, [])
        rows_kept = sum(size for _, size in prints) // extents.FINGERPRINTS.row_bytes
        if rows_kept != given:
            self._findings.report("fingerprints", f"{given} are expected, {rows_kept} are there")

    def _read_records(self) -> tuple[int, int]:
        """Read all records; returns the number of images with a key, and the sum over (id, key)."""
        total = 0
        for batch in in_batches(self._store.snapshot.tables.records.image_keys()):
            ids = np.array([id_ for id_, _ in batch], np.int64)
            has_key = np.array([bool(key) for _, key in batch])
            total += _sum(ids[has_key], [key for _, key in batch if key])
            self._known.add(ids, has_key)
        return self._known.count - self._known.vectors, total & _SUM

    def _read_images(self) -> tuple[int, int]:
        """Read the rows of all images; returns their number, and the sum over (id, key)."""
        store = self._store
        committed = store.snapshot.state.extents.get(extents.PIXELS.name, [])
        appends = self._findings.damage.appends
        places = [one.place for one in appends if one.family == extents.PIXELS]
        damaged = np.array(sorted(map(_span, places)), np.uint64).reshape(-1, 2)
        count = total = 0
        for batch in in_batches(store.snapshot.tables.images.scan()):
            rows = ImageRows.unpack([value for _, value in batch])
            total += _sum(rows.ids, [key[:_KEY] for key, _ in batch])
            count += len(batch)
            for id_ in rows.ids[~self._known.have_records(rows.ids)]:
                self._findings.report("keys", f"image {id_} has a key and no record")
            self._kept(rows, committed, damaged)
            for number in np.unique(rows.extents[rows.kept]).tolist():
                mine = rows.kept & (rows.extents == number)
                self._live[number] += int(rows.lengths[mine].sum())
            # Images that share a key: very few.
            for key in [key for key, _ in batch if len(key) > _KEY]:
                id_ = int.from_bytes(key[_KEY:], "big")
                if id_ not in [row.id for row in store.snapshot.image_of(key[:_KEY])]:
                    self._findings.report("keys", f"image {id_} is not found by its key")
        return count, total & _SUM

    def _pair(self) -> None:
        """Look up the key of each record, to name the records without one."""
        before = len(self._findings.problems)
        records = self._store.snapshot.tables.records.image_keys()
        for batch in in_batches(record for record in records if record[1]):
            rows = self._store.snapshot.images_of([key for _, key in batch])
            for (id_, _), found in zip(batch, rows, strict=True):
                if id_ not in [row.id for row in found]:
                    self._findings.report("keys", f"image {id_} has a record and no key")
        if len(self._findings.problems) == before:
            self._findings.report("keys", "some keys name images whose records have other keys")

    def _kept(
        self, rows: ImageRows, committed: list[list[int]], damaged: npt.NDArray[np.uint64]
    ) -> None:
        """Check that the kept pixels of these images lie in committed bytes and are whole.

        ``damaged`` (n, 2) has the spans of damaged appends, in order.
        """
        ends = rows.offsets + rows.lengths
        limits = np.zeros(len(ends), np.int64)
        for number, size in committed:
            limits[rows.extents == number] = size
        for id_ in rows.ids[rows.kept & (ends > limits)]:
            what = f"the pixels of image {id_} lie behind the committed bytes"
            self._findings.report("keys", what)
        if len(damaged):
            starts = (rows.extents.astype(np.uint64) << _EXTENT) + rows.offsets.astype(np.uint64)
            at = np.searchsorted(damaged[:, 0], starts, "right") - 1
            inside = rows.kept & (at >= 0) & (starts < damaged[at, 1])
            inside &= self._known.have_records(rows.ids)
            for id_ in rows.ids[inside].tolist():
                if not self._is_whole(id_):
                    self._findings.damage.images.append(id_)

    def _is_whole(self, id_: int) -> bool:
        """Whether the kept bytes of an image match its hashes."""
        try:
            record = self._store.snapshot.get(id_)
        except StoreDamagedError:  # its key is gone, which another step reports
            return True
        assert record.place is not None
        try:
            kept = self._pixels.read(record.place)
        except StoreDamagedError:
            return False
        return record.proof == hashing.proof(kept) or record.file_hash == hashing.file_hash(kept)

    def _dead(self) -> None:
        """Check that the dead bytes of each extent of pixels are those of no image."""
        state = self._store.snapshot.state
        committed = state.extents.get(extents.PIXELS.name, [])
        dead = {str(n): size - self._live[n] for n, size in committed if size != self._live[n]}
        if dead == state.dead:
            return
        self._findings.damage.dead = dead
        for number in sorted(dead.keys() | state.dead.keys(), key=int):
            counted, found = state.dead.get(number, 0), dead.get(number, 0)
            if counted != found:
                part = extents.PIXELS.inside(int(number))
                what = f"{counted:,} bytes count as dead, {found:,} belong to no image"
                self._findings.report(part, what)


def _first(ids: IdSet) -> str:
    """Ids as a phrase: "images 3, 7 and 12 more"."""
    named = ", ".join(map(str, next(ids.blocks())[:_MAX_NAMED].tolist()))
    more = len(ids) - _MAX_NAMED
    return f"images {named}" + (f" and {more} more" if more > 0 else "")


def _span(place: Place) -> tuple[int, int]:
    """The start and end of a place as numbers that sort by extent, then by offset."""
    start = (place.extent << int(_EXTENT)) + place.offset
    return start, start + place.length


def _sum(ids: npt.NDArray[np.int64], keys: Iterable[bytes]) -> int:
    """A sum over (id, key), the same in any order; swapped keys change it, since both are mixed."""
    halves = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)
    mixed = (halves[:, 0] ^ (ids.astype(np.uint64) * _ODD)) * _ODD
    mixed ^= mixed >> np.uint64(32)
    return int(((mixed + halves[:, 1]) * _ODD).sum(dtype=np.uint64))
