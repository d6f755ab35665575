"""The benchmark of thresholds at tiny sizes: that it asks what it says, and counts right."""

import json
import sys
from pathlib import Path

import pytest

from bench.questions import thresholds

pytestmark = pytest.mark.slow

PHOTOS = Path(__file__).parent.parent / "scripts" / "photos"


def test_all_of_it_is_counted_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--photos", str(PHOTOS), "--most", "3", "--queries", "2"]
    arguments += ["--dir", str(tmp_path / "work"), "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    assert thresholds.main()
    printed = capsys.readouterr().out
    assert "near: 3 images, 2 copies of each sort" in printed
    assert "similar: 3 images, 2 copies of each sort" in printed
    near, similar = json.loads((tmp_path / "out.json").read_text())["tiers"]
    assert near["thresholds"] == [4, 8, 12, 16, 20, 24, 31]
    assert similar["thresholds"] == [0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    assert near["right"]["half the size"][-1] == similar["right"]["half the size"][0] == 2
    assert near["right"]["mirrored"][-1] == 0
    for counts in (*near["right"].values(), near["false"], near["first_right"]):
        assert counts == sorted(counts)  # a larger distance lets more through
    for counts in (*similar["right"].values(), similar["false"], similar["first_right"]):
        assert counts == sorted(counts, reverse=True)
    assert list((tmp_path / "work").iterdir()) == []


def test_right_and_false_hits_are_told_apart_by_every_threshold() -> None:
    counts = thresholds._Counts(thresholds.DISTANCES, lower_is_nearer=True)
    counts.add("grey", 7, [(5, 8), (7, 12)])
    counts.add("mirrored", 7, [])
    tier = counts.tier("near", 1)
    assert tier.right["grey"] == [0, 0, 1, 1, 1, 1, 1]
    assert tier.false == tier.first_false == [0, 1, 1, 1, 1, 1, 1]
    assert tier.first_right == [0] * 7
    assert tier.all_right == tier.right["grey"]
    lines = thresholds.table(2, tier).splitlines()
    assert lines[-3].split() == ["precision", "-", "0.0", *["50.0"] * 5]
