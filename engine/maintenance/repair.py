"""Mends what ``check`` found: makes anew what is derived, and sets aside what is lost, naming it.

pixels         read again from a source that is still there and still the very image; else the image
               goes on without, and is verified by its SHA-256
fingerprints   computed again from the pixels, kept or read again; else left as they are
vectors        encoded again from the same; else left as they are, or zero where they cannot be right;
               given ones are read again from their array, while it has not changed
vector ids     those of the commit's images, which are consecutive
segments       built again from the vectors
encoder        copied again from the package, if it is the same one
dead bytes     counted again: what no image has
removed ids    told again: those that have no record
dead vectors   counted again: those of removed images

Damaged bytes are written over where they lie, except pixels, which are appended anew in a commit.
Interrupted anywhere, it leaves damage that the next run finds again; what cannot be mended does not
keep the rest from it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.config import ENCODE_BATCH
from engine.encoders import registry
from engine.encoders.onnx import OnnxEncoder
from engine.errors import EncoderError, EngineError, ImageError, SourceError, StoreDamagedError
from engine.images import canonical, fingerprint, hashing
from engine.index.background import Work
from engine.index.maintain import Indexing
from engine.index.search import quantizer_path
from engine.index.segment import path_of
from engine.ingest.checked_vectors import checked
from engine.maintenance.check import Check, Damage, DamagedAppend
from engine.maintenance.reconcile import Reconcile
from engine.maintenance.vector_owners import Owners
from engine.records import Buffer, Pixels, Place, Problem
from engine.sources.items import Problem as SourceProblem
from engine.sources.locate import Query, open_images
from engine.sources.named_arrays import array_named
from engine.sources.vectors import NpyVectors
from engine.storage import extents, file_names, nofollow
from engine.storage.bitmap import IdSet
from engine.storage.changeset import Chunk, Rekept
from engine.storage.durable import fsync_dir, replace_file
from engine.storage.extents import ExtentReader, Family
from engine.storage.manifest import EncoderEntry
from engine.storage.rows import u64
from engine.storage.writer import StoreFiles

_IMAGES = 256  # of one commit
_SOURCES = 1000  # of one image that are tried
_READ = 8 << 20
_ROWS = 4096  # of an array of vectors at a time
_MAX_NAMED = 100  # ranges of images in one line
_NEARLY = 1e-3  # how far from 1 the length of a vector may be that nothing happened to


class Repair:
    """One repair of one store, which becomes its writer."""

    def __init__(self, store: StoreFiles, encoder: Callable[[], OnnxEncoder]) -> None:
        self._store = store
        self._encoder = encoder
        self._doubtful = np.empty(0, np.int64)  # ids that more than one vector was named
        self._told: list[Problem] = []
        self._stale = False  # whether the index is to be built again

    def run(self, damage: Damage) -> list[Problem]:
        """Mend what can be; returns what could only be set aside, and what could not be mended."""
        self._store.become_writer(salvage=True)
        if self._store.state.commit != damage.commit:  # another process wrote before we could
            again = Check(self._store)
            again.run()
            damage = again.damage
        damage = self._reconcile(damage)
        if damage.encoder:
            self._restore_encoder()
        if damage.dead is not None:
            self._store.set_dead(damage.dead)
        if damage.removed is not None:
            self._store.set_removed(damage.removed)
        if damage.removed_vectors is not None:
            self._store.set_removed_vectors(damage.removed_vectors)
        if damage.images_known:
            self._rekeep(damage.images)
        vectors_whole = True
        # Ids first: they say whose the vectors are.
        for append in sorted(damage.appends, key=lambda append: not _is_ids(append.family)):
            if append.family == extents.PIXELS and not damage.images_known:
                continue  # with the checksum of what is there now, it would not be found again
            try:
                self._mend(append)
            except (StoreDamagedError, EncoderError) as error:
                part = self._store.part(append.family, append.place.extent)
                self._told.append(Problem(part, f"it cannot be mended: {error}"))
                vectors_whole &= append.family in (extents.FINGERPRINTS, extents.PIXELS)
        if vectors_whole:  # else it would be an index of damaged ones
            self._drop_damaged(damage.index)
        if damage.unknown_ids:
            self._forget_unknown()
        if damage.unknown_ids or any(_is_ids(append.family) for append in damage.appends):
            again = Check(self._store)  # vectors that were brought may be of no record by now
            again.run()
            self._reconcile(again.damage)
        if self._stale and vectors_whole:
            Indexing(self._store, Work(self._store.memory)).update(1)
        return self._told

    def _reconcile(self, damage: Damage) -> Damage:
        """Make the keys agree where they do not; what is damaged then."""
        if not damage.rows or damage.tables:
            return damage
        whole = not any(_is_ids(append.family) for append in damage.appends)
        self._told += Reconcile(self._store, ids_whole=whole).run()
        again = Check(self._store)
        again.run()
        return again.damage

    def _drop_damaged(self, paths: Sequence[Path]) -> None:
        """Drop segments whose file, or whose quantizer's, is damaged."""
        store, damaged = self._store, set(paths)
        entries = store.manifest.segments
        good = {
            entry.number
            for entry in store.manifest.quantizers
            if quantizer_path(store.path, entry.number) not in damaged
        }
        kept = [
            entry
            for entry in entries
            if entry.quantizer in good and path_of(store.path, entry.number) not in damaged
        ]
        if len(kept) < len(entries):
            self._stale = True
            store.publish_index(kept)

    def _mend(self, append: DamagedAppend) -> None:
        family = append.family
        if family == extents.FINGERPRINTS:
            self._fingerprints(append, _first_row(family, append.place))
        elif _is_ids(family):
            self._vector_ids(append)
        elif family != extents.PIXELS:
            self._vectors(append)
        self._store.set_checksums([(append.commit, append.at, self._checksum(append))])

    def _set_aside(self, part: str, what: str) -> None:
        self._told.append(Problem(part, what, fixed=True))

    # --- pixels -----------------------------------------------------------------------------------

    def _rekeep(self, ids: Sequence[int]) -> None:
        chunk, size = Chunk(), 0
        lost = []
        for id_ in dict.fromkeys(ids):
            record = self._store.get(id_)
            rows = self._store.image_of(record.key)
            row = next(row for row in rows if row.id == id_)
            key = record.key if row is rows[0] else record.key + u64(id_)
            keep: Buffer | None = None
            for query, found in self._read_again(id_):
                if row.canonical:
                    keep = found.canonical
                elif query.data is not None and hashing.file_hash(query.data) == record.file_hash:
                    keep = query.data
                if keep is not None:
                    size += len(keep)
                    break
            else:
                lost.append(id_)
            chunk.rekept.append(Rekept(key, row, keep))
            if len(chunk.rekept) == _IMAGES or size >= self._store.memory.chunk:
                self._store.commit(chunk)
                chunk, size = Chunk(), 0
        self._store.commit(chunk)
        if lost:
            self._set_aside(
                "pixels",
                f"{_named(lost)}: the kept pixels are lost, and no source has them any more; SHA-256 "
                f"verifies without them from now on",
            )

    def _read_again(self, id_: int) -> Iterator[tuple[Query, Pixels]]:
        """The very image, from each of its sources that still has it."""
        proof = self._store.get(id_).proof
        memory = self._store.memory
        for name in self._store.sources_of(id_, _SOURCES)[0]:
            try:
                for query in open_images(os.fsdecode(name), memory.max_file):
                    if isinstance(query, SourceProblem):
                        continue
                    found = query.decode(memory.decoding).pixels
                    if hashing.proof(found.canonical) == proof:
                        yield query, found
            except EngineError:
                continue

    def _pixels(self, id_: int) -> Pixels | None:
        """The pixels of an image, from what is kept of it or from a source."""
        if self._store.record(id_) is None:
            return None
        kept = self._store.kept_whole(id_)
        if kept is not None:
            try:
                data, is_canonical = kept
                if is_canonical:
                    return canonical.from_canonical(data)
                return canonical.decode(data, max_bytes=self._store.memory.decoding).pixels
            except ImageError:  # another decoder than when it was ingested
                pass
        return next((found for _, found in self._read_again(id_)), None)

    # --- rows: fingerprints, vectors, ids ---------------------------------------------------------

    def _fingerprints(self, append: DamagedAppend, row: int) -> None:
        data = self._bytes(append)
        lost = []
        ids = np.arange(row, row + len(data) // fingerprint.FINGERPRINT_BYTES, dtype=np.int64) + 1
        bare = ~self._store.may_be_images(ids)
        for i in range(len(ids)):
            at = i * fingerprint.FINGERPRINT_BYTES
            if bare[i]:
                data[at : at + fingerprint.FINGERPRINT_BYTES] = bytes(fingerprint.FINGERPRINT_BYTES)
                continue
            found = self._pixels(row + i + 1)
            if found is None:
                lost.append(row + i + 1)
                continue
            data[at : at + fingerprint.FINGERPRINT_BYTES] = fingerprint.fingerprint(found)[0]
        self._overwrite(append, data)
        lost = self._store.those_there(lost)
        if lost:
            self._set_aside(
                append.family.folder,
                f"{_named(lost)}: a fingerprint may be wrong, and the pixels are neither kept nor in "
                f"a source any more",
            )

    def _vectors(self, append: DamagedAppend) -> None:
        entry = self._store.manifest.encoder
        assert entry is not None
        if entry.given:
            self._given_vectors(append, entry)
            return
        encoder = self._encoder()
        count = append.place.length // append.family.row_bytes
        ids = self._ids_of(append).tolist()
        out = np.frombuffer(self._bytes(append), np.float32).reshape(count, entry.dim)
        lost, zero = [], []
        for at in range(0, count, ENCODE_BATCH):
            some: list[int] = []
            pictures: list[npt.NDArray[np.uint8]] = []
            for i in range(at, min(at + ENCODE_BATCH, count)):
                image = self._pixels(ids[i])
                if image is not None:
                    some.append(i)
                    pictures.append(canonical.squash(canonical.to_rgb8(image), encoder.image_size))
                elif abs(float(np.linalg.norm(out[i].astype(np.float64))) - 1) < _NEARLY:
                    lost.append(ids[i])
                else:  # not a number, or not of unit length
                    out[i] = 0
                    zero.append(ids[i])
            if some:
                out[some] = encoder.encode(pictures)
        self._drop_index(append.place.extent, *_rows_at(append))
        self._overwrite(append, out.tobytes())
        gone = "the pixels are neither kept nor in a source any more"
        lost, zero = self._store.those_there(lost), self._store.those_there(zero)
        if lost:
            what = f"{_named(lost)}: a vector may be wrong, and {gone}"
            self._set_aside(append.family.folder, what)
        if zero:
            what = f"{_named(zero)}: no vector is left, and {gone}; it is similar to nothing from now on"
            self._set_aside(append.family.folder, what)

    def _given_vectors(self, append: DamagedAppend, entry: EncoderEntry) -> None:
        """Read vectors again from the arrays that they are rows of.

        One that has changed is believed where the whole append is then what was committed.
        """
        store = self._store
        count = append.place.length // append.family.row_bytes
        unordered = self._ids_of(append)
        order = np.argsort(unordered, kind="stable")  # they may be laid out in another one
        ids = unordered[order]
        out = np.frombuffer(self._bytes(append), np.float32).reshape(count, entry.dim)
        tried = out.copy()
        sure = np.zeros(count, np.bool_)
        arrays: dict[int, tuple[NpyVectors, bool] | None] = {}
        for run in store.runs_over(ids):
            if run.array not in arrays:
                arrays[run.array] = self._array_of(run.array, entry.dim)
            array = arrays[run.array]
            first, end = np.searchsorted(ids, [run.id, run.id + run.count])
            if array is not None and first < end:
                rows = run.row + ids[first:end] - run.id
                with contextlib.suppress(SourceError):
                    for at, vectors in _rows_of(array[0], rows, normalize=entry.normalized):
                        tried[order[first + at]] = vectors
                        sure[order[first + at]] = array[1]
        parts = json.loads(store.keys.get("commits", append.commit) or b"[]")
        if hashing.checksum(tried.reshape(-1).data) == parts[append.at][4]:
            sure[:] = True
        out[sure] = tried[sure]
        wrong = ~sure & ~np.isfinite(out).all(axis=1)
        out[wrong] = 0
        self._drop_index(append.place.extent, *_rows_at(append))
        self._overwrite(append, out.tobytes())
        gone = "the array that it was a row of is gone or has changed"
        lost = store.those_there(unordered[~sure & ~wrong].tolist())
        zero = store.those_there(unordered[wrong].tolist())
        if lost:
            self._set_aside(
                append.family.folder, f"{_named(lost)}: a vector may be wrong, and {gone}"
            )
        if zero:
            self._set_aside(append.family.folder, f"{_named(zero)}: no vector is left, and {gone}")

    def _array_of(self, number: int, dim: int) -> tuple[NpyVectors, bool] | None:
        """An array that vectors came from, and whether it is as it was; None if it is gone."""
        try:
            name = self._store.array_name(number)
            found, row = array_named(name), self._store.array(name)
        except (EngineError, OSError):
            return None
        if not isinstance(found, NpyVectors) or found.dim != dim:
            return None
        return found, row is not None and (row.mtime_ns, row.size) == (found.mtime_ns, found.size)

    def _ids_of(self, append: DamagedAppend) -> npt.NDArray[np.int64]:
        """Whose the vectors of a damaged append are: (n,)."""
        found = self._store.open_vectors()
        try:
            first = found.first_of(append.place.extent)
            assert first is not None
            return found.ids(first + np.arange(*_rows_at(append), dtype=np.int64))
        finally:
            found.close()

    def _drop_index(self, extent: int, first: int, end: int) -> None:
        """Drop segments over these rows, which may have been built when they were damaged already.

        Before the rows are mended: after that, nothing would tell that the segments are wrong.
        """
        entries = self._store.manifest.segments
        kept = [
            entry
            for entry in entries
            if not any(e == extent and f < end and f + n > first for e, f, n in entry.ranges)
        ]
        if len(kept) < len(entries):
            self._stale = True
            self._store.publish_index(kept)

    def _vector_ids(self, append: DamagedAppend) -> None:
        """The images of a commit are consecutive, and the place of its fingerprints says from where."""
        place = append.place
        parts = json.loads(self._store.keys.get("commits", append.commit) or b"[]")
        first = [
            _first_row(extents.FINGERPRINTS, Place(number, offset, length)) + 1
            for name, number, offset, length, _ in parts
            if name == extents.FINGERPRINTS.name
        ]
        rows = _count(parts, extents.FINGERPRINTS.name, extents.FINGERPRINTS.row_bytes)
        if not first or rows != _count(parts, append.family.name, append.family.row_bytes):
            # In the order of the index, which ids do not follow from.
            ids = self._owners(append, parts[append.at][4])
            lost = int((ids == 0).sum())
            self._drop_index(place.extent, *_rows_at(append))
            self._overwrite(append, ids.tobytes())
            self._store.count_dead_vectors()
            if lost:
                what = f"whose {lost} of {len(ids)} vectors are is lost: they are of no image now"
                self._set_aside(append.family.folder, what)
            return
        before = sum(
            length // append.family.row_bytes
            for name, number, offset, length, _ in parts
            if name == append.family.name and (number, offset) < (place.extent, place.offset)
        )
        start = min(first) + before
        ids = np.arange(start, start + place.length // append.family.row_bytes, dtype=np.int64)
        self._overwrite(append, ids.tobytes())

    def _forget_unknown(self) -> None:
        """Let vectors be of no image that are named one that never was, or that has another."""
        store, encoder = self._store, self._store.manifest.encoder
        assert encoder is not None
        family = extents.vector_ids(encoder.generation)
        seen = IdSet.none(store.state.next_id)
        for key, value in store.keys.scan("commits"):
            for at, (name, number, offset, length, _) in enumerate(json.loads(value)):
                if name != family.name:
                    continue
                append = DamagedAppend(key, at, family, Place(number, offset, length))
                ids = np.frombuffer(bytes(self._bytes(append)), np.int64).copy()
                before = ids.copy()
                ids[(ids < 0) | (ids >= store.state.next_id) | seen.has(ids)] = 0
                first = np.zeros(len(ids), np.bool_)
                first[np.unique(ids, return_index=True)[1]] = True
                ids[~first] = 0
                seen.add(ids[ids > 0])
                if (ids != before).any():
                    self._drop_index(number, *_rows_at(append))
                    self._overwrite(append, ids.tobytes())
                    store.set_checksums([(key, at, self._checksum(append))])
        store.count_dead_vectors()

    def _owners(self, append: DamagedAppend, checksum: int) -> npt.NDArray[np.int64]:
        """Whose the vectors of an append are, and 0 where that cannot be known: (n,)."""
        found = self._store.open_vectors()
        try:
            first = found.first_of(append.place.extent)
        finally:
            found.close()
        assert first is not None
        start, end = (first + row for row in _rows_at(append))
        owners = Owners(self._store, bytes(self._bytes(append)), start, end)
        self._doubtful = owners.keep_sure(self._doubtful)
        with contextlib.suppress(EncoderError, StoreDamagedError):  # then without a comparison
            owners.settle(checksum, self._made_again)
        return owners.ids

    def _made_again(
        self, ids: npt.NDArray[np.int64]
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """The vectors of images, made again where that can be: ids (n,) and vectors (n, dim)."""
        entry = self._store.manifest.encoder
        assert entry is not None
        if not entry.given:
            encoder = self._encoder()
            for at in range(0, len(ids), ENCODE_BATCH):
                some, pictures = [], []
                for id_ in ids[at : at + ENCODE_BATCH].tolist():
                    image = self._pixels(id_)
                    if image is not None:
                        some.append(id_)
                        pictures.append(
                            canonical.squash(canonical.to_rgb8(image), encoder.image_size)
                        )
                if some:
                    yield np.array(some, np.int64), encoder.encode(pictures)
            return
        arrays: dict[int, tuple[NpyVectors, bool] | None] = {}
        for run in self._store.runs_over(ids):
            if run.array not in arrays:
                arrays[run.array] = self._array_of(run.array, entry.dim)
            array = arrays[run.array]
            first, end = np.searchsorted(ids, [run.id, run.id + run.count])
            if array is not None and first < end:
                rows = run.row + ids[first:end] - run.id
                with contextlib.suppress(SourceError):
                    for mine, vectors in _rows_of(array[0], rows, normalize=entry.normalized):
                        yield ids[first + mine], vectors

    # --- inside -----------------------------------------------------------------------------------

    def _bytes(self, append: DamagedAppend) -> bytearray:
        reader = ExtentReader(self._store.path, append.family)
        try:
            return bytearray(reader.read(append.place))
        finally:
            reader.close()

    def _overwrite(self, append: DamagedAppend, data: Buffer | bytearray) -> None:
        extents.overwrite(self._store.path, append.family, append.place, bytes(data))

    def _checksum(self, append: DamagedAppend) -> int:
        reader = ExtentReader(self._store.path, append.family)
        check = hashing.Checksum()
        place = append.place
        try:
            for start in range(0, place.length, _READ):
                size = min(_READ, place.length - start)
                check.update(reader.read(Place(place.extent, place.offset + start, size)))
        finally:
            reader.close()
        return check.value

    def _restore_encoder(self) -> None:
        entry = self._store.manifest.encoder
        assert entry is not None
        try:
            files = registry.find(entry.name)
        except EncoderError:
            return
        if files.sha256 != entry.fingerprint:
            return
        store = self._store.path
        inner = file_names.encoder_folder(entry.file, entry.generation)
        nofollow.make_folder(store, file_names.ENCODER)
        nofollow.make_folder(store, inner)
        for name in (files.model.name, registry.DESCRIPTION):
            replace_file(store / inner / name, (files.model.parent / name).read_bytes(), store)
        for parent in (store / file_names.ENCODER, store):
            fsync_dir(parent)


def _rows_of(
    array: NpyVectors, rows: npt.NDArray[np.int64], *, normalize: bool
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Some rows of an array, ascending, in pieces: which of them, and the vectors."""
    for block in array.vectors(int(rows[0]), _ROWS, _READ):
        first, end = np.searchsorted(rows, [block.first, block.first + len(block.rows)])
        found = checked(block, normalize=normalize)
        mine = rows[first:end] - block.first
        good = found.wrong[mine] == 0
        yield np.arange(first, end)[good], found.rows[mine][good]
        if end == len(rows):
            return


def _is_ids(family: Family) -> bool:
    return family.suffix == extents.vector_ids(1).suffix


def _first_row(family: Family, place: Place) -> int:
    """Of all rows of its family, the one that begins at ``place``; 0 for logs, which have none."""
    if not family.row_bytes:
        return 0
    return ((place.extent - 1) * family.capacity + place.offset) // family.row_bytes


def _count(parts: list[Any], name: str, row_bytes: int) -> int:
    """How many rows of a family the record of a commit names."""
    return int(sum(length // row_bytes for family, _, _, length, _ in parts if family == name))


def _rows_at(append: DamagedAppend) -> tuple[int, int]:
    """The rows of its extent that a damaged append is: first and end."""
    first = append.place.offset // append.family.row_bytes
    return first, first + append.place.length // append.family.row_bytes


def _named(ids: Sequence[int]) -> str:
    """ "image 3", or "images 3, 7 to 9 and 12 more"."""
    if len(ids) == 1:
        return f"image {ids[0]}"
    ordered = np.unique(np.array(ids, np.int64))
    ranges = np.split(ordered, np.flatnonzero(np.diff(ordered) > 1) + 1)
    shown = [f"{r[0]} to {r[-1]}" if len(r) > 1 else f"{r[0]}" for r in ranges[:_MAX_NAMED]]
    more = sum(len(r) for r in ranges[_MAX_NAMED:])
    return f"images {', '.join(shown)}" + (f" and {more} more" if more else "")
