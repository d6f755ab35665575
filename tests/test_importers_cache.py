"""A model is imported once, into the user's cache, whatever happens to that folder."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import picture, save
from test_importers_onnx import network

import engine
from engine import EncoderError, Store, UsageError
from engine.encoders import named, registry
from engine.encoders.importers import cache, specs

SIDE = 8

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cached encoders."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "encoders"


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(network(tmp_path / "net.onnx", "FLOAT", ["n", 3, SIDE, SIDE])) + "?precision=fp32"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def place_of(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def test_a_model_is_imported_once(folder: Path, model: str, tmp_path: Path) -> None:
    first = named.find(model)
    assert first.model.parent == place_of(folder)
    before = first.model.stat()
    assert named.find(model).sha256 == first.sha256
    after = first.model.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    # The file counts, not its place.
    (tmp_path / "moved").mkdir()
    shutil.copy(tmp_path / "net.onnx", tmp_path / "moved")
    assert named.find(f"{tmp_path}/moved/net.onnx?precision=fp32").model == first.model
    # Its content counts, and what is beside it.
    (tmp_path / "net.toml").write_text("std = [1, 1, 1]\n")
    assert named.find(model).model != first.model
    assert len(list(folder.iterdir())) == 2


def test_a_store_takes_a_model_and_needs_it_no_more(
    folder: Path, model: str, tmp_path: Path
) -> None:
    source = save(tmp_path / "a.png", picture(0, 30, 30))
    with Store.open(tmp_path / "store", create=True, encoder=model) as store:
        assert store.ingest(source, encoder=model).added == 1
    shutil.rmtree(folder)
    (tmp_path / "net.onnx").unlink()
    with Store.open(tmp_path / "store") as store:
        (hit,) = store.lookup(source, tiers=["similar"]).similar
        assert hit.score == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("how", ["truncated", "without model", "without description", "garbage"])
def test_a_damaged_entry_is_imported_again(folder: Path, model: str, how: str) -> None:
    first = named.find(model)
    place = first.model.parent
    if how == "truncated":
        first.model.write_bytes(first.content[:-10])
    elif how == "without model":
        first.model.unlink()
    elif how == "without description":
        (place / registry.DESCRIPTION).unlink()
    else:
        (place / registry.DESCRIPTION).write_text("{")
    assert cache.cached() == []
    assert named.find(model).sha256 == first.sha256
    assert [each.sha256 for each in cache.cached()] == [first.sha256]


def test_what_a_killed_import_left_is_never_used(folder: Path, model: str) -> None:
    place = named.find(model).model.parent
    left = place.with_name(f".{place.name}.partial")
    place.rename(left)
    (left / "model.onnx").write_bytes(b"half")
    (left / ".work").mkdir()
    assert cache.cached() == []
    assert named.find(model).model.parent == place
    assert [each.name for each in folder.iterdir()] == [place.name]


def test_two_processes_import_a_model_once(folder: Path, model: str) -> None:
    code = f"from engine.encoders import named; print(named.find({model!r}).model.stat().st_ino)"
    ran = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = {one.communicate()[0] for one in ran}
    assert [one.returncode for one in ran] == [0, 0, 0]
    assert said == {f"{registry.read(place_of(folder)).model.stat().st_ino}\n"}


def test_an_import_that_is_killed_leaves_no_entry(folder: Path, model: str) -> None:
    # The process ends while it holds the lock, with half a folder.
    code = (
        "import os, signal\n"
        "from engine.encoders import footprint, named\n"
        "footprint.measure = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"named.find({model!r})\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert cache.cached() == []
    assert named.find(model).model.parent == place_of(folder)


def test_a_cache_that_cannot_be_written_is_one_line(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(EncoderError, match="cannot be made: Not a directory") as caught:
        named.find(model)
    assert "\n" not in str(caught.value)


def test_files_of_others_in_the_folder_of_an_import_are_not_touched(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", "FLOAT", ["n", 3, SIDE, SIDE])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(EncoderError, match="is not an empty folder: name another with out="):
        engine.import_encoder(path, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "kept"
    (tmp_path / "out" / "mine").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    report = engine.import_encoder(path, tmp_path / "link", precision="fp32")
    assert names(tmp_path / "out") == ["encoder.json", "model.onnx"]
    assert report.out == str(tmp_path / "out")


def test_files_that_come_while_a_model_is_imported_are_not_touched(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", "FLOAT", ["n", 3, SIDE, SIDE])
    out = tmp_path / "out"
    code = (
        "import engine\n"
        "from pathlib import Path\n"
        "from engine.encoders import footprint\n"
        f"out = Path({str(out)!r})\n"
        "def measure(_):\n"
        "    out.mkdir()\n"
        "    (out / 'mine').write_text('kept')\n"
        "    return {}\n"
        "footprint.measure = measure\n"
        f"engine.import_encoder({str(path)!r}, out, precision='fp32')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "cannot be written: Directory not empty" in ran.stderr
    assert names(out) == ["mine"]
    assert names(tmp_path) == ["net.onnx", "out"]


# --- specs ----------------------------------------------------------------------------------------


def test_a_spec_has_settings_after_a_question_mark() -> None:
    found = specs.parse(
        "timm:vit_tiny?weights=a.safetensors&layer=9:mean&mean=0,0.5,1&image_size=96"
    )
    assert found is not None
    assert (found.prefix, found.model, str(found)) == ("timm", "vit_tiny", "timm:vit_tiny")
    settings = found.settings
    assert settings.weights == str(Path.cwd() / "a.safetensors")
    assert (settings.layer, settings.image_size) == ("9:mean", 96)
    assert settings.mean == (0, 0.5, 1)
    for text in ("simclr", "none", "a/b", "nobody:x", "C:/x", "timm", "timm:"):
        assert specs.parse(text) is None


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("timm:x?nothing=1", "has a setting 'nothing': the known ones are image_size"),
        ("timm:x?image_size=0", "image_size= must be a whole number from 1"),
        ("timm:x?image_size=1e3", "image_size= must be a whole number"),
        ("timm:x?mean=1,2", "mean= must be three numbers"),
        ("timm:x?precision=int4", "precision= is one of auto, int8, fp32"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(spec: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        named.find(spec)
    assert "\n" not in str(caught.value)


def test_a_folder_wins_over_a_prefix(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_encoder, "timm:mine")
    assert named.find("timm:mine").name == "tiny"


# --- what there is --------------------------------------------------------------------------------


def test_the_list_has_what_ships_what_is_cached_and_what_can_be_had(
    folder: Path, model: str
) -> None:
    named.find(model)
    found = engine.list_encoders()
    (simclr,) = (each for each in found.encoders if each.name == "simclr")
    assert (simclr.origin, simclr.dim, simclr.precision) == ("shipped", 128, "int8")
    (net,) = (each for each in found.encoders if each.origin == "imported")
    assert (net.name, net.model, net.dim) == ("net", "net.onnx", 3 * SIDE**2)
    assert (net.precision, net.takes_text) == ("fp32", False)
    assert Path(net.path).parent == folder == Path(found.cache)
    assert all(each.images_per_second for each in found.encoders)
    # Figures are kept: the same ones the next time.
    assert engine.list_encoders() == found
    assert {each.prefix for each in found.importers} >= {"timm", "torchvision", "onnx"}
    unmeasured = engine.list_encoders(measure=False)
    assert not any(each.images_per_second for each in unmeasured.encoders)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": "b"}', "null"])
def test_damaged_figures_are_measured_again(folder: Path, text: str) -> None:
    folder.parent.mkdir(parents=True)
    (folder.parent / "speeds.json").write_text(text)
    assert all(each.images_per_second for each in engine.list_encoders().encoders)
    assert len(json.loads((folder.parent / "speeds.json").read_text())) >= 1


def test_lookups_and_ingests_with_a_model_in_the_cache_load_no_torch(
    folder: Path, model: str, tmp_path: Path
) -> None:
    named.find(model)
    source = save(tmp_path / "a.png", np.zeros((20, 20, 3), np.uint8))
    code = (
        "import sys\n"
        "from engine.cli.app import main\n"
        f"main(['ingest', {str(source)!r}, '--encoder', {model!r}, '--store', 's'])\n"
        f"main(['lookup', {str(source)!r}, '--store', 's'])\n"
        "print([name for name in ('torch', 'timm', 'onnx', 'torchvision') if name in sys.modules])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[-1] == "[]"
