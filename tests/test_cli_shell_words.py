"""What the library says in arguments, the command says in options."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

import engine
from engine.cli import render
from engine.cli.shell_words import OPTIONS, in_options
from engine.records import LookupResult, Rejection


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("too large: raise memory=", "too large: raise --memory"),
        ("raise memory=, or less", "raise --memory, or less"),
        ("memory= bounds it (memory= again)", "--memory bounds it (--memory again)"),
        ('was filled with encoder="none", and', "was filled with --encoder none, and"),
        ("leave encoder= out", "leave --encoder out"),
        ("is the list one for null=True?", "is the list one for --null?"),
        ('or leave tiers=["similar"] out', "or leave --tier similar out"),
        ("leave tiers= out", "leave --tier and --exact out"),
        ("in /data/memory=/a.png", "in /data/memory=/a.png"),
        ("memory=1/a.png: no such file", "memory=1/a.png: no such file"),
        ("my_memory= x", "my_memory= x"),
        (
            "there is no store at a b: make one with create=True, or name another with path=",
            "there is no store at a b: make one with 'engine ingest SOURCE --store a b', or name "
            "another with --store",
        ),
        ("plain", "plain"),
    ],
)
def test_arguments_become_options(message: str, says: str) -> None:
    assert in_options(message) == says


def test_answers_of_the_command_name_options() -> None:
    failed = LookupResult("a.png", searched=(), error="too large: raise memory=")
    assert "raise --memory" in render.lookup_json(failed)
    assert render.lookup_text(failed).endswith("raise --memory")

    @dataclass
    class Report:
        rejected: tuple[Rejection, ...]

    report = Report((Rejection("memory=/a.png", "too large: raise memory="),))
    assert json.loads(render.rejections_json(report)) == {
        "rejected": [{"source": "memory=/a.png", "reason": "too large: raise --memory"}]
    }


def test_each_argument_is_one_that_the_library_names() -> None:
    root = Path(engine.__file__).parent
    sources = [path for path in root.rglob("*.py") if path.parent.name != "cli"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    assert [argument for argument in OPTIONS if argument not in text] == []
