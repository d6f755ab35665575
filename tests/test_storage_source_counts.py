"""Counts of the sources of images with many: kept with each commit, and never wrong."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers import mask, picture, save, sized
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import Store
from engine.storage import source_counts
from engine.storage.meta_table import MetaTable
from engine.storage.rows import u64

MANY = 40


def counts(store: Store) -> dict[int, int]:
    """What is kept."""
    return dict(store.session.snapshot.tables.meta.source_counts())


def agree(store: Store) -> bool:
    """Whether each image has as many sources as are counted of it, kept or not."""
    return all(
        store.session.snapshot.sources_of(record.id)[1] == len(store.sources(record.id))
        for record in store.records()
    )


def copies(folder: Path, count: int, seed: int = 1) -> Path:
    """A folder with one picture in many files."""
    for number in range(count):
        save(folder / f"{number}.png", picture(seed))
    return folder


def test_of_an_image_with_many_sources_the_count_is_kept_and_a_few_are_read(tmp_path: Path) -> None:
    save(tmp_path / "in/other.png", picture(2))
    copies(tmp_path / "in/many", MANY)
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(tmp_path / "in")
        found = store.lookup(picture(1), tiers=["identical"]).identical[0]
        assert (found.source_count, len(found.sources)) == (MANY, 10)
        assert counts(store) == {found.id: MANY}
        assert len(store.sources(found.id)) == MANY
        assert store.lookup(picture(2), tiers=["identical"]).identical[0].source_count == 1
        assert agree(store) and store.check().problems == ()


def test_rows_of_arrays_count_and_what_goes_is_counted_too(tmp_path: Path) -> None:
    rng = random.Random(3)
    order = [rng.choice([0, 1, 1, 1]) for _ in range(300)]
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(np.stack([mask(seed) for seed in order]), name="a")
        store.ingest(np.stack([mask(seed) for seed in order[::-1]]), name="b")
        assert counts(store) and agree(store)
        store.remove(sources=["memory:a#7", "memory:a#8"])
        assert agree(store)
        store.remove(sources=["memory:b"])
        assert agree(store) and store.check().problems == ()
        ids = [record.id for record in store.records()]
        store.remove(ids=ids[:1])
        assert set(counts(store)) <= set(ids[1:])
        assert agree(store) and store.check().problems == ()


def test_a_file_that_changes_leaves_one_image_and_counts_for_another(tmp_path: Path) -> None:
    folder = copies(tmp_path / "in", MANY)
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(folder)
        for number in range(25):
            save(folder / f"{number}.png", picture(9), mtime=1000 + number)
        store.ingest(folder)
        old, new = (
            store.lookup(picture(seed), tiers=["identical"]).identical[0].source_count
            for seed in (1, 9)
        )
        assert (old, new) == (MANY - 25, 25)
        assert agree(store) and store.check().problems == ()


def test_an_image_of_a_store_without_counts_gets_one_within_some_commits(tmp_path: Path) -> None:
    folder = copies(tmp_path / "in", MANY)
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(folder)
        (id_,) = counts(store)
        writer = store.session.writer
        meta = store.session.snapshot.tables.meta
        writer.put_rows([meta.drop_source_count(id_)])
        assert counts(store) == {} and agree(store)
        for number in range(16):
            store.ingest(save(tmp_path / f"more/{number}.png", picture(1)))
        assert set(counts(store)) == {id_} and agree(store)


def test_counts_that_an_older_engine_left_alone_are_dropped(tmp_path: Path) -> None:
    """It commits and does not say that the counts were kept."""
    folder = copies(tmp_path / "in", MANY)
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(folder)
        (id_,) = counts(store)
        keys = store.session.snapshot.keys
        batch = keys.batch()
        batch.put("meta", MetaTable.COUNTED, u64(0))
        batch.put("meta", b"sources" + u64(id_), u64(7))  # was true before that engine's commits
        keys.commit(batch)
    with Store.open(tmp_path / "store") as store:
        assert store.lookup(picture(1), tiers=["identical"]).identical[0].source_count == MANY
        assert store.check().problems == ()
        store.ingest(save(tmp_path / "more/x.png", picture(5)))
        assert counts(store) == {} and agree(store)


def test_a_wrong_count_is_found_and_mended(tmp_path: Path) -> None:
    folder = copies(tmp_path / "in", MANY)
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(folder)
        (id_,) = counts(store)
        keys = store.session.snapshot.keys
        batch = keys.batch()
        batch.put("meta", b"sources" + u64(id_), u64(7))
        keys.commit(batch)
        (problem,) = store.check().problems
        assert f"image {id_} has a count of 7 sources, but {MANY} are there" in problem.what
        assert all(problem.fixed for problem in store.check(fix=True).problems)
        assert store.check().problems == () and agree(store)


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["files", "array", "remove", "image"]), st.integers(0, 2**16)),
    min_size=1,
    max_size=6,
)


@pytest.mark.slow
@settings(max_examples=sized(10, 60))
@given(actions=ACTIONS)
def test_whatever_comes_and_goes_counts_are_right(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int]]
) -> None:
    tmp_path = tmp_path_factory.mktemp("counts")
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        for at, (action, seed) in enumerate(actions):
            rng = random.Random(seed)
            if action == "files":
                for number in range(rng.randrange(1, 30)):
                    path = tmp_path / f"in/{rng.randrange(40)}.png"
                    save(path, picture(rng.randrange(3)), mtime=1000 * at + number)
                store.ingest(tmp_path / "in")
            elif action == "array":
                rows = [mask(rng.randrange(3)) for _ in range(rng.randrange(1, 60))]
                store.ingest(np.stack(rows), name=f"array-{rng.randrange(3)}")
            else:
                ids = [record.id for record in store.records()]
                if not ids:
                    continue
                id_ = rng.choice(ids)
                some = rng.sample(store.sources(id_), 1) if action == "remove" else []
                store.remove(ids=[] if some else [id_], sources=some)
            assert agree(store), action
        assert store.check().problems == ()


def test_it_counts_what_an_image_has_in_rows_and_in_sources(tmp_path: Path) -> None:
    rows = np.stack([mask(1)] * 5 + [mask(2)] + [mask(1)] * 3)
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(rows, name="a")
        store.ingest(save(tmp_path / "x.png", mask(1)))
        id_ = store.lookup(mask(1), tiers=["identical"]).identical[0].id
        found = source_counts.count_sources(store.session.snapshot.tables, id_)
        assert found.sources == 9 and found.rows < found.sources
        seen = Counter(Path(name).name.partition("#")[0] for name in store.sources(id_))
        assert seen == {"memory:a": 8, "x.png": 1}


def test_counts_that_no_engine_wrote_are_none(tmp_path: Path) -> None:
    copies(tmp_path / "in", MANY)
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(tmp_path / "in")
        keys = store.session.snapshot.keys
        for number, wrong in enumerate([b"", b"\xff" * 8, b"\x40" + bytes(7), bytes(9)]):
            batch = keys.batch()
            batch.put("meta", b"sources" + u64(1), wrong)
            keys.commit(batch)
            assert counts(store) == {} and agree(store)
            copies(tmp_path / f"more{number}", MANY)
            assert store.ingest(tmp_path / f"more{number}").rejected == 0
            assert counts(store) == {1: (number + 2) * MANY}
