"""A wheel built from the tree works on its own, and installs without torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODELS = "engine/encoders/models/"
ENCODER = ("encoder.json", "README.md", "model.int8.onnx")
# Without torch, which is gigabytes.
CORE = {
    *("numpy", "rocksdict", "xxhash", "faiss-cpu", "onnxruntime", "pillow", "pdqhash"),
    *("backports-zstd", "typer", "rich", "platformdirs", "simplejpeg"),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(out), str(ROOT)]
    subprocess.run(command, check=True)
    (path,) = out.glob("image_index_engine-*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_encoder_the_benchmarks_and_the_type_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "engine/py.typed" in names
    assert "engine/_bench/__init__.py" in names
    assert "engine/encoders/models/simclr/encoder.json" in names
    assert "engine/encoders/models/simclr/model.int8.onnx" in names
    benches = {name.split("/")[2] for name in names if name.startswith("engine/_bench/")}
    assert benches == {"__init__.py", "data", "harness", "peers", "report", "suite"}
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"engine"}, "nothing but the package may land in site-packages"


def test_the_encoders_of_the_wheel_are_small() -> None:
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    sizes = {
        file.distribution_path: Path(file.path).stat().st_size
        for file in builder.recurse_included_files()
    }
    models = {path: size for path, size in sizes.items() if path.startswith(MODELS)}
    for name in ("simclr", "lite0"):
        assert {f"{MODELS}{name}/{file}" for file in ENCODER} <= set(models)
    assert not [path for path in sizes if path.endswith(".safetensors")]
    assert sum(models.values()) <= 25_000_000


@pytest.mark.exhaustive
def test_the_installed_wheel_ingests_looks_up_and_benches(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # -I and not the checkout: what runs is the wheel, with the dependencies of this environment.
    start = f"import sys; sys.path.insert(0, {str(site)!r}); from engine.cli.app import main; "
    photo = ROOT / "scripts" / "photos" / "goldfish.jpg"
    for words in (
        ["ingest", str(photo), "--store", "s"],
        ["lookup", "--exact", str(photo), "--store", "s"],
        ["bench", "--n", "300", "--steps", "1"],
    ):
        code = start + f"import engine; assert engine.__file__.startswith({str(site)!r}); "
        code += f"sys.exit(main({words!r}))"
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment["PYTHONPATH"] = str(site)  # for the processes that the benchmarks start
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (words, done.stderr)


@pytest.mark.slow
def test_the_core_asks_for_what_an_ingest_or_a_lookup_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    required = metadata.get_all("Requires-Dist", [])
    core = {re.split(r"[^\w.-]", line)[0] for line in required if "extra ==" not in line}
    assert core == CORE
