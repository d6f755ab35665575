"""What the library logs, on standard error: warnings, and more with -v."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cli import logs
from engine.cli.app import main

SAYS = """
import logging, sys
from engine.api import Store
from engine.cli.app import main

def info(store):
    log = logging.getLogger("engine.somewhere")
    log.debug("a %s", "detail")
    log.info("a step")
    log.warning("a\\nfault: raise memory=")
    logging.getLogger("another").info("of others")
    raise SystemExit(0)

Store.info = info
main(sys.argv[1:])
"""


def said(store: Path, *words: str) -> list[str]:
    command = [sys.executable, "-c", SAYS, *words, "--store", str(store)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("logs") / "store"
    assert main(["ingest", "synthetic:bits?n=1", "--encoder", "none", "--store", str(path)]) == 0
    return path


@pytest.mark.slow
def test_without_an_option_only_warnings_are_written_one_line_each(store: Path) -> None:
    assert said(store, "info") == ["engine: a fault: raise --memory"]


@pytest.mark.slow
@pytest.mark.parametrize("words", [("-v", "info"), ("--verbose", "info"), ("info", "-v")])
def test_v_says_what_is_done(store: Path, words: tuple[str, ...]) -> None:
    assert said(store, *words) == ["engine: info: a step", "engine: a fault: raise --memory"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [("-vv", "info"), ("-v", "-v", "info"), ("info", "-vv"), ("-v", "info", "-vvv")]
)
def test_vv_says_details_with_the_time(store: Path, words: tuple[str, ...]) -> None:
    lines = said(store, *words)
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
    assert all(re.match(f"engine: {time} ", line) for line in lines)
    texts = [re.sub(f" {time}", "", line) for line in lines]
    mine = texts.index("engine: debug: a detail")
    assert texts[mine:] == [
        "engine: debug: a detail",
        "engine: info: a step",
        "engine: a fault: raise --memory",
    ]
    assert any("open at commit" in text for text in texts[:mine])


@pytest.mark.slow
def test_an_ingest_says_that_it_made_a_store(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "engine", "-v", "ingest", "synthetic:bits?n=1"]
    command += ["--encoder", "none", "--store", str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[0] == f"engine: info: made a store at {tmp_path}/store"
    assert "1 added" in done.stdout


def test_verbosity_needs_a_command_and_ends_with_it(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-v"]) == 2
    assert "name a command" in capsys.readouterr().err
    assert main(["-v", "info", "--store", str(store)]) == 0
    assert logging.getLogger("engine").level == logging.INFO
    logs.start()
    assert logging.getLogger("engine").level == logging.NOTSET


def test_nothing_but_the_command_prints() -> None:
    root = Path(logs.__file__).parent.parent
    for path in root.rglob("*.py"):
        if "cli" not in path.parts and path.name != "__main__.py":
            assert not re.search(r"(?<![\w.])print\(", path.read_text(encoding="utf-8")), path


def test_memory_is_said_with_v_only(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, lines in ((["ingest"], 1), (["ingest", "-v"], 2), (["-v", "ingest"], 2)):
        path = str(tmp_path / "-".join(words))
        line = [*words, "synthetic:bits?n=1", "--encoder", "none", "--store", path]
        assert main(line) == 0
        out = capsys.readouterr().out
        assert out.count("\n") == lines
        assert ("peak memory" in out) == (lines == 2)
