"""Rows of the keys that no engine wrote: whatever reads them passes over them or calls them damage."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from helpers import picture, save

from engine import Store, StoreDamagedError, UsageError
from engine.records import Kind, Pixels
from engine.storage.record_rows import RECORD_BLOCK, pack_records
from engine.storage.rows import MAX_IDS, u64
from engine.storage.runs import Run
from engine.storage.source_rows import NameRow

IMAGES = 3 + RECORD_BLOCK
ALL_REMOVED = b"\x02" + bytes(15) + bytes((RECORD_BLOCK - 1,)) + b"\xff" * RECORD_BLOCK
_, COUNT = Run(1, 0, 2, 1, 1).by_id


def by_id(bucket: int, id_: int) -> bytes:
    """The key of a run of several images, under any bucket."""
    return b"i" + u64(bucket) + u64(id_) + (1).to_bytes(4, "big") + u64(0)


ROWS = {
    "a record of none": ("records", u64(4), ALL_REMOVED),
    "a run in a later bucket": ("runs", by_id(0, 5 << 12), COUNT),
    "a run in an earlier bucket": ("runs", by_id(1, 7), COUNT),
    "several under one": ("runs", b"o" + by_id(0, 7)[9:], COUNT),
    "a source without an id": ("sources", b"\1", b""),
    "a source of an id that cannot be": ("sources", u64(1 << 63) + b"/x", b""),
    "a name of an id that cannot be": ("names", b"/there/x.png", NameRow(MAX_IDS, 0, 0).pack()),
    "a name of an id of 64 bits": ("names", b"/there/x.png", NameRow((1 << 64) - 1, 0, 0).pack()),
}


@pytest.fixture(params=ROWS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store of three files and of two stretches of rows, with one such row in its keys."""
    files = [save(tmp_path / f"{i}.png", picture(i)) for i in range(3)]
    with Store.open(tmp_path / "store", create=True, encoder="none") as opened:
        opened.ingest(*files)
        opened.ingest(f"synthetic:bits?n={RECORD_BLOCK}")
        batch = opened.session.snapshot.keys.batch()
        batch.put(*ROWS[request.param])
        opened.session.snapshot.keys.commit(batch)
    with Store.open(tmp_path / "store") as opened:
        yield opened


READERS: dict[str, Callable[[Store, Path], object]] = {
    "records": lambda store, _: list(store.records()),
    "sources": lambda store, _: [store.sources(id_) for id_ in range(1, IMAGES + 1)],
    "lookup": lambda store, there: store.lookup(there / "1.png"),
    "of ids": lambda store, there: store.lookup(there / "1.png", ids=range(1, IMAGES + 1)),
    "of a source": lambda store, there: store.lookup(there / "1.png", source=there),
    "export": lambda store, there: store.export(there / "exported"),
    "check": lambda store, _: store.check(),
    "plan": lambda store, _: store.remove(sources=["/there"], missing=True, dry_run=True),
}


@pytest.mark.slow
def test_readers_pass_over_it_or_say_damage(store: Store, tmp_path: Path) -> None:
    for read in READERS.values():
        with suppress(StoreDamagedError, UsageError):  # UsageError: an image is not there any more
            read(store, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["ids", "sources", "missing"])
def test_a_removal_goes_on_or_says_damage(store: Store, tmp_path: Path, what: str) -> None:
    with suppress(StoreDamagedError):
        if what == "ids":
            store.remove(ids=range(1, IMAGES + 1))
        elif what == "sources":
            store.remove(sources=["/there", tmp_path / "1.png", "synthetic:bits"])
        else:
            store.remove(missing=True, yes=True)


@pytest.mark.slow
def test_an_id_that_was_never_given_takes_no_memory_to_remove(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(np.ones((3, 4), np.float32), name="ones")
        far, shape = MAX_IDS - RECORD_BLOCK, Pixels(Kind.VECTOR, 1, 4, 1, 1, b"")
        batch = store.session.snapshot.keys.batch()
        for key, value in pack_records(far, shape, [], np.zeros(2, np.uint8)):
            batch.put("records", key, value)
        store.session.snapshot.keys.commit(batch)
        with suppress(StoreDamagedError):
            store.remove(ids=[far, far + 1])


@pytest.mark.slow
def test_a_repair_takes_it_away(store: Store) -> None:
    store.check(fix=True)
    assert store.check().ok
