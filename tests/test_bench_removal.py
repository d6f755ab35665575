"""The benchmark of removals: it measures each step, and would say if an answer were wrong."""

import json

import pytest

from bench.harness import script
from bench.harness.errors import WrongAnswerError
from bench.questions import removal
from engine import Store, UsageError


@pytest.mark.slow
def test_each_step_is_measured_and_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["remove", "--n", "400", "--dir", str(tmp_path), "--json"])
    removal.main()
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert [(one["what"], one["images"]) for one in steps] == [
        ("ingest", 400),
        ("remove", 120),
        ("optimize", 280),
    ]
    assert steps[2]["bytes_before"] - steps[2]["bytes_after"] > 100 * 3750
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("sys.argv", ["remove", "--n", "50", "--share", "1", "--dir", str(tmp_path)])
    removal.main()
    assert "disk after / before optimize" in capsys.readouterr().out


@pytest.mark.slow
def test_a_removed_image_that_is_still_found_fails_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "remove", lambda store, ids: None)
    with pytest.raises(WrongAnswerError, match="still found"):
        removal.measure(100, 0.5, budget=1 << 30, seed=0, folder=tmp_path)


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_a_share_that_is_none_is_refused(share, monkeypatch, capsys):
    with pytest.raises(UsageError, match="share"):
        removal.measure(100, share, budget=1 << 30, seed=0, folder=None)
    monkeypatch.setattr("sys.argv", ["remove", "--share", str(share)])
    with pytest.raises(SystemExit) as caught:
        script.exit_with(removal.main)
    assert caught.value.code == 2
