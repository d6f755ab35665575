"""Exponents of growth, their intervals, and the verdicts on claims."""

from __future__ import annotations

from dataclasses import replace

import benchrun
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness.measurement import Measurement
from bench.report.growth import claims, fit, growths


def measured(exponent: float, *, fixed: float = 0.0, count: int = 50) -> list[Measurement]:
    return [
        Measurement(
            n,
            "identical",
            "engine",
            "hit",
            "s",
            tuple(fixed + one for one in benchrun.times(n, 1e-5, exponent, count=count)),
        )
        for n in benchrun.SIZES
    ]


@given(exponent=st.floats(-0.5, 2))
def test_the_exponent_is_found_with_an_interval_around_it(exponent: float) -> None:
    growth = fit(measured(exponent))
    assert growth is not None and growth.low is not None and growth.high is not None
    assert growth.low <= growth.exponent <= growth.high
    assert abs(growth.exponent - exponent) < 0.05
    assert growth.sizes == benchrun.SIZES


def test_what_was_measured_once_has_no_interval() -> None:
    growth = fit(measured(1, count=1))
    assert growth is not None and (growth.low, growth.high) == (None, None)
    assert str(growth).startswith("n^") and "(" not in str(growth)


def test_fixed_costs_are_no_growth() -> None:
    with_fixed = measured(1, fixed=1e-3)
    plain, without = fit(with_fixed), fit(with_fixed, without_fixed=True)
    assert plain is not None and without is not None
    assert plain.exponent < 0.6
    assert without.exponent == pytest.approx(1, abs=0.05)


def test_too_little_is_not_fitted() -> None:
    some = measured(1)
    assert fit(some[:1]) is None and fit([]) is None
    assert fit(some[:2], without_fixed=True) is None
    nothing = [Measurement(n, "t", "m", "f", "B", (0.0,)) for n in benchrun.SIZES]
    assert fit(nothing) is None
    falling = [Measurement(n, "t", "m", "f", "s", (1 / n,)) for n in benchrun.SIZES]
    assert fit(falling, without_fixed=True) is None


def test_shares_do_not_grow() -> None:
    assert all(key[2] not in ("recall", "recall@10") for key in growths(benchrun.run()))


def test_claims_are_put_to_the_test() -> None:
    verdicts = {one.text: one.verdict for one in claims(benchrun.run())}
    assert verdicts == {
        "the engine's identical lookup is O(1)": "holds",
        "so is its miss": "holds",
        "a lookup in a dict of hashes is O(1)": "holds",
        "in a list of hashes it is O(n)": "holds",
        "pixel by pixel it is O(n)": "cannot tell",
        "an ingest is O(n)": "holds",
        "its memory does not grow": "holds",
        "IndexFlatL2 is O(n)": "holds",
        "a search of the index grows far less than n": "holds",
    }


def test_a_claim_that_is_wrong_does_not_hold() -> None:
    run = benchrun.run()
    wrong = [
        Measurement(one.n, one.tier, one.method, one.figure, one.unit, times)
        for one in run.measurements
        if (one.method, one.figure) == ("dict of hashes", "hit")
        for times in [benchrun.times(one.n, 1e-5, 0.5)]
    ]
    (claim,) = claims(replace(run, measurements=tuple(wrong)))
    assert claim.verdict == "does not hold" and "n^0.5" in claim.measured


def test_fixed_costs_hide_no_bound_from_above() -> None:
    near = [
        Measurement(n, "near", "engine", "hit", "s", tuple(benchrun.times(n, 1e-3, 0.1)))
        for n in (1_000, 10_000, 100_000)
    ]
    (claim,) = claims(replace(benchrun.run(), measurements=tuple(near)))
    assert claim.text == "a near lookup grows no faster than n" and claim.verdict == "holds"


def test_few_sizes_prove_nothing() -> None:
    assert {one.verdict for one in claims(benchrun.run(sizes=(10_000, 100_000)))} == {"cannot tell"}
    few = claims(benchrun.run(sizes=(10, 100, 1_000)))
    assert {one.verdict for one in few} == {"cannot tell"}
    (hidden,) = [
        one
        for one in claims(benchrun.run(sizes=(10_000, 15_000, 20_000)))
        if one.text == "an ingest is O(n)"
    ]
    assert hidden.measured == "fixed costs hide it at these sizes"
