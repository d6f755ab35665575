"""``engine reembed``: what it prints, and its exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_encoder
from helpers import picture, save

from engine import Store
from engine.cli.app import main

Reembed = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoders") / "other", dim=24, image_size=8)


@pytest.fixture
def store(tmp_path: Path, tiny_encoder: Path) -> Path:
    for n in range(4):
        save(tmp_path / f"photos/{n}.png", picture(n))
    path = tmp_path / "s"
    with Store.open(path, create=True, encoder=str(tiny_encoder)) as made:
        made.ingest(tmp_path / "photos")
    return path


@pytest.fixture
def reembed(store: Path, capfd: pytest.CaptureFixture[str]) -> Reembed:
    """Runs the command in this process."""

    def run(*words: object) -> tuple[int, str, str]:
        status = main(["reembed", "--store", str(store), *map(str, words)])
        out, err = capfd.readouterr()
        return status, out, err

    return run


def encoder_of(store: Path) -> str:
    with Store.open(store, read_only=True) as opened:
        found = opened.info().encoder
    assert found is not None
    return str(found["name"])


def test_a_dry_run_changes_nothing_and_a_run_switches(
    store: Path, other: Path, reembed: Reembed
) -> None:
    status, out, _ = reembed("--encoder", other, "--dry-run")
    assert status == 0
    assert out.startswith("4 images to embed with other, 0 already embedded; at most ")
    assert out.endswith("nothing was changed\n")
    assert encoder_of(store) == "tiny"
    status, out, _ = reembed("--encoder", other)
    assert (status, encoder_of(store)) == (0, "other")
    assert out.startswith("4 images embedded with other in ")
    status, out, _ = reembed("--encoder", other, "--json")
    report = json.loads(out)
    assert (status, report["embedded"], report["kept"], report["switched"]) == (0, 0, 4, True)


def test_lost_vectors_end_it_unless_they_are_given_up(
    store: Path, other: Path, reembed: Reembed, caplog: pytest.LogCaptureFixture
) -> None:
    (store.parent / "photos/1.png").unlink()
    status, out, _ = reembed("--encoder", other, "--dry-run")
    assert status == 3
    assert "1 image cannot be embedded, of which 1 have a vector now: #2 " in out
    status, out, err = reembed("--encoder", other)
    assert (status, out, encoder_of(store)) == (2, "", "tiny")
    assert "1 of 4 images would lose their vectors" in err
    assert err.endswith("or give these vectors up with --allow-missing\n")
    status, out, err = reembed("--encoder", other, "--allow-missing", "--json")
    report = json.loads(out)
    assert (status, report["lost"], report["unreachable"]) == (3, 1, 1)
    assert "images whose pixels are gone: 1, of which 1 have a vector now" in caplog.text
    assert encoder_of(store) == "other"


def test_an_unfinished_run_is_shown_and_can_be_dropped(
    store: Path, other: Path, reembed: Reembed, capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = reembed("--discard")
    assert (status, out) == (0, "there is no unfinished reembed\n")
    save(store.parent / "photos/1.png", picture(77))
    assert reembed("--encoder", other)[0] == 2
    assert main(["info", "--store", str(store)]) == 0
    shown = capfd.readouterr().out
    assert "unfinished: 3 vectors of other; 'engine reembed' goes on" in shown
    assert main(["check", "--store", str(store)]) == 0
    assert "; an unfinished reembed has " in capfd.readouterr().out
    status, out, _ = reembed("--discard", "--json")
    assert status == 0
    assert json.loads(out)["freed_bytes"] > 0
    assert reembed("--discard")[1] == "there is no unfinished reembed\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name the encoder to change to with --encoder"),
        (["--encoder", "simclr", "--discard"], "or say --discard"),
        (["--discard", "--dry-run"], "leave one out"),
        (["--encoder", "no-such-encoder"], "there is no encoder 'no-such-encoder'"),
        (["--encoder", "none"], "--encoder none makes no vectors"),
    ],
)
def test_wrong_usage_is_one_line(reembed: Reembed, words: list[str], said: str) -> None:
    status, out, err = reembed(*words)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
