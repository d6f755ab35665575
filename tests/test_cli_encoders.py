"""The commands about encoders: ``encoders`` and ``import-encoder``, ``--device``, and the memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import picture, save
from test_cli import Engine, engine  # noqa: F401  (a fixture)
from test_importers_onnx import network

from engine import EncoderError, Store, UsageError
from engine.config import EncoderMemory, MemoryBudget, parse_memory
from engine.encoders import footprint, registry
from engine.encoders.onnx import OnnxEncoder

SIDE = 8


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return network(tmp_path / "net.onnx", "FLOAT", ["n", 3, SIDE, SIDE])


def without_gpu() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" not in onnxruntime.get_available_providers()


# --- the commands ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_is_imported_by_command_and_fills_a_store(
    engine: Engine,  # noqa: F811
    model: Path,
    tmp_path: Path,
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(12):
        save(pictures / f"{number}.png", picture(number, 20, 24))
    words = ("--out", tmp_path / "mine", "--mean", "0,0,0", "--std", "1,1,1", "--licence", "MIT")
    ran = engine("import-encoder", model, *words, "--calibrate", pictures, "--json")
    assert ran.status == 0, ran.err
    assert ran.json["name"] == "net" and ran.json["licence"] == "MIT"
    described = json.loads((tmp_path / "mine" / "encoder.json").read_text())
    assert described["parity"]["images_from"] == "12 pictures of pictures"
    assert described["memory"]["load_bytes"] > 0
    ran = engine("ingest", pictures, "--encoder", tmp_path / "mine", "--store", tmp_path / "store")
    assert ran.status == 0, ran.err
    ran = engine("lookup", pictures / "3.png", "--store", tmp_path / "store", "--json")
    assert ran.json["similar"] or ran.json["identical"]
    # The same model by its name, into another store.
    named = f"{model}?precision=fp32&mean=0,0,0&std=1,1,1"
    ran = engine("ingest", pictures, "--encoder", named, "--store", tmp_path / "other", "--json")
    assert (ran.status, ran.json["added"]) == (0, 12), ran.err
    ran = engine("encoders")
    assert ran.status == 0
    assert "simclr" in ran.out and "timm:vit_small_patch14_dinov2" in ran.out
    assert engine("encoders", "--json").json["encoders"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "name a model, and a folder for the encoder with --out"),
        (("net.onnx",), "name a model, and a folder for the encoder with --out"),
        (("simclr", "--out", "x"), "is not a model to import: write timm:NAME"),
        (("gone.onnx", "--out", "x", "--precision", "int4"), "--precision is one of auto"),
        (("gone.onnx", "--out", "x", "--mean", "1,2"), "--mean must be three numbers"),
        (("gone.onnx", "--out", "x", "--mean", "1,2,nan"), "--mean must be three numbers"),
        (("gone.onnx", "--out", "x"), "gone.onnx: no such file"),
        (("gone.onnx", "--out", "x", "--calibrate", "gone"), "gone"),
    ],
)
def test_what_cannot_be_imported_is_one_line(
    engine: Engine,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = engine("import-encoder", *words)
    assert ran.status == 2 and ran.out == ""
    (line,) = ran.err.splitlines()
    assert reason in line
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_sources_without_pictures_cannot_calibrate(
    engine: Engine,  # noqa: F811
    model: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    ran = engine(
        "import-encoder", model, "--out", tmp_path / "x", "--calibrate", tmp_path / "empty"
    )
    assert ran.status == 2
    assert "holds no pictures that can be read" in ran.err and "--calibrate" in ran.err


# --- devices --------------------------------------------------------------------------------------


def test_a_device_that_is_none_is_refused(engine: Engine, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UsageError, match="device= is one of auto, cpu, cuda, not 'gpu'"):
        Store.open(tmp_path / "store", create=True, device="gpu")
    assert not (tmp_path / "store").exists()
    source = save(tmp_path / "a.png", picture(0))
    ran = engine("ingest", source, "--device", "gpu", "--store", tmp_path / "store")
    assert ran.status == 2 and "--device is one of auto, cpu, cuda" in ran.err


def test_cuda_where_there_is_none_is_one_line(tiny_encoder: Path, tmp_path: Path) -> None:
    if not without_gpu():
        pytest.skip("the installed onnxruntime supports CUDA")
    source = save(tmp_path / "a.png", picture(0, 20, 20))
    place, encoder = tmp_path / "store", str(tiny_encoder)
    with Store.open(place, create=True, encoder=encoder, device="cuda") as store:
        with pytest.raises(EncoderError, match="pip install onnxruntime-gpu") as caught:
            store.ingest(source)
        assert "\n" not in str(caught.value) and len(store) == 0
    for device in ("auto", "cpu"):
        with Store.open(place, device=device) as store:
            store.ingest(source)
            assert store.lookup(source, tiers=["similar"]).similar


# --- memory ---------------------------------------------------------------------------------------


def claiming(folder: Path, tiny: Path, **memory: int) -> Path:
    """A copy of the tiny encoder that says how much memory it takes."""
    shutil.copytree(tiny, folder)
    path = folder / registry.DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | {"memory": memory}))
    return folder


def test_an_encoder_that_does_not_fit_is_refused_before_anything_is_written(
    engine: Engine,  # noqa: F811
    tiny_encoder: Path,
    tmp_path: Path,
) -> None:
    large = claiming(tmp_path / "e", tiny_encoder, load_bytes=600 << 20, picture_bytes=50 << 20)
    source = save(tmp_path / "a.png", picture(0, 20, 20))
    words = ("ingest", source, "--encoder", large, "--store", tmp_path / "store")
    ran = engine(*words, "--memory", "512M")
    assert ran.status == 2
    (line,) = ran.err.splitlines()
    assert "the encoder 'tiny' takes 650M, which does not fit into --memory 512M" in line
    assert not (tmp_path / "store").exists()
    enough = line.partition("give at least ")[2].partition(",")[0]
    ran = engine(*words, "--memory", enough)
    assert ran.status == 0, ran.err


@pytest.mark.parametrize("load", [1 << 20, 40 << 20, 600 << 20, 5 << 30])
@pytest.mark.parametrize("picture_bytes", [1 << 10, 20 << 20, 300 << 20])
def test_what_an_error_asks_for_is_enough(load: int, picture_bytes: int) -> None:
    needs = EncoderMemory(load, picture_bytes)
    try:
        budget = MemoryBudget(128 << 20)
        batch = budget.encoder_batch("e", needs)
    except EncoderError as error:
        budget = parse_memory(str(error).partition("give at least ")[2].partition(",")[0])
        batch = budget.encoder_batch("e", needs)
    assert 1 <= batch <= budget.encode_batch
    rest = budget.beside_encoder("e", needs)
    assert rest >= budget.total // 4
    assert rest + needs.load_bytes + batch * needs.picture_bytes <= budget.decoding


def test_fewer_pictures_at_a_time_give_the_same_vectors(tiny_encoder: Path, tmp_path: Path) -> None:
    pictures = [picture(seed, 16, 16) for seed in range(20)]
    large = claiming(tmp_path / "e", tiny_encoder, load_bytes=1 << 20, picture_bytes=20 << 20)
    found = OnnxEncoder(registry.read(large), memory=MemoryBudget(128 << 20)).encode(pictures)
    wanted = OnnxEncoder(registry.read(tiny_encoder)).encode(pictures)
    assert found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.slow
def test_the_measured_memory_grows_with_the_input(tmp_path: Path) -> None:
    small, large = (
        footprint.measure(made_encoder(tmp_path / str(side), side)) for side in (64, 512)
    )
    if not small:
        pytest.skip("this system does not show a process its memory")
    assert large["picture_bytes"] > 8 * small["picture_bytes"] >= 8 * 3 * 64**2
    assert small["load_bytes"] > 0


def made_encoder(folder: Path, side: int) -> Path:
    from conftest import write_encoder

    return write_encoder(folder, dim=16, image_size=side)


@pytest.mark.parametrize("memory", [[], 7, {"load_bytes": 0}, {"picture_bytes": "x"}])
def test_a_memory_that_makes_no_sense_is_refused(
    tiny_encoder: Path, tmp_path: Path, memory: object
) -> None:
    folder = claiming(tmp_path / "e", tiny_encoder)
    path = folder / registry.DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | {"memory": memory}))
    if memory in ([],):
        assert registry.read(folder).load_bytes is None
        return
    with pytest.raises(EncoderError, match="does not describe an encoder"):
        registry.read(folder)


def test_vectors_are_the_same_whatever_the_memory(tiny_encoder: Path, tmp_path: Path) -> None:
    source = save(tmp_path / "a.png", picture(3, 50, 40))
    found = []
    for memory in ("128M", "2G"):
        place = tmp_path / memory
        with Store.open(place, create=True, encoder=str(tiny_encoder), memory=memory) as store:
            store.ingest(source)
            found.append(store.vectors([1]))
    assert np.array_equal(*found)
