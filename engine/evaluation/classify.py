"""Measures how well vectors separate classes: by nearest neighbours, and by a linear classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import EncoderError, how_to_install

Vectors = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Loss = Callable[[npt.NDArray[np.float64]], tuple[float, npt.NDArray[np.float64]]]

TEMPERATURE = 0.07
# Strengths of the L2 penalty. The best on a part of the training set is used.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
_HELD_BACK = 5  # one fifth of the training set chooses the strength
_BLOCK = 256  # test vectors compared at a time
_COMPARED = 16 << 20  # scores in memory at a time, some 16 bytes each
_MAX_STEPS = 200
_MEMORY = 10  # pairs of steps that L-BFGS keeps
_TOLERANCE = 1e-5  # of the largest component of the gradient


def knn_accuracy(
    train: Vectors,
    train_labels: Labels,
    test: Vectors,
    test_labels: Labels,
    ks: Sequence[int],
    *,
    compared: int = _COMPARED,
) -> dict[int, float]:
    """Share of the test vectors that their k nearest training vectors classify right, for each k.

    A neighbour votes with the weight exp(cosine / 0.07), as in Wu et al. (2018, arXiv:1805.01978,
    section 3.4). ``train`` is (n, d) and ``test`` (m, d) of unit length; labels are 0 … classes - 1. A
    k above n counts as n. ``compared`` scores are in memory at a time. Of equal votes the lowest class
    wins, and of equal cosines the earlier vector.
    """
    n, _ = train.shape
    m, _ = test.shape
    classes = int(train_labels.max()) + 1
    most = min(max(ks), n)
    right = dict.fromkeys(ks, 0)
    block = max(1, min(_BLOCK, compared // n))
    for start in range(0, m, block):
        scores = test[start : start + block] @ train.T  # (block, n)
        nearest = np.argsort(-scores, axis=1, kind="stable")[:, :most]
        weights = np.exp(np.take_along_axis(scores, nearest, 1).astype(np.float64) / TEMPERATURE)
        votes_for = train_labels[nearest]  # (block, most)
        rows = np.arange(len(scores))[:, None]
        for k in ks:
            votes = np.zeros((len(scores), classes))
            np.add.at(votes, (rows, votes_for[:, :k]), weights[:, :k])
            right[k] += int((votes.argmax(1) == test_labels[start : start + block]).sum())
    return {k: count / m for k, count in right.items()}


def probe_accuracy(
    train: Vectors, train_labels: Labels, test: Vectors, test_labels: Labels, *, seed: int
) -> tuple[float, float]:
    """Accuracy on the test vectors of multinomial logistic regression on the training vectors.

    Vectors are standardised with the training set's mean and standard deviation. The strength of the L2
    penalty is the best of ``STRENGTHS`` on a fifth of the training set, drawn by ``seed``. Then the
    classifier is fitted again on all of it. L-BFGS on full batches gives the same result for the same
    data. Returns the accuracy and the strength.
    """
    n, _ = train.shape
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    middle = train.mean(0)
    deviation = train.std(0)
    scale = np.where(deviation > 1e-6 * max(float(deviation.max()), 1e-12), deviation, np.inf)
    train, test = (train - middle) / scale, (test - middle) / scale
    order = np.random.Generator(np.random.Philox(seed)).permutation(n)
    back, kept = np.sort(order[: n // _HELD_BACK]), np.sort(order[n // _HELD_BACK :])
    strength = STRENGTHS[len(STRENGTHS) // 2]
    if len(back):
        tried = []
        weights = np.zeros((train.shape[1] + 1, classes), np.float32)
        # Each fit begins at the result of the stronger penalty.
        for each in reversed(STRENGTHS):
            weights = fit(train[kept], train_labels[kept], classes, each, weights)
            tried.append((_accuracy(weights, train[back], train_labels[back]), each))
        strength = max(tried)[1]
    fitted = fit(train, train_labels, classes, strength)
    return _accuracy(fitted, test, test_labels), strength


def fit(
    x: Vectors, labels: Labels, classes: int, strength: float, start: Vectors | None = None
) -> Vectors:
    """Weights (d + 1, classes) that minimise mean cross entropy + strength / 2 · |weights|².

    ``x`` is (n, d). The last row of the weights is the bias, which is not penalised.
    """
    n, d = x.shape
    wanted = np.zeros((n, classes), np.float32)
    wanted[np.arange(n), labels] = 1

    def loss(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        w = flat.reshape(d + 1, classes)
        logits = x @ w[:-1].astype(np.float32) + w[-1].astype(np.float32)
        logits -= logits.max(1, keepdims=True)
        shares = np.exp(logits)
        total = shares.sum(1, keepdims=True)
        entropy = np.log(total[:, 0].astype(np.float64)) - logits[np.arange(n), labels]
        difference = shares / total - wanted
        gradient = np.empty_like(w)
        gradient[:-1] = x.T @ difference / n + strength * w[:-1]
        gradient[-1] = difference.mean(0)
        return float(entropy.mean() + strength / 2 * (w[:-1] ** 2).sum()), gradient.reshape(-1)

    begin = np.zeros((d + 1) * classes) if start is None else start.astype(np.float64).reshape(-1)
    return _minimum(loss, begin).reshape(d + 1, classes).astype(np.float32)


def check_installed() -> None:
    """``EncoderError`` if SciPy is missing, which fits the linear classifier."""
    _scipy_minimize()


def _minimum(loss: Loss, start: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The minimum (d,) of a convex function; ``loss`` returns its value and gradient at (d,)."""
    found = _scipy_minimize()(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        # ftol = 0, so that only the gradient decides when the fit ends.
        options={"maxiter": _MAX_STEPS, "maxcor": _MEMORY, "gtol": _TOLERANCE, "ftol": 0.0},
    )
    x: npt.NDArray[np.float64] = found.x
    return x


def _scipy_minimize() -> Any:
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise EncoderError(
            f"the linear classifier needs {error.name}: {how_to_install('eval')}"
        ) from None
    return minimize


def _accuracy(weights: Vectors, x: Vectors, labels: Labels) -> float:
    return float(((x @ weights[:-1] + weights[-1]).argmax(1) == labels).mean())
