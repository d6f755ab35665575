"""The public names are a list that only grows, and the errors a tree with one root."""

import importlib.metadata
import inspect
import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

import engine
from engine import errors

PUBLIC = [
    "BackupReport",
    "CheckReport",
    "EncoderError",
    "EncoderInfo",
    "EncoderList",
    "EngineError",
    "ExportReport",
    "IdenticalHit",
    "ImageError",
    "ImageRecord",
    "ImportReport",
    "ImporterInfo",
    "IngestPlan",
    "IngestReport",
    "Kind",
    "LookupResult",
    "MissingBelow",
    "MissingError",
    "NearHit",
    "OptimizeReport",
    "PackedBits",
    "Problem",
    "ReembedReport",
    "RemoveReport",
    "SimilarHit",
    "SourceError",
    "Store",
    "StoreDamagedError",
    "StoreError",
    "StoreFormatError",
    "StoreInfo",
    "StoreLockedError",
    "StoreNotFoundError",
    "TrainingError",
    "UnknownImageError",
    "UsageError",
    "__version__",
    "import_encoder",
    "list_encoders",
]

TREE = {
    "EngineError": "Exception",
    "UsageError": "EngineError",
    "UnknownImageError": "UsageError",
    "SourceError": "EngineError",
    "MissingError": "SourceError",
    "ImageError": "EngineError",
    "EncoderError": "EngineError",
    "TrainingError": "EncoderError",
    "StoreError": "EngineError",
    "StoreNotFoundError": "StoreError",
    "StoreFormatError": "StoreError",
    "StoreLockedError": "StoreError",
    "StoreDamagedError": "StoreError",
}


def test_the_public_names_are_these():
    assert engine.__all__ == PUBLIC


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "__version__"])
def test_each_public_name_says_what_it_is(name):
    found = getattr(engine, name)
    assert inspect.isclass(found) or inspect.isfunction(found)
    assert inspect.cleandoc(found.__doc__ or "")


def test_each_public_method_of_a_store_says_what_it_does():
    for name, member in inspect.getmembers(engine.Store):
        if not name.startswith("_"):
            assert inspect.getdoc(member), name


def test_the_version_is_the_packages():
    assert engine.__version__ == importlib.metadata.version("image-index-engine")


def test_the_errors_are_a_tree_and_all_of_them_are_public():
    found = {
        name: error.__bases__[0].__name__
        for name, error in inspect.getmembers(errors, inspect.isclass)
    }
    assert found == TREE
    assert set(TREE) <= set(PUBLIC)


def test_the_drawing_of_the_tree_is_complete():
    drawn = re.findall(
        r"^[│├└─ ]*(\w+Error)  +\w|^(EngineError)$", errors.__doc__ or "", re.MULTILINE
    )
    assert [name or root for name, root in drawn] == list(TREE)


def test_a_usage_error_is_a_value_error_too():
    assert issubclass(engine.UsageError, ValueError)


ROOT = Path(__file__).resolve().parent.parent
with (ROOT / "pyproject.toml").open("rb") as _file:
    PROJECT = tomllib.load(_file)["project"]
EXTRAS = list(PROJECT["optional-dependencies"])


def test_the_extras_that_errors_know_are_those_of_the_project() -> None:
    assert sorted(get_args(errors.Extra)) == sorted(EXTRAS)


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_can_be_installed_with_what_an_error_says(extra: errors.Extra) -> None:
    said = errors.how_to_install(extra)
    assert f"pip install '{PROJECT['name']}[{extra}]'" in said
    assert f"or in a clone: pip install -e '.[{extra}]'" in said
    assert "\n" not in said


def test_no_other_message_says_how_to_install_an_extra() -> None:
    written = re.compile(r"pip install [^\n]*\[(?!\{extra\})")
    for package in ("engine", "bench"):
        for path in (ROOT / package).rglob("*.py"):
            for found in written.findall(path.read_text(encoding="utf-8")):
                # A page of help is no message that is made.
                assert path.name in ("train.py", "descriptors.py"), (path, found)


def test_the_help_says_what_the_error_says() -> None:
    from engine.cli.commands.train import train

    assert train.__doc__ is not None
    assert errors.how_to_install("train") in " ".join(train.__doc__.split())
