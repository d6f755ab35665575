"""Keys and proofs decide identity on disk: what they are taken over, and that they never drift."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.images import canonical, hashing

PICTURE = canonical.from_array(np.arange(18, dtype=np.uint8).reshape(2, 3, 3)).canonical
BITS = canonical.from_array(np.eye(4, 5, dtype=bool)).canonical


def test_the_canonical_bytes_that_the_pins_below_are_taken_over():
    assert PICTURE.hex() == "01020300000000020000000300000001" + bytes(range(18)).hex()
    assert BITS.hex() == "01010300000000040000000500000001" + "e00038000e000380"


@pytest.mark.parametrize(
    ("canonical", "seed", "key"),
    [
        (PICTURE, 0, "fea59b055a7b479acafcc5d9d0ad3049"),
        (PICTURE, 1, "c04c8603ab2754239ccdae6490910c87"),
        (PICTURE, 2**64 - 1, "01c7141c7f4e258d55b6ce581ce30446"),
        (BITS, 0, "8f7ca58ec53ceb701b1ea0c9322bb3b4"),
    ],
)
def test_the_key_on_disk_never_changes(canonical, seed, key):
    assert hashing.key(canonical, seed).hex() == key
    assert len(hashing.key(canonical, seed)) == hashing.KEY_BYTES


def test_the_proof_on_disk_never_changes():
    pinned = "5c54cdd15e086e0a529218e14d4c5a90cee6c5d2ae49a64af42c1abe2b600425"
    assert hashing.proof(PICTURE).hex() == pinned
    assert hashing.proof(PICTURE) == hashlib.sha256(PICTURE).digest()
    assert len(hashing.proof(PICTURE)) == hashing.PROOF_BYTES


def test_the_checksum_on_disk_never_changes():
    assert hashing.checksum(b"") == 0xEF46DB3751D8E999  # xxh64's published value
    assert hashing.checksum(b"engine") == 1005433120339754814


def test_a_file_hash_is_its_sha256():
    assert hashing.file_hash(b"engine") == hashlib.sha256(b"engine").digest()


def test_equal_pixels_of_another_shape_have_another_key_and_proof():
    tall = canonical.from_array(np.arange(18, dtype=np.uint8).reshape(3, 2, 3)).canonical
    assert tall[16:] == PICTURE[16:]
    assert hashing.key(tall, 0) != hashing.key(PICTURE, 0)
    assert hashing.proof(tall) != hashing.proof(PICTURE)


def test_equal_bytes_of_another_kind_have_another_key():
    def form(kind: int, width: int) -> bytes:
        return canonical.HEADER.pack(1, kind, 3, 1, width, 1) + bytes(6)

    assert hashing.key(form(2, 2), 0) != hashing.key(form(3, 1), 0)


@given(st.binary(min_size=1, max_size=60), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_each_seed_gives_its_own_keys(data, seed, other):
    assert (hashing.key(data, seed) == hashing.key(data, other)) == (seed == other)


@given(st.binary(min_size=1, max_size=60), st.data())
def test_one_changed_bit_changes_key_and_proof(data, draw):
    changed = bytearray(data)
    changed[draw.draw(st.integers(0, len(data) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    assert hashing.key(data, 5) != hashing.key(bytes(changed), 5)
    assert hashing.proof(data) != hashing.proof(bytes(changed))


@given(st.binary(max_size=60))
def test_views_hash_as_bytes_do(data):
    view = memoryview(data)
    assert hashing.key(view, 3) == hashing.key(data, 3)
    assert hashing.proof(view) == hashing.proof(data)
    assert hashing.checksum(view) == hashing.checksum(data)


@given(st.lists(st.binary(max_size=20)))
def test_a_checksum_in_parts_is_the_checksum_of_the_whole(parts):
    running = hashing.Checksum()
    for part in parts:
        running.update(part)
    assert running.value == hashing.checksum(b"".join(parts))


def test_the_rows_of_an_array_have_the_keys_of_the_images():
    rows = np.random.default_rng(0).integers(0, 2, (4, 6, 6, 3), np.uint8)
    block = canonical.rows_from_array(rows, canonical.Kind.BITS)
    for row, image in zip(block, rows, strict=True):
        assert hashing.key(memoryview(row), 7) == hashing.key(
            canonical.from_array(image).canonical, 7
        )
