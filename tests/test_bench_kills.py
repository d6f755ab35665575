"""The long proof with kills, cut short: three of them; and that it does not miss what is lost."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.harness.errors import BenchError, WrongAnswerError
from bench.questions import kills, kills_ledger
from bench.questions.kills_ledger import BLANK, Chunk, Ledger, Picture
from bench.questions.kills_run import Kills, Report
from engine import UsageError

MEMORY = 128 << 20


@pytest.mark.exhaustive
@pytest.mark.slow
def test_three_kills_lose_nothing(tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    run = Kills(tmp_path, seed=3, memory=MEMORY, encoder="tiny")
    report = run.run(3, lambda done, total: told.append((done, total)))
    assert report.kills == 3
    assert (told[0], told[-1]) == ((0, 3), (3, 3))
    assert report.commits > 0
    assert (report.images, report.sources) == run.ledger.counts()
    assert report.vectors == report.images
    assert report.landed <= report.in_flight <= report.hits.total()
    shown = kills.table(report)
    assert "3 kills of a child that wrote" in shown
    assert f"{report.images:,} images" in shown


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Kills:
    """A store that one child has filled, and was not killed."""
    run = Kills(tmp_path_factory.mktemp("kills"), seed=0, memory=MEMORY, encoder="none")
    run.run(0)
    return run


@pytest.fixture
def filled(whole: Kills) -> Iterator[Kills]:
    """The same, to be told something wrong."""
    ledger = copy.deepcopy(whole.ledger)
    yield whole
    whole.ledger = ledger


@pytest.mark.slow
def test_what_is_lost_is_noticed(filled: Kills) -> None:
    filled._look(None)
    images, sources = filled.ledger.counts()

    # A commit that was acknowledged, and whose file nobody has ingested.
    filled.ledger.files["lost.png"] = Picture("bits", 10**6)
    in_flight = Chunk(("lost.png",), ())
    filled._look(in_flight)  # in flight it may be lost
    assert filled.ledger.counts() == (images, sources)
    filled.ledger.add(in_flight)
    with pytest.raises(WrongAnswerError, match=f"{images} images with {sources} sources are there"):
        filled._look(None)


@pytest.mark.slow
def test_an_image_that_is_another_one_is_noticed(filled: Kills) -> None:
    name, *_ = filled.ledger.files
    was, other = filled.ledger.files[name], Picture("bits", 10**6)
    filled.ledger.images[other] = filled.ledger.images.pop(was)
    with pytest.raises(WrongAnswerError, match=r"was committed, and found are \(\)"):
        filled._look(None)


@pytest.mark.slow
def test_a_source_that_is_missing_is_noticed(filled: Kills) -> None:
    assert len(filled.ledger.images[BLANK]) == len(filled.ledger.arrays)
    filled.ledger.images[BLANK] = {"elsewhere"}
    with pytest.raises(WrongAnswerError, match="was seen in"):
        filled._look(None)


@pytest.mark.slow
def test_half_a_chunk_is_noticed(filled: Kills) -> None:
    name, *_ = filled.ledger.files
    # Of the two files of this chunk one is there.
    filled.ledger.committed.remove(name)
    picture = filled.ledger.files[name]
    filled.ledger.images[picture].remove(name)
    if not filled.ledger.images[picture]:
        del filled.ledger.images[picture]
    filled.ledger.files["lost.png"] = Picture("bits", 10**6)
    with pytest.raises(WrongAnswerError, match="were committed"):
        filled._look(Chunk((name, "lost.png"), ()))


def test_what_is_committed_twice_is_noticed() -> None:
    rows = [Picture("bits", number) for number in range(4)]
    ledger = Ledger(files={"a": BLANK}, arrays={"b": rows})
    ledger.add(Chunk(("a",), (("b", 3),)))
    assert ledger.counts() == (3, 4)
    assert ledger.counts(Chunk((), (("b", 4),))) == (4, 5)
    for again in (Chunk(("a",), ()), Chunk((), (("b", 3),)), Chunk((), (("b", 2),))):
        with pytest.raises(WrongAnswerError, match="committed again"):
            ledger.add(again)


@pytest.mark.slow
def test_a_child_that_is_not_alive_is_not_killed(tmp_path: Path) -> None:
    run = Kills(tmp_path, seed=0, memory=MEMORY, encoder="none")
    child = run._spawn()
    child.begin(["synthetic:bits?seed=0&n=40"])
    while child.hear():
        pass
    with pytest.raises(BenchError, match="ended by itself"):
        child.kill()
    child.end()
    assert run.ledger.rows == {"synthetic:bits?seed=0": 40}


@pytest.mark.slow
def test_a_child_that_cannot_write_is_no_success(tmp_path: Path) -> None:
    run = Kills(tmp_path, seed=0, memory=MEMORY, encoder="none")
    (tmp_path / "kills.store" / "MANIFEST.json").write_text("{}")
    with pytest.raises(WrongAnswerError, match="a child could not write"):
        run.run(1)


def test_pictures_are_made_anew_alike_and_are_of_their_kind() -> None:
    bits, other = Picture("bits", 5), Picture("8-bit", 5)
    assert kills_ledger.values(bits).max() == 1
    assert kills_ledger.values(other).max() > 1
    before = kills_ledger.values(bits).copy()
    kills_ledger.values.cache_clear()
    np.testing.assert_array_equal(kills_ledger.values(bits), before)


@pytest.mark.slow
def test_as_a_script_it_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--kills", "1", "--encoder", "none", "--dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["kills", *arguments])
    assert kills.main()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out.splitlines()[-1].endswith(": met")


def test_as_a_script_it_keeps_a_store_that_lost_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lose(*_: object) -> Report:
        raise WrongAnswerError("an image is gone")

    monkeypatch.setattr(Kills, "run", lose)
    monkeypatch.setattr(sys, "argv", ["kills", "--encoder", "none", "--dir", str(tmp_path)])
    assert not kills.main()
    (kept,) = tmp_path.iterdir()
    assert (kept / "kills.store" / "MANIFEST.json").exists()
    assert f"an image is gone; see {kept}: MISSED" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--kills", "0"], ["--memory", "1M"]])
def test_arguments_that_make_no_sense_are_refused(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kills", *arguments])
    with pytest.raises(UsageError):
        kills.main()
