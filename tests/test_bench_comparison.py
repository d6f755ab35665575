"""Two runs beside each other: what is called worse, what is noise, and what cannot be compared."""

from __future__ import annotations

from dataclasses import replace

import benchrun
import pytest

from bench.harness.measurement import Measurement
from bench.report.comparison import (
    BETTER,
    SAME,
    WORSE,
    body,
    compare,
    missing,
    table,
    warnings,
)
from bench.report.results import Results


def only(run: Results, *measurements: Measurement) -> Results:
    return replace(run, measurements=measurements)


def figure(*samples: float, unit: str = "s", name: str = "hit", n: int = 10) -> Measurement:
    return Measurement(n, "identical", "engine", name, unit, samples)


def verdict(old: Measurement, new: Measurement) -> str:
    run = benchrun.run()
    (change,) = compare(only(run, old), only(run, new))
    return change.verdict


def test_a_run_is_the_same_as_itself() -> None:
    run = benchrun.run()
    changes = compare(run, run)
    assert len(changes) == len(run.measurements)
    assert {one.verdict for one in changes} == {SAME}
    assert all(one.ratio == 1 for one in changes)
    assert "0 are of the old run only, 0 of the new one" in table(run, run, changes)


def test_what_became_slower_is_worse_and_comes_first() -> None:
    old, new = benchrun.run(), benchrun.run(slower=1.6)
    changes = compare(old, new)
    worse = [one for one in changes if one.verdict == WORSE]
    assert changes[: len(worse)] == worse
    assert {one.new.method for one in worse} == {"engine"}
    assert {one.new.figure for one in worse} == {"hit", "miss", "time"}
    assert {one.verdict for one in compare(new, old)} == {SAME, BETTER}
    text = table(old, new, changes)
    assert text.count("WORSE") == len(worse) and "1.60" in text


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        (figure(1, 1.01, 0.99), figure(1.3, 1.31, 1.29), WORSE),
        (figure(1, 1.01, 0.99), figure(1.2, 1.201, 1.199), SAME),  # less than a quarter
        (figure(1, 5, 0.2), figure(1.4, 6, 0.3), SAME),  # within its noise
        (figure(1), figure(1.4), SAME),  # once on each side
        (figure(1), figure(1.6), WORSE),
        (figure(1, unit="B"), figure(1.3, unit="B"), WORSE),
        (figure(1.6), figure(1), BETTER),
        (figure(0), figure(0), SAME),
        (figure(0), figure(5), WORSE),
        (figure(0.97, unit=""), figure(0.95, unit=""), WORSE),
        (figure(0.95, unit=""), figure(0.97, unit=""), BETTER),
        (figure(0.951, unit=""), figure(0.95, unit=""), SAME),
    ],
)
def test_a_difference_counts_beyond_its_noise(
    old: Measurement, new: Measurement, wanted: str
) -> None:
    assert verdict(old, new) == wanted


def test_only_the_same_figures_are_compared() -> None:
    run = benchrun.run()
    old = only(run, figure(1), figure(1, name="gone"), figure(1, n=2_000))
    new = only(run, figure(1), figure(1, name="new"))
    changes = compare(old, new)
    assert len(changes) == 1
    text = table(old, new, changes)
    assert "2 are of the old run only, 1 of the new one" in text
    assert missing(old, new) == [
        "old run only: all of n = 2,000",
        "old run only: identical, engine: gone, n = 10",
        "new run only: identical, engine: new, n = 10",
    ]
    assert all(line in text for line in missing(old, new))
    assert body(old, new, changes)["missing"] == missing(old, new)


def test_of_many_missing_figures_the_first_are_shown() -> None:
    run = benchrun.run()
    old = only(run, figure(1), *(figure(1, name=f"figure {i}") for i in range(40)))
    text = table(old, only(run, figure(1)), [])
    assert "figure 11," in text and "figure 12," not in text
    assert "and 28 more that only one run has" in text


def test_a_figure_that_is_there_twice_counts_once() -> None:
    run = benchrun.run()
    old, new = only(run, figure(1)), only(run, figure(1), figure(1))
    assert "0 are of the old run only, 0 of the new one" in table(old, new, compare(old, new))


def test_an_old_file_does_not_drive_the_terminal() -> None:
    run = benchrun.run()
    hostile = replace(
        only(run, figure(1, name="\x1b[2J\nworse")),
        settings={"seed": "\x1b]0;title\a\n" * 99},
        machine={"cpu": "\x1b[31m\nred"},
        versions={"\x1b[1m": "\x1b[1m"},
    )
    text = table(hostile, run, compare(hostile, run))
    assert "\x1b" not in text and "\a" not in text
    assert max(map(len, text.splitlines())) <= 110


def test_what_makes_a_comparison_doubtful_is_told() -> None:
    old = benchrun.run()
    new = replace(
        benchrun.run(seed=7, complete=False),
        machine=dict(old.machine) | {"cpu": "Another"},
        versions=dict(old.versions) | {"numpy": "3.0", "engine": "0.2.0"},
    )
    assert warnings(old, new) == [
        "another machine: cpu was A CPU",
        "another setting: seed was 0",
        "another version: numpy was 2.3",
        "one of the runs did not end",
    ]
    assert body(old, new, [])["warnings"] == warnings(old, new)
    assert warnings(old, old) == []


def test_programs_get_every_figure() -> None:
    old, new = benchrun.run(), benchrun.run(slower=2)
    changes = body(old, new, compare(old, new))["changes"]
    assert isinstance(changes, list) and len(changes) == len(old.measurements)
    assert changes[0]["verdict"] == WORSE and changes[0]["ratio"] == pytest.approx(2, rel=0.01)
