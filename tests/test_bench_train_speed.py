# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""The measurement of training's speed: both sides get the same images and do the same work."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import UsageError

torch = pytest.importorskip("torch")

from bench.harness.errors import BenchError
from bench.questions import train_speed, train_speed_child

pytestmark = pytest.mark.slow


def photos(folder: Path, n: int) -> Path:
    folder.mkdir()
    for seed in range(n):
        noise = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{seed}.png")
    return folder


@pytest.mark.slow
def test_both_make_batches_of_two_views_in_the_same_range(tmp_path: Path) -> None:
    folder = photos(tmp_path / "in", 6)
    # Views are drawn, and those of a few pictures may be much brighter than others.
    torch.manual_seed(0)
    with ExitStack() as stack:
        ours, count = train_speed_child.engine_batches(sorted(folder.iterdir()), 32, 4, stack)
        theirs = train_speed_child.plain_batches(sorted(folder.iterdir()), 32, 4, stack)
        one, other = next(ours), next(theirs)
    assert count == 6
    assert one.shape == other.shape == (8, 3, 32, 32)
    assert one.dtype == other.dtype == torch.float32
    assert (one.mean() - other.mean()).abs() < 0.5


@pytest.mark.exhaustive
def test_a_measurement_takes_rounds_of_both_in_turn(tmp_path: Path) -> None:
    found = train_speed.measure(photos(tmp_path / "in", 6), 32, 4, 1, 2)
    assert len(found.engine) == len(found.plain) == 2
    for one in (*found.engine, *found.plain):
        assert one.images == 4 and 0 < one.share < 1
    assert found.ratio > 0
    table = train_speed.table([found])
    assert "engine" in table and "plain" in table


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fewer than a batch"):
        train_speed.measure(photos(tmp_path / "in", 2), 32, 4, 1, 1)


@pytest.mark.exhaustive
def test_images_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    folder = photos(tmp_path / "in", 4)
    (folder / "broken.png").write_bytes(b"broken")
    with pytest.raises(BenchError, match=r"1 of 5 images in .* cannot be read"):
        train_speed.measure(folder, 32, 4, 1, 1)


@pytest.mark.exhaustive
def test_a_process_that_ends_is_one_line(tmp_path: Path) -> None:
    with train_speed._Way("engine", photos(tmp_path / "in", 4), 32, 4) as way:
        way.said()
        way._child.kill()
        with pytest.raises(BenchError, match="a measurement ended with signal 9"):
            way.round(1)
    with (
        train_speed._Way("plain", tmp_path / "gone", 32, 4) as way,
        pytest.raises(BenchError, match="gone is no folder"),
    ):
        way.said()


@pytest.mark.parametrize("given", ["--rounds=0", "--steps=0", "--batch=1", "--image-size=96,x"])
def test_measurements_that_make_no_sense_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setattr("sys.argv", ["train_speed", str(photos(tmp_path / "in", 4)), given])
    with pytest.raises(SystemExit) as caught:
        train_speed.main()
    assert caught.value.code == 2
