"""Makes damaged vectors again: encodes their images, or reads their arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from engine.config import ENCODE_BATCH
from engine.encoders.onnx import OnnxEncoder
from engine.errors import StoreDamagedError
from engine.images import hashing
from engine.maintenance.check.damage import DamagedAppend
from engine.maintenance.repair.appends import Appends
from engine.maintenance.repair.index import IndexRepair
from engine.maintenance.repair.outcome import Outcome, named
from engine.maintenance.repair.pixels import ImagePixels
from engine.maintenance.repair.source_arrays import SourceArrays
from engine.maintenance.repair.source_columns import SourceColumns
from engine.storage.session import Session
from engine.storage.vector_space import VectorSpace

# How far from 1 the length of an undamaged vector may be.
_NEARLY = 1e-3

Numbers = npt.NDArray[np.int64]
Rows = npt.NDArray[np.float32]


class VectorMaker:
    """Makes the vectors of a store's images again, where that is possible."""

    def __init__(
        self, store: Session, encoder: Callable[[], OnnxEncoder], pixels: ImagePixels
    ) -> None:
        self._store = store
        self._encoder = encoder
        self._pixels = pixels

    def vectors_of(self, ids: Numbers) -> Iterator[tuple[Numbers, Rows]]:
        """Make the vectors of (n,) ids, ascending, that it can: ids (m,), vectors (m, dim)."""
        space = self._store.snapshot.space
        if space.is_imported:
            for mine, vectors, _ in self.read_again(ids):
                yield ids[mine], vectors
            return
        for at in range(0, len(ids), ENCODE_BATCH):
            mine, vectors = self.encode(ids[at : at + ENCODE_BATCH])
            if len(mine):
                yield ids[at + mine], vectors

    def read_again(self, ids: Numbers) -> Iterator[tuple[Numbers, Rows, bool]]:
        """Read the imported vectors of (n,) ids, ascending, from their sources, in pieces.

        Each piece is: positions in ``ids`` (m,), their vectors (m, dim), and whether these are certainly
        the committed ones.
        """
        space = self._store.snapshot.space
        yield from SourceArrays(self._store, space).vectors_of(ids)
        if space.of_images:
            yield from SourceColumns(self._store, space).vectors_of(ids)

    def require_gone(self, ids: Sequence[int]) -> None:
        """Raise ``StoreDamagedError`` if what the vectors of these were made from may come back."""
        if not self._store.snapshot.space.is_imported:
            self._pixels.require_gone(ids)
            return
        ordered = np.unique(np.array(ids, np.int64))
        arrays = {run.array for run in self._store.snapshot.runs_over(ordered)}
        for number in sorted(arrays):
            try:
                name = self._store.snapshot.array_name(number)
            except StoreDamagedError:
                continue
            self._pixels.require_no_disk_away([name], "these vectors")
        space = self._store.snapshot.space
        if space.of_images:
            names = SourceColumns(self._store, space).names_of(ordered)
            self._pixels.require_no_disk_away(names, "these vectors")

    def encode(self, ids: Numbers) -> tuple[Numbers, Rows]:
        """Encode the images of (n,) ids whose pixels are there: positions (m,), vectors (m, dim).

        Raises ``EncoderError``.
        """
        encoder = self._encoder()
        some: list[int] = []
        pictures: list[npt.NDArray[np.uint8]] = []
        for at, id_ in enumerate(ids.tolist()):
            image = self._pixels.of(id_)
            if image is not None:
                some.append(at)
                pictures.append(encoder.preprocessing.of(image))
        return np.array(some, np.int64), encoder.encode(pictures)


class VectorsRepair:
    """Overwrites damaged vectors."""

    def __init__(
        self,
        store: Session,
        appends: Appends,
        maker: VectorMaker,
        index: IndexRepair,
        outcome: Outcome,
    ) -> None:
        self._store = store
        self._appends = appends
        self._maker = maker
        self._index = index
        self._outcome = outcome

    def mend(self, append: DamagedAppend) -> None:
        """Overwrite a damaged append of vectors; raises ``EncoderError``, ``StoreDamagedError``."""
        space = self._store.snapshot.space
        if space.is_imported:
            self._read_again(append, space)
        else:
            self._encode_again(append, space)

    def _encode_again(self, append: DamagedAppend, space: VectorSpace) -> None:
        ids = self._appends.vector_ids(append)
        out = self._vectors_now(append, space)
        lost, zero = [], []
        for at in range(0, len(ids), ENCODE_BATCH):
            batch = ids[at : at + ENCODE_BATCH]
            some, vectors = self._maker.encode(batch)
            for i in np.setdiff1d(np.arange(len(batch)), some).tolist():
                if abs(float(np.linalg.norm(out[at + i].astype(np.float64))) - 1) < _NEARLY:
                    lost.append(int(batch[i]))
                # Not a number, or not of unit length.
                else:
                    out[at + i] = 0
                    zero.append(int(batch[i]))
            out[at + some] = vectors
        self._index.drop_over(append)
        self._appends.overwrite(append, out.tobytes())
        gone = "the pixels are no longer kept or in a source"
        lost, zero = self._store.snapshot.those_there(lost), self._store.snapshot.those_there(zero)
        self._maker.require_gone([*lost, *zero])
        if lost:
            what = f"{named(lost)}: a vector may be wrong, and {gone}"
            self._outcome.set_aside(append.family.folder, what)
        if zero:
            what = f"{named(zero)}: no vector is left, and {gone}; it is similar to nothing from now on"
            self._outcome.set_aside(append.family.folder, what)

    def _read_again(self, append: DamagedAppend, space: VectorSpace) -> None:
        """Read vectors again from their arrays and tables.

        Those of a changed source are used only if they give the append its committed checksum. An image
        whose vector cannot be right has none from then on, and may come with it again.
        """
        store = self._store
        unordered = self._appends.vector_ids(append)
        # Vectors may lie in the order of the index, not of their ids.
        order = np.argsort(unordered, kind="stable")
        out = self._vectors_now(append, space)
        tried = out.copy()
        sure = np.zeros(len(out), np.bool_)
        for mine, vectors, unchanged in self._maker.read_again(unordered[order]):
            tried[order[mine]] = vectors
            sure[order[mine]] = unchanged
        committed = self._appends.committed_checksum(append)
        if hashing.checksum(tried.reshape(-1).data) == committed:
            sure[:] = True
        out[sure] = tried[sure]
        wrong = ~sure & ~np.isfinite(out).all(axis=1)
        images = np.zeros(len(out), np.bool_)
        if space.of_images:
            images[order] = store.snapshot.may_be_images(unordered[order])
        if space.normalized:
            wrong |= ~sure & images & (np.abs(_lengths(out) - 1) >= _NEARLY)
        out[wrong] = 0
        lost = _ids_there(store, unordered[~sure & ~wrong])
        zero = _ids_there(store, unordered[wrong & ~images])
        none = _ids_there(store, unordered[wrong & images])
        self._maker.require_gone([*lost, *zero, *none])
        self._index.drop_over(append)
        self._appends.overwrite(append, out.tobytes())
        if none:
            self._appends.disown(append, wrong & images)
            store.writer.count_dead_vectors()
            self._outcome.set_aside(
                append.family.folder,
                f"{named(none)}: no vector is left; ingest the images with their vectors again",
            )
        gone = "it cannot be read again from its array or table"
        if lost:
            what = f"{named(lost)}: a vector may be wrong, and {gone}"
            self._outcome.set_aside(append.family.folder, what)
        if zero:
            what = f"{named(zero)}: no vector is left, and {gone}"
            self._outcome.set_aside(append.family.folder, what)

    def _vectors_now(self, append: DamagedAppend, space: VectorSpace) -> Rows:
        """The vectors of an append as they are now, damaged: (n, dim), writable."""
        return np.frombuffer(self._appends.read(append), np.float32).reshape(-1, space.dim)


def _lengths(rows: Rows) -> npt.NDArray[np.float64]:
    """The lengths of (n, dim) vectors, NaN where they are not finite: (n,)."""
    wide = rows.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        lengths: npt.NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    return lengths


def _ids_there(store: Session, ids: Numbers) -> list[int]:
    """Those of (n,) ids, in any order, that belong to images, ascending."""
    return store.snapshot.those_there(np.sort(ids).tolist())
