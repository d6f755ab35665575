"""Builds the chunk of one commit; images with equal proofs inside it are one image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engine.ingest.encode import Vector
from engine.storage.changeset import Chunk, NewImage, NewRows, NewVectors
from engine.storage.snapshot import Snapshot


class ChunkBuilder:
    """A chunk that is being built. Nothing else may be committed until it is."""

    def __init__(self, store: Snapshot) -> None:
        self._store = store
        self.first_id = store.state.next_id
        self.chunk = Chunk()
        self._ids: dict[bytes, int] = {}  # ids of added images, by proof
        self._vectors: list[npt.NDArray[np.float32]] = []
        self._brought: dict[int, Vector] = {}  # imported vectors, by image

    def find(self, images: Sequence[NewImage]) -> list[int | None]:
        """The id of the stored image equal to each of ``images``, or None; by key, then by proof."""
        rows = self._store.images_of([image.key for image in images])
        known: list[int | None] = []
        for image, candidates in zip(images, rows, strict=True):
            # The row of an image that shares its key never has ``in_runs``.
            image.first = candidates[0]._replace(in_runs=False) if candidates else None
            found = next((row for row in candidates if row.proof == image.proof), None)
            known.append(found.id if found else None)
            if found and found.in_runs:
                self.chunk.out_of_runs.append((image.key, found))
        return known

    def added(self, proof: bytes) -> int | None:
        """The id of the image with this proof that this chunk adds, or None."""
        return self._ids.get(proof)

    def add(self, image: NewImage, vector: Vector | None) -> int:
        """Add an image and its vector (dim,); returns the image's id."""
        id_ = self.first_id + len(self.chunk.images)
        self.chunk.images.append(image)
        self._ids[image.proof] = id_
        if vector is not None:
            self._vectors.append(vector[np.newaxis])
        return id_

    def add_rows(self, rows: NewRows, vectors: npt.NDArray[np.float32] | None) -> None:
        """Add n new images, rows of one array with consecutive ids; ``vectors`` is (n, dim)."""
        self.chunk.rows = rows
        if vectors is not None:
            self._vectors.append(vectors)

    def is_new(self, id_: int) -> bool:
        """Whether this chunk adds image ``id_``."""
        return id_ >= self.first_id

    def bring(self, id_: int, vector: Vector) -> None:
        """Give an image without a vector an imported one (dim,); in a chunk the first one counts."""
        self._brought.setdefault(id_, vector)

    def describe(self, id_: int, metadata: dict[str, object]) -> None:
        """Set the metadata of a stored image, or of one that this chunk adds."""
        if id_ < self.first_id:
            self.chunk.described.append((id_, metadata))
        elif self.chunk.images[id_ - self.first_id].metadata is None:
            self.chunk.images[id_ - self.first_id].metadata = metadata

    def finish(self) -> Chunk:
        """The chunk, with its vectors."""
        if self._vectors:
            self.chunk.vectors = np.concatenate(self._vectors)
        if self._brought:
            ids = sorted(self._brought)
            rows = np.stack([self._brought[id_] for id_ in ids])
            self.chunk.image_vectors = NewVectors(np.array(ids, np.int64), rows)
        return self.chunk
