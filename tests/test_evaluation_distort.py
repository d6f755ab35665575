"""What is done to pictures is fixed: pure, seeded, and what its name says."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.evaluation.distort import DISTORTIONS, crop60, crop80, flip, grey, half, noise, overlay


def waves_of(height: int = 60, width: int = 90, seed: int = 0) -> np.ndarray:
    """Smooth colours with some detail."""
    y, x = np.mgrid[:height, :width].astype(float)
    waves = [128 + 100 * np.sin(x / (7 + seed + c) + y / (11 + c)) for c in range(3)]
    return np.stack(waves, -1).clip(0, 255).astype(np.uint8)


def test_the_list_is_this():
    assert list(DISTORTIONS) == [
        *("jpeg30", "half", "crop80", "crop60", "rotate5", "flip"),
        *("jitter", "blur", "noise", "overlay", "grey"),
    ]


@pytest.mark.parametrize("name", DISTORTIONS)
def test_the_same_seed_gives_the_same_copy_and_the_picture_is_left_alone(name):
    given, before = waves_of(), waves_of()
    first, second = (DISTORTIONS[name](given, 7) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(given, before)
    assert first.dtype == np.uint8
    assert first.ndim == 3 and first.shape[2] == 3
    assert not np.array_equal(first, before)


@pytest.mark.parametrize("name", ["crop80", "crop60", "rotate5", "jitter", "noise", "overlay"])
def test_what_is_random_in_it_depends_on_the_seed(name):
    copies = {
        hashlib.sha256(DISTORTIONS[name](waves_of(), seed).tobytes()).digest() for seed in range(12)
    }
    assert len(copies) > 1


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**70), st.sampled_from([*DISTORTIONS])
)
def test_pictures_of_any_size_will_do(height, width, seed, name):
    copy = DISTORTIONS[name](np.full((height, width, 3), 77, np.uint8), seed)
    assert copy.dtype == np.uint8
    assert copy.shape[2] == 3
    assert min(copy.shape) >= 1


@pytest.mark.parametrize(("crop", "share"), [(crop80, 0.8), (crop60, 0.6)])
def test_a_crop_is_a_part_of_the_picture_of_its_area(crop, share):
    whole = waves_of(200, 300)
    part = crop(whole, 3)
    height, width, _ = part.shape
    assert height * width == pytest.approx(share * 200 * 300, rel=0.01)
    windows = np.lib.stride_tricks.sliding_window_view(whole[..., 0], (height, width))
    assert any(np.array_equal(window, part[..., 0]) for row in windows for window in row)


def test_a_flip_twice_is_nothing():
    assert np.array_equal(flip(flip(waves_of(), 0), 0), waves_of())


def test_grey_has_three_equal_channels():
    copy = grey(waves_of(), 0)
    assert (copy == copy[..., :1]).all()


def test_half_is_half():
    assert half(waves_of(60, 90), 0).shape == (30, 45, 3)


def test_noise_has_the_deviation_that_it_says():
    middle = np.full((200, 200, 3), 128, np.uint8)
    assert (noise(middle, 0).astype(float) - 128).std() == pytest.approx(10, rel=0.05)


def test_an_overlay_covers_a_tenth():
    black = np.zeros((300, 400, 3), np.uint8)
    covered = (overlay(black, 5) > 0).any(-1).mean()
    assert covered == pytest.approx(0.1, abs=0.01)
