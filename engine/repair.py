"""Mends what ``check`` found: makes anew what is derived, and sets aside what is lost, naming it.

pixels         read again from a source that is still there and still the very image; else the image
               goes on without, and is verified by its SHA-256
fingerprints   computed again from the pixels, kept or read again; else left as they are
vectors        encoded again from the same; else zero, which is similar to nothing
vector ids     consecutive in every append, so most of them say what the others were
segments       built again from the vectors
encoder        copied again from the package, if it is the same one

Damaged bytes are written over where they lie, except pixels, which are appended anew in a commit.
Interrupted anywhere, it leaves damage that the next run finds again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from engine import digest, fingerprint, pixels
from engine.check import Damage, DamagedAppend
from engine.config import ENCODE_BATCH, EXTENT_ROWS
from engine.encoders import registry
from engine.encoders.onnx import OnnxEncoder
from engine.errors import EngineError, ImageError, StoreDamagedError
from engine.records import Buffer, Pixels, Place, Problem
from engine.sources.base import Problem as SourceProblem
from engine.sources.locate import Query, open_images
from engine.storage import extents
from engine.storage.chunk import Chunk, Rekept
from engine.storage.extents import ExtentReader
from engine.storage.rows import u64
from engine.storage.vectors import Vectors
from engine.store import StoreFiles

_IMAGES = 256  # of one commit


class Repair:
    """One repair of one store, which becomes its writer."""

    def __init__(self, store: StoreFiles, encoder: Callable[[], OnnxEncoder]) -> None:
        self._store = store
        self._encoder = encoder
        self._aside: list[Problem] = []

    def run(self, damage: Damage) -> list[Problem]:
        """Mend what can be; returns what could only be set aside."""
        store = self._store
        store.become_writer(salvage=True)
        if damage.encoder:
            self._restore_encoder()
        self._rekeep(damage.images)
        first = min((entry.first_row for entry in damage.segments), default=None)
        mended = []
        for append in damage.appends:
            name = append.family.name
            row = self._first_row(append)
            if name == extents.FINGERPRINTS.name:
                self._fingerprints(append, row)
            elif name.endswith(".ids"):
                self._vector_ids(append, row)
            elif name.endswith(".f32"):
                self._vectors(append, row)
                first = row if first is None else min(first, row)
            mended.append((append.commit, append.at, self._checksum(append)))
        if mended:
            store.set_checksums(mended)
        if first is not None and store.manifest.encoder is not None and store.manifest.segments:
            starts = [entry.first_row for entry in store.manifest.segments]
            store.build_segment(max([s for s in starts if s <= first], default=min(starts)))
        return self._aside

    def _set_aside(self, part: str, what: str) -> None:
        self._aside.append(Problem(part, what, fixed=True))

    # --- pixels -----------------------------------------------------------------------------------

    def _rekeep(self, ids: Sequence[int]) -> None:
        for at in range(0, len(ids), _IMAGES):
            chunk = Chunk()
            for id_ in ids[at : at + _IMAGES]:
                record = self._store.get(id_)
                rows = self._store.image_of(record.key)
                row = next(row for row in rows if row.id == id_)
                key = record.key if row is rows[0] else record.key + u64(id_)
                keep: Buffer | None = None
                for query, found in self._read_again(id_):
                    keep = found.canonical if row.canonical else query.data
                    if row.canonical or digest.file_hash(keep or b"") == record.file_hash:
                        break
                    keep = None
                if keep is None:
                    self._set_aside(
                        "pixels",
                        f"image {id_}: its kept pixels are lost and no source has them any more; "
                        f"it is verified by SHA-256 from now on",
                    )
                chunk.rekept.append(Rekept(key, row, keep))
            self._store.commit(chunk)

    def _read_again(self, id_: int) -> Iterator[tuple[Query, Pixels]]:
        """The very image, from each of its sources that still has it."""
        proof = self._store.get(id_).proof
        memory = self._store.memory
        for name in self._store.sources_of(id_)[0]:
            try:
                for query in open_images(os.fsdecode(name), memory.max_file):
                    if isinstance(query, SourceProblem):
                        continue
                    found = query.decode(memory.decoding).pixels
                    if digest.proof(found.canonical) == proof:
                        yield query, found
            except EngineError:
                continue

    def _pixels(self, id_: int) -> Pixels | None:
        """The pixels of an image, from what is kept of it or from a source."""
        kept = self._store.kept_whole(id_)
        if kept is not None:
            try:
                data, canonical = kept
                if canonical:
                    return pixels.from_canonical(data)
                return pixels.decode(data, max_bytes=self._store.memory.decoding).pixels
            except ImageError:  # another decoder than when it was ingested
                pass
        return next((found for _, found in self._read_again(id_)), None)

    # --- rows: fingerprints, vectors, ids ---------------------------------------------------------

    def _first_row(self, append: DamagedAppend) -> int:
        size = append.family.row_bytes
        return (append.place.extent - 1) * EXTENT_ROWS + append.place.offset // size if size else 0

    def _fingerprints(self, append: DamagedAppend, row: int) -> None:
        data = self._bytes(append)
        lost = []
        for i in range(len(data) // fingerprint.FINGERPRINT_BYTES):
            id_ = row + i + 1
            found = self._pixels(id_) if self._store.record(id_) is not None else None
            if found is None:
                lost.append(id_)
                continue
            at = i * fingerprint.FINGERPRINT_BYTES
            data[at : at + fingerprint.FINGERPRINT_BYTES] = fingerprint.fingerprint(found)[0]
        self._overwrite(append, data)
        if lost:
            self._set_aside(
                append.family.folder,
                f"images {lost[0]} to {lost[-1]}: {len(lost)} fingerprints may be wrong, and their "
                f"pixels are neither kept nor in a source any more",
            )

    def _vectors(self, append: DamagedAppend, row: int) -> None:
        entry = self._store.manifest.encoder
        assert entry is not None
        encoder = self._encoder()
        count = append.place.length // append.family.row_bytes
        found = Vectors(self._store.path, entry.generation, entry.dim, self._store.vector_rows)
        ids = found.ids(np.arange(row, row + count, dtype=np.int64))
        found.close()
        out = np.zeros((count, entry.dim), np.float32)
        lost = []
        for at in range(0, count, ENCODE_BATCH):
            some: list[int] = []
            pictures: list[npt.NDArray[np.uint8]] = []
            for i in range(at, min(at + ENCODE_BATCH, count)):
                image = self._pixels(int(ids[i]))
                if image is None:
                    lost.append(int(ids[i]))
                else:
                    some.append(i)
                    pictures.append(pixels.squash(pixels.to_rgb8(image), encoder.image_size))
            if some:
                out[some] = encoder.encode(pictures)
        self._overwrite(append, out.tobytes())
        if lost:
            self._set_aside(
                append.family.folder,
                f"images {lost[0]} to {lost[-1]}: {len(lost)} vectors are lost, and their pixels are "
                f"neither kept nor in a source any more; they are similar to nothing now",
            )

    def _vector_ids(self, append: DamagedAppend, row: int) -> None:
        ids = np.frombuffer(self._bytes(append), np.int64)
        firsts, votes = np.unique(ids - np.arange(len(ids)), return_counts=True)
        first = int(firsts[votes.argmax()])
        if votes.max() * 2 <= len(ids) or not 0 < first < self._store.state.next_id:
            raise StoreDamagedError(
                f"{self._store.part(append.family, append.place.extent)} cannot be mended: too "
                f"little of it is left; restore the store from a copy"
            )
        self._overwrite(append, np.arange(first, first + len(ids), dtype=np.int64).tobytes())

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
        check = digest.Checksum()
        place = append.place
        for start in range(0, place.length, 8 << 20):
            size = min(8 << 20, place.length - start)
            check.update(reader.read(Place(place.extent, place.offset + start, size)))
        reader.close()
        return check.value

    def _restore_encoder(self) -> None:
        entry = self._store.manifest.encoder
        assert entry is not None
        try:
            files = registry.find(entry.name)
        except EngineError:
            return
        if files.sha256 == entry.fingerprint:
            target = self._store.path / entry.file
            target.parent.mkdir(parents=True, exist_ok=True)
            for name in (files.model.name, registry.DESCRIPTION):
                shutil.copyfile(files.model.parent / name, target.parent / name)
