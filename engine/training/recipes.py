"""The recipes by name, and how a settings file and arguments override them; no torch here.

A recipe sets some settings; the others have the defaults of ``TrainSettings``. Arguments override the
settings file, which overrides the recipe.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.training.settings import TrainSettings

RECIPES: dict[str, dict[str, Any]] = {
    # SimCLR with the defaults.
    "report": {},
    # For a few hundred images. Small pictures leave time for many epochs. Each of these settings found
    # more copies than the epochs alone, and all together found the most. A queue found fewer
    # (bench.questions.train_recipes).
    "small": {
        "image_size": 128,
        "epochs": 200,
        "hard_negatives": 0.25,
        "grey": 0.2,
        "erase": 0.2,
        "schedule": "cosine",
        "warmup": 5,
        "weight_decay": 1e-4,
        "precision": "bf16",
    },
    # For thousands of images and more. The batch has enough negatives.
    "large": {
        "image_size": 128,
        "held_out": 0.05,
        "temperature": 0.1,
        "batch": 256,
        "epochs": 100,
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup": 5,
        "weight_decay": 1e-4,
        "precision": "bf16",
    },
}
# The method supervised has no negatives, so a recipe says nothing about them for it.
_OF_NEGATIVES = ("hard_negatives", "tau_plus", "semi_hard")
_FILE_BYTES = 1 << 20  # limit of a settings file, which usually has a few hundred bytes


def resolve(
    given: Mapping[str, Any],
    *,
    recipe: str = "",
    file: str | Path = "",
    base: TrainSettings | None = None,
) -> TrainSettings:
    """The settings of a run: ``given`` overrides the TOML ``file``, which overrides the recipe.

    The recipe is ``recipe``, or else the one in the file. If none is named, or that of ``base``, the
    settings override ``base``, or the recipe "report" if ``base`` is None. ``UsageError`` names an
    unknown or invalid setting.
    """
    read = _read(Path(file)) if file else {}
    name = recipe or read.get("recipe", "")
    if name and (not isinstance(name, str) or name not in RECIPES):
        raise UsageError(f"recipe is {name!r}: it must be one of {', '.join(RECIPES)}")
    start = base.to_dict() if base and name in ("", base.recipe) else RECIPES[name or "report"]
    over = {**read, **given, **({"recipe": name} if name else {})}
    if over.get("method") == "supervised":
        start = {key: value for key, value in start.items() if key not in _OF_NEGATIVES}
    return TrainSettings.from_dict({**start, **over})


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(_FILE_BYTES + 1)
        if len(raw) > _FILE_BYTES:
            raise UsageError(f"{path} is too large for a file of settings: name a TOML file")
        return tomllib.loads(raw.decode("utf-8"))
    except OSError as error:
        raise UsageError(f"the settings {path} cannot be read: {error.strerror}") from None
    # Not UTF-8, not TOML, or a number of thousands of digits.
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path} is not a TOML file of settings: {reason}") from None
