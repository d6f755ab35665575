# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""``engine train`` as it is typed: settings, Ctrl-C, and going on."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from engine.cli.app import main
from engine.cli.commands.train import TrainOptions
from engine.training import TrainSettings, saved_run
from engine.training.checkpoint import LAST, load_checkpoint, load_last, read_tensors

TINY = ["--image-size", "32", "--batch", "4", "--hidden", "32", "--dim", "16"]
PER_EPOCH = 2  # steps


def photos(folder: Path, n: int) -> str:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((40, 40)).save(folder / f"{i:03}.png")
    return str(folder)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "engine", "train", *map(str, arguments)]


Engine = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def engine(capsys: pytest.CaptureFixture[str]) -> Engine:
    """``engine train`` in this process, which has imported torch already."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        given = ["train", *map(str, arguments)]
        return subprocess.CompletedProcess(given, main(given), *capsys.readouterr())

    return run


@pytest.mark.usual
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_training_that_goes_on(
    tmp_path: Path, engine: Engine, number: signal.Signals
) -> None:
    source, out = photos(tmp_path / "in", PER_EPOCH * 4), tmp_path / "an encoder"
    whole = [source, "--out", out, *TINY, "--recipe", "small", "--epochs", 100_000]
    whole += ["--method", "moco", "--queue", 16]
    with subprocess.Popen(command(*whole), stderr=subprocess.PIPE, text=True) as run:
        while not (out / LAST).exists() and run.poll() is None:
            time.sleep(0.05)
        run.send_signal(number)
        _, err = run.communicate(timeout=300)
    assert run.returncode == 130 and "Traceback" not in err
    (line,) = [line for line in err.splitlines() if "go on with" in line]
    assert line.endswith(f"engine train {source} --out '{out}' --resume")
    _, _, place = load_last(out)
    assert place.step >= PER_EPOCH and f"stopped after step {place.step:,};" in line
    assert not (out / "encoder.json").exists()

    other = engine(source, "--out", out, "--resume", "--queue", 32)
    assert other.returncode == 2 and other.stderr.startswith("engine: queue is 32, but the")
    assert saved_run(out).settings.recipe == "small"
    epochs = place.step // PER_EPOCH + 1
    rest = engine(source, "--out", out, "--resume", "--epochs", epochs, "--json")
    assert rest.returncode == 0, rest.stderr
    report = json.loads(rest.stdout)
    assert (report["steps"], report["interrupted"]) == (epochs * PER_EPOCH, False)
    assert (out / "encoder.json").exists()
    beyond = engine(source, "--out", out, "--resume", "--epochs", 1)
    assert beyond.returncode == 2 and "has already gone beyond it" in beyond.stderr


STOPPED = """
import os, signal, sys, threading
from engine.__main__ import main
from engine.cli import interrupts, streams

write, written = streams.write_now, threading.Event()

def writes(text):
    write(text)
    written.set()

def opens(event, given):
    if event == "open" and str(given[0]).endswith("000.png"):
        os.kill(os.getpid(), signal.SIGINT)
        # The work might end before another thread says that it will.
        written.wait(300)

interrupts.PATIENCE = 1e6
streams.write_now = writes
sys.addaudithook(opens)
main()
"""


@pytest.mark.slow
def test_a_signal_before_the_first_step_is_reported(tmp_path: Path) -> None:
    given = [photos(tmp_path / "in", 8), "--out", str(tmp_path / "out"), *TINY]
    run = subprocess.run(
        [sys.executable, "-c", STOPPED, "train", *given], capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (130, ""), run.stderr
    asked, last = run.stderr.splitlines()
    assert "stopping after a checkpoint" in asked
    assert last == "engine: stopped before the first step; start it again with the same command"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_settings_come_from_the_recipe_the_file_and_the_options(
    tmp_path: Path, engine: Engine
) -> None:
    source, out = photos(tmp_path / "in", 8), tmp_path / "out"
    (tmp_path / "my.toml").write_text(
        'epochs = 3\nimage_size = 32\nmethod = "moco"\nqueue = 8\nblur_kernel = 3\n'
    )
    result = engine(
        *(source, "--out", out, "--recipe", "small", "--settings", tmp_path / "my.toml"),
        *("--epochs", 1, "--batch", 4, "--crop-scale", 0.5, 1, "--semi-hard", "--lr", 0.01),
        *("--licence", "CC0-1.0", "--name", "mine", "--held-out", 0.2),
    )
    assert result.returncode == 0, result.stderr
    assert "1 epoch," in result.stdout and "use it with: engine ingest" in result.stdout
    exported = result.stdout.splitlines()[1:-1]
    assert exported[:2] == ["exported the network of epoch 1", "compared on 8 training images:"]
    assert re.fullmatch(r"  fp32 and the network: cosine [01]\.\d{4} or more", exported[2])
    assert re.fullmatch(
        r"  int8 and fp32: mean cosine [01]\.\d{4}, and \d+% of the ten nearest are the same",
        exported[3],
    )
    assert re.fullmatch(r"  int8 ranges were calibrated on 8 training images \(\w+\)", exported[4])
    assert len(exported) == 5
    assert (
        "engine: --held-out 0.2 holds nothing out: it takes at least 64 images, not 8\n"
        in result.stderr
    )
    _, provenance = load_checkpoint(out)
    settings = provenance.settings
    assert (settings.recipe, settings.method, settings.queue) == ("small", "moco", 8)
    assert (settings.epochs, settings.batch, settings.blur_kernel) == (1, 4, 3)
    assert (settings.crop_scale, settings.semi_hard) == ((0.5, 1.0), True)
    assert (provenance.licence, provenance.name, settings.learning_rate) == (
        "CC0-1.0",
        "mine",
        0.01,
    )
    body = json.loads((out / "encoder.json").read_text())
    assert body["settings"]["recipe"] == "small" and body["licence"] == "CC0-1.0"
    _, fields = read_tensors(out / LAST)
    assert json.loads(fields["data"])["count"] == 8 and json.loads(fields["created"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "huge"], "recipe is 'huge': it must be one of report, small, large"),
        (["--method", "byol"], "method is 'byol': it must be simclr or moco or supervised"),
        (["--queue", "5"], "queue is 5: it must be 0 unless the method is moco"),
        (["--settings", "absent.toml"], "the settings absent.toml cannot be read: No such file"),
        (["--resume"], "holds no last.safetensors"),
        (["--held-out", "0.9"], "--held-out is 0.9"),
        (["--lr", "0"], "--lr is 0.0: it must be above 0"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    tmp_path: Path, engine: Engine, arguments: list[str], message: str
) -> None:
    result = engine(photos(tmp_path / "in", 4), "--out", tmp_path / "out", *arguments)
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_every_option_without_a_default_is_a_setting() -> None:
    settings = {field.name for field in dataclasses.fields(TrainSettings)}
    options = {field.name for field in dataclasses.fields(TrainOptions) if field.default is None}
    assert options - settings == {"sources"}
    # A picture's size in the cache goes with that of the images.
    assert settings - options == {"recipe", "shrink"}
    given = TrainOptions(learning_rate=0.5, seed=0, semi_hard=False, recipe="small")
    assert given.given_settings(TrainSettings) == {
        "learning_rate": 0.5, "seed": 0, "semi_hard": False,
    }  # fmt: skip
