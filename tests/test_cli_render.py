"""What is printed: JSON for programs and tables for people."""

import dataclasses
import io
import json
import os
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cli import render
from engine.cli import text as words
from engine.cli.terminal import Look
from engine.records import (
    CheckReport,
    IdenticalHit,
    IngestReport,
    LookupResult,
    NearHit,
    OptimizeReport,
    Problem,
    SimilarHit,
    StoreInfo,
)

FOUND = LookupResult(
    query="query.jpg",
    searched=("identical", "near", "similar"),
    identical=(IdenticalHit(7, ("/photos/a.png", "/photos/b.png"), 12, "bytes"),),
    near=(
        NearHit(9, 12, None, ("/photos/c.png",), 1),
        NearHit(8, 3, 310, ("/masks.npy#7",), 1, 30_000, {"label": "cat"}),
    ),
    near_count=2,
    similar=(SimilarHit(3, 0.91349, (), 0),),
    milliseconds={"decode": 1.9, "identical": 0.1},
)
NOTHING = LookupResult(query="query.jpg", searched=("identical", "similar"))
INGESTED = IngestReport(
    seen=1234567,
    added=1234560,
    duplicates=4,
    unchanged=3,
    rejected=0,
    skipped=0,
    seconds=10.0,
    images_per_second=123456.7,
    peak_memory_bytes=300 << 20,
    peak_rss_bytes=2 << 30,
    rejects_file=None,
)

# Any text that a name may hold, lone surrogates (bytes that are no UTF-8) included.
NAMES = st.text(st.characters(exclude_categories=()), max_size=30)


# --- JSON -----------------------------------------------------------------------------------------


@pytest.mark.slow
@given(st.dictionaries(NAMES, NAMES | st.integers() | st.lists(NAMES, max_size=3), max_size=4))
def test_any_object_is_one_line_of_ascii_that_reads_back(value):
    line = render.line(value)
    assert json.loads(line) == value
    assert line.isascii()
    assert len(line.splitlines()) == 1


def test_json_is_compact():
    assert render.line({"a": 1, "b": [1, 2]}) == '{"a":1,"b":[1,2]}'


def test_a_lookup_is_the_documented_object():
    assert json.loads(render.lookup_json(FOUND)) == {
        "query": "query.jpg",
        "searched": ["identical", "near", "similar"],
        "identical": [
            {
                "id": 7,
                "sources": ["/photos/a.png", "/photos/b.png"],
                "source_count": 12,
                "verified": "bytes",
                "metadata": None,
            }
        ],
        "near": [
            {
                "id": 9,
                "distance": 12,
                "pixel_distance": None,
                "sources": ["/photos/c.png"],
                "source_count": 1,
                "pixel_values": None,
                "metadata": None,
            },
            {
                "id": 8,
                "distance": 3,
                "pixel_distance": 310,
                "sources": ["/masks.npy#7"],
                "source_count": 1,
                "pixel_values": 30_000,
                "metadata": {"label": "cat"},
            },
        ],
        "near_count": 2,
        "similar": [
            {
                "id": 3,
                "score": 0.91349,
                "sources": [],
                "source_count": 0,
                "metadata": None,
                "percentile": None,
                "stranger": False,
            }
        ],
        "milliseconds": {"decode": 1.9, "identical": 0.1},
    }


def test_a_lookup_that_failed_is_its_query_and_its_error():
    failed = LookupResult("gone.png", error="no such file")
    assert json.loads(render.lookup_json(failed)) == {"query": "gone.png", "error": "no such file"}


def test_a_name_that_is_no_utf_8_can_be_had_back_as_bytes():
    name = os.fsdecode(b"/photos/\xff\xfe.png")
    line = render.lookup_json(LookupResult(name))
    assert os.fsencode(json.loads(line)["query"]) == b"/photos/\xff\xfe.png"


# --- tables ---------------------------------------------------------------------------------------


def test_a_lookup_is_a_table_with_a_line_a_hit():
    title, *rows = render.lookup_text(FOUND).splitlines()
    assert title == "query.jpg  (2.0 ms)"
    assert [row.split() for row in rows] == [
        ["identical", "#7", "same", "pixels", "/photos/a.png", "(+11", "more)"],
        ["near", "#9", "12", "of", "256,", "close", "/photos/c.png"],
        [
            *("near", "#8", "310", "of", "30,000", "values", "differ,", "very", "close"),
            *("[cat]", "/masks.npy#7"),
        ],
        ["similar", "#3", "0.913,", "close", "(no", "source", "left)"],
    ]
    last = ["/", "/", "[cat]", "(no"]
    assert len({row.index(what) for row, what in zip(rows, last, strict=True)}) == 1


LONG = "/home/somebody/pictures/of-the-year-2024/trip-to-the-sea/originals/IMG_0001.png"


@pytest.mark.parametrize("width", [80, 60, 100, 400])
def test_a_table_fits_the_terminal_by_breaking_paths_at_slashes(width):
    hits = (IdenticalHit(7, (LONG, LONG.replace("0001", "0002")), 12, "bytes", {"label": "cat"}),)
    near = (NearHit(9, 12, None, (LONG,), 1),)
    result = LookupResult(LONG, ("identical", "near"), hits, near, 1)
    lines = render.lookup_text(result, Look(width), sources_shown=None).splitlines()
    assert max(len(line) for line in lines) <= width
    together = "".join(line[2:] if line.startswith("  ") else line for line in lines)
    assert "".join(together.split()).count(LONG) == 3
    assert LONG.replace("0001", "0002") in "".join(together.split())
    whole = render.lookup_text(result, sources_shown=None).splitlines()
    assert len(whole) == 4 and sum(LONG in line for line in whole) == 3
    at = whole[2].index("/home")
    assert whole[2][:at].isspace() and whole[2].endswith("(+10 more)")


def test_a_name_that_is_longer_than_the_room_stays_whole():
    assert words.broken("/a/" + "b" * 30 + "/c", 10) == ["/a/", "b" * 30 + "/", "c"]
    assert words.broken("b" * 30, 10) == ["b" * 30]
    assert words.broken("/a/b/", 10) == ["/a/b/"]
    assert words.broken("b" * 30 + "/", 10) == ["b" * 30 + "/"]
    assert words.broken("", 10) == [""]


def test_a_table_has_colours_only_where_they_are_wanted():
    plain = render.lookup_text(FOUND)
    painted = render.lookup_text(FOUND, Look(colour=True))
    assert "\x1b" not in plain
    assert painted.splitlines()[1].startswith("  \x1b[32midentical\x1b[0m  #7")
    assert re.sub(r"\x1b\[\d+m", "", painted) == plain
    failed = LookupResult("x.png", error="why")
    assert "\x1b[31merror:\x1b[0m why" in render.lookup_text(failed, Look(colour=True))


@pytest.mark.parametrize(
    ("environment", "terminal", "look"),
    [
        ({"TERM": "xterm", "COLUMNS": "60"}, True, Look(60, True)),
        ({"TERM": "xterm", "COLUMNS": "60", "NO_COLOR": "1"}, True, Look(60, False)),
        ({"TERM": "dumb", "COLUMNS": "60"}, True, Look(60, False)),
        ({"TERM": "xterm", "COLUMNS": "60"}, False, Look(None, False)),
    ],
)
def test_only_a_terminal_has_a_width_and_colours(monkeypatch, environment, terminal, look):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    class Output(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    monkeypatch.setattr(sys, "stdout", Output())
    assert Look.of_output() == look


@pytest.mark.parametrize(
    ("near", "word"),
    [
        (NearHit(1, 8, None, (), 0), "very close"),
        (NearHit(1, 9, None, (), 0), "close"),
        (NearHit(1, 20, None, (), 0), "close"),
        (NearHit(1, 21, None, (), 0), "loosely"),
        (NearHit(1, 30, 100, (), 0, 10_000), "very close"),
        (NearHit(1, 3, 600, (), 0, 10_000), "close"),
        (NearHit(1, 3, 900, (), 0, 10_000), "loosely"),
    ],
)
def test_a_near_distance_has_a_word_beside_it(near, word):
    text = render.lookup_text(LookupResult("q", ("near",), near=(near,), near_count=1))
    assert f", {word}  (no source left)" in text


def test_a_score_has_a_word_beside_it_if_an_encoder_made_the_vectors():
    for score, word in ((0.95, "very close"), (0.94, "close"), (0.85, "close"), (0.84, "loosely")):
        result = LookupResult("q", ("similar",), similar=(SimilarHit(1, score, ("a",), 1),))
        assert f"{score:.3f}, {word}  a" in render.lookup_text(result)
        assert f"{score:.3f}  a" in render.lookup_text(result, encoded=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "more"), [(10, None), (11, "and 1 more"), (20_000, "and 19,990 more")]
)
def test_of_many_near_hits_the_table_shows_ten_and_json_all(count, more):
    """Whether or not the lookup listed them all."""
    listed = min(count, 100)
    near = tuple(NearHit(id_, 3, None, ("a.png",), 1) for id_ in range(1, listed + 1))
    same = (IdenticalHit(30_000, ("b.png",), 1, "bytes"),)
    like = (SimilarHit(40_000, 0.5, ("c.png",), 1),)
    result = LookupResult("q.png", ("identical", "near", "similar"), same, near, count, like)
    _, first, *rows = render.lookup_text(result).splitlines()
    *rows, last = rows
    assert (first.split()[0], last.split()[0]) == ("identical", "similar")
    assert [row.split()[:2] for row in rows[:10]] == [["near", f"#{i}"] for i in range(1, 11)]
    assert rows[10:] == (
        [] if more is None else [f"  near       … {more} (--json --near-limit all lists them)"]
    )
    found = json.loads(render.lookup_json(result))
    assert (len(found["near"]), found["near_count"]) == (listed, count)


def test_a_long_or_hostile_label_stays_a_few_printable_words():
    hit = IdenticalHit(1, ("a.png",), 1, "bytes", {"label": "\x1b[31m" + "red " * 50})
    row = render.lookup_text(LookupResult("q.png", ("identical",), (hit,))).splitlines()[1]
    assert "[\\x1b[31mred red" in row
    assert row.endswith("…]  a.png")
    assert len(row) < 90
    numbered = IdenticalHit(1, (), 0, "bytes", {"label": 0, "split": "train"})
    assert render.lookup_text(LookupResult("q.png", ("identical",), (numbered,))).endswith(
        "[0]  (no source left)"
    )


def test_a_lookup_that_found_nothing_says_so_for_each_tier():
    _, *rows = render.lookup_text(NOTHING).splitlines()
    assert [row.split() for row in rows] == [
        ["identical", "-", "nothing", "found"],
        ["similar", "-", "nothing", "found"],
    ]


def test_a_lookup_that_failed_says_why():
    assert render.lookup_text(LookupResult("x.png", error="why")).split() == [
        "x.png",
        "error:",
        "why",
    ]


def test_an_ingest_tells_what_it_did():
    text = render.ingest_text(INGESTED)
    assert "1,234,567 images in 10.0 s (123,457/s)" in text
    assert "peak memory" not in text
    text = render.ingest_text(INGESTED, memory=True)
    assert "peak memory 300.0 MiB anonymous, 2.0 GiB with mapped files" in text
    assert "why images were rejected" not in text


def test_an_ingest_counts_in_english():
    note = "HEIC files are not read yet"
    one = render.ingest_text(dataclasses.replace(INGESTED, duplicates=1, notes={note: 1}))
    assert ", 1 duplicate, " in one
    assert one.splitlines()[-1] == "1 HEIC file is not read yet"
    many = render.ingest_text(dataclasses.replace(INGESTED, duplicates=2, notes={note: 5}))
    assert ", 2 duplicates, " in many
    assert many.splitlines()[-1] == "5 HEIC files are not read yet"


def test_an_info_is_a_table():
    info = StoreInfo(
        path="/data/photos.store",
        uuid="u",
        format=1,
        images=1000,
        vectors=900,
        sources=1100,
        removed=0,
        rejects=2,
        bytes={"keys": 2048, "pixels": 0},
        encoder=None,
        segments=[{"rows": 800}],
        recall=None,
    )
    rows = dict(line.split(maxsplit=1) for line in render.info_text(info).splitlines())
    assert (rows["images"], rows["encoder"], rows["bytes"]) == ("1,000", "none", "2.0 KiB")
    assert "pixels" not in rows


def test_a_check_lists_its_problems_up_to_a_number():
    problems = tuple(Problem("keys", f"row {i}", fixed=i == 0) for i in range(60))
    text = render.check_text(CheckReport(10, 10, 1 << 20, 1.0, problems), max_listed=5)
    assert "keys: row 0 (repaired)" in text
    assert "row 5" not in text
    assert "55 more" in text
    assert "whole" in render.check_text(CheckReport(10, 10, 1 << 20, 1.0, ()))


def test_what_is_left_after_a_fix_is_not_said_to_be_mended_by_another():
    left = CheckReport(1, 0, 1 << 20, 1.0, (Problem("pixels", "they are lost"),))
    assert "run 'engine check --fix'" in render.check_text(left)
    fixed = render.check_text(left, fix=True)
    assert "--fix" not in fixed and "restore the store from a copy" in fixed
    assert "1 image, 0 vectors" in fixed


@pytest.mark.parametrize("hostile", ["\x1b[31mred", "two\nlines"])
def test_names_in_reports_stay_on_their_line(hostile):
    info = StoreInfo(hostile, "u", 1, 0, 0, 0, 0, 0, {}, {"name": hostile, "dim": 1}, [], None)
    problems = (Problem(hostile, f"{hostile}: raise memory="),)
    optimized = OptimizeReport(1, 1, 0, 0, 1.0, skipped=(f"{hostile}: raise memory=",))
    before = StoreInfo("a", "u", 1, 0, 0, 0, 0, 0, {}, {"name": "b", "dim": 1}, [], None)
    for text, lines in (
        (render.info_text(info), len(render.info_text(before).splitlines())),
        (render.check_text(CheckReport(1, 1, 1, 1.0, problems)), 3),
        (render.optimize_text(optimized), 3),
    ):
        assert "\x1b" not in text and len(text.splitlines()) == lines
        assert "memory=" not in text


def test_a_strangers_file_name_cannot_drive_the_terminal():
    result = LookupResult("\x1b[31mred\n.png", searched=("identical",), error="no\x07 image")
    text = render.lookup_text(result)
    assert "\x1b" not in text and "\x07" not in text
    assert len(text.splitlines()) == 2
    assert words.printable("grün 图 …") == "grün 图 …"
