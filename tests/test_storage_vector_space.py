"""What the vectors of a store are: none, of an encoder, or imported."""

from dataclasses import replace

import pytest

from engine.config import StructuralSettings
from engine.storage import extents
from engine.storage.manifest import Manifest
from engine.storage.vector_space import (
    IMPORTED_VECTORS,
    NO_VECTORS,
    EncoderEntry,
    VectorSpace,
)

ENCODER = EncoderEntry("tiny", 3, 16, "ab" * 32, "encoder/3/model.onnx")
IMPORTED = EncoderEntry(IMPORTED_VECTORS, 2, 7, "", "")


def test_a_store_without_vectors_has_no_space() -> None:
    named = Manifest("00" * 16, StructuralSettings(hash_seed=1))
    assert named.space is NO_VECTORS
    assert not NO_VECTORS.exists
    assert not NO_VECTORS.has_encoder
    assert not NO_VECTORS.is_imported
    assert NO_VECTORS.is_cosine
    assert NO_VECTORS.families == ()
    assert (NO_VECTORS.name, NO_VECTORS.fingerprint) == ("none", "")


def test_the_vectors_of_an_encoder_are_compared_by_their_cosine() -> None:
    space = Manifest("00" * 16, StructuralSettings(hash_seed=1), ENCODER).space
    assert space == VectorSpace(3, 16, normalized=False, encoder=ENCODER)
    assert space.exists
    assert space.has_encoder
    assert not space.is_imported
    assert space.is_cosine
    assert (space.name, space.fingerprint, space.key) == ("tiny", "ab" * 32, "3")
    assert space.families == (extents.vectors(3, 16), extents.vector_ids(3))


@pytest.mark.parametrize("normalized", [False, True])
def test_imported_vectors_have_cosines_only_if_they_were_normalized(normalized: bool) -> None:
    space = VectorSpace.of(replace(IMPORTED, normalized=normalized))
    assert space.exists
    assert not space.has_encoder
    assert space.is_imported
    assert space.is_cosine is normalized
    assert (space.name, space.fingerprint, space.key) == ("vectors", "", "2")
    assert space.families == (space.vector_family, space.id_family)


def test_spaces_differ_where_their_vectors_cannot_be_compared() -> None:
    space = VectorSpace.of(ENCODER)
    assert space == VectorSpace.of(replace(ENCODER))
    for other in (replace(ENCODER, fingerprint="cd" * 32), replace(ENCODER, generation=4), None):
        assert space != VectorSpace.of(other)
