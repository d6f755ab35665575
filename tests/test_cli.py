"""The command: exit statuses, one line for each failure, and the shapes of what it prints."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import typer
from helpers import mask, save

from engine import Store, __version__
from engine.cli.app import app, main
from engine.storage.extents import HEADER_BYTES

HIT = {"id", "sources", "source_count", "metadata"}


class Ran(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, object]:
        (line,) = self.out.splitlines()
        found = json.loads(line)
        assert isinstance(found, dict)
        return found


Engine = Callable[..., Ran]


@pytest.fixture
def engine(capsys: pytest.CaptureFixture[str]) -> Engine:
    """Runs a command in this process."""

    def run(*arguments: object) -> Ran:
        status = main([str(argument) for argument in arguments])
        return Ran(status, *capsys.readouterr())

    return run


def spawn(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "engine", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, check=False)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """A folder with five masks as files and as an array, and a store of them with their vectors."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "photos").mkdir()
    for i in range(5):
        save(folder / "photos" / f"{i}.png", mask(i))
    save(folder / "unknown.png", mask(50))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    np.save(folder / "rows.npy", np.stack([mask(i) for i in range(4)]))
    with Store.open(folder / "store", create=True, encoder=str(tiny_encoder)) as store:
        store.ingest(folder / "photos", folder / "rows.npy")
    return folder


# --- exit statuses --------------------------------------------------------------------------------


@pytest.mark.slow
def test_status_0_is_done(engine: Engine, shop: Path) -> None:
    for command in ("info", "check"):
        assert engine(command, "--store", shop / "store").status == 0
    assert engine("lookup", shop / "unknown.png", "--store", shop / "store").status == 0
    assert engine("--version") == Ran(0, f"engine {__version__}\n", "")


@pytest.mark.slow
def test_exact_has_the_status_of_grep(engine: Engine, shop: Path) -> None:
    here, gone = shop / "photos" / "1.png", shop / "unknown.png"
    store = ("--store", shop / "store")
    assert engine("lookup", "--exact", here, *store).status == 0
    assert engine("lookup", "--exact", gone, *store).status == 1
    assert engine("lookup", "--exact", here, gone, *store).status == 1
    assert engine("lookup", "--exact", "--tier", "identical", here, *store).status == 0
    assert engine("lookup", "--tier", "identical", gone, *store).status == 0


@pytest.mark.slow
def test_an_unreadable_query_is_status_3_before_1(engine: Engine, shop: Path) -> None:
    ran = engine(
        "lookup", "--exact", shop / "broken.png", shop / "unknown.png", "--store", shop / "store"
    )
    assert ran.status == 3
    assert "broken.png\n  error: " in ran.out
    assert "unknown.png" in ran.out


@pytest.mark.slow
def test_rejected_inputs_are_status_3_and_the_run_goes_on(
    engine: Engine, shop: Path, tmp_path: Path
) -> None:
    arguments = ("--store", tmp_path / "store", "--encoder", "none")
    ran = engine("ingest", shop / "broken.png", shop / "unknown.png", *arguments)
    assert ran.status == 3
    assert "1 added" in ran.out
    assert f"{tmp_path}/store/rejects.jsonl" in ran.out
    assert engine("ingest", shop / "unknown.png", *arguments).status == 0


@pytest.mark.slow
def test_damage_that_remains_is_status_1(
    engine: Engine, tmp_path: Path, tiny_encoder: Path
) -> None:
    where = tmp_path / "store"
    source = "synthetic:bits?n=3"
    assert engine("ingest", source, "--store", where, "--encoder", tiny_encoder).status == 0
    path = where / "fingerprints" / "00000001.pdq"
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 5] ^= 1
    path.write_bytes(data)
    ran = engine("check", "--store", where)
    assert ran.status == 1
    assert "fingerprints/00000001.pdq" in ran.out
    ran = engine("check", "--fix", "--store", where)  # what is derived is made anew
    assert ran.status == 0
    assert "(repaired)" in ran.out
    assert engine("check", "--store", where).status == 0

    tables = sorted((where / "keys").glob("*.sst"))
    tables[-1].write_bytes(b"")
    assert engine("check", "--store", where).status == 1
    assert engine("check", "--fix", "--store", where).status == 0
    (model,) = (where / "encoder").rglob("*.onnx")
    model.write_bytes(b"")
    for fix in ([], ["--fix"]):  # of an encoder of somebody's own there is no other copy
        ran = engine("check", "--store", where, *fix)
        assert ran.status == 1
        assert "encoder" in ran.out
        assert ran.err == ""
    ran = engine("check", "--json", "--store", where)
    assert set(ran.json) == {
        "images",
        "vectors",
        "bytes_read",
        "seconds",
        "problems",
        "leftover_bytes",
        "ok",
        "reembed_bytes",
    }
    assert ran.json["ok"] is False
    (problem,) = ran.json["problems"]  # type: ignore[misc]
    assert set(problem) == {"part", "what", "fixed"}


def failures() -> list[tuple[str, str]]:
    """Command lines that fail, and something that their one line says."""
    return [
        ("ingest", "name at least one source"),
        ("ingest gone/ --encoder none", "gone/: no such file or folder"),
        ("ingest photos --encoder nothing --store new", "no encoder 'nothing'"),
        ("ingest photos --encoder none --store photos", "is not a store"),
        ("ingest photos --keep-pixels maybe --store store", "auto, yes, no"),
        ("ingest photos --memory 64M --store store", "at least 128M"),
        ("ingest photos --memory lots --store store", "write it like 512M"),
        ("ingest photos --memory nan --store store", "write it like 512M"),
        ("ingest photos --workers -1 --store store", "--workers"),
        ("ingest photos --bogus", "No such option"),
        ("ingest --files-from gone.txt --store store", "gone.txt cannot be read"),
        ("ingest synthetic:noise --store store", "synthetic:bits?n=1e6&seed=0"),
        ("ingest synthetic:bits?n=many --store store", "n=many is not a whole number"),
        ("ingest rows.npy?kind=4bit --store store", "?kind=8bit"),
        ("lookup --store store", "name at least one image"),
        ("lookup rows.npy --store gone", "there is no store at gone"),
        ("lookup rows.npy --store photos", "is not a store"),
        ("lookup rows.npy --store unknown.png", "is a file, not a store"),
        ("lookup rows.npy -k 0 --store store", "k must be 1 or more"),
        ("lookup rows.npy -k few --store store", "-k"),
        ("lookup rows.npy --tier best --store store", "no tier 'best'"),
        (
            "lookup rows.npy --max-distance 257 --store store",
            "--max-distance is a number of bits",
        ),
        ("lookup rows.npy --max-distance -1 --store store", "0 to 256, not -1"),
        ("lookup rows.npy --max-distance 1.5 --store store", "--max-distance"),
        ("lookup rows.npy --exact --tier similar --store store", "leave the other tiers out"),
        ("lookup rows.npy --exact --recall 0.9 --store store", "--recall is of the similar tier"),
        (
            "lookup rows.npy --min-score 2 --store store",
            "--min-score is a cosine, between -1 and 1",
        ),
        ("lookup rows.npy --min-score nan --store store", "between -1 and 1"),
        ("lookup --files-from gone.txt --store store", "gone.txt cannot be read"),
        ("lookup rows.npy --source gone --store store", "no image of the source gone"),
        (
            "lookup rows.npy --source photos --source row --store store",
            "no image of the source row",
        ),
        ("lookup rows.npy --source= --store store", "a source has a name"),
        ("lookup rows.npy --tier identical,best --store store", "no tier 'best'"),
        ("lookup rows.npy --exact --tier identical,near --store store", "leave the other tiers"),
        ("lookup rows.npy --near-limit few --store store", "--near-limit must be a whole number"),
        ("lookup rows.npy --near-limit -1 --store store", "or all, not '-1'"),
        ("lookup rows.npy --sources 1.5 --store store", "--sources must be a whole number"),
        ("lookup rows.npy --json --csv --store store", "--json and --csv exclude each other"),
        ("lookup rows.npy -q --csv --store store", "--paths and --csv exclude each other"),
        ("lookup rows.npy --exclude / --store store", "--exclude takes patterns of names"),
        ("lookup --id one --store store", "--id"),
        ("ingest photos --exclude= --store store", "--exclude takes patterns of names"),
        ("info --store gone", "there is no store at gone"),
        ("check --store gone", "there is no store at gone"),
        ("check extra --store store", "extra"),
        ("remake", "No such command"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("line", "says"), failures(), ids=[line for line, _ in failures()])
def test_status_2_is_one_line_that_says_what_is_wrong(
    engine: Engine, shop: Path, monkeypatch: pytest.MonkeyPatch, line: str, says: str
) -> None:
    monkeypatch.chdir(shop)
    before = sorted(shop.iterdir())
    ran = engine(*line.split())
    assert ran.status == 2
    assert ran.out == ""
    (message,) = ran.err.splitlines()
    assert message.startswith("engine: ")
    assert says in message
    assert sorted(shop.iterdir()) == before


def test_a_second_writer_is_told_who_has_the_lock(
    engine: Engine, shop: Path, tmp_path: Path
) -> None:
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=1")
        ran = engine("ingest", shop / "photos", "--store", tmp_path / "store")
    assert ran.status == 2
    assert f"is being written by process {os.getpid()} on this machine since 2" in ran.err
    assert "wait for it with --wait (in seconds), or end that process" in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.slow
def test_a_check_that_repairs_nothing_has_nothing_to_wait_for(
    engine: Engine, tmp_path: Path
) -> None:
    Store.open(tmp_path / "store", create=True, encoder="none").close()
    ran = engine("check", "--wait", "5", "--store", tmp_path / "store")
    assert (ran.status, ran.err) == (
        2,
        "engine: --wait goes with --fix: leave it out, or add --fix\n",
    )
    assert engine("check", "--fix", "--wait", "5", "--store", tmp_path / "store").status == 0


def test_without_arguments_the_help_is_shown(engine: Engine) -> None:
    ran = engine()
    assert ran.status == 2
    assert "Usage: engine" in ran.out + ran.err


@pytest.mark.slow
@pytest.mark.parametrize("command", [None, *typer.main.get_command(app).commands])  # type: ignore[attr-defined]
def test_the_help_of_every_command_has_an_example(engine: Engine, command: str | None) -> None:
    for option in ("--help", "-h"):
        ran = engine(*filter(None, [command, option]))
        assert ran.status == 0
        assert f"Example:\n  engine {command or ''}" in "\n".join(
            line.removeprefix("  ") for line in ran.out.splitlines()
        )


def test_the_commands_are_listed_by_task(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = engine("--help").out.splitlines()
    listed: dict[str, list[str]] = {}
    for line in lines[lines.index("Look up:") :]:
        if line.startswith("  "):
            task = list(listed)[-1]
            listed[task].append(line.split()[0])
        elif line:
            listed[line] = []
    assert listed == {
        "Look up:": ["lookup", "info"],
        "Fill and change:": ["ingest", "remove"],
        "Look after a store:": ["check", "optimize", "backup", "export"],
        "Encoders and measurements:": [
            *("encoders", "import-encoder", "train", "reembed", "eval", "bench")
        ],
    }


@pytest.mark.parametrize("command", [*typer.main.get_command(app).commands])  # type: ignore[attr-defined]
def test_the_summary_of_a_command_fits_a_terminal_of_80_columns(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = typer.main.get_command(app).commands[command].help.splitlines()[0]  # type: ignore[attr-defined]
    (line,) = [one for one in engine("--help").out.splitlines() if one.split()[:1] == [command]]
    summary = line.split(maxsplit=1)[1]
    assert len(summary) <= 64
    assert said.startswith(summary)
    assert summary.endswith(".")
    assert not summary.endswith("...")


# --- what is printed ------------------------------------------------------------------------------


def test_ingest_prints_one_object(engine: Engine, shop: Path, tmp_path: Path) -> None:
    arguments = ("--json", "--store", tmp_path / "store", "--encoder", "none")
    ran = engine("ingest", shop, *arguments)
    assert set(ran.json) >= {
        "seen",
        "added",
        "duplicates",
        "unchanged",
        "rejected",
        "skipped",
        "seconds",
        "images_per_second",
        "peak_memory_bytes",
        "peak_rss_bytes",
        "rejects_file",
    }
    found = ran.json
    assert (found["added"], found["rejected"]) == (6, 1)
    assert found["rejects_file"] == f"{tmp_path}/store/rejects.jsonl"
    again = engine("ingest", shop / "photos", *arguments).json
    assert (again["seen"], again["unchanged"], again["rejects_file"]) == (5, 5, None)


def test_a_dry_run_prints_one_object_and_makes_nothing(
    engine: Engine, shop: Path, tmp_path: Path
) -> None:
    ran = engine("ingest", shop / "photos", "--dry-run", "--json", "--store", tmp_path / "new")
    assert ran.json["images"] == 5
    assert ran.json["disk_bytes"] > 5 * 512  # type: ignore[operator]
    assert not (tmp_path / "new").exists()
    text = engine("ingest", shop / "photos", "--dry-run", "--store", shop / "store").out
    assert text.startswith("would read 0 images, 0 B; 5 unchanged")


def test_lookup_prints_one_object_a_line(engine: Engine, shop: Path) -> None:
    queries = (shop / "photos" / "1.png", shop / "unknown.png", shop / "broken.png")
    ran = engine("lookup", *queries, "--json", "--store", shop / "store")
    known, unknown, broken = map(json.loads, ran.out.splitlines())
    fields = ["query", "searched", "identical", "near", "near_count", "similar", "milliseconds"]
    assert list(known) == list(unknown) == fields
    assert known["query"] == str(shop / "photos" / "1.png")
    assert known["searched"] == ["identical", "near", "similar"]
    assert known["identical"] == [
        {
            "id": 2,
            "sources": [f"{shop}/photos/1.png", f"{shop}/rows.npy#1"],
            "source_count": 2,
            "verified": "digest",
            "metadata": None,
        }
    ]
    assert unknown["identical"] == unknown["near"] == []
    assert len(unknown["similar"]) == 5
    assert all(set(hit) == HIT | {"score", "percentile", "stranger"} for hit in unknown["similar"])
    assert all(isinstance(value, float) for value in known["milliseconds"].values())
    assert list(broken) == ["query", "error"]


@pytest.mark.slow
def test_lookup_finds_in_named_sources_only(
    engine: Engine, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop)
    queries = [f"photos/{i}.png" for i in range(5)]
    for sources, there in (
        (["rows.npy"], [1, 2, 3, 4]),
        (["photos/4.png"], [5]),
        (["photos/4.png", shop / "rows.npy#1"], [2, 5]),
        (["photos/"], [1, 2, 3, 4, 5]),
    ):
        named = [part for source in sources for part in ("--source", source)]
        ran = engine("lookup", *queries, *named, "--json", "--store", "store")
        assert (ran.status, ran.err) == (0, "")
        for number, line in enumerate(ran.out.splitlines(), 1):
            every = engine("lookup", f"photos/{number - 1}.png", "--json", "--store", "store").json
            some = json.loads(line)
            assert list(some) == list(every)
            for tier in ("identical", "near", "similar"):
                hits = every[tier]
                assert isinstance(hits, list)
                assert some[tier] == [hit for hit in hits if hit["id"] in there]
        ran = engine("lookup", "--exact", *queries, *named, "--store", "store")
        assert ran.status == (0 if len(there) == 5 else 1)


def test_info_prints_one_object(engine: Engine, shop: Path) -> None:
    found = engine("info", "--json", "--store", shop / "store").json
    assert (found["images"], found["vectors"], found["sources"], found["removed"]) == (5, 5, 9, 0)
    assert found["encoder"]["name"] == "tiny"  # type: ignore[index]
    assert {"bytes", "segments", "recall"} <= set(found)
    assert all(isinstance(size, int) for size in found["bytes"].values())  # type: ignore[attr-defined]


def test_check_prints_one_object(engine: Engine, shop: Path) -> None:
    found = engine("check", "--json", "--store", shop / "store").json
    assert found["ok"] is True
    assert (found["images"], found["problems"]) == (5, [])


def test_people_get_a_table(engine: Engine, shop: Path) -> None:
    ran = engine("lookup", shop / "photos" / "1.png", "-k", "1", "--store", shop / "store")
    hit = f"identical  #2  same pixels  {shop}/photos/1.png  (+1 more)"
    assert hit in re.sub(r"(same pixels) +", r"\1  ", ran.out)
    assert re.search(r"similar +#\d  -?0\.\d{3}, loosely  /", ran.out)
    assert re.search(r"near +- +nothing found", ran.out)
    assert len(ran.out.splitlines()) == 4
    ran = engine("lookup", "--exact", shop / "unknown.png", "--store", shop / "store")
    assert "identical  -    nothing found" in re.sub(" {5,}", "    ", ran.out)
    assert re.search("^images +5$", engine("info", "--store", shop / "store").out, re.MULTILINE)
    assert "the store is whole: 5 images" in engine("check", "--store", shop / "store").out


@pytest.mark.slow
def test_a_name_that_is_no_text_is_printed_all_the_same(shop: Path, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(path)).write_bytes((shop / "unknown.png").read_bytes())
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(os.fsdecode(path))
    for form in ([], ["--json"]):
        ran = spawn("lookup", shop / "unknown.png", *form, "--store", tmp_path / "store")
        assert (ran.returncode, ran.stderr) == (0, b"")
        assert b"udcff.png" in ran.stdout


@pytest.mark.parametrize("named", [("--id", "2"), ("--source", "photos/1.png")])
def test_yes_without_missing_is_refused(engine: Engine, shop: Path, named: tuple[str, str]) -> None:
    ran = engine("remove", *named, "--yes", "--dry-run", "--store", shop / "store")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == "engine: --yes goes with --missing: leave it out, or add --missing\n"


# --- where inputs come from -----------------------------------------------------------------------


@pytest.mark.slow
def test_the_store_is_named_by_the_option_the_environment_or_the_folder(
    engine: Engine, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENGINE_STORE", raising=False)
    assert "no store at engine.store" in engine("info").err
    engine("ingest", shop / "unknown.png", "--encoder", "none")
    assert engine("info", "--json").json["images"] == 1
    monkeypatch.setenv("ENGINE_STORE", str(shop / "store"))
    assert engine("info", "--json").json["images"] == 5
    assert engine("info", "--json", "--store", "engine.store").json["images"] == 1
    monkeypatch.setenv("ENGINE_STORE", "")
    assert engine("info", "--json").json["images"] == 1


@pytest.mark.slow
def test_an_image_is_looked_up_from_standard_input(
    engine: Engine, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for data, status in (((shop / "photos" / "3.png").read_bytes(), 0), (b"", 3), (b"text", 3)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        ran = engine("lookup", "-", "--exact", "--json", "--store", shop / "store")
        assert (ran.status, ran.json["query"]) == (status, "-")
    ran_alone = spawn(
        "lookup", "-", "--json", "--store", shop / "store",
        stdin=(shop / "photos" / "3.png").read_bytes(),
    )  # fmt: skip
    assert json.loads(ran_alone.stdout)["identical"][0]["id"] == 4


@pytest.mark.slow
def test_sources_are_listed_on_standard_input(shop: Path, tmp_path: Path) -> None:
    lines = f"{shop}/photos/1.png\n{shop}/rows.npy\n\n{shop}/gone.png\n-\n".encode()
    arguments = ("--json", "--encoder", "none", "--store", tmp_path / "store")
    ran = spawn("ingest", "-", *arguments, stdin=lines)
    assert ran.returncode == 3
    found = json.loads(ran.stdout)
    assert (found["added"], found["duplicates"], found["rejected"]) == (4, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_a_pipe_may_be_the_file_that_lists_sources(shop: Path, tmp_path: Path, name: str) -> None:
    lines = b"".join(b"%s/photos/%d.png\n" % (os.fsencode(shop), i) for i in (1, 2, 3))
    arguments = ("--json", "--encoder", "none", "--store", tmp_path / "store")
    ran = spawn("ingest", "--files-from", name, *arguments, stdin=lines)
    assert ran.returncode == 0
    assert json.loads(ran.stdout)["added"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("option", ["-0", "--null"])
def test_names_of_a_list_may_end_with_null_bytes(
    engine: Engine, shop: Path, tmp_path: Path, option: str
) -> None:
    odd = tmp_path / "a\nb.png"
    odd.write_bytes((shop / "photos/1.png").read_bytes())
    listing = tmp_path / "list"
    listing.write_bytes(os.fsencode(f"{odd}\0{shop}/photos/2.png\0"))
    arguments = ("--files-from", listing, option, "--json", "--store", tmp_path / "store")
    assert engine("ingest", "--dry-run", "--encoder", "none", *arguments).json["images"] == 2
    assert engine("ingest", "--encoder", "none", *arguments).json["added"] == 2
    ran = engine("lookup", "--exact", *arguments)
    assert (ran.status, len(ran.out.splitlines())) == (0, 2)
    for command in ("ingest", "lookup"):
        ran = engine(command, shop / "photos/1.png", option, "--store", tmp_path / "store")
        assert ran.status == 2 and "null" in ran.err and len(ran.err.splitlines()) == 1
    sources = listing.read_bytes()
    piped = spawn("ingest", "-", option, "--json", "--store", tmp_path / "store", stdin=sources)
    assert json.loads(piped.stdout)["unchanged"] == 2


def test_a_file_lists_sources_and_images(engine: Engine, shop: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text(f"{shop}/photos/1.png\n{shop}/unknown.png\n")
    arguments = ("--store", tmp_path / "store")
    ran = engine("ingest", "--files-from", listing, "--encoder", "none", "--json", *arguments)
    assert ran.json["added"] == 2
    ran = engine("lookup", shop / "photos/2.png", "--files-from", listing, "--json", *arguments)
    assert [bool(json.loads(line)["identical"]) for line in ran.out.splitlines()] == [
        False,
        True,
        True,
    ]


def test_every_row_of_an_array_is_looked_up(engine: Engine, shop: Path) -> None:
    ran = engine("lookup", shop / "rows.npy", "--exact", "--json", "--store", shop / "store")
    assert ran.status == 0
    assert [json.loads(line)["query"] for line in ran.out.splitlines()] == [
        f"{shop}/rows.npy#{i}" for i in range(4)
    ]
    ran = engine("lookup", f"{shop}/rows.npy#9", "--json", "--store", shop / "store")
    assert "rows 0 to 3" in str(ran.json["error"])


def test_tiers_may_be_named(engine: Engine, shop: Path) -> None:
    query = ("lookup", shop / "photos" / "1.png", "--json", "--store", shop / "store")
    assert engine(*query, "--tier", "similar").json["searched"] == ["similar"]
    both = engine(*query, "--tier", "similar", "--tier", "identical").json
    assert both["searched"] == ["identical", "similar"]


def test_an_end_of_file_that_nobody_expects_is_not_called_an_interruption(
    engine: Engine, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: object) -> int:
            raise EOFError("no more")

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Ended())))
    ran = engine("lookup", "-", "--exact", "--json", "--store", shop / "store")
    assert ran.status == 2
    assert "unexpected EOFError: no more" in ran.err and "interrupted" not in ran.err


# --- signals and pipes ----------------------------------------------------------------------------


@pytest.mark.usual
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["backup", "export"])
def test_a_copy_that_is_ended_leaves_nothing(
    tmp_path: Path, command: str, number: signal.Signals
) -> None:
    code = """
import os, sys
from engine.maintenance import backup, export
from engine.cli.app import main

def half(copy, *given):
    os.kill(os.getpid(), int(sys.argv[1]))
    return real[type(copy)](copy, *given)

real = {backup.Backup: backup.Backup._put, export.Export: export.Export._source_rows}
backup.Backup._put = export.Export._source_rows = half
sys.exit(main(sys.argv[2:]))
"""
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=20")
    (tmp_path / "copies").mkdir()
    run = [sys.executable, "-c", code, str(int(number)), command, str(tmp_path / "copies" / "one")]
    ran = subprocess.run(
        [*run, "--store", str(tmp_path / "store")], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 130, ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stdout == ""
    assert list((tmp_path / "copies").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_commits_and_the_next_run_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    where = tmp_path / "store"
    # The least memory makes small chunks, so that there is a commit soon and an end is far away.
    command = [sys.executable, "-m", "engine", "ingest", "synthetic:bits?n=500000", "--json"]
    arguments = ["--encoder", "none", "--memory", "128M", "--store", str(where)]
    with subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        blobs = where / "pixels" / "00000001.blobs"
        for _ in range(6000):
            if blobs.exists() and blobs.stat().st_size > HEADER_BYTES:
                break
            time.sleep(0.005)
        run.send_signal(number)
        out, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in err
    with Store.open(where) as store:
        committed = len(store)
        assert store.check().ok
        report = store.ingest(f"synthetic:bits?n={committed + 10}")
        assert (report.unchanged, report.added) == (committed, 10)
    assert 0 < json.loads(out)["added"] == committed < 500_000
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_a_reader_that_has_had_enough_ends_the_command_quietly(shop: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "many.npy", np.zeros((3000, 1, 1), np.uint8))
    command = [sys.executable, "-m", "engine", "lookup", str(tmp_path / "many.npy"), "--json"]
    with subprocess.Popen(
        [*command, "--store", str(shop / "store"), "--tier", "identical"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.readline()
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", ["info", "", "--help"])
def test_a_full_standard_output_is_a_failure(shop: Path, command: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    given = {"info": ["info", "--store", str(shop / "store")], "": []}.get(command, [command])
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "engine", *given],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert ran.returncode == 2
    assert ran.stderr == b"engine: No space left on device\n"


@pytest.mark.slow
def test_a_list_of_sources_or_images_comes_on_standard_input(shop: Path, tmp_path: Path) -> None:
    photo = str(shop / "photos" / "1.png")
    for words in (
        ["ingest", "--files-from", "-", "--encoder", "none"],
        ["lookup", "--files-from", "-", "--exact"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "engine", *words, "--store", str(tmp_path / "listed")],
            input=photo + "\r\n",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
