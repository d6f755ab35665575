"""Nearest neighbours and the linear probe, against what is known of simple clouds of points."""

import sys

import numpy as np
import pytest

from engine.errors import EncoderError
from engine.evaluation.classify import check_installed, fit, knn_accuracy, probe_accuracy


def clouds(n: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """n unit vectors around three axes, and which axis."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    x = np.eye(6)[labels] + spread * random.standard_normal((n, 6))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


def test_neighbours_tell_clouds_apart_that_lie_apart():
    train, test = clouds(300, 0.1), clouds(100, 0.1, 1)
    assert knn_accuracy(*train, *test, ks=(1, 20)) == {1: 1.0, 20: 1.0}


def test_neighbours_know_nothing_of_shuffled_labels():
    test, labels = clouds(600, 0.1, 1)
    shuffled = np.random.default_rng(5).permutation(labels)
    found = knn_accuracy(*clouds(600, 0.1), test, shuffled, ks=(20,))
    assert found[20] == pytest.approx(1 / 3, abs=0.1)


def test_what_is_compared_at_a_time_does_not_show():
    (train, labels), (test, right) = clouds(60, 0.6), clouds(40, 0.6, seed=1)
    whole = knn_accuracy(train, labels, test, right, (1, 5))
    assert knn_accuracy(train, labels, test, right, (1, 5), compared=100) == whole


def test_votes_are_weighted_by_nearness():
    train = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    test = np.array([[0.9, np.sqrt(1 - 0.81)]], np.float32)
    labels = np.array([0, 1, 1])
    # exp(0.9 / 0.07) against 2 · exp(0.436 / 0.07): one near vote outweighs two far ones.
    assert knn_accuracy(train, labels, test, np.array([0]), ks=(3,)) == {3: 1.0}
    even = np.array([[0.70, np.sqrt(1 - 0.49)]], np.float32)
    assert knn_accuracy(train, labels, even, np.array([1]), ks=(3,)) == {3: 1.0}


def test_more_neighbours_than_there_are_is_all_of_them():
    train = clouds(30, 0.1)
    found = knn_accuracy(*train, *train, ks=(30, 1000))
    assert found[30] == found[1000]


@pytest.mark.slow
def test_a_class_that_was_never_seen_is_never_right():
    train = clouds(30, 0.1)
    test = clouds(30, 0.1, 1)[0]
    assert knn_accuracy(*train, test, np.full(30, 3), ks=(1,)) == {1: 0.0}
    assert probe_accuracy(*train, test, np.full(30, 3), seed=0)[0] == 0


@pytest.mark.slow
def test_the_probe_separates_what_a_line_separates():
    accuracy, strength = probe_accuracy(*clouds(300, 0.3), *clouds(300, 0.1, 1), seed=0)
    assert accuracy > 0.98
    assert strength > 0


@pytest.mark.slow
def test_the_probe_is_the_same_each_time():
    train, test = clouds(200, 0.8), clouds(100, 0.8, 1)
    assert probe_accuracy(*train, *test, seed=3) == probe_accuracy(*train, *test, seed=3)


def test_the_probe_bears_numbers_that_never_change_and_very_few_pictures():
    x, labels = clouds(4, 0.1)
    x = np.concatenate((x, np.full((4, 2), 0.5, np.float32)), axis=1)
    accuracy, _ = probe_accuracy(x, labels, x, labels, seed=0)
    assert accuracy == 1


def test_the_gradient_is_zero_where_the_fit_ends():
    x, labels = clouds(120, 0.8)
    weights = fit(x, labels, 3, 0.01).astype(np.float64)
    logits = x @ weights[:-1] + weights[-1]
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    difference = (shares - np.eye(3)[labels]) / len(x)
    assert np.abs(x.T @ difference + 0.01 * weights[:-1]).max() < 1e-4
    assert np.abs(difference.sum(0)).max() < 1e-4


def test_without_scipy_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(EncoderError, match=r"needs scipy.* pip install .*\[eval\]") as error:
        check_installed()
    assert "\n" not in str(error.value)
