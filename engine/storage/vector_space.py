"""The vector space of a store: dimension, comparison, and the encoder that made the vectors."""

from __future__ import annotations

from dataclasses import dataclass

from engine.storage import extents
from engine.storage.extents import Family

# The feature of a store with imported vectors, and their name in place of an encoder's.
IMPORTED_VECTORS = "vectors"
# The feature of a store in which images have imported vectors.
IMAGE_VECTORS = "image-vectors"


@dataclass(frozen=True, slots=True)
class EncoderEntry:
    """The entry in MANIFEST.json of the encoder that made the vectors; its files lie in the store.

    Imported vectors have an entry too, without files. Its fields are part of the format.
    """

    name: str
    generation: int
    dim: int
    fingerprint: str  # hex SHA-256 of the model file
    file: str  # relative to the store; empty for imported vectors
    # Whether imported vectors were divided by their length, as queries then are.
    normalized: bool = False
    # Whether images may have imported vectors, too, and not only rows without pixels.
    of_images: bool = False

    @property
    def is_imported(self) -> bool:
        """Return whether the vectors were imported rather than made from images."""
        return not self.file


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """The space of all live vectors of a store, and of its queries.

    Only vectors of one space can be compared. Each space has its own generation, from 1 on, and its
    own extents.
    """

    generation: int
    dim: int
    # Whether imported vectors and queries are divided by their length as they come in.
    normalized: bool
    # None if no encoder of the store makes vectors.
    encoder: EncoderEntry | None
    # Whether imported vectors may belong to images.
    of_images: bool = False

    @classmethod
    def of(cls, entry: EncoderEntry | None) -> VectorSpace:
        """Return the space that a manifest's entry describes; None means no vectors."""
        if entry is None:
            return NO_VECTORS
        encoder = None if entry.is_imported else entry
        return cls(entry.generation, entry.dim, entry.normalized, encoder, entry.of_images)

    @property
    def exists(self) -> bool:
        """Return whether the store can hold vectors."""
        return self.generation > 0

    @property
    def has_encoder(self) -> bool:
        """Return whether an encoder makes vectors from images."""
        return self.encoder is not None

    @property
    def is_imported(self) -> bool:
        """Return whether the vectors were imported rather than made from images."""
        return self.exists and not self.has_encoder

    @property
    def features(self) -> list[str]:
        """Return what an engine has to know to use a store with this space."""
        imported = [IMPORTED_VECTORS] if self.is_imported else []
        return [*imported, IMAGE_VECTORS] if self.of_images else imported

    @property
    def is_cosine(self) -> bool:
        """Return whether scores are cosines, because all vectors have length 1."""
        return self.normalized or not self.is_imported

    @property
    def name(self) -> str:
        """Return the name of the encoder, or what stands in its place."""
        return self.encoder.name if self.encoder else IMPORTED_VECTORS if self.exists else "none"

    @property
    def fingerprint(self) -> str:
        """Return the hex SHA-256 of the encoder's model file; empty without an encoder."""
        return self.encoder.fingerprint if self.encoder else ""

    @property
    def key(self) -> str:
        """Return the key under which the state counts this space's vectors."""
        return str(self.generation)

    @property
    def vector_family(self) -> Family:
        """Return the family of the vectors: float32, ``dim`` per row."""
        assert self.exists
        return extents.vectors(self.generation, self.dim)

    @property
    def id_family(self) -> Family:
        """Return the family of the image ids of the vectors: int64."""
        assert self.exists
        return extents.vector_ids(self.generation)

    @property
    def families(self) -> tuple[Family, ...]:
        """Return the families of vectors and of their ids; empty without vectors."""
        return (self.vector_family, self.id_family) if self.exists else ()


NO_VECTORS = VectorSpace(generation=0, dim=0, normalized=False, encoder=None)
