"""Encoders and baselines, by name: all make unit vectors, and say in one line why one cannot."""

import sys

import numpy as np
import pytest

from engine.errors import EncoderError, UsageError
from engine.evaluation.baselines import unit
from engine.evaluation.entrants import AbsentEntrant, Entrant, find, find_all
from engine.evaluation.timing import Timed


def pictures(n: int = 3) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (n, 6, 6, 3), np.uint8)
    return [np.kron(c, np.ones((16, 16 + i, 1), np.uint8)) for i, c in enumerate(coarse)]


def check(entrant: Entrant | AbsentEntrant) -> np.ndarray:
    assert isinstance(entrant, Entrant)
    vectors = entrant.encode(pictures())
    assert vectors.shape == (3, entrant.dim)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert (vectors @ vectors.T)[0, 1] < 0.9999
    return vectors


@pytest.mark.parametrize("name", ["pixels", "pdq", "simclr"])
def test_baselines_and_the_shipped_encoder(name):
    entrant = find(name, seed=0)
    check(entrant)
    assert entrant.name == name


def test_the_folder_of_an_encoder(tiny_encoder):
    entrant = find(str(tiny_encoder), seed=0)
    check(entrant)
    assert (entrant.name, entrant.dim) == ("tiny", 16)


def test_inner_products_of_fingerprints_are_their_distances():
    from engine.images import canonical, fingerprint

    a, b = (
        np.frombuffer(fingerprint.fingerprint(canonical.from_array(each))[0], np.uint8)
        for each in pictures(2)
    )
    x, y = find("pdq", seed=0).encode(pictures(2))
    assert float(x @ y) == 1 - np.bitwise_count(a ^ b).sum() / 128


def test_a_flat_picture_has_no_fingerprint_to_compare():
    flat = np.full((80, 80, 3), 200, np.uint8)
    assert not find("pdq", seed=0).encode([flat]).any()


def test_an_unknown_name_is_one_line_that_lists_the_known_ones():
    with pytest.raises(
        EncoderError, match="no encoder 'simclrr': name one of lite0, simclr"
    ) as error:
        find("simclrr", seed=0)
    assert "\n" not in str(error.value)
    assert "FILE.onnx, or a baseline: pixels, pdq, untrained" in str(error.value)


def test_a_folder_that_is_no_encoder_is_said_to_be_none(tmp_path):
    with pytest.raises(EncoderError, match=r"holds no encoder\.json"):
        find(str(tmp_path), seed=0)


def test_two_of_one_name_are_told_apart(tiny_encoder, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(tiny_encoder, other)
    entrants, absent = find_all([str(tiny_encoder), str(other), str(other), "pdq"], seed=0)
    assert [entrant.name for entrant in entrants] == ["tiny", "tiny-2", "pdq"]
    assert not absent


def test_vectors_become_unit_ones_and_what_is_no_number_nothing():
    x = np.array([[3.0, 4.0], [0, 0], [np.nan, 1], [np.inf, 1]])
    assert unit(x).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0], [0, 0], [0, 0]]


# --- torch ----------------------------------------------------------------------------------------


def test_without_torch_its_baselines_are_left_out(monkeypatch):
    for module in ("torch", "engine.training", "engine.training.model"):
        monkeypatch.setitem(sys.modules, module, None)
    entrants, absent = find_all(["pixels", "untrained"], seed=0)
    assert [each.name for each in entrants] == ["pixels"]
    assert [each.name for each in absent] == ["untrained"]
    assert all("pip install" in each.reason for each in absent)
    with pytest.raises(UsageError, match="nothing to evaluate"):
        find_all(["untrained"], seed=0)


@pytest.mark.slow
def test_an_untrained_network_depends_on_the_seed():
    pytest.importorskip("torch")
    first, same, other = (check(find("untrained", seed=seed)) for seed in (0, 0, 1))
    assert np.allclose(first, same)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("shape", [(3, 1), (3, 9), (6, 4), (4,)])
def test_an_entrant_that_gives_another_shape_is_named(shape: tuple[int, ...]) -> None:
    timed = Timed(Entrant("odd", "odd", 4, lambda _: np.ones(shape, np.float32)))
    with pytest.raises(EncoderError, match="odd returned an array of"):
        timed.encode(pictures())
