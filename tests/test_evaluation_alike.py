"""What looks alike: the three nearest have the label of the query, or not."""

import json

import numpy as np
import pytest
from helpers import save
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine.errors import UsageError
from engine.evaluation import evaluate
from engine.evaluation.alike import precision
from engine.evaluation.plot import draw
from engine.evaluation.report import text

COLOURS = {"blue": (30, 30, 200), "green": (30, 160, 30), "red": (200, 30, 30)}


def labelled(folder, count=6, **more):
    """Noisy squares, a folder for each colour."""
    for name, colour in COLOURS.items():
        for number in range(more.get(name, count)):
            noise = np.random.default_rng(number).integers(0, 40, (20, 20, 3), np.uint8)
            save(folder / name / f"{number}.png", noise + np.array(colour, np.uint8))
    return str(folder)


def unit(vectors):
    return np.asarray(vectors, np.float32) / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_share_of_the_nearest_with_the_label_is_exact():
    vectors = unit([[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1], [1, 0.05]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    # The last one lies among the first three, away from its own.
    assert precision(vectors, labels, np.arange(3), k=2) == pytest.approx((1 + 1 + 1) / 6)
    assert precision(vectors, labels, np.array([5]), k=2) == 0
    assert precision(vectors, labels, np.array([3, 4]), k=1) == 1


def test_vectors_that_are_all_the_same_or_zero_get_no_credit():
    labels = np.repeat([0, 1], 4)
    assert precision(np.ones((8, 1), np.float32), labels, np.arange(8)) == 0
    assert precision(np.zeros((8, 3), np.float32), labels, np.arange(8)) == 0


@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 60))
def test_blocks_change_nothing_and_plain_loops_say_the_same(seed, k, compared):
    draw_ = np.random.default_rng(seed)
    # Products of small whole numbers are exact, so ties are ties.
    vectors = draw_.integers(-2, 3, (12, 3)).astype(np.float32)
    vectors[~vectors.any(axis=1)] = 1
    labels = draw_.integers(0, 3, 12)
    right = 0
    scores = vectors @ vectors.T
    for query in range(12):
        others = [other for other in range(12) if other != query]
        order = sorted(others, key=lambda o: (-scores[query, o], labels[o] == labels[query]))
        right += sum(labels[other] == labels[query] for other in order[:k])
    found = precision(vectors, labels, np.arange(12), k, compared=compared)
    assert found == precision(vectors, labels, np.arange(12), k) == right / (12 * k)


@pytest.mark.slow
def test_colours_look_alike_to_pixels_and_the_report_says_so(tmp_path):
    source = labelled(tmp_path / "in", blue=2)
    report = evaluate(["pixels", "pdq"], alike=source, out=tmp_path / "out")
    assert (report.alike_pictures, report.alike_queries, report.alike_classes) == (14, 12, 3)
    assert report.alike_by_chance == pytest.approx(5 / 13)
    pixels, pdq = report.results
    assert pixels.looks_alike == 1 > pdq.looks_alike
    shown = text(report)
    assert "alike" in shown and "1.000" in shown and "by chance" in shown
    body = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert body["results"][0]["looks_alike"] == 1
    assert str(tmp_path / "out" / "quality.png") in body["files"]
    with Image.open(tmp_path / "out" / "quality.png") as plot:
        assert plot.size[0] > 400 and len(set(plot.convert("L").tobytes())) > 10


@pytest.mark.slow
def test_every_measure_has_a_panel(tmp_path):
    source = labelled(tmp_path / "in")
    report = evaluate(["pixels", "pdq"], alike=source, labels=(source, source))
    drawn = draw(report)
    assert drawn is not None and drawn[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("counts", "what"),
    [({"red": 0, "green": 0}, "two classes"), ({"red": 3, "green": 3, "blue": 3}, "4 pictures")],
)
def test_pictures_that_cannot_be_compared_are_refused(tmp_path, counts, what):
    source = labelled(tmp_path / "in", **counts)
    with pytest.raises(UsageError, match=what):
        evaluate(["pixels"], alike=source)


def test_without_labels_there_is_nothing_to_compare(tmp_path):
    save(tmp_path / "in" / "a.png", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(UsageError, match="no class"):
        evaluate(["pixels"], alike=str(tmp_path / "in"))
