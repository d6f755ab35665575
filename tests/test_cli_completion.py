"""What a shell offers for the values of options."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cli import completion
from engine.search.tiers import TIERS
from engine.training.recipes import RECIPES


def offered(line: str, cwd: Path) -> list[str]:
    """What bash is offered for the last word of ``line``, for which torch is not imported."""
    words = line.split(" ")
    environment = {
        **os.environ,
        "_ENGINE_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "engine"],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not re.search(r"\| +torch$", ran.stderr, re.MULTILINE)
    return ran.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("engine lookup --tier ", ["identical", "near", "similar"]),
        ("engine lookup --tier identical,", ["identical,near", "identical,similar"]),
        ("engine train --recipe s", ["small"]),
        (
            "engine ingest --encoder ",
            ["lite0", "simclr", "none", "mine", "others/", "picture.onnx"],
        ),
        ("engine ingest --encoder others/", ["others/inner"]),
        ("engine train --init m", ["mine"]),
        ("engine eval p", ["pixels", "pdq", "picture.onnx"]),
    ],
)
def test_a_shell_completes_names(line: str, words: list[str], tmp_path: Path) -> None:
    for folder in ("mine", "others/inner"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "encoder.json").touch()
    for name in ("picture.onnx", "picture.png", ".hidden.onnx"):
        (tmp_path / name).touch()
    assert offered(line, tmp_path) == words


def test_the_names_are_those_that_there_are() -> None:
    assert completion.TIERS == TIERS
    assert tuple(RECIPES) == completion.RECIPES


def test_a_folder_that_is_not_there_completes_nothing() -> None:
    assert completion.encoders()("gone/x") == []
