"""``engine lookup``: what may be named, and the forms in which it answers."""

from __future__ import annotations

import csv
import io
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import mask, picture, save

from engine import Store
from engine.cli import queries
from engine.cli.app import main
from engine.cli.lookup_output import Csv, Paths
from engine.records import IdenticalHit, LookupResult, NearHit, SimilarHit

Lookup = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, one of them in three places, and a store of them without vectors."""
    folder = tmp_path_factory.mktemp("lookups")
    for number in range(4):
        save(folder / f"photos/{number}.png", picture(number, 24, 32))
    for name in ("more/again.png", "more/more.bmp"):
        save(folder / "photos" / name, picture(2, 24, 32))
    np.save(folder / "same.npy", np.repeat(mask(7)[None], 30, axis=0))
    with Store.open(folder / "store", create=True, encoder="none") as store:
        store.ingest(folder / "photos")
        store.ingest(folder / "same.npy")
    return folder


@pytest.fixture
def lookup(
    capfdbinary: pytest.CaptureFixture[bytes], shop: Path, monkeypatch: pytest.MonkeyPatch
) -> Lookup:
    """Runs a lookup in this process, in the folder ``shop``."""
    monkeypatch.chdir(shop)

    def run(*words: object) -> tuple[int, str, str]:
        status = main(["lookup", *map(str, words), "--store", str(shop / "store")])
        out, err = capfdbinary.readouterr()
        return status, os.fsdecode(out), os.fsdecode(err)

    return run


def objects(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


# --- what may be named ----------------------------------------------------------------------------


def test_a_folder_is_all_of_its_images(lookup: Lookup, shop: Path) -> None:
    status, out, _ = lookup("photos", "--exact", "--json")
    assert status == 0
    names = [Path(str(found["query"])).relative_to(shop / "photos") for found in objects(out)]
    assert [str(name) for name in names] == [
        *("0.png", "1.png", "2.png", "3.png", "more/again.png", "more/more.bmp"),
    ]
    _, out, _ = lookup("photos", "--exact", "--json", "--exclude", "more", "--exclude", "[01]*")
    assert [Path(str(found["query"])).name for found in objects(out)] == ["2.png", "3.png"]


def test_an_image_of_the_store_is_named_by_its_number(
    lookup: Lookup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where a file has the name that the number has in results."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png", picture(3, 24, 32))
    (tmp_path / "a.png").rename(tmp_path / "#2")
    status, out, _ = lookup("--id", 2, "#1", "--id", 4, "--tier", "identical", "--json")
    assert status == 0
    assert [(found["query"], found["identical"][0]["id"]) for found in objects(out)] == [  # type: ignore[index]
        ("#1", 1),
        ("#2", 2),
        ("#4", 4),
    ]
    status, out, _ = lookup("--id", 99, "--json")
    assert status == 3
    (found,) = objects(out)
    assert found["query"] == "#99" and "no image 99" in str(found["error"])


def test_tiers_come_one_by_one_or_with_commas(lookup: Lookup) -> None:
    answers = []
    for tiers in (("identical", "near"), ("near,identical",), ("identical, near",)):
        words = [word for tier in tiers for word in ("--tier", tier)]
        (found,) = objects(lookup("photos/1.png", "--json", *words)[1])
        del found["milliseconds"]
        answers.append(found)
    assert answers[0]["searched"] == ["identical", "near"]
    assert answers[1:] == answers[:1] * 2
    assert lookup("photos/1.png", "--exact", "--tier", "identical,identical")[0] == 0


def test_how_many_near_images_and_sources_are_listed(lookup: Lookup, tmp_path: Path) -> None:
    for words, count in (((), 10), (("--sources", 3), 3), (("--sources", "all"), 30)):
        (found,) = objects(lookup("same.npy#0", "--json", *words)[1])
        (hit,) = found["identical"]  # type: ignore[misc]
        assert (len(hit["sources"]), hit["source_count"]) == (count, 30)
    for words, lines in (((), 1), (("--sources", 3), 3), (("--sources", "all"), 30)):
        table = lookup("same.npy#0", "--tier", "identical", *words)[1]
        assert len(table.splitlines()) == 1 + lines
    assert "(30 sources)" in lookup("same.npy#0", "--sources", 0)[1]


@pytest.mark.slow
def test_near_images_are_listed_up_to_a_limit(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    base = mask(3)
    for number in range(15):
        changed = base.copy()
        changed.reshape(-1)[number] ^= 1
        save(tmp_path / f"in/{number:02}.png", changed)
    store = ["--store", str(tmp_path / "store")]
    assert main(["ingest", str(tmp_path / "in"), "--encoder", "none", *store]) == 0
    capsys.readouterr()
    for words, shown, listed in (
        ([], 10, 14),
        (["--near-limit", "3"], 3, 3),
        (["--near-limit", "all"], 14, 14),
        (["--near-limit", "0"], 0, 0),
    ):
        main(["lookup", "--id", "1", *words, *store])
        lines = capsys.readouterr().out.splitlines()
        assert sum(line.startswith("  near       #") for line in lines) == shown
        rest = [line for line in lines if "more (--json" in line]
        assert [int(line.split()[-7]) for line in rest] == [14 - shown] * (shown < 14)
        main(["lookup", "--id", "1", "--json", *words, *store])
        (found,) = objects(capsys.readouterr().out)
        assert (len(found["near"]), found["near_count"]) == (listed, 14)  # type: ignore[arg-type]


# --- lists and pipes ------------------------------------------------------------------------------


def test_names_come_in_lists_and_those_of_a_pipe_one_by_one(tmp_path: Path) -> None:
    listing = tmp_path / "list"
    names = [f"{number}.png" for number in range(2500)]
    listing.write_text("\n".join(names))
    found = list(queries.pieces([1, "a"], str(listing)))
    assert all(isinstance(piece, list) for piece in found)
    assert [len(piece) for piece in found] == [2, 1000, 1000, 500]  # type: ignore[arg-type]
    assert [name for piece in found for name in piece] == [1, "a", *names]
    assert [len(piece) for piece in queries.pieces(names)] == [1000, 1000, 500]  # type: ignore[arg-type]
    (tmp_path / "empty").touch()
    assert list(queries.pieces([], str(tmp_path / "empty"))) == [[]]
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        first, second = queries.pieces(["a"], str(tmp_path / "pipe"))
        os.write(pipe, b"b\nc\n")
        assert first == ["a"] and not isinstance(second, list)
        assert [next(iter(second)) for _ in range(2)] == ["b", "c"]
    finally:
        os.close(pipe)


@pytest.mark.slow
def test_a_pipe_gets_each_answer_before_the_next_name(shop: Path) -> None:
    command = [sys.executable, "-m", "engine", "lookup", "--files-from", "-", "--json", "--exact"]
    with subprocess.Popen(
        [*command, "--store", str(shop / "store")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as run:
        assert run.stdin is not None and run.stdout is not None
        for number in range(3):
            run.stdin.write(f"{shop}/photos/{number}.png\n".encode())
            assert select.select([run.stdout], [], [], 60)[0]
            assert json.loads(run.stdout.readline())["identical"][0]["id"] == number + 1
        run.stdin.close()
        assert run.wait() == 0


# --- forms ----------------------------------------------------------------------------------------


def test_paths_are_the_sources_of_hits_each_once(lookup: Lookup, shop: Path) -> None:
    photos = [f"{shop}/photos/{name}" for name in ("2.png", "more/again.png", "more/more.bmp")]
    nulls = (["--print0"], ["--paths", "--print0"])
    for words, end in ((["-q"], "\n"), (["--paths"], "\n"), *((one, "\0") for one in nulls)):
        queried = ["photos/2.png", "photos/more/again.png", "photos/0.png", "same.npy#0"]
        status, out, _ = lookup(*queried, *words, "--tier", "identical", "--sources", 3)
        rows = [f"{shop}/same.npy#{row}" for row in range(3)]
        assert (status, out.split(end)) == (0, [*photos, f"{shop}/photos/0.png", *rows, ""])


def test_paths_of_nothing_are_nothing_and_errors_are_told_beside(
    lookup: Lookup, tmp_path: Path
) -> None:
    save(tmp_path / "new.png", picture(90, 24, 32))
    status, out, err = lookup(tmp_path / "new.png", "--paths", "--exact")
    assert (status, out, err) == (1, "", "")
    for form in ("--paths", "--print0", "--csv"):
        status, out, err = lookup("gone.png", "photos/0.png", form)
        assert status == 3 and "photos/0.png" in out
        assert err == "engine: gone.png: no such file\n"


def test_a_pattern_stands_for_several_and_what_was_in_memory_has_no_name(
    lookup: Lookup, shop: Path
) -> None:
    status, out, _ = lookup("photos/{1..2}.png", "--json", "--exact")
    assert (status, [one["query"] for one in objects(out)]) == (0, ["photos/1.png", "photos/2.png"])
    rows = shop / "rows{1,2}.npy"
    np.save(rows, np.repeat(mask(7)[None], 2, axis=0))
    assert lookup(f"{rows}#1", "--exact", "--paths")[0] == 0
    status, _, err = lookup("memory:frame-8", "--paths")
    assert status == 3 and "was in memory when it was ingested: look up its id" in err


def test_names_keep_their_bytes(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    name = os.fsdecode(b"/a\xff\n\x1b.png")
    result = LookupResult("q", ("near",), near=(NearHit(3, 1, None, (name,), 1),), near_count=1)
    assert Paths(b"\0").write(result)
    assert capfdbinary.readouterr().out == b"/a\xff\n\x1b.png\0"
    assert Csv().write(result)
    assert b'near,3,1,"/a\xff\n\x1b.png",,1\n' in capfdbinary.readouterr().out


def test_csv_has_a_header_and_a_row_a_hit(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    same = IdenticalHit(1, ("/a,b.png", "/c.png"), 2, "bytes", {"label": 'the "cat"\nthere'})
    near = NearHit(2, 12, 310, (), 0, 30_000, {"label": "\ud800"})
    like = SimilarHit(3, 0.91349, ("/d.png",), 1)
    output = Csv()
    output.write(LookupResult("q.png", identical=(same,), near=(near,), similar=(like,)))
    output.write(LookupResult("none.png"))
    output.write(LookupResult("r.png", similar=(like,)))
    output.end()
    written = capfdbinary.readouterr().out.decode()
    assert list(csv.reader(io.StringIO(written))) == [
        ["query", "tier", "id", "score_or_distance", "source", "label", "source_count"],
        ["q.png", "identical", "1", "", "/a,b.png", 'the "cat"\nthere', "2"],
        ["q.png", "near", "2", "12", "", "\\ud800", "0"],
        ["q.png", "similar", "3", "0.91349", "/d.png", "", "1"],
        ["none.png", "", "", "", "", "", ""],
        ["r.png", "similar", "3", "0.91349", "/d.png", "", "1"],
    ]


def test_the_names_of_what_was_found_and_of_what_was_not(lookup: Lookup, tmp_path: Path) -> None:
    new = save(tmp_path / "new.png", picture(91, 24, 32))
    asked = ["photos/0.png", new, "photos/2.png", "gone.png"]
    for options, end in ((["-l"], "\n"), (["--found", "--print0"], "\0")):
        status, out, err = lookup(*asked, *options)
        assert (status, out) == (3, f"photos/0.png{end}photos/2.png{end}")
        assert err == "engine: gone.png: no such file\n"
    for options, end in ((["-L"], "\n"), (["--print0", "--not-found"], "\0")):
        assert lookup(*asked[:3], *options) == (0, f"{new}{end}", "")
    for other in ("--paths", "--csv", "--json", "--found"):
        status, _, err = lookup("photos/0.png", "--not-found", other)
        assert status == 2 and "exclude each other" in err


def test_csv_names_what_was_not_found(lookup: Lookup, tmp_path: Path) -> None:
    new = save(tmp_path / "new.png", picture(91, 24, 32))
    status, out, _ = lookup(new, "--csv", "--exact")
    assert (status, out) == (
        1,
        f"query,tier,id,score_or_distance,source,label,source_count\n{new},,,,,,\n",
    )
