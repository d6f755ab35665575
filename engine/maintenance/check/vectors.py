"""Checks the vectors: as many ids as vectors, each of a known image, and their encoder."""

from __future__ import annotations

from contextlib import closing

import numpy as np

from engine.encoders import registry, text
from engine.encoders.onnx import OnnxEncoder
from engine.errors import EncoderError
from engine.maintenance.check.findings import Findings
from engine.maintenance.check.known_images import KnownImages
from engine.storage.bitmap import IdSet
from engine.storage.session import Session
from engine.storage.vector_space import VectorSpace

_BATCH = 1000  # rows at a time


class VectorsCheck:
    """The check of the live encoder and its vectors."""

    def __init__(self, store: Session, findings: Findings, known: KnownImages) -> None:
        self._store = store
        self._findings = findings
        self._known = known
        self._bare = 0  # vectors without pixels that have a record

    def encoder(self) -> None:
        """Check that the encoder can be loaded, its text tower too, and made the vectors."""
        entry = self._store.snapshot.space.encoder
        if entry is None:
            return
        folder = (self._store.path / entry.file).parent
        try:
            found = registry.read(folder, self._store.snapshot.encoder_file)
            if (found.sha256, found.dim) != (entry.fingerprint, entry.dim):
                raise EncoderError(f"{found.model} is not the encoder that made the vectors")
            # Loading it proves the rest of the description.
            OnnxEncoder(found, threads=1)
            if found.text is not None:
                text.verify(found.text, self._store.snapshot.encoder_file)
        except EncoderError as error:
            if self._store.is_behind():
                # A newer commit may have replaced it.
                return
            self._findings.damage.encoder = True
            part = str(folder.relative_to(self._store.path))
            what = str(error).removesuffix(": copy it again")
            what = f"{what}; copy the files of the encoder {entry.name!r} to {folder}"
            self._findings.report(part, what)

    def vectors(self) -> None:
        """Check that each vector has its own known image, and that the counts are right."""
        store, space = self._store, self._store.snapshot.space
        if not space.exists:
            return
        for family in space.families:
            size = sum(size for _, size in store.snapshot.state.extents.get(family.name, []))
            if size != store.snapshot.vector_rows * family.row_bytes:
                what = f"{store.snapshot.vector_rows} rows are expected, {size:,} bytes are there"
                self._findings.report(family.folder, what)
                return
        live = self._live()
        ids_whole = all(one.family != space.id_family for one in self._findings.damage.appends)
        if live is not None and ids_whole and self._known.complete:
            self._removed(space, store.snapshot.vector_rows - live)
            if space.is_imported and self._bare != self._known.vectors:
                what = f"{self._known.vectors} vectors have a record, {self._bare} are there"
                self._findings.report("vectors", what)
                self._findings.damage.rows = True

    def _live(self) -> int | None:
        """How many vectors have an image that is there; None if some name unknown images."""
        store = self._store
        live = 0
        seen = IdSet.none(store.snapshot.state.next_id)
        known = True
        total = store.snapshot.vector_rows
        with closing(store.snapshot.open_vectors()) as vectors:
            for start in range(0, total, _BATCH):
                rows = np.arange(start, min(start + _BATCH, total), dtype=np.int64)
                ids = vectors.ids(rows)
                # A repair has put 0 for a vector whose image is not known.
                ids = ids[ids != 0]
                again = seen.has(ids).any() or len(np.unique(ids)) < len(ids)
                seen.add(ids)
                have_records = self._known.have_records(ids)
                removed = store.snapshot.state.removed
                there = self._known.were_given(ids) if removed else have_records
                live += int(have_records.sum())
                self._bare += int((have_records & self._known.without_pixels.has(ids)).sum())
                if again or not there.all():
                    known = False
                    what = f"rows {rows[0]} to {rows[-1]} name unknown images"
                    self._findings.report("vectors", what)
                    self._findings.damage.unknown_ids = True
        return live if known else None

    def _removed(self, space: VectorSpace, found: int) -> None:
        """Check the committed count of vectors of removed images; ``found`` is the right one."""
        committed = self._store.snapshot.state.removed_vectors
        removed = {space.key: found} if found else {}
        if removed != committed:
            self._findings.damage.removed_vectors = removed
            counted = sum(committed.values())
            what = f"{counted} count as vectors of removed images, but {found} are"
            self._findings.report("vectors", what)
