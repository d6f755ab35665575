"""Images and sources are removed: by id, by name, because their files are gone; and only these."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import encoded, mask, save
from PIL import Image

from engine import MissingError, Store, StoreError, UsageError
from engine.cli.app import main
from engine.config import Limits
from engine.images import hashing
from engine.images.canonical import from_array
from engine.maintenance import missing_sources
from engine.storage.changeset import Chunk, NewImage, NewName
from engine.storage.manifest import Manifest
from engine.storage.removal import RemovalRequest
from engine.storage.rocks.database import Keys
from engine.storage.runs import Run
from engine.storage.source_rows import ArchiveRow
from engine.storage.state import State
from engine.storage.transaction import Transaction

IDENTICAL = ["identical"]


def rows(path: Path, *seeds: int) -> Path:
    np.save(path, np.stack([mask(seed) for seed in seeds]))
    return path


def found(store: Store, *seeds: int) -> list[int]:
    """Those of the images that are found, and have what an image has."""
    there = []
    for seed in seeds:
        for hit in store.lookup(mask(seed), tiers=IDENTICAL).identical:
            assert hit.source_count == len(store.sources(hit.id))
            assert store.get(hit.id).id == hit.id
            there.append(seed)
    return there


@pytest.fixture
def limits() -> Limits:
    """Of the store below; a test may be given others."""
    return Limits()


@pytest.fixture
def store(tmp_path: Path, limits: Limits) -> Store:
    """Photos 0 to 5, an array of 4 to 11, and another with 11 three times and 12, 13."""
    for i in range(6):
        save(tmp_path / "photos" / f"{i}.png", mask(i))
    rows(tmp_path / "a.npy", *range(4, 12))
    rows(tmp_path / "b.npy", 11, 11, 11, 12, 13)
    opened = Store.open(tmp_path / "store", create=True, encoder="none", limits=limits)
    opened.ingest(tmp_path / "photos", tmp_path / "a.npy", tmp_path / "b.npy")
    return opened


@pytest.fixture(autouse=True)
def whole_in_the_end(store: Store):
    yield
    store.close()
    with Store.open(store.path, read_only=True) as last:
        assert last.check().problems == ()


def id_of(store: Store, seed: int) -> int:
    (hit,) = store.lookup(mask(seed), tiers=IDENTICAL).identical
    return hit.id


# --- by id ----------------------------------------------------------------------------------------


def test_an_image_goes_with_all_its_sources_and_nothing_else(store: Store, tmp_path: Path) -> None:
    ids = [id_of(store, 4), id_of(store, 11)]
    file = (tmp_path / "photos" / "4.png").read_bytes()
    report = store.remove(ids=ids)
    assert (report.images, report.sources, report.not_found) == (2, 2 + 4, ())
    assert found(store, *range(14)) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 12, 13]
    assert store.lookup(file, tiers=IDENTICAL).identical == ()
    for id_ in ids:
        with pytest.raises(UsageError, match="no image"):
            store.get(id_)
    info = store.info()
    assert (info.images, info.sources, info.removed) == (12, 19 - 6, 2)
    again = store.remove(ids=ids)
    assert (again.images, again.sources, again.not_found) == (0, 0, tuple(map(str, ids)))


def test_an_image_that_comes_back_gets_a_new_id(store: Store, tmp_path: Path) -> None:
    ids = [id_of(store, seed) for seed in (0, 8)]
    store.remove(ids=ids)
    report = store.ingest(tmp_path / "photos", tmp_path / "a.npy")
    assert (report.added, report.unchanged) == (2, 5)
    assert [id_of(store, seed) for seed in (0, 8)] == [15, 16]
    assert store.info().sources == 19


@pytest.mark.slow
@pytest.mark.parametrize("id_", [0, -1, 15, 1 << 70])
def test_an_id_that_no_image_has_is_told_of(store: Store, id_: int) -> None:
    assert store.remove(ids=[id_, 1]).not_found == (str(id_),)
    assert found(store, 0, 1) == [1]


def test_what_is_no_id_or_nothing_at_all_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="name what to remove"):
        store.remove()
    for wrong in (["1"], [1.5], 7):
        with pytest.raises(UsageError, match="ids must be a list of whole numbers"):
            store.remove(ids=wrong)
    with pytest.raises(UsageError, match="sources must be a list of paths"):
        store.remove(sources=[5])
    with pytest.raises(UsageError, match="a source has a name"):
        store.remove(ids=[1], sources=[""])
    assert found(store, 0) == [0], "nothing was touched"


@pytest.mark.slow
@pytest.mark.parametrize("limits", [Limits(removal_batch=4)], ids=["few"])
def test_an_image_with_more_sources_than_a_commit_takes_goes_in_several(
    store: Store, tmp_path: Path
) -> None:
    for i in range(20):
        save(tmp_path / "same" / f"{i}.png", mask(50))
    rows(tmp_path / "mixed.npy", *[50, 51] * 10)
    store.ingest(tmp_path / "same", tmp_path / "mixed.npy")
    commits = store.session.snapshot.state.commit
    ids = [id_of(store, 50), id_of(store, 51), id_of(store, 0)]
    plan = store.remove(ids=ids, dry_run=True)
    assert (plan.images, plan.sources, plan.would_go[0]) == (3, 20 + 20 + 1, f"#{ids[2]}")
    report = store.remove(ids=ids)
    assert (report.images, report.sources) == (3, 20 + 20 + 1)
    assert store.session.snapshot.state.commit > commits + 5
    assert found(store, 0, 50, 51, 1) == [1]


def test_all_images_go(store: Store, tmp_path: Path) -> None:
    assert store.remove(ids=range(1, 15)).images == 14
    info = store.info()
    assert (info.images, info.sources, info.removed) == (0, 0, 14)
    for table in ("images", "records", "sources", "names", "runs", "arrays"):
        assert not list(store.session.snapshot.keys.scan(table)), table
    report = store.ingest(tmp_path / "photos", tmp_path / "a.npy", tmp_path / "b.npy")
    assert (report.added, report.duplicates) == (14, 5)


def test_what_goes_is_counted_as_it_comes() -> None:
    class NeverWalked(list):
        def __iter__(self):
            raise AssertionError("its length is asked for after each row")

    run, alone = Run(1, 0, 5, 1, 9), Run(1, 9, 3, 0, 9)
    request = RemovalRequest(rows=NeverWalked(), ids=[4])
    assert len(request) == 1
    request.add_rows(run, run)
    assert len(request) == 1 + run.count
    request.add_rows(alone, alone)
    assert len(request) == 1 + run.count + 1
    request.names.append((b"/a", 4))
    assert len(request) == 1 + run.count + 2


@pytest.mark.slow
def test_images_that_share_a_key_go_one_by_one(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "key", lambda canonical, seed: b"k" * 16)
    with Store.open(tmp_path / "one", create=True, encoder="none") as one:
        one.ingest(tmp_path / "photos")
        for seed in (2, 0, 5, 1, 4, 3):
            assert one.remove(ids=[seed + 1]).images == 1
            assert found(one, seed) == []
            assert len(found(one, *range(6))) == len(one)
            assert one.check().problems == ()


# --- by name --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "gone", "sources"),
    [
        (["photos/0.png"], [0], 1),
        (["photos/4.png"], [], 1),
        (["photos"], [0, 1, 2, 3], 6),
        (["photos/"], [0, 1, 2, 3], 6),
        (["./photos/../photos//"], [0, 1, 2, 3], 6),
        (["a.npy"], [6, 7, 8, 9, 10], 8),
        (["a.npy#2"], [6], 1),
        (["a.npy#2", "a.npy#3", "a.npy#2"], [6, 7], 2),
        (["a.npy#7"], [], 1),
        (["a.npy#7", "b.npy"], [11, 12, 13], 6),
        (["b.npy#1", "b.npy"], [12, 13], 5),
        (["b.npy", "b.npy#1", "a.npy", "photos"], [*range(14)], 19),
        (["."], [*range(14)], 19),
        (["/"], [*range(14)], 19),
    ],
    ids=str,
)
def test_a_source_goes_and_images_with_their_last(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    gone: list[int],
    sources: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = store.remove(sources=names, dry_run=True)
    assert found(store, *range(14)) == [*range(14)]
    report = store.remove(sources=names)
    assert (report.images, report.sources) == (len(gone), sources)
    assert (plan.images, plan.sources, plan.dry_run) == (len(gone), sources, True)
    assert found(store, *range(14)) == [seed for seed in range(14) if seed not in gone]
    assert store.info().sources == 19 - sources
    assert store.check().problems == ()
    store.ingest(tmp_path / "photos", tmp_path / "a.npy", tmp_path / "b.npy")
    assert found(store, *range(14)) == [*range(14)], "what was removed can come again"
    assert store.info().sources == 19


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["photo", "photos/9.png", "a.npy#8", "a.npy#x", "a.np", "c.npy#1", "memory:a", "a.npy/"]
)
def test_what_is_not_there_is_told_of_and_the_rest_done(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "a.npy/":
        store.remove(sources=[name])
    report = store.remove(sources=[name, "photos/1.png"])
    assert (report.images, report.not_found) == (1, (name,))


@pytest.mark.parametrize("limits", [Limits(removal_batch=1)], ids=["few"])
def test_what_is_named_twice_is_found_both_times(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [".", "photos", "photos/0.png", "a.npy#1", "a.npy", "a.npy#1", "b.npy#99"]
    plan = store.remove(ids=[1, 99], sources=names, dry_run=True)
    report = store.remove(ids=[1, 99], sources=names)
    for one in (plan, report):
        assert (one.images, one.sources) == (14, 19)
        assert sorted(one.not_found) == ["99", "b.npy#99"]


def test_synthetic_sets_and_images_in_memory_go_by_name(store: Store) -> None:
    store.ingest("synthetic:bits?n=10&seed=3")
    store.ingest(np.stack([mask(20), mask(21)]), name="camera/3")
    report = store.remove(sources=["synthetic:bits?seed=3#4", "memory:camera/3#0"])
    assert (report.images, report.not_found) == (2, ())
    assert found(store, 20, 21) == [21]
    assert store.remove(sources=["synthetic:bits?n=5&seed=3"]).images == 9
    assert store.remove(sources=["memory:camera/3"]).images == 1
    assert store.ingest("synthetic:bits?n=10&seed=3").added == 10


def test_arrays_of_an_npz_and_arrays_below_a_folder_go(store: Store, tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    path = tmp_path / "deep" / "er" / "c.npz"
    np.savez(path, left=mask(30)[None], right=np.stack([mask(31), mask(32)]))
    rows(tmp_path / "deep" / "d.npy", 33)
    for again in (False, True):
        store.ingest(path, tmp_path / "deep" / "d.npy")
        assert store.remove(sources=[f"{path}#right"]).images == 2
        assert found(store, 30, 31, 32, 33) == [30, 33]
        if again:  # on disk or not
            shutil.rmtree(tmp_path / "deep")
        assert store.remove(sources=[tmp_path / "deep"]).images == 2


@pytest.mark.slow
def test_all_arrays_of_an_npz_go_by_its_name_and_none_beside_it(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "c.npz"
    np.savez(path, **{"left": mask(30)[None], "in/side": mask(31)[None]})
    beside = tmp_path / "c.npz#x"
    beside.mkdir()
    rows(beside / "y.npy", 32)
    np.savez(beside / "z.npz", right=mask(33)[None])
    inputs = (path, f"{path}?kind=8bit", beside / "y.npy", beside / "z.npz")
    assert store.ingest(*inputs).added == 6
    assert store.remove(sources=[f"{path}?kind=8bit"]).images == 2
    assert store.remove(sources=[path]).images == 2
    assert found(store, 30, 31, 32, 33) == [32, 33]
    assert store.ingest(*inputs).added == 4
    assert store.remove(sources=[path]).images == 4
    assert found(store, 30, 31, 32, 33) == [32, 33]


def test_rows_that_were_removed_come_again_when_the_array_is_ingested(
    store: Store, tmp_path: Path
) -> None:
    store.remove(sources=[f"{tmp_path}/a.npy#3"])
    report = store.ingest(tmp_path / "a.npy")
    assert (report.added, report.duplicates, report.unchanged) == (1, 7, 0)
    report = store.ingest(tmp_path / "a.npy")
    assert (report.added, report.unchanged) == (0, 8)


@pytest.mark.parametrize("limits", [Limits(removal_batch=1), Limits()])
def test_the_reject_of_an_array_goes_with_it_in_whatever_way_it_was_read(
    store: Store, tmp_path: Path
) -> None:
    path = rows(tmp_path / "short.npy", *range(40, 44))
    path.write_bytes(path.read_bytes()[:-1])
    assert store.ingest(f"{path}?kind=8bit").added == 3
    assert store.info().rejects == 1
    assert store.remove(sources=[path]).images == 3
    assert store.info().rejects == 0


def test_fewer_rows_of_a_synthetic_set_take_none_away(store: Store) -> None:
    before = store.info().sources
    store.ingest("synthetic:bits?seed=1&n=9")
    store.remove(sources=["synthetic:bits?seed=1#3"])
    for n, there in ((0, 8), (9, 9), (0, 9)):
        store.ingest(f"synthetic:bits?seed=1&n={n}")
        assert store.info().sources == before + there


def test_a_changed_array_forgets_no_more_than_what_was_left(store: Store, tmp_path: Path) -> None:
    store.remove(ids=[id_of(store, 9)])
    rows(tmp_path / "a.npy", 60, 61)
    assert store.ingest(tmp_path / "a.npy").added == 2
    assert store.info().sources == 6 + 2 + 5


def test_rejects_go_with_their_folder(store: Store, tmp_path: Path) -> None:
    (tmp_path / "photos" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    store.ingest(tmp_path / "photos")
    assert store.info().rejects == 1
    report = store.remove(sources=[tmp_path / "photos" / "bad.png"])
    assert (report.images, report.not_found) == (0, ())
    assert store.info().rejects == 0


# --- archives -------------------------------------------------------------------------------------


def archive(store: Store, path: Path, seeds: dict[str, int], *, complete: bool = True) -> None:
    """Commit members as an ingest of an archive does, with the stamp that its file has now."""
    files = store.session
    files.become_writer()
    chunk = Chunk()
    status = path.stat()
    named = [os.fsencode(f"{path}#{member}") for member in seeds]
    before = files.snapshot.names(named)
    for (member, seed), name, was in zip(seeds.items(), named, before, strict=True):
        image = from_array(mask(seed))
        key = hashing.key(image.canonical, files.snapshot.settings.hash_seed)
        known = files.snapshot.image_of(key)
        id_ = known[0].id if known else files.snapshot.state.next_id + len(chunk.images)
        hash_ = member.encode().ljust(32)
        if not known:
            proof = hashing.proof(image.canonical)
            chunk.images.append(
                NewImage(image, key, proof, "png", "test", 9, hash_, bytes(32), 9, None)
            )
        chunk.names.append(NewName(name, id_, status.st_mtime_ns, status.st_size, hash_, was))
    row = ArchiveRow(status.st_mtime_ns, status.st_size, len(seeds), len(seeds), complete=complete)
    chunk.archives.append((os.fsencode(path), row))
    files.writer.commit(chunk)


def change(path: Path, size: int) -> Path:
    path.write_bytes(bytes(size))
    return path


def test_an_archive_goes_whole_and_is_read_again_after_it_lost_a_member(
    store: Store, tmp_path: Path
) -> None:
    path = change(tmp_path / "x.tar", 10)
    name = os.fsencode(path)
    archive(store, path, {"a/1.png": 70, "a/2.png": 71, "#3": 72, "0.png": 0})
    assert store.session.snapshot.archive(name) is not None
    assert store.remove(sources=[f"{path}#a/2.png"]).images == 1
    assert store.session.snapshot.archive(name) == ArchiveRow(-1, -1)
    assert found(store, 70, 71, 72) == [70, 72]
    archive(store, path, {"a/1.png": 70, "a/2.png": 71, "#3": 72, "0.png": 0})
    assert store.remove(ids=[id_of(store, 72)]).sources == 1
    assert store.session.snapshot.archive(name) == ArchiveRow(-1, -1)
    archive(store, path, {"a/1.png": 70, "a/2.png": 71, "#3": 72, "0.png": 0})
    report = store.remove(sources=[path])
    assert (report.images, report.sources) == (3, 4)
    assert found(store, 0, 70, 71, 72) == [0]
    archive(store, path, {})
    assert store.remove(sources=[path]).not_found == ()
    assert store.session.snapshot.archive(name) is None


def test_what_only_begins_like_it_is_not_inside(store: Store, tmp_path: Path) -> None:
    """A file or a folder is no archive, and a path that exists wins over what "#" would mean."""
    inside = tmp_path / "p"
    for seed, name in enumerate(
        ["cat/0.png", "cat#2.png", "cat#/1.png", "dog.png", "dog.png#old.png"], 70
    ):
        save(inside / name, mask(seed))
    beside = save(tmp_path / "x.png", mask(90)).rename(tmp_path / "a.npy#5")
    store.ingest(inside, beside)
    assert found(store, 70, 71, 72, 73, 74, 90) == [70, 71, 72, 73, 74, 90]
    assert store.remove(sources=[inside / "cat"]).images == 1
    assert store.remove(sources=[inside / "dog.png"]).images == 1
    assert found(store, 70, 71, 72, 73, 74) == [71, 72, 74]
    assert store.remove(sources=[beside]).images == 1
    assert found(store, 9, 90) == [9]


@pytest.mark.parametrize("limits", [Limits(chunk_rows=3)], ids=["few"])
def test_nothing_is_missing_while_a_changed_array_is_half_read(
    store: Store, tmp_path: Path
) -> None:
    os.utime(tmp_path / "a.npy", (1, 1))
    began = store.session.snapshot.state.commit
    report = store.ingest(
        tmp_path / "a.npy", stop=lambda: store.session.snapshot.state.commit >= began + 2
    )
    assert report.interrupted
    assert found(store, *range(12)) == list(range(12))
    kept = store.remove(missing=True)
    assert kept.images == 0
    assert any("a.npy" in reason for reason in kept.kept)
    assert found(store, *range(12)) == list(range(12))
    assert store.ingest(tmp_path / "a.npy").rejected == 0
    assert store.remove(missing=True) == replace(kept, kept=(), seconds=ANY)


def test_members_that_an_archive_has_no_more_are_missing(store: Store, tmp_path: Path) -> None:
    path = change(tmp_path / "x.tar", 10)
    archive(store, path, {"1": 70, "2": 71, "3": 72})
    assert store.remove(missing=True).images == 0
    change(path, 20)
    assert store.remove(missing=True).images == 0, "it has not been read since it changed"
    archive(store, path, {"1": 70}, complete=False)
    assert store.remove(missing=True).images == 0, "it has not been read to its end"
    archive(store, path, {"1": 70})
    assert store.remove(missing=True).images == 2
    assert found(store, 70, 71, 72) == [70]
    path.unlink()
    assert store.remove(missing=True).images == 1


@pytest.mark.slow
def test_what_was_read_in_one_of_several_ways_is_where_its_file_is(
    store: Store, tmp_path: Path
) -> None:
    array = rows(tmp_path / "8.npy", 70, 71, 72)
    table = tmp_path / "c.parquet"
    files = [{"bytes": encoded(mask(80 + i)), "path": None} for i in range(3)]
    said = {"scan": files, "page": files, "label": [1, 2, 3]}
    pq.write_table(pa.table(said), table)
    odd = tmp_path / "d.png?image=small"  # as some downloaders call them
    odd.write_bytes(encoded(mask(90)))
    ways = (f"{array}?kind=8bit", f"{table}?image=scan", f"{table}?image=scan&metadata=label", odd)
    assert store.ingest(*ways).added == 7
    for path in (None, array, table, odd):
        if path is not None:
            path.rename(f"{path}.away")
        gone = {None: 0, array: 3, table: 6, odd: 1}[path]
        assert store.remove(missing=True).sources == gone
    for path in (array, table, odd):
        Path(f"{path}.away").rename(path)
    assert store.ingest(*ways).added == 7
    assert store.remove(sources=[tmp_path / "d.png"]).not_found
    assert store.remove(sources=[table]).sources == 6
    assert store.remove(sources=[f"{array}?kind=8bit"]).images == 3


def test_a_folder_whose_name_begins_another_is_no_archive(store: Store, tmp_path: Path) -> None:
    (tmp_path / "C").mkdir()
    (tmp_path / "C#").mkdir()
    for folder in ("C", "C#"):
        (tmp_path / folder / "keep.png").write_bytes(encoded(mask(ord(folder[-1]))))
        (tmp_path / folder / "gone.png").write_bytes(encoded(mask(ord(folder[-1]) + 1)))
    store.ingest(tmp_path / "C", tmp_path / "C#")
    (tmp_path / "C#" / "gone.png").unlink()
    assert store.remove(missing=True).images == 1


# --- missing --------------------------------------------------------------------------------------


def test_what_is_gone_from_the_disk_goes(store: Store, tmp_path: Path) -> None:
    save(tmp_path / "old" / "er" / "1.png", mask(80))
    store.ingest(tmp_path / "old", "synthetic:bits?n=3")
    store.ingest(np.stack([mask(81)]), name="m")
    assert store.remove(missing=True).sources == 0
    shutil.rmtree(tmp_path / "old")
    (tmp_path / "photos" / "1.png").unlink()
    (tmp_path / "photos" / "4.png").unlink()
    (tmp_path / "b.npy").unlink()
    with pytest.raises(MissingError, match=r"1 of 1 below .*/old"):
        store.remove(missing=True)
    assert found(store, *range(14), 80, 81) == [*range(14), 80, 81]
    plan = store.remove(missing=True, dry_run=True)
    report = store.remove(missing=True, yes=True)
    assert (report.images, report.sources, report.kept) == (4, 3 + 5, ())
    assert (plan.images, plan.sources, plan.kept) == (4, 3 + 5, ())
    assert found(store, *range(14), 80, 81) == [0, *range(2, 12), 81]
    again = store.remove(missing=True)
    assert (again.images, again.sources) == (0, 0)


def test_images_that_no_source_is_left_of_are_missing(store: Store, tmp_path: Path) -> None:
    save(tmp_path / "photos" / "0.png", mask(90))
    rows(tmp_path / "a.npy", 91)
    os.utime(tmp_path / "a.npy", ns=(1, 1))
    store.ingest(tmp_path / "photos", tmp_path / "a.npy")
    assert found(store, 0, 8, 11, 90, 91) == [0, 8, 11, 90, 91]
    plan = store.remove(missing=True, dry_run=True)
    report = store.remove(missing=True)
    assert (report.images, report.sources) == (1 + 5, 0)
    assert (plan.images, plan.sources, plan.needs_yes) == (1 + 5, 0, False)
    assert found(store, *range(14), 90, 91) == [1, 2, 3, 4, 5, 11, 12, 13, 90, 91]


def test_links_that_lead_nowhere_and_overridden_arrays_are_there(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "photos" / "link.png").symlink_to(save(tmp_path / "target.png", mask(95)))
    np.save(tmp_path / "c.npy", np.zeros((2, 3, 5), np.uint8))
    store.ingest(tmp_path / "photos", f"{tmp_path}/c.npy?kind=8bit")
    (tmp_path / "target.png").unlink()
    assert store.remove(missing=True).sources == 0
    (tmp_path / "photos" / "link.png").unlink()
    (tmp_path / "c.npy").unlink()
    assert store.remove(missing=True).sources == 1 + 2


def test_rejects_of_files_that_are_gone_are_forgotten(store: Store, tmp_path: Path) -> None:
    bad = tmp_path / "photos" / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n")
    store.ingest(tmp_path / "photos")
    store.remove(missing=True)
    assert store.info().rejects == 1
    bad.unlink()
    store.remove(missing=True)
    assert store.info().rejects == 0


def test_a_disk_that_may_only_be_unmounted_empties_no_store(store: Store, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    save(disk / "a" / "1.png", mask(80))
    save(disk / "2.png", mask(81))
    store.ingest(disk)
    shutil.rmtree(disk)
    disk.mkdir()  # as a mount point is left
    (tmp_path / "photos" / "0.png").unlink()
    plan = store.remove(missing=True, dry_run=True)
    report = store.remove(missing=True)
    assert (report.images, len(report.kept)) == (1, 1)
    assert (plan.images, plan.kept) == (1, report.kept)
    assert f"{disk} is empty" in report.kept[0]
    assert found(store, 0, 80, 81) == [80, 81]
    assert store.remove(sources=[disk]).images == 2


def test_what_cannot_be_looked_up_is_kept_and_told_of(store: Store, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    save(loop / "1.png", mask(80))
    store.ingest(loop)
    shutil.rmtree(loop)
    loop.symlink_to(loop)  # ELOOP
    report = store.remove(missing=True)
    assert (report.images, len(report.kept)) == (0, 1)
    assert "loop" in report.kept[0]
    assert found(store, 80) == [80]


@pytest.mark.slow
@pytest.mark.parametrize("remembered", [True, False])
def test_a_drive_that_is_away_empties_no_store(
    store: Store, tmp_path: Path, *, remembered: bool
) -> None:
    drives = [tmp_path / "drives" / name for name in ("a", "b")]
    for seed, drive in enumerate(drives, 80):
        save(drive / "deep" / "er" / "1.png", mask(seed))
        save(drive / "2.png", mask(seed + 10))
    store.ingest(*drives)
    if not remembered:  # as an older engine left it
        store.session.writer.add_roots([])
        batch = store.session.snapshot.keys.batch()
        batch.delete("meta", b"roots")
        store.session.snapshot.keys.commit(batch)
    every = [*range(14), 80, 81, 90, 91]
    (tmp_path / "photos" / "0.png").unlink()
    drives[0].rename(tmp_path / "away")
    with pytest.raises(MissingError) as failed:
        store.remove(ids=[2], sources=[tmp_path / "b.npy"], missing=True)
    assert f"2 of 2 below {drives[0]}" in str(failed.value)
    assert "nothing was removed" in str(failed.value)
    assert found(store, *every) == every
    plan = store.remove(missing=True, dry_run=True)
    assert (plan.images, plan.sources, plan.needs_yes) == (3, 3, True)
    (suspect,) = [one for one in plan.folders if one.needs_yes]
    assert (suspect.folder, suspect.missing, suspect.sources) == (str(drives[0]), 2, 2)
    (tmp_path / "away").rename(drives[0])
    report = store.remove(missing=True)
    assert (report.images, found(store, *every)) == (1, every[1:]), "it is back"
    shutil.rmtree(drives[0])
    assert store.remove(missing=True, yes=True).images == 2
    assert found(store, 80, 81, 90, 91) == [81, 91]


def test_less_than_half_of_a_folder_goes_without_a_question(store: Store, tmp_path: Path) -> None:
    for seed in range(80, 90):
        save(tmp_path / "root" / ("album" if seed < 84 else "rest") / f"{seed}.png", mask(seed))
    store.ingest(tmp_path / "root")
    shutil.rmtree(tmp_path / "root" / "album")
    assert store.remove(missing=True).images == 4
    for seed in range(84, 87):
        (tmp_path / "root" / "rest" / f"{seed}.png").unlink()
    assert store.remove(missing=True).images == 3
    for seed in (87, 88):
        (tmp_path / "root" / "rest" / f"{seed}.png").unlink()
    with pytest.raises(MissingError, match=r"2 of 3 below .*/root"):
        store.remove(missing=True)
    assert found(store, 87, 88, 89) == [87, 88, 89]


@pytest.mark.slow
def test_files_that_were_named_one_by_one_go_if_their_folder_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "drive"
    folder.mkdir()
    with tarfile.open(folder / "x.tar", "w") as tar:
        for name in ("1.png", "deep/2.png"):
            tar.add(save(tmp_path / "in" / name, mask(len(name))), name)
    with Store.open(tmp_path / "few", create=True, encoder="none") as few:
        few.ingest(folder / "x.tar", rows(folder / "c.npy", 90), rows(folder / "d.npy", 91, 92))
        (folder / "c.npy").unlink()
        assert few.remove(missing=True).images == 1
        folder.rename(tmp_path / "away")
        with pytest.raises(MissingError, match=f"4 of 4 below {folder}"):
            few.remove(missing=True)
        (tmp_path / "away").rename(folder)
        (folder / "x.tar").unlink()
        assert few.remove(missing=True).images == 2
        assert len(few) == 2


def test_what_is_back_when_its_turn_comes_stays(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what goes meanwhile was not there to be counted, and stays too."""
    photos = tmp_path / "photos"
    (photos / "0.png").rename(tmp_path / "0")
    (photos / "1.png").unlink()
    look = missing_sources.Missing.look

    def looked(self: missing_sources.Missing) -> None:
        look(self)
        (tmp_path / "0").rename(photos / "0.png")
        (photos / "2.png").rename(tmp_path / "2")

    monkeypatch.setattr(missing_sources.Missing, "look", looked)
    assert store.remove(missing=True).images == 1
    assert found(store, 0, 1, 2) == [0, 2]


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ETIMEDOUT])
def test_a_share_that_answers_with_errors_is_not_missing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.lstat

    def lstat(path: str | bytes, **given: object) -> os.stat_result:
        if os.fsencode(path).startswith(os.fsencode(tmp_path / "photos")):
            raise OSError(number, os.strerror(number))
        return real(path, **given)  # type: ignore[arg-type]

    (tmp_path / "b.npy").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", lstat)
        report = store.remove(missing=True)
    assert report.images == 2
    assert len(report.kept) == 6
    assert os.strerror(number) in report.kept[0]
    assert found(store, *range(14)) == [*range(12)]


def test_a_name_that_cannot_be_looked_up_keeps_its_image(store: Store, tmp_path: Path) -> None:
    member = "x" * 300 + "#y.png"  # of an archive that is gone: a folder of this name cannot be
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        data = encoded(mask(30))
        info = tarfile.TarInfo(member)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    store.ingest(tmp_path / "a.tar")
    (tmp_path / "a.tar").unlink()
    (tmp_path / "photos" / "0.png").unlink()
    report = store.remove(missing=True, yes=True)
    assert (report.images, report.interrupted) == (1, False)
    assert any("cannot be looked up" in reason for reason in report.kept)
    assert found(store, 0, 30) == [30]


def test_a_dry_run_writes_nothing_and_needs_no_lock(store: Store, tmp_path: Path) -> None:
    (tmp_path / "photos" / "5.png").unlink()
    before = store.session.snapshot.state.commit
    with Store.open(tmp_path / "store", read_only=True) as reader:
        plan = reader.remove(ids=[1], missing=True, dry_run=True)
        assert (plan.images, plan.sources) == (1, 2), "5 is in an array, too"
        assert plan.would_go == ("#1", str(tmp_path / "photos" / "5.png"))
        assert reader.remove(missing=True, dry_run=True, stop=lambda: True).interrupted
    assert store.session.snapshot.state.commit == before


@pytest.mark.parametrize("limits", [Limits(stop_checks=2)], ids=["often"])
def test_a_stop_ends_the_looking(store: Store, tmp_path: Path) -> None:
    (tmp_path / "photos" / "0.png").unlink()
    report = store.remove(missing=True, stop=lambda: True)
    assert (report.images, report.interrupted) == (0, True)


@pytest.mark.parametrize("limits", [Limits(stop_checks=1)], ids=["often"])
def test_a_stop_ends_the_search_for_images_without_a_source(
    store: Store, tmp_path: Path, limits: Limits
) -> None:
    save(tmp_path / "photos" / "0.png", mask(20), mtime=5)
    store.ingest(tmp_path / "photos")
    asked: list[int] = []
    with Store.open(tmp_path / "store", read_only=True, limits=limits) as reader:
        reader.remove(missing=True, dry_run=True, stop=lambda: bool(asked.append(0)))
    # One question for each source that it looks for, and then those of the scan.
    looked = len(asked) + 1
    left = iter(range(looked + 1, 0, -1))
    report = store.remove(missing=True, stop=lambda: next(left) == 1)
    assert (report.images, report.interrupted) == (0, True)
    assert store.remove(missing=True).images == 1


# --- stopping, failing ----------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [Limits(removal_batch=3)], ids=["few"])
def test_it_stops_after_a_commit_and_goes_on(store: Store) -> None:
    told: list[tuple[int, int | None]] = []
    report = store.remove(
        ids=range(1, 15), progress=lambda *at: told.append(at), stop=lambda: len(told) > 2
    )
    assert report.interrupted
    assert report.images == 14 - len(store) == 6
    assert told == [(0, 14), (3, 14), (6, 14)]
    assert store.check().problems == ()
    rest = store.remove(ids=range(1, 15))
    assert (rest.images, len(rest.not_found)) == (8, 6)


def test_what_is_done_when_it_is_asked_to_stop_is_not_interrupted(store: Store) -> None:
    report = store.remove(ids=[1, 2], stop=lambda: True)
    assert (report.images, report.interrupted) == (2, False)
    report = store.remove(ids=[3], missing=True, stop=lambda: True)
    assert (report.images, report.interrupted) == (1, True), "what is missing was not looked for"
    assert not store.remove(missing=True, stop=lambda: False).interrupted


@pytest.mark.slow
def test_where_there_are_no_runs_few_records_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes] = []
    scan = Keys.scan

    def told(
        keys: Keys, table: str, *given: bytes, **named: bytes
    ) -> Iterator[tuple[bytes, bytes]]:
        for row in scan(keys, table, *given, **named):
            if table == "records":
                read.append(row[0])
            yield row

    with Store.open(tmp_path / "other", create=True, encoder="none") as store:
        store.ingest((f"{seed}", mask(seed)) for seed in range(50))
        monkeypatch.setattr(Keys, "scan", told)
        assert store.remove(ids=[20]).images == 1
        assert len(read) < 10
        monkeypatch.undo()
        assert store.check().problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("limits", [Limits(removal_batch=3)], ids=["few"])
def test_a_removal_that_fails_removes_whole_commits_only(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Transaction.finish
    count = []

    def fails(transaction: Transaction, copy: Manifest | None) -> State:
        count.append(1)
        if len(count) == 3:
            raise OSError(28, "No space left on device")
        return finish(transaction, copy)

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "finish", fails)
        with pytest.raises(StoreError, match="No space left"):
            store.remove(ids=range(1, 15))
    with Store.open(tmp_path / "store") as again:
        assert len(again) == 14 - 6
        assert again.check().problems == ()
        assert again.remove(ids=range(1, 15)).images == 8


# --- readers --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_open_reader_sees_what_is_removed(store: Store, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", read_only=True) as reader:
        id_ = id_of(reader, 8)
        assert reader.find_identical(np.stack([mask(8), mask(9)])).tolist() == [id_, id_ + 1]
        store.remove(ids=[id_])
        assert reader.find_identical(np.stack([mask(8), mask(9)])).tolist() == [-1, id_ + 1]
        assert found(reader, 8, 9) == [9]


def test_a_file_that_named_a_removed_image_names_nothing(store: Store, tmp_path: Path) -> None:
    """One that had changed since: its hash stays behind when the image goes."""
    path = tmp_path / "photos" / "3.png"
    old = b""
    for level in (0, 5):
        Image.fromarray(mask(3).astype(np.uint8) * 255).save(path, compress_level=level)
        old = path.read_bytes() if level == 0 else old
        store.ingest(path)
    assert len(store.lookup(old, tiers=IDENTICAL).identical) == 1
    store.remove(sources=[path])
    assert store.lookup(old, tiers=IDENTICAL).identical == ()
    assert store.check().problems == ()
    path.write_bytes(old)
    assert store.ingest(path).added == 1


@pytest.mark.slow
def test_vectors_of_removed_images_are_passed_over(tmp_path: Path, tiny_encoder: Path) -> None:
    with Store.open(tmp_path / "with", create=True, encoder=str(tiny_encoder)) as store:
        store.ingest("synthetic:bits?n=200")
        queries = np.random.default_rng(0).standard_normal((3, 16))
        scores, ids = store.search_vectors(queries, k=200)
        gone = {*ids[0, :50].tolist(), *ids[1, 1::2].tolist()}
        store.remove(ids=gone)
        for k in (1, 5, 200):
            after, found_ = store.search_vectors(queries, k=k)
            assert after.shape == found_.shape == (3, k)
            for i in range(3):
                left = [at for at, id_ in enumerate(ids[i]) if id_ not in gone]
                want = ids[i][left].tolist() + [-1] * 200
                assert found_[i].tolist() == want[:k]
                some = scores[i][left][:k]
                assert after[i, : len(some)] == pytest.approx(some, abs=1e-5)
                assert np.isneginf(after[i, len(some) :]).all()
        assert store.check().problems == ()


@pytest.mark.slow
def test_vectors_of_removed_images_do_not_count(tmp_path: Path, tiny_encoder: Path) -> None:
    path, encoder = tmp_path / "with", str(tiny_encoder)
    limits = Limits(extent_rows=10)
    with Store.open(path, create=True, encoder=encoder, limits=limits) as store:
        store.ingest("synthetic:bits?n=20")
        store.ingest("synthetic:bits?n=30", encoder="none")
        store.ingest("synthetic:bits?n=45", encoder=str(tiny_encoder))
        assert store.info().vectors == 35
        store.remove(ids=[1, 10, 11, 25, 45])
        assert store.info().vectors == 35 - 4
        store.remove(ids=[29, 30, 31])
        assert store.info().vectors == 35 - 5
        assert store.backup(tmp_path / "copy").vectors == 30
        assert store.export(tmp_path / "tables").vectors == 30
        assert store.check().problems == ()
        for wrong in ({}, {"1": 4}, {"1": 5, "2": 1}):
            store.session.writer.set_removed_vectors(wrong)
            (problem,) = store.check().problems
            assert problem.part == "vectors"
            assert "removed images, but 5 are" in problem.what
            assert store.check(fix=True).ok
            assert store.info().vectors == 30
        store.remove(ids=range(1, 46))
        assert store.info().vectors == 0
        assert store.check().problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("recall", [None, 1])
def test_where_few_are_left_all_of_them_are_found_in_bounded_memory(
    tmp_path: Path, tiny_encoder: Path, recall: float | None
) -> None:
    with Store.open(tmp_path / "with", create=True, encoder=str(tiny_encoder)) as store:
        store.ingest("synthetic:bits?n=6000", keep_pixels="no")
        queries = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
        left = [7, 2000, 5000]
        store.remove(ids=set(range(1, 6001)) - {*left})
        rows = np.array(left) - 1
        index = store.index.current
        assert index is not None
        truth = queries @ index.vectors.gather(rows).T
        order = np.argsort(-truth, axis=1)
        tracemalloc.start()
        try:
            scores, ids = store.search_vectors(queries, k=10, recall=recall)
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()
        assert ids[:, :3].tolist() == np.array(left)[order].tolist()
        assert scores[:, :3] == pytest.approx(np.take_along_axis(truth, order, 1), abs=1e-5)
        assert (ids[:, 3:] == -1).all()
        assert np.isneginf(scores[:, 3:]).all()
        store.remove(ids=left)
        assert (store.search_vectors(queries, k=10, recall=recall)[1] == -1).all()


# --- the command ----------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([*map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.slow
def test_the_command_says_what_it_did(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.close()
    where = ["--store", tmp_path / "store"]
    status, out, err = run(capsys, "remove", "--id", 1, "--id", 99, *where)
    assert (status, err) == (3, "engine: 99 is not in the store\n")
    assert "1 image and 1 source removed" in out
    status, out, err = run(
        capsys, "remove", tmp_path / "photos", "--source", "zz", "--json", *where
    )
    body = json.loads(out)
    assert (status, body["images"], body["sources"], body["not_found"]) == (3, 3, 5, ["zz"])
    status, out, err = run(capsys, "remove", "--missing", "--json", *where)
    assert (status, json.loads(out)["images"], err) == (0, 0, "")
    status, out, err = run(capsys, "remove", *where)
    assert (status, out) == (2, "")
    assert "name what to remove" in err
    for arguments in (["--id", 3], ["--source", tmp_path / "a.npy"]):
        plan = json.loads(run(capsys, "remove", *arguments, "--dry-run", "--json", *where)[1])
        body = json.loads(run(capsys, "remove", *arguments, "--json", *where)[1])
        assert plan["dry_run"]
        assert [plan["images"], plan["sources"]] == [body["images"], body["sources"]]
    save(tmp_path / "drive" / "1.png", mask(80))
    save(tmp_path / "drive" / "2.png", mask(81))
    run(capsys, "ingest", tmp_path / "drive", "--encoder", "none", *where)
    (tmp_path / "drive").rename(tmp_path / "away")
    status, out, err = run(capsys, "remove", "--missing", *where)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert f"2 of 2 below {tmp_path}/drive" in err
    assert "say --yes" in err
    status, out, err = run(capsys, "remove", "--missing", "--dry-run", *where)
    assert (status, err) == (0, "")
    assert "2 images and 2 sources would be removed; nothing was removed" in out
    assert "only with --yes" in out
    assert f"would be removed: {tmp_path}/drive/1.png" in out
    body = json.loads(run(capsys, "remove", "--missing", "--yes", "--json", *where)[1])
    assert (body["images"], body["sources"]) == (2, 2)


@pytest.mark.slow
def test_ctrl_c_ends_the_command_on_a_commit(store: Store, tmp_path: Path) -> None:
    store.close()
    code = """
import os, signal, sys
from functools import partial
from engine import Store
from engine.cli.app import main
from engine.config import Limits
from engine.storage import writer

Store.open = partial(Store.open, limits=Limits(removal_batch=3))
commit = writer.Writer.commit

def told(files, chunk):
    commit(files, chunk)
    os.kill(os.getpid(), signal.SIGINT)

writer.Writer.commit = told
sys.exit(main(sys.argv[1:]))
"""
    ids = [argument for id_ in range(1, 15) for argument in ("--id", str(id_))]
    command = [sys.executable, "-c", code, "remove", *ids, "--store", str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stdout
    with Store.open(tmp_path / "store", read_only=True) as again:
        assert len(again) == 11
