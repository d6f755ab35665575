"""What a score is worth: the share of random pairs of a store that are less alike."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import picture
from hypothesis import given
from hypothesis import strategies as st

from engine import Store, UsageError
from engine.cli.app import main
from engine.cli.render import percent
from engine.config import Limits
from engine.index.random_pairs import is_stranger, measure_pairs, score_at, share_below
from engine.storage import manifest
from engine.storage.manifest import RandomPairs

INDEXED = Limits(exact_rows=64)


def store_of(folder: Path, vectors: np.ndarray, **more) -> Store:
    store = Store.open(folder, create=True, encoder="none", **more)
    store.ingest(vectors, name="rows")
    return store


def rows(count: int, seed: int = 0, dim: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def pairs_of(vectors: np.ndarray, folder: Path) -> RandomPairs | None:
    with (
        store_of(folder, vectors) as store,
        closing(store.session.snapshot.open_vectors()) as opened,
    ):
        return measure_pairs(opened)


def test_the_share_is_that_of_all_pairs(tmp_path: Path) -> None:
    vectors = rows(60)
    pairs = pairs_of(vectors, tmp_path / "store")
    assert pairs is not None and pairs.pairs == 60 * 59 // 2
    scores = (vectors @ vectors.T)[np.triu_indices(60, 1)]
    for score in np.quantile(scores, [0.01, 0.3, 0.5, 0.9, 0.99, 0.999]):
        exact = (scores < score).mean()
        # Between two quantiles, the share is interpolated.
        assert share_below(pairs, float(score)) == pytest.approx(
            exact, abs=0.25 * (1 - exact) + 2e-3
        )
    assert share_below(pairs, float(scores.min()) - 1) == 0
    assert share_below(pairs, float(scores.max()) + 1) == 1 - 1 / pairs.pairs


@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=60), st.data())
def test_a_higher_score_never_has_a_lower_share(values: list[float], data: st.DataObject) -> None:
    shares = np.linspace(0, 0.999, len(values)).tolist()
    pairs = RandomPairs(1000, tuple(zip(shares, sorted(values), strict=True)))
    two = data.draw(st.lists(st.floats(-2, 2), min_size=2, max_size=2))
    low, high = (share_below(pairs, score) for score in sorted(two))
    assert 0 <= low <= high < 1
    assert values and min(values) <= score_at(pairs, 0.5) <= max(values)


@pytest.mark.parametrize("vectors", [rows(15), np.zeros((40, 8), np.float32)])
def test_few_or_bad_vectors_say_nothing(tmp_path: Path, vectors: np.ndarray) -> None:
    assert pairs_of(vectors, tmp_path / "store") is None


def test_vectors_that_are_all_the_same_are_strangers(tmp_path: Path) -> None:
    with store_of(tmp_path / "store", np.ones((20, 8), np.float32)) as store:
        scores, ids = store.search_vectors(np.ones((1, 8), np.float32), 1)
        assert scores[0, 0] == 8 and ids[0, 0] > 0
        with closing(store.session.snapshot.open_vectors()) as opened:
            pairs = measure_pairs(opened)
        assert pairs is not None and share_below(pairs, 8.0) == 0
        assert is_stranger(0.0, 20)


def test_a_stranger_is_what_chance_would_give() -> None:
    assert is_stranger(0.5, 100) and is_stranger(0.98, 100) and not is_stranger(0.995, 100)
    assert is_stranger(0.995, 10**9) and not is_stranger(0.9995, 10**9)
    assert not is_stranger(0.0, 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 %"),
        (50.49, "50 %"),
        (98.99, "98 %"),
        (99.05, "99.0 %"),
        (99.96, "99.96 %"),
        (99.9999, "99.9999 %"),
    ],
)
def test_a_percentage_is_never_rounded_up(value: float, text: str) -> None:
    assert percent(value) == text


# --- in lookups -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "store"
    with Store.open(folder, create=True, encoder=str(tiny_encoder)) as opened:
        opened.ingest(iter([(f"p{i}", picture(i)) for i in range(40)]))
    return folder


@pytest.mark.slow
def test_hits_say_what_their_scores_are_worth(store: Path) -> None:
    with Store.open(store, read_only=True) as opened:
        own, *others = opened.lookup(picture(3), k=40, tiers=["similar"]).similar
        assert own.percentile is not None and 99 < own.percentile < 100 and not own.stranger
        found = [hit.percentile for hit in others if hit.percentile is not None]
        assert len(found) == 39 and found == sorted(found, reverse=True)
        assert others[-1].stranger and others[-1].percentile < 90
        above = opened.lookup(picture(3), k=40, tiers=["similar"], min_score="90%").similar
        assert [hit.id for hit in above] == [
            hit.id for hit in (own, *others) if hit.percentile >= 90
        ]
        info = opened.info()
        assert info.random_pairs is not None
        assert list(info.random_pairs) == ["median", "99 %", "99.9 %"]
        assert list(info.random_pairs.values()) == sorted(info.random_pairs.values())


@pytest.mark.slow
def test_the_command_shows_them(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["lookup", "#4", "--tier", "similar", "-k", "40", "--store", str(store)]
    assert main(asked) == 0
    shown = capsys.readouterr().out
    assert "%)" in shown and "no closer than strangers" in shown
    assert main([*asked, "--min-score", "99%", "--json"]) == 0
    (first, *_) = json.loads(capsys.readouterr().out)["similar"]
    assert first["id"] == 4 and 99 <= first["percentile"] < 100 and first["stranger"] is False
    assert main(["info", "--store", str(store)]) == 0
    assert "random pairs" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["100%", "0%", "-1%", "nan%", "%", "x%", "95 per cent", "95"])
def test_a_percentage_that_is_none_is_refused(store: Path, wrong: str) -> None:
    with Store.open(store, read_only=True) as opened, pytest.raises(UsageError, match="min_score="):
        opened.lookup(picture(3), min_score=wrong)


def test_the_command_refuses_it_too(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lookup", "#4", "--min-score", "much", "--store", str(store)]) == 2
    assert "--min-score" in capsys.readouterr().err


def test_a_percentage_needs_enough_vectors(tmp_path: Path) -> None:
    with store_of(tmp_path / "store", rows(5)) as store:
        np.save(tmp_path / "q.npy", rows(1, 3))
        (hit, *_) = store.lookup(f"{tmp_path}/q.npy#0").similar
        assert hit.percentile is None and not hit.stranger
        with pytest.raises(UsageError, match="more vectors"):
            store.lookup(f"{tmp_path}/q.npy#0", min_score="99%")
        assert store.info().random_pairs is None


@pytest.mark.slow
def test_an_index_brings_measured_pairs_and_a_manifest_without_them_does_as_well(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "store"
    with store_of(folder, rows(500), limits=INDEXED) as store:
        store.optimize()
    named = manifest.load(folder)
    assert named.measured is not None and named.measured.random_pairs is not None
    assert named.measured.random_pairs.pairs == 500 * 499 // 2
    np.save(tmp_path / "q.npy", rows(1, 3))

    def percentile() -> float:
        with Store.open(folder, read_only=True) as opened:
            (hit, *_) = opened.lookup(f"{tmp_path}/q.npy#0", k=1).similar
            assert hit.percentile is not None
            return hit.percentile

    before = percentile()
    # As an engine wrote it that did not measure them.
    body = json.loads((folder / manifest.NAME).read_text())
    assert len(json.dumps(body["measured"]["random_pairs"])) < 4096
    replace(named, measured=replace(named.measured, random_pairs=None)).save(folder)
    assert percentile() == pytest.approx(before, abs=0.5)
