"""What is left out of folders by patterns: in ingests, dry runs and lookups."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import mask, save

from engine import Store, UsageError
from engine.sources import files
from engine.sources.exclusions import Exclusions
from engine.sources.items import FileItem, Reject
from engine.sources.source_stream import Sources

NAMES = ["a.png", "b.bmp", "thumbs/a.png", "trip/b.bmp", "trip/thumbs/c.png", "trip/z.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        save(tmp_path / "in" / name, mask(number))
    return tmp_path / "in"


def left(folder: Path, *patterns: str) -> list[str]:
    """The files that a walk meets, by their paths below the folder."""
    exclude = Exclusions(patterns)
    items = list(files.walk(folder, recursive=True, exclude=exclude))
    assert files.count(folder, recursive=True, exclude=exclude) == len(items)
    assert all(isinstance(item, FileItem) for item in items)
    return sorted(str(item.path.relative_to(folder)) for item in items)


@pytest.mark.parametrize(
    ("patterns", "gone"),
    [
        ([], []),
        (["*.bmp"], ["b.bmp", "trip/b.bmp"]),
        (["thumbs"], ["thumbs/a.png", "trip/thumbs/c.png"]),
        (["thumbs/"], ["thumbs/a.png", "trip/thumbs/c.png"]),
        (["trip/*.png"], ["trip/thumbs/c.png", "trip/z.png"]),
        (["trip/thumbs"], ["trip/thumbs/c.png"]),
        (["b.*", "[yz].png"], ["b.bmp", "trip/b.bmp", "trip/z.png"]),
        (["*.BMP", "in", "in/*"], []),
    ],
)
def test_a_pattern_is_matched_with_a_name_and_with_a_path_below(
    folder: Path, patterns: list[str], gone: list[str]
) -> None:
    assert left(folder, *patterns) == sorted(set(NAMES) - set(gone))


def test_a_folder_that_matches_is_not_entered(folder: Path) -> None:
    """A folder that is gone by the time that it is entered is a problem, unless it is left out."""
    for patterns, problems in (("deep", 0), ("other", 1)):
        (folder / "deep").mkdir()
        walk = files.walk(folder, recursive=True, exclude=Exclusions(patterns))
        first = next(walk)
        (folder / "deep").rmdir()
        assert sum(isinstance(item, Reject) for item in [first, *walk]) == problems


def test_a_file_that_is_named_itself_is_taken(folder: Path) -> None:
    sources = Sources([str(folder / "b.bmp"), str(folder / "trip")], exclude="*.bmp")
    names = [item.path.name for item in sources if isinstance(item, FileItem)]
    assert names == ["b.bmp", "z.png", "c.png"]
    assert sources.count() == 3


@pytest.mark.parametrize(
    "patterns", ["", "/", ["a", ""], [b"a"], [1], 5, None, "/home/a", ["./thumbs"], "../x"]
)
def test_what_is_no_pattern_is_refused(folder: Path, patterns: object) -> None:
    with pytest.raises(UsageError, match=r"exclude= (takes|must be a list of) patterns"):
        Store.plan(folder / "store", folder, exclude=patterns)  # type: ignore[arg-type]


@pytest.mark.slow
def test_ingests_dry_runs_and_lookups_leave_the_same_out(folder: Path, tmp_path: Path) -> None:
    path, exclude = tmp_path / "store", ["thumbs", "*.bmp"]
    assert Store.plan(path, folder, encoder="none", exclude=exclude).images == 2
    totals: list[int | None] = []
    with Store.open(path, create=True, encoder="none") as store:
        report = store.ingest(
            folder, exclude=exclude, progress=lambda done, total: totals.append(total)
        )
        assert (report.added, report.skipped, totals[0]) == (2, 0, 2)
        found = list(store.lookup_many([folder], exclude=exclude))
        assert [Path(result.query).name for result in found] == ["a.png", "z.png"]
        assert all(result.identical for result in found)
        assert len(list(store.lookup_many([folder]))) == len(NAMES)
        with pytest.raises(UsageError, match="exclude="):
            store.lookup_many([folder], exclude="")
