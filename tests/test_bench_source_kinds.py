"""The benchmark of sources at tiny sizes: the same images in all of them, and what is judged."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import BenchError
from bench.questions import source_kinds, source_writers
from bench.questions.source_kinds import Taken
from bench.questions.source_writers import BITS, BITS_ARRAY, FOLDER, TAR
from engine import UsageError
from engine.sources.items import Member
from engine.sources.source_stream import Sources

MEMORY = 128 << 20


def taken(
    kind: str, seconds: float, peak: int = 100, beside: str = FOLDER, added: int = 9
) -> Taken:
    return Taken(kind, beside, 9, added, seconds, peak, peak)


def test_every_kind_holds_the_images_of_the_folder(tmp_path: Path) -> None:
    images = list(source_writers.made_images(12, 0))
    made = source_writers.write_all(tmp_path, iter(images), 5, 0)
    assert {FOLDER, TAR, "tar.gz", "tar.zst", "zip", "webdataset", BITS, BITS_ARRAY} <= set(made)
    for kind, (beside, source, count) in made.items():
        if beside == FOLDER and kind != FOLDER:
            (archive,) = Sources([str(source)])
            members = list(archive.members(0, MEMORY))  # type: ignore[union-attr]
            assert all(isinstance(member, Member) for member in members), kind
            assert [member.data for member in members] == [content for _, content in images]
            assert count == 12
    assert len(set(images)) == 12


def test_images_of_a_folder_are_taken_as_they_are(tmp_path: Path) -> None:
    for number, (suffix, content) in enumerate(source_writers.made_images(5, 0)):
        (tmp_path / f"{number}{suffix}").write_bytes(content)
    (tmp_path / "large.png").write_bytes(bytes(100_000))
    (tmp_path / "notes.txt").write_text("notes")
    found = list(source_writers.found_images(tmp_path, 3))
    assert len(found) == 3
    assert len(list(source_writers.found_images(tmp_path, 30))) == 5
    assert {content for _, content in found} <= {c for _, c in source_writers.made_images(5, 0)}
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="no image"):
        list(source_writers.found_images(tmp_path / "none", 3))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_it_measures_every_kind_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--n", "6", "--bits", "3", "--rounds", "1", "--dir", str(tmp_path), "--json"]
    monkeypatch.setattr(
        sys, "argv", ["bench", *arguments, "--memory", "128M", "--kinds", "zip,parquet"]
    )
    source_kinds.main()
    ingests = json.loads(capsys.readouterr().out)["ingests"]
    assert {one["kind"] for one in ingests} >= {FOLDER, TAR, "zip", BITS, "tar of bits", BITS_ARRAY}
    assert {(one["beside"], one["images"], one["added"]) for one in ingests} == {
        (FOLDER, 6, 6),
        (BITS, 3, 3),
    }
    assert all(one["seconds"] > 0 and one["reported_peak_bytes"] > 0 for one in ingests)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_kind_that_adds_other_images_is_an_error(tmp_path: Path) -> None:
    made = source_writers.write_all(tmp_path, source_writers.made_images(4, 0), 0, 0, [TAR])
    source_writers.write_folder(tmp_path / "fewer", source_writers.made_images(3, 0))
    source_writers.write_tar(tmp_path / "a.tar", tmp_path / "fewer")
    with pytest.raises(BenchError, match="3 of 4 images"):
        source_kinds.measure(made, 1, MEMORY, tmp_path)


def test_ratios_are_taken_round_by_round() -> None:
    rounds = [taken(FOLDER, 1), taken(TAR, 2), taken(FOLDER, 10), taken(TAR, 10), taken(FOLDER, 2)]
    rounds += [taken(TAR, 8)]
    assert source_kinds.speed(rounds, TAR) == 0.5
    slow, much = source_kinds.targets_of(rounds)
    assert not slow.met and much.met
    fast = [taken(FOLDER, 1, 100), taken(TAR, 1.1, 120)]
    assert [one.met for one in source_kinds.targets_of(fast)] == [True, False]
    lines = source_kinds.table(rounds).splitlines()
    assert lines[2].split() == ["tar", "9", "1", "1", "4", "0.50", "0"]
