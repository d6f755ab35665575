"""Recipes, files of settings, and what comes over what."""

from pathlib import Path

import pytest

from engine.errors import UsageError

pytest.importorskip("torch")

from engine.training.recipes import RECIPES, resolve
from engine.training.settings import TrainSettings

SCRIPTS = sorted((Path(__file__).parent.parent / "scripts").glob("*.toml"))


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "settings.toml").write_text(text)
    return tmp_path / "settings.toml"


def test_the_report_is_the_defaults() -> None:
    assert resolve({}) == resolve({}, recipe="report") == TrainSettings()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_makes_sense_and_its_name_stays(recipe: str) -> None:
    settings = resolve({}, recipe=recipe)
    assert settings.recipe == recipe
    assert resolve({"epochs": 1, "image_size": 32, "batch": 4}, recipe=recipe).epochs == 1
    assert resolve({"method": "supervised"}, recipe=recipe).hard_negatives == 0
    with pytest.raises(UsageError, match="supervised has no negatives"):
        resolve({"method": "supervised", "hard_negatives": 0.5}, recipe=recipe)


def test_flags_come_over_the_file_and_that_over_the_recipe(tmp_path: Path) -> None:
    file = written(tmp_path, "epochs = 7\nbatch = 9\ncrop_scale = [0.5, 0.75]\n")
    settings = resolve({"batch": 11}, recipe="small", file=file)
    assert (settings.epochs, settings.batch, settings.crop_scale) == (7, 11, (0.5, 0.75))
    assert settings.image_size == RECIPES["small"]["image_size"]


def test_a_file_may_name_the_recipe_that_it_changes(tmp_path: Path) -> None:
    file = written(tmp_path, 'recipe = "small"\nepochs = 7\n')
    assert resolve({}, file=file) == resolve({"epochs": 7}, recipe="small")
    assert resolve({}, file=file, recipe="large") == resolve({"epochs": 7}, recipe="large")


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_the_settings_that_are_kept_make_sense(file: Path) -> None:
    assert resolve({}, file=file).recipe == "large"


def test_without_a_recipe_they_come_over_the_base() -> None:
    base = resolve({"image_size": 32}, recipe="small")
    assert resolve({}, base=base) == base
    assert resolve({"epochs": 3}, base=base).image_size == 32
    assert resolve({}, base=base, recipe="small") == base  # the one that it began from
    assert resolve({}, base=base, recipe="large").image_size == RECIPES["large"]["image_size"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat = 1", "unknown training setting 'learning_rat'"),
        ('recipe = "huge"', "recipe is 'huge': it must be one of report, small, large"),
        ("recipe = 3", "recipe is 3"),
        ("batch = 2.5", "batch is 2.5"),
        ("[training]\nbatch = 2", "unknown training setting 'training'"),
        ("batch =", "is not a TOML file"),
        ("epochs = " + "9" * 5000, "is not a TOML file"),
        ("a = " + "[" * 5000, "is not a TOML file"),
        ("#" * (1 << 20) + "\n", "too large"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve({}, file=written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not a TOML file"):
        resolve({}, file=tmp_path / "binary")
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        resolve({}, file=tmp_path / "absent")


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(UsageError, match="recipe is 'tiny'"):
        resolve({}, recipe="tiny")
