"""The owner of an open index: when it is opened again, and what it does while a writer publishes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from indexed import clustered, few_files, nearest, new_store, recall_of

from engine import Store, StoreError
from engine.config import Limits
from engine.index.background import BackgroundWork
from engine.index.maintain import IndexUpdater
from engine.index.open import OpenIndex, has_index_files
from engine.storage import manifest
from engine.storage.bitmap import IdSet
from engine.storage.durable import UnreadableError
from engine.storage.manifest import Manifest
from engine.storage.session import Session
from engine.storage.state import State
from engine.storage.vectors import Vectors

pytestmark = pytest.mark.usefixtures("one_thread")

N = 400
BLOCK = clustered(N)
LIMITS = Limits(recall_sample=50)


class View:
    """What a store shows to the owner of its index, each time another object."""

    def __init__(self, files: Session) -> None:
        self.session = files
        self.path = files.path
        self.manifest: Manifest = files.snapshot.manifest
        self.state: State = files.snapshot.state
        self.files = files.snapshot.files

    def open_vectors(self) -> Vectors:
        return self.session.snapshot.open_vectors()

    def alive(self) -> IdSet | None:
        return self.session.snapshot.alive()

    def those_alive(self, wanted: IdSet) -> IdSet:
        return wanted.without(self.session.snapshot.removed_ids())


class Opened:
    """An open store, as the owner of its index needs it."""

    def __init__(self, store: Store) -> None:
        self.session = store.session

    @property
    def snapshot(self) -> View:
        return View(self.session)

    def read_index(self) -> bool:
        return self.session.read_index()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A store of N vectors with an index over them."""
    with new_store(tmp_path / "s", LIMITS) as store:
        store.ingest(BLOCK, name="a")
        build(store)
    return tmp_path / "s"


def build(store: Store) -> None:
    """Train, and code all vectors again: other files, and the old ones go."""
    files = store.session
    files.become_writer()
    index = store.index.current
    assert index is not None
    work = BackgroundWork(files.memory)
    IndexUpdater(files, work)._build(index, work)


@pytest.mark.slow
def test_it_is_opened_once_for_each_index(made: Path) -> None:
    with Store.open(made, limits=LIMITS) as store:
        owner = OpenIndex(Opened(store))
        first = owner.current
        assert first is not None
        assert [one.entry for one in first.segments] == list(
            store.session.snapshot.manifest.segments
        )
        assert owner.current is first
        build(store)
        second = owner.current
        assert second is not None
        assert second is not first
        assert [one.entry for one in second.segments] == list(
            store.session.snapshot.manifest.segments
        )
        owner.close()
        assert owner.current is not second
        owner.close()


@pytest.mark.slow
def test_it_is_opened_again_for_vectors_that_were_committed(made: Path) -> None:
    more = clustered(50, seed=1)
    with Store.open(made, limits=LIMITS) as store:
        owner = OpenIndex(Opened(store))
        assert np.array_equal(owner.search(BLOCK, 1, recall=1)[1][:, 0], np.arange(1, N + 1))
        store.ingest(more, name="more")
        ids = owner.search(more, 1, recall=1)[1]
        assert np.array_equal(ids[:, 0], np.arange(N + 1, N + 51))
        owner.close()


@pytest.mark.slow
def test_images_that_are_gone_or_not_wanted_are_not_found(made: Path) -> None:
    with Store.open(made, limits=LIMITS) as store:
        owner = OpenIndex(Opened(store))
        store.remove(ids=range(1, 101))
        left = np.arange(100, N)
        ids = owner.search(BLOCK[:20], 10)[1]
        assert recall_of(ids, left[nearest(BLOCK[left], BLOCK[:20], 10)[1]] + 1) > 0.9
        assert not np.isin(ids, np.arange(1, 101)).any()
        wanted = IdSet.of(np.arange(51, 151))
        ids = owner.search(BLOCK[:20], 100, wanted=wanted)[1]
        assert set(ids[ids > 0].tolist()) == set(range(101, 151))
        owner.close()


@pytest.mark.slow
def test_what_is_searched_stays_open_while_it_is_used(made: Path) -> None:
    with Store.open(made, limits=LIMITS) as store:
        owner = OpenIndex(Opened(store))
        index, among = owner.to_search(None)
        assert among is None
        with index:
            build(store)
            assert owner.current is not index
            assert np.array_equal(index.search_ids(BLOCK[:9], 1)[1][:, 0], np.arange(1, 10))
        assert not index.segments
        owner.close()


def test_without_vectors_there_is_none(tmp_path: Path) -> None:
    with new_store(tmp_path / "s") as store:
        owner = OpenIndex(Opened(store))
        assert owner.current is None
        with pytest.raises(StoreError, match="has no vectors"):
            owner.search(BLOCK[:1], 1)


@pytest.mark.slow
def test_a_segment_that_goes_while_it_is_opened_is_looked_for_again(
    made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        Store.open(made, read_only=True) as reader,
        Store.open(made, limits=LIMITS) as writer,
    ):
        turns: list[bool] = []

        def meanwhile(path: Path, named: Manifest) -> bool:
            """Once the files were seen, and before they are opened, they are others."""
            answer = has_index_files(path, named)
            if len(turns) < 3:
                turns.append(answer)
                build(writer)
            return answer

        owner = OpenIndex(Opened(reader), has_files=meanwhile)
        index = owner.current
        assert index is not None
        assert len(turns) == 3
        assert [one.entry for one in index.segments] == list(
            writer.session.snapshot.manifest.segments
        )
        assert not index.bare
        assert owner.current is index
        owner.close()
    assert "check --fix" not in caplog.text, "nothing is damaged"


def open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


@pytest.mark.slow
def test_what_fails_while_it_is_opened_leaves_no_file_open(made: Path) -> None:
    with Store.open(made, read_only=True) as reader:
        calls: list[None] = []

        def fails(path: Path, named: Manifest) -> bool:
            """As where the manifest cannot be read once the index is open."""
            calls.append(None)
            if len(calls) % 2 == 0:
                raise StoreError("not now")
            return True

        owner = OpenIndex(Opened(reader), has_files=fails)
        before = open_files()
        with pytest.raises(StoreError, match="not now"):
            _ = owner.current
        assert open_files() == before
        (path,) = (made / "vectors").rglob("*.f32")
        os.truncate(path, 4096)
        with pytest.raises(StoreError, match="cut short"):
            _ = OpenIndex(Opened(reader)).current
        assert open_files() == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc")
def test_files_that_cannot_be_looked_for_are_named_with_what_to_do(made: Path) -> None:
    named = manifest.load(made)
    assert has_index_files(made, named)
    with (
        few_files(0),
        pytest.raises(UnreadableError, match=r"index/0.*raise the limit of open files"),
    ):
        has_index_files(made, named)


@pytest.mark.slow
def test_where_files_never_stay_it_opens_what_it_can(made: Path) -> None:
    with (
        Store.open(made, read_only=True) as reader,
        Store.open(made, limits=LIMITS) as writer,
    ):

        def never(path: Path, named: Manifest) -> bool:
            build(writer)
            return False

        owner = OpenIndex(Opened(reader), tries=2, has_files=never)
        index = owner.current
        assert index is not None
        assert np.array_equal(index.search_ids(BLOCK[:9], 1)[1][:, 0], np.arange(1, 10))
        owner.close()
