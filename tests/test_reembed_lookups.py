"""Lookups while the encoder of their store changes: vectors of two encoders are never compared.

The two encoders have the same dimension, so that nothing but the score shows a wrong comparison.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import write_encoder
from helpers import picture, save
from two_towers import COLOURS, add_text_tower, colour

from engine import Store, UsageError
from engine.config import Limits
from engine.records import LookupResult
from engine.search.batches import MAX_BATCH

LIMITS = Limits(chunk_files=64, chunk_rows=64, exact_rows=20, extent_rows=50)
COUNT = 3 * MAX_BATCH  # the first batch is answered while the second one is prepared
PICTURES = [picture(n, 12, 12) for n in range(COUNT)]

pytestmark = pytest.mark.usefixtures("one_thread")

# Looks up images until standard input ends, and prints what was found.
LOOKING = """
import json, sys, threading
from pathlib import Path
from engine import Store
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
paths = sorted(map(str, Path(sys.argv[2]).iterdir()))
with Store.open(sys.argv[1], read_only=True) as store:
    seen, wrong = set(), []
    while True:
        last = over.is_set()
        store.refresh()
        for n, found in enumerate(store.lookup_many(paths, tiers=["similar"], k=1)):
            hit = found.similar[0]
            if (hit.id, hit.score > 0.9999) != (n + 1, True):
                wrong.append([n, hit.id, hit.score])
        seen.add(store.info().encoder["generation"])
        print(len(seen), flush=True)
        if last:
            break
print(json.dumps({"wrong": wrong, "seen": sorted(seen)}), flush=True)
"""


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of the dimension of ``tiny_encoder``, from smaller pictures, with other weights."""
    made = tmp_path_factory.mktemp("encoders") / "other"
    return write_encoder(made, dim=16, image_size=8, seed=1)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """A folder with a store of photographs and the photographs, whose pixels are not kept."""
    folder = tmp_path_factory.mktemp("filled")
    for n, one in enumerate(PICTURES):
        save(folder / f"photos/{n:04d}.png", one)
    path = folder / "store"
    with Store.open(path, create=True, encoder=str(tiny_encoder), limits=LIMITS) as store:
        store.ingest(folder / "photos")
    return folder


@pytest.fixture
def path(filled: Path, tmp_path: Path) -> Path:
    """A copy of the store."""
    return shutil.copytree(filled / "store", tmp_path / "store")


def reembed(path: Path, encoder: Path) -> None:
    with Store.open(path, limits=LIMITS) as store:
        assert store.reembed(str(encoder)).switched


def require_right(found: list[LookupResult], first: int = 0) -> None:
    for number, one in enumerate(found, first):
        assert one.error is None
        assert one.similar[0].id == number + 1
        assert one.similar[0].score > 0.9999, number


def test_a_batch_prepared_with_the_old_encoder_is_encoded_again(path: Path, other: Path) -> None:
    with Store.open(path, read_only=True, limits=LIMITS) as reader:
        results = reader.lookup_many(PICTURES, tiers=["similar"], k=1)
        before = [next(results)]
        reembed(path, other)
        reader.refresh()
        require_right(before + list(results))
        assert reader.info().encoder["name"] == "other"


def test_the_store_that_changes_its_encoder_may_be_looked_up_in_between(
    path: Path, other: Path
) -> None:
    with Store.open(path, limits=LIMITS) as store:
        for queries in (PICTURES, iter(PICTURES)):
            results = store.lookup_many(queries, tiers=["similar"], k=1)
            before = [next(results)]
            name = store.info().encoder["name"]
            store.reembed(str(other) if name == "tiny" else str(store.path.parent / "back"))
            require_right(before + list(results))
            if name == "tiny":
                write_encoder(path.parent / "back", dim=16, image_size=16, seed=2)


def test_stored_vectors_of_the_old_encoder_are_no_queries(
    tmp_path: Path, tiny_encoder: Path, other: Path
) -> None:
    photos, away = tmp_path / "photos", tmp_path / "away"
    for n, one in enumerate(PICTURES):
        save(photos / f"{n:04d}.png", one)
    path = tmp_path / "s"
    with Store.open(path, create=True, encoder=str(tiny_encoder), limits=LIMITS) as store:
        store.ingest(photos)
    numbers = [f"#{n + 1}" for n in range(COUNT)]
    with Store.open(path, read_only=True, limits=LIMITS) as reader:
        # Without pixels, the query is the vector of the image.
        photos.rename(away)
        results = reader.lookup_many(numbers, tiers=["similar"], k=1)
        before = [next(results)]
        away.rename(photos)
        reembed(path, other)
        photos.rename(away)
        reader.refresh()
        require_right(before + list(results))


def test_an_image_that_has_lost_its_vector_is_no_query_any_more(
    tmp_path: Path, tiny_encoder: Path, other: Path
) -> None:
    save(tmp_path / "photos/0.png", PICTURES[0])
    save(tmp_path / "photos/1.png", PICTURES[1])
    path = tmp_path / "s"
    with Store.open(path, create=True, encoder=str(tiny_encoder), limits=LIMITS) as store:
        store.ingest(tmp_path / "photos")
        (tmp_path / "photos/0.png").unlink()
        results = store.lookup_many(["#2"] * (2 * MAX_BATCH - 1) + ["#1"], tiers=["similar"])
        next(results)
        store.reembed(str(other), allow_missing=True)
        *_, last = results
        assert "#1: its pixels are not kept" in str(last.error)


@pytest.mark.slow
def test_threads_that_look_up_get_right_answers_throughout(
    path: Path, tiny_encoder: Path, other: Path
) -> None:
    over = threading.Event()
    failed: list[BaseException] = []

    def look(batches: bool) -> None:
        try:
            with Store.open(path, read_only=True, limits=LIMITS) as reader:
                while not over.is_set():
                    queries = PICTURES if batches else iter(PICTURES[:20])
                    require_right(list(reader.lookup_many(queries, tiers=["similar"], k=1)))
                    vectors = reader.encode(PICTURES[:1])
                    assert vectors.shape == (1, 16)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=look, args=(batches,)) for batches in (True, False)]
    for thread in threads:
        thread.start()
    try:
        for encoder in (other, tiny_encoder) * 3:
            reembed(path, encoder)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failed


@pytest.mark.slow
def test_a_process_that_looks_up_follows_to_the_new_encoder(
    filled: Path, path: Path, tiny_encoder: Path, other: Path
) -> None:
    command = [sys.executable, "-c", LOOKING, str(path), str(filled / "photos")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "1\n"
        for encoder in (other, tiny_encoder):
            reembed(path, encoder)
        child.stdin.close()
        *_, last = child.stdout
    found = json.loads(last)
    assert found["wrong"] == []
    assert {1, 4} <= set(found["seen"])


# --- texts ----------------------------------------------------------------------------------------


@pytest.fixture
def colours(tmp_path: Path, tiny_encoder: Path) -> Iterator[Callable[[Path], Store]]:
    """Makes a store of colours with an encoder."""
    opened: list[Store] = []

    def make(encoder: Path) -> Store:
        for name in COLOURS:
            save(tmp_path / f"colours/{name}.png", colour(name))
        path = tmp_path / "s"
        made = Store.open(path, create=True, encoder=str(encoder), limits=LIMITS)
        opened.append(made)
        made.ingest(tmp_path / "colours")
        return made

    yield make
    for store in opened:
        store.close()


def tower(encoder: Path, into: Path) -> Path:
    return add_text_tower(shutil.copytree(encoder, into))


def shown(store: Store, texts: list[str]) -> list[str]:
    found = store.lookup_many([], texts=texts, k=1)
    return [Path(one.similar[0].sources[0]).stem for one in found]


def test_texts_are_encoded_by_the_encoder_of_the_vectors(
    tmp_path: Path, tiny_encoder: Path, other: Path, colours: Callable[[Path], Store]
) -> None:
    first = tower(tiny_encoder, tmp_path / "first")
    second = tower(other, tmp_path / "second")
    names = list(COLOURS)
    with (
        colours(first) as store,
        Store.open(tmp_path / "s", read_only=True) as used,
        Store.open(tmp_path / "s", read_only=True) as idle,
    ):
        old = used.encode_text(names)
        results = used.lookup_many([], texts=names, k=1)
        before = next(results)
        assert Path(before.similar[0].sources[0]).stem == names[0]
        store.reembed(str(second))
        assert shown(store, names) == names
        used.refresh()
        assert [Path(one.similar[0].sources[0]).stem for one in results] == names[1:]
        assert shown(used, names) == names
        assert not np.allclose(used.encode_text(names), old)
        # As if it had not looked for newer commits at the start of the call.
        idle.session.follow = lambda **_: None  # type: ignore[method-assign]
        assert np.allclose(idle.encode_text(names), used.encode_text(names))
        assert idle.info().encoder["text"] is True


def test_a_text_is_refused_once_the_new_encoder_takes_none(
    tmp_path: Path, tiny_encoder: Path, other: Path, colours: Callable[[Path], Store]
) -> None:
    first = tower(tiny_encoder, tmp_path / "first")
    with colours(first) as store, Store.open(tmp_path / "s", read_only=True) as reader:
        assert shown(reader, ["red"]) == ["red"]
        store.reembed(str(other))
        for one in (store, reader):
            with pytest.raises(UsageError, match="its encoder, other, takes none"):
                one.lookup(text="red")
            assert one.info().encoder["text"] is False


def test_an_encoder_that_only_gains_a_text_tower_is_another_one(
    tmp_path: Path, tiny_encoder: Path, colours: Callable[[Path], Store]
) -> None:
    with colours(tiny_encoder) as store:
        report = store.reembed(str(tower(tiny_encoder, tmp_path / "first")))
        assert (report.embedded, report.switched) == (len(COLOURS), True)
        assert shown(store, ["blue", "red"]) == ["blue", "red"]
        assert store.check().problems == ()


# --- measurements ---------------------------------------------------------------------------------


def test_random_pairs_and_percentiles_are_those_of_the_new_vectors(
    filled: Path, path: Path, tmp_path: Path, other: Path
) -> None:
    fresh = tmp_path / "fresh"
    with Store.open(fresh, create=True, encoder=str(other), limits=LIMITS) as store:
        store.ingest(filled / "photos")
        wanted = store.info().random_pairs
        hits = store.lookup(PICTURES[7], tiers=["similar"], k=5).similar
    with Store.open(path, limits=LIMITS) as store, Store.open(path, read_only=True) as reader:
        store.optimize()
        old = reader.info().random_pairs
        assert store.info().recall is not None
        store.reembed(str(other))
        for one in (store, reader):
            assert one.info().random_pairs != old
            assert one.info().random_pairs == pytest.approx(wanted, abs=0.05)
            found = one.lookup(PICTURES[7], tiers=["similar"], k=5).similar
            assert [hit.id for hit in found] == [hit.id for hit in hits]
            for hit, like in zip(found, hits, strict=True):
                assert hit.percentile == pytest.approx(like.percentile, abs=1)
