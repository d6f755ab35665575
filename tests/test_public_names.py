"""The public names are a list that only grows, and the errors a tree with one root."""

import importlib.metadata
import inspect
import re

import pytest

import engine
from engine import errors

PUBLIC = [
    "BackupReport",
    "CheckReport",
    "EncoderError",
    "EngineError",
    "ExportReport",
    "IdenticalHit",
    "ImageError",
    "ImageRecord",
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
    assert inspect.isclass(found)
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
