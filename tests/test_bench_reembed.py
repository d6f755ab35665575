"""The long proof with killed reembeds, cut short; and that it does not miss what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.harness.errors import WrongAnswerError
from bench.questions import reembed
from bench.questions.reembed import Reembeds
from engine import Store

pytest.importorskip("onnx")
pytestmark = pytest.mark.usefixtures("one_thread")

MEMORY = 256 << 20


@pytest.mark.slow
def test_three_kills_lose_nothing(tmp_path: Path) -> None:
    report = Reembeds(tmp_path, n=1100, seed=0, memory=MEMORY).run(3)
    assert len(report.kills) == 3
    assert report.kills[0].after >= 512, "it was killed once a chunk was staged"
    assert report.last_kept > 0 or report.switches
    shown = reembed.table(report)
    assert "the old encoder" in shown
    assert f"1,100 images; {report.switches} of 3 kills came after the switch" in shown


@pytest.mark.slow
def test_vectors_of_another_encoder_and_lost_ones_fail_it(tmp_path: Path) -> None:
    run = Reembeds(tmp_path, n=40, seed=0, memory=MEMORY)
    with Store.open(tmp_path / "s.store", read_only=True) as store:
        run.compare(store, "first", [1, 40])
        with pytest.raises(WrongAnswerError, match="2 of 2 vectors are not those"):
            run.compare(store, "second", [1, 40])
    with pytest.raises(WrongAnswerError, match="1 vectors were staged, and 0 are left"):
        run.look("", 1, 0.0)
