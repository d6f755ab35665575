"""Standard streams that are closed, full or broken: the command works, and its status is right."""

import json
import os
import shutil
import subprocess
import sys
import threading
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine import Store
from engine.cli import streams

CLOSED = {0: "<&-", 1: ">&-", 2: "2>&-"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(folder / "whole.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    path = tmp_path_factory.mktemp("store") / "store"
    with Store.open(path, create=True, encoder="none") as opened:
        opened.ingest(photos / "whole.png")
    return path


def closed(which: tuple[int, ...], *words: object) -> subprocess.CompletedProcess[bytes]:
    """Run a command that starts with some descriptors closed."""
    shell = 'exec "$@" ' + " ".join(CLOSED[fd] for fd in which)
    return subprocess.run(
        ["sh", "-c", shell, "sh", *map(str, words)], capture_output=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "which", [tuple(i for i in range(3) if there[i]) for there in product((0, 1), repeat=3)]
)
def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path, which: tuple[int, ...]) -> None:
    code = """
import os, sys
from engine.cli import streams
streams.open_closed()
streams.protect()
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(fd, str(fd).encode())
print("out"); print("error", file=sys.stderr); sys.stdin.read()
assert all(os.get_inheritable(i) for i in range(3))
"""
    ran = closed(which, sys.executable, "-c", code, tmp_path / "file")
    assert ran.returncode == 0
    assert int((tmp_path / "file").read_text()) > 2
    assert ran.stdout == (b"" if 1 in which else b"out\n")
    assert ran.stderr == (b"" if 2 in which else b"error\n")


@pytest.mark.slow
@pytest.mark.parametrize("which", [(1,), (2,), (0, 1, 2)])
def test_an_ingest_works_with_closed_streams(
    tmp_path: Path, photos: Path, which: tuple[int, ...]
) -> None:
    engine = (sys.executable, "-m", "engine", "ingest", photos, "--json", "--encoder", "none")
    ran = closed(which, *engine, "--store", tmp_path / "store")
    assert ran.returncode == 3, ran.stderr
    assert b"bug" not in ran.stderr
    if 1 not in which:
        assert json.loads(ran.stdout)["added"] == 1
    with Store.open(tmp_path / "store") as opened:
        assert len(opened) == 1 and opened.check().ok


@pytest.mark.slow
def test_an_empty_standard_input_is_that_of_a_closed_one(store: Path) -> None:
    arguments = ("-m", "engine", "lookup", "-", "--json", "--store", store)
    ran = closed((0,), sys.executable, *arguments)
    assert ran.returncode == 3 and "error" in json.loads(ran.stdout)


def broken_pipe() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.usual
@pytest.mark.slow
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize(
    ("words", "status"),
    [(["lookup", "--exact", "other.png"], 1), (["ingest", "broken.png"], 3), (["lookup"], 2)],
    ids=["not found", "rejected", "wrong"],
)
def test_a_broken_pipe_leaves_the_status_as_it_is(
    store: Path, photos: Path, tmp_path: Path, stream: str, words: list[str], status: int
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "photos" / "other.png")
    writing = broken_pipe()
    other = "stderr" if stream == "stdout" else "stdout"
    place = store if words[0] == "lookup" else tmp_path / "store"
    made = ["--encoder", "none"] if words[0] == "ingest" else []
    ran = subprocess.run(
        [sys.executable, "-m", "engine", *words, *made, "--store", str(place)],
        cwd=tmp_path / "photos",
        check=False,
        **{stream: writing, other: subprocess.PIPE},  # type: ignore[arg-type]
    )
    os.close(writing)
    assert ran.returncode == status
    if stream == "stdout":
        assert len(ran.stderr.splitlines()) == (status == 2)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_standard_error_ends_nothing(tmp_path: Path, photos: Path) -> None:
    arguments = ["ingest", str(photos), "--json", "--store", str(tmp_path / "store")]
    code = "from engine.cli import progress; progress._PLAIN_SECONDS = -1.0\n"  # tells all the time
    code += "import logging; logging.getLogger('engine').warning('told')\n"
    code += "from engine.__main__ import main; main()"
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(
            [sys.executable, "-c", code, *arguments, "--encoder", "none"],
            stdout=subprocess.PIPE,
            stderr=full,
            check=False,
        )
    assert ran.returncode == 3
    assert json.loads(ran.stdout)["added"] == 1


def test_a_full_pipe_that_does_not_block_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    filled = 0
    try:
        while True:
            filled += os.write(writing, b"\0" * 4096)
    except BlockingIOError:
        pass
    text = "line\n" * 50_000
    output = streams._text(streams._Output(writing), "utf-8")

    def write() -> None:
        output.write(text)
        output.flush()
        os.close(writing)

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read()[filled:].decode() == text
    thread.join()


def test_what_standard_error_does_not_take_is_dropped() -> None:
    writing = broken_pipe()
    errors = streams._text(streams._Errors(writing), "utf-8")
    print("nobody reads it", file=errors, flush=True)
    os.close(writing)
    print("nor this", file=errors, flush=True)
