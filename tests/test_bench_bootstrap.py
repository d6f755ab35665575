"""Medians of resamples, drawn without making one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.report.bootstrap import medians

DRAWS = 40_000


def plainly(samples: list[float]) -> np.ndarray:
    draw = np.random.default_rng(1)
    return np.median(draw.choice(samples, (DRAWS, len(samples))), axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 50])
def test_they_are_distributed_as_those_of_real_resamples(count: int) -> None:
    samples = [float(i) ** 2 for i in range(count)]
    found = medians(samples, DRAWS, np.random.default_rng(0))
    expected = plainly(samples)
    assert found.shape == (DRAWS,)
    values = np.union1d(found, expected)
    # The largest distance of both distributions, which is 0.014 once in a thousand times.
    shares = [np.searchsorted(np.sort(one), values, "right") / DRAWS for one in (found, expected)]
    assert np.abs(shares[0] - shares[1]).max() < 0.014


@given(samples=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=30))
def test_they_lie_between_the_samples(samples: list[float]) -> None:
    found = medians(samples, 50, np.random.default_rng(0))
    assert min(samples) <= found.min() and found.max() <= max(samples)


@pytest.mark.slow
def test_a_file_of_many_samples_is_no_matter() -> None:
    # Resamples of these would take 24 GB.
    found = medians(range(3_000_000), 1_000, np.random.default_rng(0))
    assert abs(np.median(found) - 1_500_000) < 10_000
