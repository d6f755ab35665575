"""What killed processes leave behind is swept, and nothing else is."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from engine import Store
from engine.storage import temp_folders
from engine.storage.temp_folders import claimed, sweep, work_folder

NAMES = re.compile(r"work-\d+")
INSIDE = re.compile(r"keys/\w+|\w+")


def made(folder: Path, number: int = 1) -> Path:
    """A folder as a killed process leaves it."""
    path = folder / f"work-{number}"
    path.mkdir()
    claim = claimed(lambda: path)
    (path / "keys").mkdir()
    (path / "keys" / "a").write_text("a")
    (path / "b").symlink_to(folder)
    claim.release()
    return path


def killed(code: str, *arguments: object) -> None:
    """Run a process that kills itself."""
    command = [sys.executable, "-c", f"import os, signal, sys\n{code}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_what_nobody_holds_is_swept(tmp_path: Path) -> None:
    for number in range(3):
        made(tmp_path, number)
    (tmp_path / "work-7").mkdir()  # killed before it had its lock
    others = tmp_path / "others"
    others.mkdir()
    assert sweep(tmp_path, NAMES, INSIDE) == 4
    assert list(tmp_path.iterdir()) == [others]
    assert sweep(tmp_path / "nowhere", NAMES, INSIDE) == 0


@pytest.mark.slow
def test_what_somebody_holds_stays(tmp_path: Path) -> None:
    path = tmp_path / "work-1"

    def make() -> Path:
        path.mkdir()
        return path

    claim = claimed(make)
    code = "from engine.storage.temp_folders import *; import re; from pathlib import Path\n"
    code += "print(sweep(Path(sys.argv[1]), re.compile(r'work-\\d+'), re.compile('.*')))"
    command = [sys.executable, "-c", f"import sys\n{code}", str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n"
    assert sweep(tmp_path, NAMES, INSIDE) == 0
    claim.release()
    assert sweep(tmp_path, NAMES, INSIDE) == 1


def unlike_name(path: Path) -> None:
    path.rename(path.with_name("work-x"))


def link_to_it(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to("real")


def strange_file(path: Path) -> None:
    (path / "my notes").write_text("mine")


def deep_folders(path: Path) -> None:
    (path / "a" / "b" / "c" / "d").mkdir(parents=True)


def pipe(path: Path) -> None:
    os.mkfifo(path / "c")


def no_lock(path: Path) -> None:
    (path / "LOCK").unlink()


def lock_that_is_a_link(path: Path) -> None:
    (path / "LOCK").unlink()
    (path / "LOCK").symlink_to(path / "keys" / "a")


def somebody_elses_folder(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path, 12345, 12345)


def somebody_elses_file(path: Path) -> None:
    somebody_elses_folder(path / "keys" / "a")


@pytest.mark.parametrize(
    "change",
    [
        unlike_name,
        link_to_it,
        strange_file,
        deep_folders,
        pipe,
        no_lock,
        lock_that_is_a_link,
        somebody_elses_folder,
        somebody_elses_file,
    ],
)
def test_what_is_not_surely_ours_stays_whole(tmp_path: Path, change: object) -> None:
    (tmp_path / "precious").write_text("kept")
    path = made(tmp_path)
    change(path)  # type: ignore[operator]

    def everything() -> list[str]:
        return sorted(str(found) for found in tmp_path.rglob("*"))

    before = everything()
    assert sweep(tmp_path, NAMES, INSIDE) == 0
    assert everything() == before


def test_what_was_finished_meanwhile_is_somebodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(tmp_path)
    lock = temp_folders._lock

    def finished(fd: int) -> None:
        path.rename(tmp_path / "store")
        lock(fd)

    monkeypatch.setattr(temp_folders, "_lock", finished)
    assert sweep(tmp_path, NAMES, INSIDE) == 0
    assert (tmp_path / "store" / "keys" / "a").exists()


def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(tmp_path: Path) -> None:
    numbers = iter(range(9))

    def make() -> Path:
        path = tmp_path / f"work-{next(numbers)}"
        path.mkdir()
        if path.name < "work-3":
            assert sweep(tmp_path, NAMES, INSIDE) == 1
        return path

    claim = claimed(make)
    assert claim.path.name == "work-3"
    claim.release()


@pytest.mark.slow
def test_the_next_making_of_a_store_sweeps_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "store"
    code = """
from engine import Store
from engine.storage.manifest import Manifest
Manifest.save = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
Store.open(sys.argv[1], create=True)
"""
    killed(code, path)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".store.")
    assert any((left / "encoder").iterdir())
    with Store.open(tmp_path / "other", create=True, encoder="none"):
        assert left.exists(), "that is another store"
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=3")
        assert not left.exists()
        assert store.check().problems == ()


@pytest.mark.slow
def test_readers_sweep_what_killed_readers_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, temporary = tmp_path / "store", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=3")
    code = """
import tempfile
from engine import Store
from engine.storage.rocks import opening
tempfile.tempdir = sys.argv[2]
opening.open_files = lambda *given, **named: os.kill(os.getpid(), signal.SIGKILL)
Store.open(sys.argv[1], read_only=True)
"""
    killed(code, path, temporary)
    (left,) = temporary.iterdir()
    assert left.name.startswith("engine-reader-")
    again = temporary.rename(tmp_path / "again")  # where this process has not swept yet
    monkeypatch.setattr(tempfile, "tempdir", str(again))
    with Store.open(path, read_only=True) as store:
        assert len(store) == 3
    assert list(again.iterdir()) == []


def test_a_folder_to_work_in_is_gone_however_the_work_ends(tmp_path: Path) -> None:
    code = """
from engine.storage.temp_folders import work_folder
from pathlib import Path
with work_folder(Path(sys.argv[1]), "work-", 2) as work:
    (work / "deep").mkdir()
    (work / "deep" / "file").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed(code, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    with work_folder(tmp_path, "work-", 1) as work:
        assert len(list(tmp_path.iterdir())) == 2, "it is deeper than that"
        (work / "deep" / "er").mkdir(parents=True)
    assert len(list(tmp_path.iterdir())) == 1
    with work_folder(tmp_path, "work-", 2) as work:
        assert list(tmp_path.iterdir()) == [work]
        with work_folder(tmp_path, "work-", 2) as other:
            assert sorted(tmp_path.iterdir()) == sorted([work, other])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_copies_that_a_killed_writer_was_making_go_with_the_next(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with Store.open(store, create=True, encoder="none") as made:
        made.ingest("synthetic:bits?n=3")
    names = (
        "MANIFEST.json",
        "COMMIT",
        "RESERVE",
        "rejects.jsonl",
        "keys/CURRENT",
        "keys/000004.log",
    )
    ours = [(store / name).with_name(f".{Path(name).name}.123.new") for name in names]
    others = [store / ".COMMIT.x.new", store / ".notes.7.new", store / "keys/.notes.7.new"]
    for path in (*ours, *others):
        path.write_text("half of it")
    with Store.open(store) as opened:
        opened.ingest("synthetic:bits?n=5")
        assert [path for path in ours if path.exists()] == []
        assert [path for path in others if not path.exists()] == []
        assert opened.check().ok
