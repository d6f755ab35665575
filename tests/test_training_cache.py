# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""The decoded pictures on disk: whole or made again, whatever happened to them."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import picture
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import TrainingError, UsageError
from engine.images import hashing
from engine.records import Rejection

torch = pytest.importorskip("torch")

from engine.training import cache

KEY = "0123456789abcdef" * 2
SQUARE = 4


def write(folder: Path, n: int = 3, key: str | None = KEY, keep: bool = True) -> cache.PictureFile:
    writer = cache.PictureWriter(folder, key)
    for number in range(n):
        writer.add(
            f"{number}\udcff.png",
            "label" if number else None,
            100 + number,
            picture(number, 6 + number),
            picture(-number % 99, SQUARE, SQUARE),
            held_out=number == 2,
        )
    return writer.finish([Rejection("bad.png", "is bad")], 6, SQUARE, keep=keep)


def pixels_of(folder: Path) -> Path:
    (found,) = folder.glob("*.pixels")
    return found


def manifest(folder: Path) -> Path:
    return folder / f"{KEY}.json"


def seal(folder: Path, **changes: object) -> None:
    """Change what the manifest says, with a checksum that is right."""
    said = json.loads(manifest(folder).read_bytes())
    del said["xxh64"]
    manifest(folder).write_bytes(cache._sealed({**said, **changes}))


def test_what_was_written_is_found_again(tmp_path: Path) -> None:
    write(tmp_path).close()
    found = cache.find_pictures(tmp_path, KEY, SQUARE)
    assert found is not None
    assert found.texts.names == ["0\udcff.png", "1\udcff.png", "2\udcff.png"]
    assert found.texts.labels == [None, "label", "label"]
    assert found.texts.rejected == [Rejection("bad.png", "is bad")]
    assert found.rows["held_out"].tolist() == [0, 0, 1]
    assert found.rows["file_bytes"].tolist() == [100, 101, 102]
    assert (found.side, found.square) == (6, SQUARE)
    for number, row in enumerate(found.rows):
        height, width = int(row["height"]), int(row["width"])
        shrunk = found.read(int(row["at"]), height, width)
        assert np.array_equal(shrunk.numpy(), picture(number, 6 + number))
        squashed = found.read(int(row["at"]) + 3 * height * width, SQUARE, SQUARE)
        assert np.array_equal(squashed.numpy(), picture(-number % 99, SQUARE, SQUARE))


def test_no_pictures_are_a_cache_too(tmp_path: Path) -> None:
    write(tmp_path, 0).close()
    found = cache.find_pictures(tmp_path, KEY, SQUARE)
    assert found is not None and len(found.rows) == 0


def test_another_key_or_size_is_not_found(tmp_path: Path) -> None:
    write(tmp_path)
    assert cache.find_pictures(tmp_path, KEY[::-1], SQUARE) is None
    assert cache.find_pictures(tmp_path, KEY, SQUARE + 1) is None
    assert cache.find_pictures(tmp_path / "absent", KEY, SQUARE) is None


def test_what_is_not_to_be_kept_is_read_and_gone(tmp_path: Path) -> None:
    found = write(tmp_path, keep=False)
    assert list(tmp_path.iterdir()) == []
    assert np.array_equal(found.read(0, 6, 8).numpy(), picture(0, 6))


@pytest.mark.slow
@given(st.booleans(), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_manifest_that_is_cut_or_flipped_is_made_again(
    tmp_path_factory: pytest.TempPathFactory, is_cut: bool, where: float, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    write(folder).close()
    good = manifest(folder).read_bytes().rstrip()
    at = int(where * len(good))
    bad = good[:at] if is_cut else good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :]
    manifest(folder).write_bytes(bad)
    try:
        same = json.loads(bad) == json.loads(good)  # a space that became another
    except ValueError:
        same = False
    assert (cache.find_pictures(folder, KEY, SQUARE) is not None) == same


@pytest.mark.parametrize("cut", [1, 50, 300, -40])
def test_pixels_that_are_cut_or_longer_are_made_again(tmp_path: Path, cut: int) -> None:
    write(tmp_path).close()
    path = pixels_of(tmp_path)
    os.truncate(path, path.stat().st_size - cut)
    assert cache.find_pictures(tmp_path, KEY, SQUARE) is None
    write(tmp_path).close()
    assert cache.find_pictures(tmp_path, KEY, SQUARE) is not None
    assert len(list(tmp_path.iterdir())) == 2


def test_a_table_with_a_flipped_bit_is_made_again(tmp_path: Path) -> None:
    write(tmp_path).close()
    path = pixels_of(tmp_path)
    data = bytearray(path.read_bytes())
    data[json.loads(manifest(tmp_path).read_bytes())["table"] + 5] ^= 4
    path.write_bytes(data)
    assert cache.find_pictures(tmp_path, KEY, SQUARE) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"pictures": 1 << 60},
        {"pictures": -1},
        {"pictures": 2},
        {"pictures": "3"},
        {"table": 1 << 62},
        {"table": -8},
        {"table": None},
        {"bytes": True},
        {"file": "../../etc/passwd"},
        {"file": 7},
        {"file": f"{KEY[::-1]}.0123456789abcdef.pixels"},
        {"format": 2},
        {"side": -1},
        {"square": 5},
    ],
)
def test_a_manifest_that_says_what_cannot_be_is_refused(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    write(tmp_path).close()
    seal(tmp_path, **changes)
    assert cache.find_pictures(tmp_path, KEY, SQUARE) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("at", -1),
        ("at", 1 << 62),
        ("height", 0),
        ("height", (1 << 31) - 1),
        ("width", -5),
        ("width", 4000),
        ("file_bytes", -1),
    ],
)
def test_rows_that_lead_out_of_the_file_are_refused(tmp_path: Path, field: str, value: int) -> None:
    found = write(tmp_path)
    rows = found.rows.copy()
    found.close()
    rows[field][1] = value
    rewrite(tmp_path, rows.tobytes() + cache._packed(found.texts))
    assert cache.find_pictures(tmp_path, KEY, SQUARE) is None


@pytest.mark.parametrize(
    "texts",
    [
        b"",
        b"null",
        b"[]",
        b"[[1, 2, 3], [null, null, null], []]",
        b'[["a", "b"], [null, null], []]',
        b'[["a", "b", "c"], [null, null, 5], []]',
        b'[["a", "b", "c"], [null, null, null], [["x"]]]',
        b'[["a", "b", "c"], [null, null, null], [5]]',
        b"[" * 100_000,
    ],
)
def test_names_that_are_none_are_refused(tmp_path: Path, texts: bytes) -> None:
    found = write(tmp_path)
    found.close()
    rewrite(tmp_path, found.rows.tobytes() + texts)
    assert cache.find_pictures(tmp_path, KEY, SQUARE) is None


def rewrite(folder: Path, table: bytes) -> None:
    """Another table, with a manifest that vouches for it."""
    path = pixels_of(folder)
    at = json.loads(manifest(folder).read_bytes())["table"]
    path.write_bytes(path.read_bytes()[:at] + table)
    seal(folder, bytes=at + len(table), table_xxh64=hashing.checksum(table))


def test_the_checks_of_these_tests_pass_what_is_good(tmp_path: Path) -> None:
    found = write(tmp_path)
    found.close()
    rewrite(tmp_path, found.rows.tobytes() + cache._packed(found.texts))
    assert cache.find_pictures(tmp_path, KEY, SQUARE) is not None


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from engine.training import cache
import numpy as np, os
writer = cache.PictureWriter(Path({folder!r}), {key!r})
picture = np.zeros((500, 500, 3), np.uint8)
for number in range(10):
    writer.add("x", None, 1, picture, picture[:4, :4], held_out=False)
if {late}:
    cache.replace_file = lambda *_: os.kill(os.getpid(), 9)
    writer.finish([], 6, 4, keep=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.usual
@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_a_killed_writer_leaves_nothing_that_counts(tmp_path: Path, late: bool) -> None:
    code = CHILD.format(tests=str(Path(__file__).parent), folder=str(tmp_path), key=KEY, late=late)
    ended = subprocess.run([sys.executable, "-c", code], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*.pixels"))) == 1
    assert cache.find_pictures(tmp_path, KEY, SQUARE) is None
    write(tmp_path).close()
    assert cache.find_pictures(tmp_path, KEY, SQUARE) is not None
    assert len(list(tmp_path.glob("*.pixels"))) == 1


def test_who_tidies_up_leaves_what_others_write_and_what_is_not_a_cache(tmp_path: Path) -> None:
    (tmp_path / "holiday.pixels").write_text("mine")
    other = KEY[::-1]
    writing = cache.PictureWriter(tmp_path, other)
    write(tmp_path).close()
    writing.finish([], 6, SQUARE, keep=True).close()
    write(tmp_path).close()
    assert cache.find_pictures(tmp_path, other, SQUARE) is not None
    assert cache.find_pictures(tmp_path, KEY, SQUARE) is not None
    assert (tmp_path / "holiday.pixels").read_text() == "mine"
    assert len(list(tmp_path.glob("*.pixels"))) == 3


@pytest.mark.parametrize("side", [100, 4])  # pixels; the small are still in a buffer
@pytest.mark.parametrize("key", [None, KEY])
def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(
    tmp_path: Path, key: str | None, side: int
) -> None:
    writer = cache.PictureWriter(tmp_path, key)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(TrainingError, match="cannot keep the decoded images") as told:
            for _ in range(1000):
                writer.add("x", None, 1, picture(0, side, side), picture(0, 4, 4), held_out=False)
        writer.abandon()  # while it is full
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot hold the decoded images"):
        cache.PictureWriter(tmp_path / "file", KEY)
