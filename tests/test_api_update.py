"""``Store.update``: what is said of an image is replaced, and nothing else changes."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import picture, save
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import Store, StoreLockedError, UnknownImageError, UsageError

ids = st.integers(1, 5)
values = st.one_of(st.integers(), st.text(max_size=5), st.booleans(), st.none())
said = st.one_of(st.none(), st.dictionaries(st.text(max_size=5), values, max_size=4))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("update"), ids, said),
        st.tuples(st.just("remove"), ids, st.none()),
        st.tuples(st.just("optimize"), ids, st.none()),
    ),
    max_size=8,
)


@pytest.mark.slow
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=steps)
def test_a_store_says_of_an_image_what_was_said_last(
    tmp_path: Path, steps: list[tuple[str, int, Any]]
) -> None:
    path = Path(tempfile.mkdtemp(dir=tmp_path)) / "store"
    model: dict[int, dict[str, Any] | None] = {1: {"label": 1}, 2: {"label": 2}, 3: None, 4: None}
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest([(str(i), picture(i), model[i]) for i in model])
        before = {record.id: replace(record, metadata=None, place=None) for record in store}
        for what, id_, metadata in steps:
            if what == "update" and id_ in model:
                assert store.update(id_, metadata=metadata).metadata == (metadata or None)
                model[id_] = metadata or None
            elif what == "update":
                with pytest.raises(UnknownImageError):
                    store.update(id_, metadata=metadata)
            elif what == "remove":
                store.remove(ids=[id_])
                model.pop(id_, None)
            else:
                store.optimize()
        assert {record.id: record.metadata for record in store} == model
    with Store.open(path, read_only=True) as store:
        assert {record.id: record.metadata for record in store} == model
        for record in store:
            assert replace(record, metadata=None, place=None) == before[record.id]
            (hit,) = store.lookup(picture(record.id)).identical
            assert (hit.id, hit.metadata) == (record.id, model[record.id])
        assert store.check().problems == ()


def test_an_update_is_one_commit_that_readers_see(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(1))
    path = tmp_path / "store"
    with Store.open(path, create=True, encoder="none") as store, Store.open(path) as reader:
        store.ingest(tmp_path / "a.png")
        commit = store.session.snapshot.state.commit
        record = store.update(np.int64(1), metadata={"label": "cat", "tags": ["a", {"b": 1.5}]})
        assert record == store[1] == reader[1]
        assert record.metadata == {"label": "cat", "tags": ["a", {"b": 1.5}]}
        assert store.session.snapshot.state.commit == commit + 1
        store.update(1, metadata=record.metadata)  # says nothing new
        assert store.session.snapshot.state.commit == commit + 1
        assert store.update(1, metadata={**record.metadata, "label": "dog"}).metadata == {
            "label": "dog",
            "tags": ["a", {"b": 1.5}],
        }
        assert store.update(1, metadata=None).metadata is None
        assert store.update(1, metadata={}).metadata is None
        with pytest.raises(StoreLockedError):
            reader.update(1, metadata={})


def test_true_and_one_are_two_things_to_say(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest([("a", picture(1), {"flag": 1})])
        assert store.update(1, metadata={"flag": True}).metadata == {"flag": True}
        assert store.lookup(picture(1), where={"flag": True}).identical


def test_an_ingest_leaves_what_an_update_said(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest([("a", picture(1), {"label": "cat"})])
        store.update(1, metadata={"label": "dog"})
        for name in ("a", "b"):
            store.ingest([(name, picture(1), {"label": "cat"})])
            assert store[1].metadata == {"label": "dog"}


def test_one_array_of_a_stream_has_metadata_of_its_own(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest([("a", picture(1))])
        assert store[1].container == "array"
        assert store.update(1, metadata={"a": 1}).metadata == {"a": 1}


def test_what_cannot_be_said_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest([("a", picture(1), {"label": "cat"})])
        store.ingest(np.stack([picture(2), picture(3)]), name="rows")
    wrong: list[tuple[Any, Any, str]] = [
        (2, {"a": 1}, "image 2 is a row of an array, and rows have no metadata"),
        (3, None, "image 3 is a row of an array"),
        (1, {"a": "x" * (16 << 10)}, "over the limit of 16,384"),
        (1, {"a": float("nan")}, "not a JSON object"),
        (1, {1: 2}, "not a JSON object with text for keys"),
        (1, [1], "not a JSON object"),
        (1, {"a": object()}, "not a JSON object"),
        (99, {"a": 1}, "has no image 99"),
        ("1", {"a": 1}, "an id must be a whole number"),
        (True, {"a": 1}, "an id must be a whole number"),
    ]
    with Store.open(path) as store:
        commit = store.session.snapshot.state.commit
        for id_, metadata, says in wrong:
            with pytest.raises(UsageError, match=says) as caught:
                store.update(id_, metadata=metadata)
            assert len(str(caught.value).splitlines()) == 1
        assert not store.session.is_writer  # refused before the lock is taken
        assert (store.session.snapshot.state.commit, store[1].metadata) == (
            commit,
            {"label": "cat"},
        )
    with Store.open(path, read_only=True) as store, pytest.raises(UsageError, match="read-only"):
        store.update(1, metadata=None)


def test_an_update_is_refused_during_another_write(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest([("a", picture(1))])

        def stop() -> bool:
            store.update(1, metadata={"a": 1})
            return False

        with pytest.raises(UsageError, match="update was called during ingest"):
            store.ingest([("b", picture(2))], stop=stop)
