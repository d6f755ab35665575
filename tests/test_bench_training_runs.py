# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""The comparisons of trainings: what is compared, that all are asked the same, and what is printed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import UsageError

torch = pytest.importorskip("torch")

from bench.questions import train_batches, train_recipes
from bench.questions.training_runs import Run, sample, train_all
from engine.training import RECIPES, resolve

pytestmark = pytest.mark.slow


def photos(folder: Path, n: int, first: int = 0) -> Path:
    """Pictures of coarse noise, which no two distortions of two of them have in common."""
    folder.mkdir()
    for seed in range(first, first + n):
        draw = np.random.default_rng(seed)
        noise = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        noise.resize((96, 96), Image.Resampling.BICUBIC).save(folder / f"{seed}.png")
    return folder


@pytest.mark.exhaustive
def test_all_runs_have_the_same_images_and_are_asked_the_same(tmp_path: Path) -> None:
    files = sample([photos(tmp_path / "in", 6)], 6, seed=1)
    small = {"image_size": 16, "epochs": 1, "batch": 3}
    told: list[str] = []
    found = train_all(
        [Run("one", 6, "report", small), Run("two", 4, "report", {**small, "epochs": 2})],
        files,
        photos(tmp_path / "queries", 5, 100),
        [photos(tmp_path / "distractors", 4, 200)],
        count=5,
        seed=0,
        log=told.append,
    )
    assert [(one.run.name, one.steps) for one in found] == [("one", 2), ("two", 2)]
    for one in found:
        assert "crop60" in one.recall and len(one.recall) == 11
        assert 0 <= one.mean <= 1
        assert one.read_seconds > 0 and one.train_seconds > 0 and one.loss is not None
    assert any(line.startswith("2 of 2: two, 4 images, epoch 2 of 2") for line in told)
    assert "two" in train_recipes.table([found])
    assert "times as long" in train_recipes.reading(found[1])


def test_the_first_images_of_a_set_are_the_smaller_set(tmp_path: Path) -> None:
    folders = [photos(tmp_path / "a", 4), photos(tmp_path / "b", 4, 50)]
    assert sample(folders, 8, seed=3)[:5] == sample(folders, 8, seed=3)[:5]
    assert sample(folders, 8, seed=3) != sample(folders, 8, seed=4)
    assert sample(folders, 3, seed=3) == sample(folders, 8, seed=3)[:3]
    with pytest.raises(UsageError, match="8 images are fewer than the 9"):
        sample(folders, 9, seed=3)


def test_each_run_adds_something_to_the_recipe() -> None:
    made = {run.name: run for run in train_recipes.runs(128, 64, 0)}
    whole = resolve(made["small"].settings, recipe="small").to_dict()
    assert whole["epochs"] == RECIPES["small"]["epochs"]
    for name, run in made.items():
        settings = resolve(run.settings, recipe=run.recipe).to_dict()
        assert settings["image_size"] == 64
        if run.recipe == "small" and name != "small":
            assert settings != whole
    assert resolve(made["report"].settings, recipe="report").epochs == 30


def test_every_batch_sees_as_many_images_and_none_is_larger_than_its_set() -> None:
    made = train_batches.runs([128, 1000], [64, 256, 512], 32, 60_000)
    sizes = [(run.images, run.settings["batch"]) for run in made]
    assert sizes == [(128, 64), (128, 128), (1000, 64), (1000, 256), (1000, 512)]
    for run in made:
        batch = run.settings["batch"]
        seen = run.settings["epochs"] * (run.images // batch) * batch
        assert abs(seen - 60_000) <= 0.01 * 60_000
        resolve(run.settings, recipe=run.recipe)
