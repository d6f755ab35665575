"""Wrong arguments of ``Store``: one line that says what is due, before anything is done."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import picture, save

from engine import Store, StoreLockedError, UsageError


@pytest.fixture
def store(tmp_path: Path) -> Any:
    """A store of three bit images, open to be read or written."""
    with Store.open(tmp_path / "made", create=True, encoder="none") as made:
        made.ingest("synthetic:bits?n=3")
    with Store.open(tmp_path / "made") as opened:
        yield opened


def refused(call: Callable[[], object]) -> str:
    """The one line that a wrong argument is refused with."""
    with pytest.raises(UsageError) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("path", ["loop", "loop/in", "x" * 300, "a\0b", "\ud800", b"x", 7])
def test_what_no_folder_can_be_called_is_refused(store: Store, tmp_path: Path, path: Any) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    where = tmp_path / path if isinstance(path, str) else path
    for call in (
        lambda: Store.open(where),
        lambda: Store.open(where, create=True, encoder="none"),
        lambda: Store.open(tmp_path / "new", create=True, encoder=where),
        lambda: Store.plan(where, "synthetic:bits?n=3", encoder="none"),
        lambda: Store.salvage(where),
        lambda: store.backup(where),
        lambda: store.export(where),
    ):
        refused(call)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["loop", "made"]


@pytest.mark.parametrize("sources", [[b"x"], b"x", [7], 7, None, ["\ud800"], [["x"]]])
def test_what_is_no_name_of_a_source_is_not_removed(store: Store, sources: Any) -> None:
    refused(lambda: store.remove(sources=sources))
    assert not store.session.is_writer


@pytest.mark.parametrize("start", [4, 1 << 48, 1 << 63, 1 << 64])
def test_records_end_behind_the_last_image(store: Store, start: int) -> None:
    assert list(store.records(start)) == []


@pytest.mark.parametrize("query", [[[1, 2], [3]], None, True, {}, [object()]])
def test_what_is_no_image_is_no_query(store: Store, query: Any) -> None:
    refused(lambda: store.lookup(query))


def test_a_file_of_many_images_is_no_query_of_one(store: Store, tmp_path: Path) -> None:
    np.save(tmp_path / "many.npy", np.stack([picture(i) for i in range(3)]))
    np.save(tmp_path / "none.npy", np.zeros((0, 8, 8, 3), np.uint8))
    np.save(tmp_path / "one.npy", np.stack([picture(0)]))
    assert "holds more than one image" in refused(lambda: store.lookup(tmp_path / "many.npy"))
    assert "holds no image" in refused(lambda: store.lookup(tmp_path / "none.npy"))
    assert store.lookup(tmp_path / "one.npy").identical == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"queries": "a.png"},
        {"k": 0},
        {"tiers": ["nearest"]},
        {"max_distance": -1},
        {"ids": ["x"]},
        {"source": "gone.png"},
        {"recall": 2.0},
    ],
)
def test_lookup_many_refuses_a_wrong_argument_at_the_call(
    store: Store, wrong: dict[str, Any]
) -> None:
    refused(lambda: store.lookup_many(**({"queries": ["a.png"]} | wrong)))


@pytest.mark.parametrize(
    "wrong", [{"keep_pixels": "some"}, {"workers": 0}, {"encoder": "\0"}, {"name": "x"}]
)
def test_an_ingest_refuses_a_wrong_argument_before_it_takes_the_lock(
    store: Store, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    source = save(tmp_path / "1.png", picture(1))
    refused(lambda: store.ingest(source, **wrong))
    assert not store.session.is_writer
    with Store.open(tmp_path / "made") as writer:
        writer.ingest(source)
        refused(lambda: store.ingest(source, **wrong))
        with pytest.raises(StoreLockedError):
            store.ingest(source)


@pytest.mark.slow
def test_another_encoder_is_refused_before_the_lock_is_taken(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    source = save(tmp_path / "1.png", picture(1))
    with Store.open(tmp_path / "store", create=True, encoder=str(tiny_encoder)):
        pass
    with Store.open(tmp_path / "store") as store:
        assert "is another one" in refused(lambda: store.ingest(source, encoder="simclr"))
        assert not store.session.is_writer
        assert store.ingest(source, encoder=str(tiny_encoder)).added == 1


def test_a_repair_is_refused_while_the_store_is_written(store: Store) -> None:
    def meddle(done: int, total: int | None) -> None:
        store.check()
        store.check(fix=True)

    said = refused(lambda: store.ingest("synthetic:bits?n=5", progress=meddle))
    assert "check was called during ingest" in said
    assert store.check(fix=True).ok
