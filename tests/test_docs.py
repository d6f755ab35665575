"""The examples of every ``--help`` run as they stand; documents name what is there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from two_towers import add_text_tower

from engine import Store
from engine.cli.app import main

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    *("ingest", "lookup", "info", "check", "remove", "optimize"),
    *("backup", "export", "train", "eval", "bench"),
)
USUAL_COMMANDS = ("ingest", "lookup", "remove")  # of whose help each run tries the examples
# Long work is made short; a later option wins over an earlier one.
SHORTER = {
    "train": ["--epochs", "1", "--image-size", "32", "--batch", "4"],
    "bench": ["--n", "500", "--steps", "1"],
}


Engine = Callable[[str | list[str]], subprocess.CompletedProcess[str]]


@pytest.fixture
def engine(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Engine:
    """A command line as it is typed in the workshop; other tests start the process that it takes."""
    monkeypatch.chdir(workshop)

    def run(line: str | list[str]) -> subprocess.CompletedProcess[str]:
        words = shlex.split(line, comments=True)[1:] if isinstance(line, str) else line
        words = [*words, *SHORTER.get(words[0], [])]
        return subprocess.CompletedProcess(words, main(words), *capfd.readouterr())

    return run


def modules_in(*folders: str) -> list[Path]:
    """The modules in these folders of the repository."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.fixture
def workshop(tmp_path: Path, tiny_encoder: Path) -> Path:
    """A folder with everything that the examples name."""
    rng = np.random.default_rng(0)
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    for number, name in enumerate(["cat.jpg", "dog.png", "more/sea.jpg", "more/sky.webp", "x.bmp"]):
        small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((80 + number, 60)).save(photos / name)
    Image.open(photos / "dog.png").save(tmp_path / "query.jpg", quality=90)
    np.save(tmp_path / "masks.npy", rng.integers(0, 2, (20, 16, 16), dtype=np.uint8))
    (tmp_path / "shards").mkdir()
    for number, name in enumerate(["scans.tar", "shards/000.tar", "shards/001.tar"]):
        Image.new("RGB", (40, 30), (number, 9, 9)).save(tmp_path / "page.png")
        (tmp_path / "page.json").write_text('{"label": "cat", "year": 2001}')
        with tarfile.open(tmp_path / name, "w") as archive:
            archive.add(tmp_path / "page.png", "page.png")
            archive.add(tmp_path / "page.json", "page.json")
    for number in range(8):
        square = Image.new("RGB", (40, 30), (200 * (number % 2), 9 * number, 90))
        (tmp_path / "classes" / f"{number % 2}").mkdir(parents=True, exist_ok=True)
        square.save(tmp_path / "classes" / f"{number % 2}" / f"{number}.png")
    (tmp_path / "new").mkdir()
    Image.new("RGB", (40, 30), (9, 99, 9)).save(tmp_path / "new" / "a.png")
    vectors = rng.standard_normal((1, 6), dtype=np.float32)
    np.savez(tmp_path / "new.npz", names=np.array(["a.png"]), vectors=vectors)
    clip = add_text_tower(shutil.copytree(tiny_encoder, tmp_path / "clip"))
    with Store.open(tmp_path / "clip.store", create=True, encoder=str(clip)) as store:
        store.ingest(photos)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(name, marks=() if name in USUAL_COMMANDS else pytest.mark.exhaustive)
        for name in COMMANDS
    ],
)
def test_every_help_has_an_example_that_runs(command: str, engine: Engine) -> None:
    text = engine([command, "--help"]).stdout
    examples = [line.strip() for line in text.splitlines() if line.strip().startswith("engine ")]
    assert examples, text
    if command != "ingest":
        engine("engine ingest photos/ scans.tar --store photos.store")
    for line in examples:
        done = engine(line)
        missing = "--exact" in line  # its point: the query is not there, as with grep
        assert done.returncode == (1 if missing else 0), (line, done.stderr)


def test_documents_name_files_that_are_there() -> None:
    pages = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"]
    pages += ["bench/README.md", "bench/results/README.md"]
    pages += ["engine/encoders/models/simclr/README.md"]
    pages += [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
    for name in pages:
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / name).parent.joinpath(target).exists(), f"{name} names {target}"


def test_architecture_lists_every_room() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text.partition("\n| room | job |\n|---|---|\n")[2].partition("\n\n")[0]
    firsts = [line.split("|")[1] for line in table.splitlines()]
    listed = [name for first in firsts for name in re.findall(r"`([\w/]+(?:\.py)?)`", first)]
    there = [
        f"{path.name}/" if path.is_dir() else path.name
        for path in (ROOT / "engine").iterdir()
        if not path.name.startswith(("_", ".", "py.typed"))
    ]
    assert sorted(listed) == sorted([*there, "bench/", "engine/"])  # bench/ lies beside engine/


def test_the_file_map_of_the_architecture_names_every_module_once_with_its_job() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    mapped = re.findall(r"^- `([\w/]+\.py)`: \S", text, re.MULTILINE)
    found = {path.relative_to(ROOT / "engine").as_posix() for path in modules_in("engine")}
    # A room's own __init__.py says what the heading of the room says.
    rooms = {name for name in found if name.endswith("/__init__.py")}
    assert sorted(mapped) == sorted(found - rooms)


def test_documents_name_modules_that_are_there() -> None:
    folders = [ROOT, ROOT / "engine", *(path.parent for path in modules_in("engine", "tests"))]
    for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "bench/README.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for module in re.findall(r"`([\w./]+\.py)`", text):
            named = any((folder / module).exists() for folder in folders)
            assert named or module.endswith("NAME.py"), (name, module)
        for module in re.findall(r"python -m (bench[\w.]*\w)", text):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists(), (name, module)


def test_architecture_names_every_room_of_the_benchmarks() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for path in modules_in("bench"):
        if path.name == "__init__.py" and path.parent.name != "bench":
            assert f"| `bench/{path.parent.name}/` |" in text, path


def test_the_pages_have_lines_that_a_terminal_shows() -> None:
    for name in ("ARCHITECTURE.md", "CONTRIBUTING.md"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if len(line) > 120] == [], name
