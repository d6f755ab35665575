"""Precision by category: counted right, and pictures of packages read as they are labelled."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.questions.looks_alike import chance, measure, precision, table
from bench.questions.looks_alike_sets import SETS, LabelledSet, icons, landscapes


def test_precision_counts_the_nearest_others() -> None:
    angles = np.array([0, 1, 2, 90, 91, 180])
    vectors = np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))], 1)
    vectors = vectors.astype(np.float32)
    labels = ["a", "a", "a", "b", "b", "a"]
    # 0, 1 and 2 find each other, 3 and 4 each other, and 180 finds 91.
    assert precision(vectors, labels, 1) == pytest.approx(5 / 6)
    # Of two: both, both, both; one; one; none.
    assert precision(vectors, labels, 2) == pytest.approx((2 + 2 + 2 + 1 + 1 + 0) / 12)


def test_chance_is_the_share_of_pairs_of_a_category() -> None:
    assert chance(["a", "a", "b", "c"]) == pytest.approx(2 / 12)


def save(path: Path, colour: tuple[int, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", (20, 20), colour).save(path)


def test_landscapes_are_labelled_by_their_names(tmp_path: Path) -> None:
    land = tmp_path / "endless-sky-data/usr/share/games/endless-sky/images/land"
    for name in ("beach1", "beach2-somebody", "beach3", "beach4", "nasa7", "sky1"):
        land.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(land / f"{name}.jpg")
    # Of "sky" there is one, which could find no other, and "nasa" is no place.
    assert landscapes(tmp_path).labels == ["beach"] * 4


def test_icons_are_pairs_on_white(tmp_path: Path) -> None:
    for theme in (
        "gnome-icon-theme/usr/share/icons/gnome/256x256",
        "oxygen-icon-theme/usr/share/icons/oxygen/base/256x256",
    ):
        for name in ("actions/go.png", "places/home.png", "stock/other.png"):
            save(tmp_path / theme / name, (0, 0, 0, 0))
    found = icons(tmp_path)
    assert found.labels == ["go", "go", "home", "home"] and found.nearest == 1
    assert all((picture == 255).all() for picture in found.pictures)


@pytest.mark.slow
def test_every_entrant_gets_a_row_and_every_set_a_column() -> None:
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (40, 40, 3), np.uint8) for _ in range(8)]
    one = LabelledSet("noise", "noise", pictures, list("aaaabbbb"), 3)
    results = measure([one], ["pixels", "simclr"])
    assert [result.entrant for result in results] == ["pixels", "simclr"]
    assert all(result.pictures == 8 and 0 <= result.precision <= 1 for result in results)
    lines = table([one], results).splitlines()
    assert lines[0].split() == ["noise", "(8)"] and len(lines) == 4
    assert set(SETS) == {"landscapes", "clippings", "clothes", "emoji", "icons"}
