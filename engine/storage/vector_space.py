"""What the vectors of a store are: their dimension, how they compare, and which encoder made them."""

from __future__ import annotations

from dataclasses import dataclass

from engine.storage import extents
from engine.storage.extents import Family

# The name of imported vectors where an encoder's would stand, and the feature of a store of them.
IMPORTED_VECTORS = "vectors"


@dataclass(frozen=True, slots=True)
class EncoderEntry:
    """What MANIFEST.json says of the vectors: the encoder that made them; its files lie in the store.

    Imported vectors have an entry too, without files. Its fields are part of the format.
    """

    name: str
    generation: int
    dim: int
    fingerprint: str  # hex SHA-256 of the model file
    file: str  # relative to the store; empty for imported vectors
    normalized: bool = False  # imported ones were divided by their length, and queries are

    @property
    def is_imported(self) -> bool:
        """Whether the vectors were imported, and not made of images."""
        return not self.file


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """The space that all live vectors of a store are in, and its queries.

    Only vectors of one space can be compared. Each space has a generation of its own, from 1 on,
    and extents of its own.
    """

    generation: int
    dim: int
    normalized: bool  # imported vectors and queries are divided by their length when they come in
    encoder: EncoderEntry | None  # None where no encoder of the store makes vectors

    @classmethod
    def of(cls, entry: EncoderEntry | None) -> VectorSpace:
        """The space that an entry of a manifest describes; None describes no vectors."""
        if entry is None:
            return NO_VECTORS
        encoder = None if entry.is_imported else entry
        return cls(entry.generation, entry.dim, entry.normalized, encoder)

    @property
    def exists(self) -> bool:
        """Whether the store can hold vectors."""
        return self.generation > 0

    @property
    def has_encoder(self) -> bool:
        """Whether an encoder makes the vectors of images."""
        return self.encoder is not None

    @property
    def is_imported(self) -> bool:
        """Whether the vectors were imported, and not made of images."""
        return self.exists and not self.has_encoder

    @property
    def is_cosine(self) -> bool:
        """Whether scores, which are inner products, are cosines: all vectors have length 1."""
        return self.normalized or not self.is_imported

    @property
    def name(self) -> str:
        """The name of the encoder, or what stands for one."""
        return self.encoder.name if self.encoder else IMPORTED_VECTORS if self.exists else "none"

    @property
    def fingerprint(self) -> str:
        """The hex SHA-256 of the encoder's model file; empty where there is no encoder."""
        return self.encoder.fingerprint if self.encoder else ""

    @property
    def key(self) -> str:
        """What the committed state counts the vectors of this space under."""
        return str(self.generation)

    @property
    def vector_family(self) -> Family:
        """The extents of the vectors: float32, ``dim`` a row."""
        assert self.exists
        return extents.vectors(self.generation, self.dim)

    @property
    def id_family(self) -> Family:
        """The extents of the image id of each vector: int64."""
        assert self.exists
        return extents.vector_ids(self.generation)

    @property
    def families(self) -> tuple[Family, ...]:
        """The extents of vectors and then of their ids; none where there are no vectors."""
        return (self.vector_family, self.id_family) if self.exists else ()


NO_VECTORS = VectorSpace(generation=0, dim=0, normalized=False, encoder=None)
