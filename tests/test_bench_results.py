"""The results of ``engine bench``: kept, read again, drawn, and printed."""

from __future__ import annotations

import builtins
import csv
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import benchrun
import pytest
from PIL import Image

from bench.harness.measurement import Measurement, Skipped
from bench.report import artifacts, page, plots, results, results_file, summary, tensorboard
from bench.report.units import show
from engine import UsageError
from engine.errors import how_to_install


def test_what_was_saved_is_loaded_to_six_digits(tmp_path: Path) -> None:
    run = benchrun.run(complete=False)
    results_file.save(run, tmp_path)
    for place in (tmp_path, tmp_path / "results.json"):
        again = results_file.load(place)
        assert replace(again, measurements=()) == replace(run, measurements=())
        for one, other in zip(again.measurements, run.measurements, strict=True):
            assert replace(one, samples=()) == replace(other, samples=())
            assert one.samples == pytest.approx(other.samples, rel=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"results.csv", "results.json"}


@pytest.mark.slow
def test_names_that_are_no_utf8_cost_nothing(tmp_path: Path) -> None:
    run = benchrun.run(data="the vectors of \udcff.npy")
    odd = replace(run.measurements[0], note="vectors of \udcff.npy")
    run = replace(run, measurements=(odd, *run.measurements[1:]))
    assert artifacts.write(run, tmp_path) == []
    again = results_file.load(tmp_path)
    assert again.settings == run.settings and again.measurements[0].note == odd.note
    assert "\\udcff.npy" in (tmp_path / "results.csv").read_text(encoding="utf-8")
    assert "\\udcff.npy" in (tmp_path / "results.html").read_text(encoding="utf-8")


def test_the_csv_is_tidy(tmp_path: Path) -> None:
    run = benchrun.run()
    results_file.save(run, tmp_path)
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == list(results.COLUMNS)
    assert len(lines) == len(run.measurements)
    for line, one in zip(lines, run.measurements, strict=True):
        assert (int(line["n"]), line["tier"], line["figure"]) == (one.n, one.tier, one.figure)
        assert float(line["median"]) == pytest.approx(one.median, rel=1e-5)
        assert int(line["samples"]) == len(one.samples)
        tails = [float(line[name]) for name in ("p95", "p99") if line[name]]
        assert len(tails) == (len(one.samples) >= 20) + (len(one.samples) >= 100)
        assert sorted(tails) == tails and all(tail >= one.median for tail in tails)
        assert float(line["least"]) <= float(line["median"])
        if one.tier in ("identical", "similar") and one.unit == "s":
            rate = len(one.samples) / sum(one.samples)
            assert float(line["per_second"]) == pytest.approx(rate, rel=1e-5)
        else:
            assert line["per_second"] == ""


def test_a_build_has_no_lookups_a_second() -> None:
    one = Measurement(10, "similar", "engine", "build", "s", (2.0,))
    assert one.rate is None and replace(one, figure="single").rate == 0.5
    assert replace(one, figure="single", samples=(0.0,)).rate is None


def test_what_was_left_out_is_a_line_a_reason() -> None:
    left = [Skipped(n, "near", "a", why) for n, why in ((10, "one"), (1_000, "one"), (10, "two"))]
    run = replace(benchrun.run(), skipped=(*left, left[0]))
    assert results.left_out(run) == ["a, 10, 1,000: one", "a, 10: two"]
    assert "a, 10, 1,000: one" in summary.table(run)
    assert "<li>a, 10, 1,000: one" in page.page(run, None)


def test_tails_of_few_samples_are_left_out_of_the_page() -> None:
    few = Measurement(10, "identical", "engine", "hit", "s", (1e-3,) * 30)
    text = page.page(replace(benchrun.run(), measurements=(few,)), None)
    cells = "<td>1.00 ms<td>1.00 ms<td>1.00 ms<td>-<td>1,000<td>30"
    assert cells in text


def test_quantiles_are_samples() -> None:
    one = Measurement(1, "t", "m", "f", "s", tuple(float(i) for i in range(100, 0, -1)))
    assert (one.quantile(0.95), one.quantile(0.99), one.quantile(0), one.median) == (
        95,
        99,
        1,
        50.5,
    )


def _body(**over: Any) -> dict[str, Any]:
    measurement = {"n": 1, "tier": "t", "method": "m", "figure": "f", "unit": "s", "note": ""}
    body = {"format": 1, "started": "2026-01-02", "seconds": 1, "complete": True, "settings": {}}
    body |= {"machine": {}, "versions": {}, "skipped": []}
    return body | {"measurements": [measurement | {"samples": [1]}]} | over


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        7,
        _body(format=2),
        _body(format=True),
        _body(started="\x1b[2J\nyesterday"),
        _body(settings={"seed": float("nan")}),
        _body(settings={"seed": {"a": 1}}),
        _body(settings={"sizes": [[1]]}),
        _body(settings={"seed": 10**400}),
        _body(machine={"cores": [2]}),
        _body(machine={"cores": None}),
        _body(versions={"numpy": 2}),
        _body(complete=1),
        _body(seconds="long"),
        _body(measurements={}),
        _body(measurements=[7]),
        _body(measurements=[{"n": 1}]),
        _body(measurements=[_body()["measurements"][0] | {"samples": []}]),
        _body(measurements=[_body()["measurements"][0] | {"samples": [float("nan")]}]),
        _body(measurements=[_body()["measurements"][0] | {"samples": [10**400]}]),
        _body(measurements=[_body()["measurements"][0] | {"samples": [True]}]),
        _body(measurements=[_body()["measurements"][0] | {"n": -1}]),
        _body(measurements=[_body()["measurements"][0] | {"n": 1 << 70}]),
        _body(skipped=[{"n": 1, "tier": "t", "method": "m"}]),
    ],
)
def test_a_file_that_is_no_result_is_refused_in_one_line(tmp_path: Path, wrong: object) -> None:
    file = tmp_path / "r.json"
    file.write_text(json.dumps(wrong))
    with pytest.raises(UsageError, match="has no results of engine bench") as caught:
        results_file.load(file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(file))


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"\xff\xfe", b"{", b"[" * 100_000, b"1" * 10_000),
        json.dumps(_body()).encode("utf-16"),
        json.dumps(_body(settings={"data": "é"}), ensure_ascii=False).encode("latin-1"),
    ],
)
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "r.json").write_bytes(raw)
    with pytest.raises(UsageError, match="has no results of engine bench"):
        results_file.load(tmp_path / "r.json")


def test_a_file_that_is_not_there_or_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        results_file.load(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(_body()))
    assert results_file.load(tmp_path).measurements[0].samples == (1.0,)
    for name in ("a" * 300, "zero\0byte"):
        with pytest.raises(UsageError, match="cannot be read"):
            results_file.load(tmp_path / name)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="cannot be read: it is no file"):
        results_file.load(tmp_path / "pipe")
    monkeypatch.setattr(results_file, "_MAX_BYTES", 10)
    with pytest.raises(UsageError, match="too large"):
        results_file.load(tmp_path)


# --- plots, page, logs ----------------------------------------------------------------------------


@pytest.mark.slow
def test_everything_is_written(tmp_path: Path) -> None:
    assert artifacts.write(benchrun.run(), tmp_path) == []
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        *("results.csv", "results.json", "results.html", "tensorboard"),
        *("time.png", "memory.png", "latency.png"),
    }
    for name in ("time.png", "memory.png", "latency.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 600 and len(image.convert("RGB").getcolors(1 << 20) or ()) > 10


def test_without_libraries_the_figures_are_written_and_the_rest_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] in ("matplotlib", "tensorboard"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    left_out = artifacts.write(benchrun.run(), tmp_path)
    assert left_out == [
        f"no plots: matplotlib is not installed ({how_to_install('bench')})",
        f"no logs for TensorBoard: tensorboard is not installed ({how_to_install('bench')})",
    ]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"results.csv", "results.json", "results.html"}
    assert "No plots" in (tmp_path / "results.html").read_text(encoding="utf-8")


def test_a_plot_that_fails_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> None:
        raise ValueError("two\nlines")

    monkeypatch.setattr(plots, "drawn", fail)
    assert artifacts.write(benchrun.run(), tmp_path) == ["no plots: ValueError: two lines"]
    assert "No plots" in (tmp_path / "results.html").read_text(encoding="utf-8")
    assert results_file.load(tmp_path).complete


@pytest.mark.slow
def test_a_method_may_be_called_as_a_formula_is() -> None:
    run = benchrun.run()
    odd = tuple(
        replace(one, method="$x^$_{") if one.method == "list of hashes" else one
        for one in run.measurements
    )
    assert plots.drawn(replace(run, measurements=odd)).keys() == plots.PLOTS.keys()


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, text: str) -> None:
        self.text.append(text)


@pytest.mark.slow
def test_the_page_needs_nothing_else_and_trusts_nothing() -> None:
    run = benchrun.run(data="<script>alert(1)</script>")
    hostile = replace(
        run,
        skipped=(replace(run.skipped[0], why="<img src=http://x/>"),),
        measurements=(replace(run.measurements[0], note="' onload='x"), *run.measurements[1:]),
        complete=False,
    )
    parsed = _Page()
    parsed.feed(page.page(hostile, plots.drawn(hostile)))
    assert "script" not in parsed.tags and parsed.tags.count("img") == 3
    assert all(link.startswith("data:image/png;base64,") for link in parsed.links)
    text = " ".join(parsed.text)
    assert "<script>alert(1)</script>" in text and "<img src=http://x/>" in text
    assert "Interrupted" in text and "IndexFlatL2 is O(n)" in text and "holds" in text


def test_logs_are_what_tensorboard_reads(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = benchrun.run()
    tensorboard.write(run, tmp_path)
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    points = read.Scalars("identical/engine/hit")
    assert [point.step for point in points] == list(benchrun.SIZES)
    assert points[0].value == pytest.approx(run.measurements[0].median, rel=1e-4)
    assert len(read.Tags()["scalars"]) == len(
        {(one.tier, one.method, one.figure) for one in run.measurements}
    )


# --- text -----------------------------------------------------------------------------------------


def test_the_table_fits_a_terminal_and_says_what_matters() -> None:
    text = summary.table(benchrun.run(memory_limit_bytes=1 << 29, memory_limit_by="a group"))
    assert max(map(len, text.splitlines())) <= 110
    assert re.search(r"^engine +1,000,000 +[\d.]+ µs", text, re.MULTILINE)
    assert "held to 537 MB by a group" in text
    assert "pixel by pixel, 100,000: it would take 3.0 GB of memory" in text
    assert re.search(r"holds +a lookup in a dict of hashes is O\(1\)", text)
    assert "interrupted" in summary.table(benchrun.run(complete=False))


def test_what_is_long_is_wrapped_and_what_is_strange_is_escaped() -> None:
    long = "no module is there; " * 12
    run = benchrun.run(data="\x1b[2J" + "/a/long/path" * 20)
    text = summary.table(replace(run, skipped=(replace(run.skipped[0], why=long),)))
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 110
    assert long.strip() in " ".join(text.split())


def test_the_object_for_programs_has_every_figure() -> None:
    run = benchrun.run()
    body = json.loads(json.dumps(summary.body(run)))
    assert len(body["figures"]) == len(run.measurements)
    assert {"claim", "measured", "verdict"} == body["claims"][0].keys()
    assert any(one["exponent"] == pytest.approx(1, abs=0.05) for one in body["growth"])
    assert body["complete"] and body["skipped"][0]["method"] == "pixel by pixel"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2.35e-7, "s", "235 ns"),
        (0.0000123, "s", "12.3 µs"),
        (0.00999, "s", "9.99 ms"),
        (61.25, "s", "61.2 s"),
        (0, "s", "0 ns"),
        (999.7e-6, "s", "1.00 ms"),
        (999.4e-6, "s", "999 µs"),
        (-5e6, "B", "-5.00 MB"),
        (950, "B", "950 B"),
        (3.95e9, "B", "3.95 GB"),
        (0.9571, "", "0.957"),
    ],
)
def test_figures_have_three_digits_and_a_unit(value: float, unit: str, text: str) -> None:
    assert show(value, unit) == text
