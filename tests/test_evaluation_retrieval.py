"""Copy retrieval: what is streamed in blocks scores as what is compared at once would."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.evaluation.retrieval import DEPTH, Retrieval, micro_average_precision


def unit(seed: int, n: int, d: int = 8) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def met(
    queries: np.ndarray, index: np.ndarray, answers: np.ndarray, step: int, **limits: int
) -> Retrieval:
    retrieval = Retrieval(queries, **limits)
    for at in range(0, len(index), step):
        numbers = np.arange(at, min(at + step, len(index)))
        retrieval.meet(index[at : at + step], numbers, answers)
    return retrieval


def definition(scores: np.ndarray, answers: np.ndarray) -> float:
    """µAP as its formula says, pair by pair, of each query's ten nearest."""
    pairs = []
    for row, answer in zip(scores, answers, strict=True):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i == answer))[:DEPTH]
        pairs += [(-row[i], i == answer) for i in order]
    right, total = 0, 0.0
    for place, (_, is_right) in enumerate(sorted(pairs), 1):
        right += is_right
        total += is_right * right / place
    return total / len(answers)


@given(st.integers(0, 999), st.integers(1, 30), st.integers(1, 20), st.integers(1, 9))
def test_blocks_score_as_the_definition_does(seed, size, queries, step):
    index = unit(seed, size)
    answers = np.random.default_rng(seed).integers(0, size, queries)
    asked = index[answers] + 0.8 * unit(seed + 1, queries)
    retrieval = met(asked, index, answers, step)
    scores = asked @ index.T
    score = retrieval.score()
    others = scores.copy()
    others[np.arange(queries), answers] = -np.inf
    expected = scores[np.arange(queries), answers] > others.max(1)
    assert np.array_equal(score.found, expected)
    assert score.micro_average_precision == pytest.approx(definition(scores, answers), abs=1e-6)


def test_a_block_is_compared_in_parts_of_bounded_size(monkeypatch):
    index = unit(0, 300)
    answers = np.arange(0, 300, 3)
    asked = index[answers] + 0.8 * unit(1, 100)
    whole = met(asked, index, answers, 300)
    seen = []
    compare = Retrieval._meet
    monkeypatch.setattr(
        Retrieval, "_meet", lambda self, x, *rest: (seen.append(len(x)), compare(self, x, *rest))
    )
    parts = met(asked, index, answers, 300, compared=1000)
    assert seen == [10] * 30
    # A product of other shapes may be rounded otherwise in its last bit.
    assert np.allclose(parts.right, whole.right, rtol=1e-6, atol=0)
    assert np.array_equal(parts.who, whole.who)


def test_perfect_vectors_score_one():
    index = unit(0, 50)
    score = met(index, index, np.arange(50), 7).score()
    assert score.found.all()
    assert score.micro_average_precision == pytest.approx(1)


def test_vectors_that_are_all_alike_find_nothing():
    index = np.tile(unit(0, 1), (50, 1))
    score = met(index, index, np.arange(50), 50).score()
    assert not score.found.any()
    assert score.micro_average_precision == 0


def test_a_query_of_zeros_finds_nothing():
    queries = np.zeros((1, 8), np.float32)
    assert not met(queries, unit(0, 5), np.array([2]), 5).score().found.any()


def test_a_threshold_that_does_not_hold_for_all_lowers_it():
    right = np.array([0.9, 0.3], np.float32)
    none = np.full((2, DEPTH), -np.inf, np.float32)
    assert micro_average_precision(right, none) == 1
    wrong = none.copy()
    wrong[0, 0] = (
        0.5  # query 0 is right all the same, but before query 1's answer comes a wrong one
    )
    assert micro_average_precision(right, wrong) == pytest.approx((1 + 2 / 3) / 2)


def test_the_best_wrong_pictures_are_known_by_their_numbers():
    index = unit(1, 40)
    retrieval = met(index[:1], index, np.array([0]), 6)
    order = np.argsort(-(index @ index[0]))
    assert retrieval.who[0].tolist() == order[1 : DEPTH + 1].tolist()
