"""Power cuts of the machine: what was synced is there, of the rest any part or none.

A kill leaves the page cache, so a missing fsync goes unnoticed by it; here it does not. What a writer
does to its files is recorded (``power.py``), and disks that a power cut at any step of it could have
left are laid out and opened: all that was told of is found, nothing is damaged, and the next writer
goes on. This file is also the program of the child whose system calls are traced.

Points are sampled, those around commits always, those around renames and unlinks often. ``--all`` takes
all; with ENGINE_POWER_SEEDS=5 what is left is drawn five times, and each disk is written to.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import report_commits
from helpers import sized
from PIL import Image
from power import FOLDER, ROOT, Committed, DiskState, Entry, Named, Recorder, Synced, Told, Wrote

from engine import Store
from engine.api import encoder_files
from engine.config import Limits
from engine.index import segment_writer
from engine.storage import create as create_
from engine.storage import durable, extents, index_files
from engine.storage.changeset import Chunk, Removal
from engine.storage.extents import HEADER_BYTES
from engine.storage.rocks import opening
from engine.storage.session import Session
from engine.storage.writer import Writer

BESIDES = sized(5, 1000)  # points of a replay besides those that are always taken
MOVES = sized(3, 1)  # renames and unlinks for one of which the points are taken
SEEDS = range(int(os.environ.get("ENGINE_POWER_SEEDS", "1")))
EVERY = 8 if len(SEEDS) == 1 else 1  # how many disks are read for one that is also written to

# What is left. ``IN_ORDER`` is what a kill leaves, the others are power cuts.
SYNCED, LAST, SOME = "only what was synced", "and the last name", "and some of the rest"
IN_ORDER = "everything"
HOW = (SYNCED, LAST, SOME, IN_ORDER)


# Chunks, extents and segments of a few rows, so that all their edges are met.
LIMITS = Limits(
    chunk_files=3,
    chunk_rows=12,
    exact_rows=20,
    unindexed_rows=30,
    extent_rows=25,
    extent_bytes=500,
    removal_batch=8,
    compact_batch=20,
    compact_bytes=300,
    compact_extents=1,
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where disks are laid out: in memory where that can be, for they are thousands of files."""
    tmp_path_factory.getbasetemp()  # before tests' own folders would be looked for in here
    shared = Path("/dev/shm")
    if os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > 256 << 20:
        folder = Path(tempfile.mkdtemp(prefix="engine-power-", dir=shared))
    else:
        folder = tmp_path_factory.mktemp("room")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))  # readers put links there
        yield folder
    shutil.rmtree(folder)


@pytest.fixture
def where(room: Path) -> Iterator[Path]:
    """A new folder in there."""
    folder = Path(tempfile.mkdtemp(prefix="test-", dir=room))
    yield folder
    shutil.rmtree(folder)


@dataclass(frozen=True)
class Sources:
    """What is ingested, on another disk."""

    photos: Path
    first: Path
    second: Path
    more: Path
    nothing: Path
    encoder: Path


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    photos, nothing = folder / "photos", folder / "nothing"
    photos.mkdir()
    nothing.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        photo = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(photo).save(photos / f"{i}.png")
    shutil.copy(photos / "0.png", photos / "4.png")
    (photos / "5.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    bits = rng.integers(0, 2, (60, 8, 8, 3)).astype(np.uint8)
    named = {"first": bits[:26], "second": bits[20:56], "more": bits[56:59]}
    for name, rows in named.items():
        np.save(folder / f"{name}.npy", rows)
    arrays = {name: folder / f"{name}.npy" for name in named}
    return Sources(photos, **arrays, nothing=nothing, encoder=tiny_encoder)


# --- recording ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Promise:
    """What callers have been told is in the store, and must be there from then on."""

    images: dict[int, tuple[str, ...]]  # and where each was seen
    vectors: int
    rejects: int
    encoder: str | None
    removed: int = 0

    @classmethod
    def of(cls, opened: Store) -> Promise:
        info = opened.info()
        return cls(
            {id_: tuple(opened.sources(id_)) for id_ in there(opened)},
            info.vectors,
            info.rejects,
            str(info.encoder["name"]) if info.encoder else None,
            info.removed,
        )


def there(opened: Store) -> list[int]:
    """The ids of all images."""
    return opened.session.snapshot.those_there(
        list(range(1, opened.session.snapshot.state.next_id))
    )


def without(promise: Promise, files: Session, removal: Removal) -> Promise:
    """What is still promised while some images are being removed."""
    keys_ = [key for table, key, value in removal.rows if table == "images" and value is None]
    gone = {row.id for key in keys_ for row in files.snapshot.image_of(key)}
    left = {id_: names for id_, names in promise.images.items() if id_ not in gone}
    return replace(promise, images=left)


@contextmanager
def recorded(where: Path, disk: DiskState | None = None) -> Iterator[Recorder]:
    """Record what happens to ``where / "disk"``; each commit that returns is a promise."""
    commit, become_writer = Writer.commit, Session.become_writer
    sessions: dict[Writer, Session] = {}
    with (
        pytest.MonkeyPatch.context() as patch,
        Recorder(disk or DiskState(), where / "disk", where / "copies") as recorder,
    ):

        def opened(files: Session, **named: bool) -> Writer:
            writer = become_writer(files, **named)
            sessions[writer] = files
            return writer

        def told(writer: Writer, chunk: Chunk) -> None:
            files = sessions[writer]
            if chunk.removal is not None:
                recorder.tell(without(Promise.of(Store(files)), files, chunk.removal))
            commit(writer, chunk)
            recorder.tell(Promise.of(Store(files)))

        patch.setattr(Session, "become_writer", opened)
        patch.setattr(Writer, "commit", told)
        yield recorder


def create(where: Path, recorder: Recorder, encoder: Path | str, name: str = "store") -> Path:
    """Make a store on a recorded disk, which is promised from then on."""
    path = where / "disk" / name
    with Store.open(path, create=True, encoder=str(encoder), limits=LIMITS) as made:
        recorder.tell(Promise.of(made))
    return path


@pytest.fixture(scope="module")
def life(room: Path, sources: Sources) -> Recorder:
    """A store is made, filled with rows and files, and filled further by the next writer."""
    where = room / "life"
    with recorded(where) as recorder:
        path = create(where, recorder, sources.encoder)
        with Store.open(path, limits=LIMITS) as opened:
            opened.ingest(sources.first, sources.photos, keep_pixels="yes")
        with Store.open(path, limits=LIMITS) as opened:
            opened.ingest(sources.second)
    return recorder


def empty_folder() -> DiskState:
    """A disk with an empty folder "store"."""
    disk = DiskState()
    disk.apply(Named("", (Entry(ROOT, "store", None, 1),), FOLDER))
    disk.apply(Synced("", ROOT))
    return disk


# --- replaying ------------------------------------------------------------------------------------


def missing(opened: Store, promise: Promise, rng: random.Random | None) -> Iterator[str]:
    """What of a promise is not kept, and what is damaged.

    With ``rng``, the newest images and some of the older ones are looked up, else all.
    """
    for problem in opened.check().problems:
        yield f"check: {problem.part}: {problem.what}"
    info = opened.info()
    vectors_ = promise.vectors - max(info.removed - promise.removed, 0)
    if info.images < len(promise.images) or info.vectors < vectors_:
        yield f"{info.images} images and {info.vectors} vectors are fewer than promised"
    if info.removed < promise.removed:
        yield "an image that was removed is back"
    if info.rejects < promise.rejects:
        yield "a reject is forgotten"
    if promise.encoder is not None and (info.encoder or {}).get("name") != promise.encoder:
        yield "the encoder is gone"
    ids = list(promise.images)
    looked_up = {*ids[-8:], *rng.sample(ids, min(len(ids), 4))} if rng else set(ids)
    for id_, names in promise.images.items():
        if not set(names) <= set(opened.sources(id_)):
            yield f"sources of image {id_} are gone"
        for name in names if id_ in looked_up else ():
            found = opened.lookup(name, tiers=["identical"]).identical
            if [(hit.id, hit.verified in ("bytes", "digest")) for hit in found] != [(id_, True)]:
                yield f"{name} is not found"


def goes_on(opened: Store, promise: Promise, sources: Sources, rng: random.Random) -> Iterator[str]:
    """What is wrong after a recovery, and after a further ingest."""
    opened.ingest(sources.nothing)  # takes the lock and recovers
    yield from missing(opened, promise, None)
    again = (
        [sources.first, sources.photos, sources.second] if EVERY == 1 or rng.random() < 0.2 else []
    )
    opened.ingest(*again, sources.more, encoder=str(sources.encoder))
    yield from missing(opened, Promise.of(opened), rng)
    last = f"{sources.more}#2"
    if [hit.sources for hit in opened.lookup(last, tiers=["identical"]).identical] != [(last,)]:
        yield "what was ingested last is not found"
    if [hit.sources for hit in opened.lookup(last, k=1, tiers=["similar"]).similar] != [(last,)]:
        yield "nor by its vector"


def damage(
    path: Path, promise: Promise | None, sources: Sources, rng: random.Random, *, write: bool
) -> Iterator[str]:
    """What is wrong with the store at ``path``; where none was promised, one can be made."""
    try:
        if promise is None:
            with Store.open(
                path, create=True, encoder=str(sources.encoder), limits=LIMITS
            ) as opened:
                yield from goes_on(opened, Promise.of(opened), sources, rng)
            return
        with Store.open(path, read_only=True) as reader:
            yield from missing(reader, promise, rng)
        if write:
            with Store.open(path, limits=LIMITS) as opened:
                yield from goes_on(opened, promise, sources, rng)
    except Exception as error:
        yield f"{type(error).__name__}: {error}".replace(str(path), path.name)


def cut(disk: DiskState, how: str, rng: random.Random) -> DiskState:
    """What is left of a disk: of its power being cut, or (``IN_ORDER``) of a kill."""
    if how == IN_ORDER:
        return disk.clone()
    return disk.after_power_cut(rng if how == SOME else None, last_name=how == LAST)


def points(recorder: Recorder, rng: random.Random) -> set[int]:
    """Before and after each commit, and some renames and unlinks; and a sample of the rest."""
    always = {0, len(recorder.events)}
    for number, event in enumerate(recorder.events, 1):
        moved = isinstance(event, Named) and event.kind is None and rng.randrange(MOVES) == 0
        if moved or isinstance(event, Committed | Told):
            always |= {number - 1, number}
    rest = sorted(set(range(len(recorder.events))) - always)
    return always | set(rng.sample(rest, min(BESIDES, len(rest))))


def after(recorder: Recorder, what: str, least: int = 0) -> tuple[int, DiskState]:
    """The first event, from number ``least`` on, that ends like this, and the disk after it."""
    for number, happened, disk in recorder.states():
        if number >= least and happened.endswith(what):
            return number, disk.clone()
    raise AssertionError(f"no event ends with {what!r}")


def promises(recorder: Recorder) -> list[int]:
    """The points right after something was told."""
    return [at for at, event in enumerate(recorder.events, 1) if isinstance(event, Told)]


def replay(
    recorder: Recorder,
    how: str,
    sources: Sources,
    where: Path,
    seed: int = 0,
    *,
    name: str = "store",
    at: Iterable[int] | None = None,
    every: int = EVERY,
) -> Iterator[str]:
    """What is wrong with the disks that are left at the points of a recording, or at some of them."""
    rng = random.Random(f"{how} {seed}")
    chosen = points(recorder, rng) if at is None else set(at)
    seen: set[bytes] = set()
    for number, what, disk in recorder.states():
        if number not in chosen:
            continue
        left = cut(disk, how, rng)
        if (signature := left.signature()) in seen:
            continue
        seen.add(signature)
        left.lay(where)
        write = (len(seen) + seed) % every == 0
        for problem in damage(where / name, left.promise, sources, rng, write=write):
            yield f"{how}, seed {seed}, {number} ({what}): {problem}"
        shutil.rmtree(where)
    assert seen, "nothing was replayed"


def none_of(problems: Iterator[str]) -> None:
    """Fail where there are problems, and show the first five."""
    shown = "\n".join(islice(problems, 5))
    assert not shown, f"\n{shown}"


# --- the recorder ---------------------------------------------------------------------------------


def test_a_disk_keeps_what_was_synced_and_draws_the_rest() -> None:
    disk = DiskState()
    disk.apply(Named("", (Entry(ROOT, "a", None, 1),), "file"))
    disk.apply(Wrote("", 1, b"old" * 400))
    assert dict(disk.walk()) == {"a": 1}
    assert dict(disk.after_power_cut(None).walk()) == {}, "its name was not synced"
    disk.apply(Synced("", ROOT))
    assert disk.after_power_cut(None).versions[1] == [b""], "its content was not"
    disk.apply(Synced("", 1))
    disk.apply(Wrote("", 1, b"new" * 800))
    disk.apply(Named("", (Entry(ROOT, "a", 1, None), Entry(ROOT, "b", None, 1))))
    cut_off = disk.after_power_cut(None)
    assert (dict(cut_off.walk()), cut_off.versions[1]) == ({"a": 1}, [b"old" * 400])
    drawn = [disk.after_power_cut(random.Random(seed)) for seed in range(100)]
    assert {name for left in drawn for name, _ in left.walk()} == {"a", "b"}
    assert all(len(dict(left.walk())) == 1 for left in drawn), "a rename is one step"
    contents = {left.versions[1][0] for left in drawn}
    assert {b"old" * 400, b"new" * 800} < contents
    assert {len(content) for content in contents} > {1200, 2400}, "lengths either way"
    assert any(content.endswith(bytes(100)) for content in contents), "zeros where nothing was"
    killed = disk.clone()
    disk.apply(Synced("", 1))
    assert killed.versions[1] == [b"old" * 400, b"new" * 800]
    assert disk.after_power_cut(None).versions[1] == [b"new" * 800]


def files_of(disk: DiskState) -> dict[str, bytes]:
    return {path: disk.versions[node][-1] for path, node in disk.walk() if node in disk.versions}


def test_the_recorder_sees_what_is_done_through_it_and_past_it(where: Path) -> None:
    with Recorder(empty_folder(), where / "disk", where / "copies") as recorder:
        store = recorder.root / "store"
        fd = recorder.open(store / "a", os.O_WRONLY | os.O_CREAT)
        recorder.pwrite(fd, b"abc", 1000)
        recorder.fdatasync(fd)
        recorder.ftruncate(fd, 1001)
        os.close(fd)
        recorder.mkdir(store / "folder")
        recorder.mkdir(store / "folder" / "deep")
        (store / "folder" / "b").write_bytes(b"past it")
        recorder.rename(store / "a", store / "folder" / "c")
        with (store / "folder" / "b").open("r+b") as file:
            file.truncate(4)
        recorder.rename(store / "folder", store / "moved")
        recorder.mkdir(store / "gone")
        (store / "gone" / "d").write_bytes(b"d")
        recorder.unlink(store / "gone" / "d")
        recorder.rmdir(store / "gone")
        (store / "moved" / "b").open("ab").write(b"!")
    assert [event.what for event in recorder.events] == [
        "open: store/a",
        "pwrite: store/a from 1000 to 1003",
        "fdatasync: store/a",
        "ftruncate: store/a",
        "mkdir: store/folder",
        "mkdir: store/folder/deep",
        "past it: store/folder/b",  # its name, then its content
        "past it: store/folder/b",
        "rename: store/a → store/folder/c",
        "past it: store/folder/b",
        "rename: store/folder → store/moved",
        "mkdir: store/gone",
        "past it: store/gone/d",
        "past it: store/gone/d",
        "unlink: store/gone/d is gone",
        "rmdir: store/gone is gone",
        "after the end: store/moved/b",
    ]
    *_, (_, _, disk) = recorder.states()
    assert files_of(disk) == {"store/moved/b": b"past!", "store/moved/c": bytes(1000) + b"a"}
    assert dict(disk.after_power_cut(None).walk()) == {"store": 1}
    disk.lay(where / "again")
    there = {str(path.relative_to(where / "again")) for path in (where / "again").rglob("*")}
    assert there == {"store", "store/moved", "store/moved/b", "store/moved/c", "store/moved/deep"}


@pytest.mark.slow
def test_the_recording_has_met_every_edge(life: Recorder) -> None:
    assert life.unsynced_commits == 0, "RocksDB was told to sync each commit"
    happened = [event.what for event in life.events]
    for family in ("pixels", "fingerprints", "vectors/1"):
        assert sum(f"open: store/{family}/0000000" in what for what in happened) >= 2
    assert sum(what.endswith("→ store/MANIFEST.json") for what in happened) >= 10
    assert any("unlink: store/index/00000002.ivf is gone" in what for what in happened)
    assert sum(isinstance(event, Committed) for event in life.events) >= 8
    # Only these are not written through the disk; of all else, the order of single calls is known.
    past = {what.removeprefix("past it: ") for what in happened if what.startswith("past it")}
    assert {re.sub(r"\d{8}", "N", re.sub(r"\.store\.\w+", "made", what)) for what in past} == {
        "made.new/keys",
        "store/rejects.jsonl",
    }
    *_, (_, _, disk) = life.states()
    assert files_of(disk) == {
        str(path.relative_to(life.root)): path.read_bytes()
        for path in life.root.rglob("*")
        if path.is_file() and path.parent.name != "keys"
    }
    assert disk.promise.encoder == "tiny"
    assert disk.promise.vectors == len(disk.promise.images) == 26 + 4 + 30
    assert disk.promise.rejects == 1


# --- one power cut --------------------------------------------------------------------------------


@pytest.mark.usual("how")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "seed"), [(SYNCED, 0), (LAST, 0), (IN_ORDER, 0), *((SOME, seed) for seed in SEEDS)]
)
def test_a_power_cut_loses_nothing_that_was_told_of(
    life: Recorder, sources: Sources, where: Path, how: str, seed: int
) -> None:
    none_of(replay(life, how, sources, where / "disk", seed))


@pytest.mark.usual
@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_a_store_that_was_not_finished_can_be_made_again(
    life: Recorder, sources: Sources, where: Path, how: str
) -> None:
    told, _ = after(life, "told")
    none_of(replay(life, how, sources, where / "disk", at=range(told)))


@pytest.fixture(scope="module")
def upkeep(room: Path, sources: Sources) -> Recorder:
    """Images are removed and their room given back, twice; between, the next writer adds some."""
    where = room / "upkeep"
    with recorded(where) as recorder:
        path = create(where, recorder, sources.encoder)
        with Store.open(path, limits=LIMITS) as opened:
            opened.ingest(sources.first, sources.photos, keep_pixels="yes")
            opened.remove(ids=[*range(1, 9), 15, 27, 28])
            opened.optimize()
        with Store.open(path, limits=LIMITS) as opened:
            opened.ingest(sources.second)
            opened.remove(ids=range(9, 40, 2))
            opened.optimize()
    return recorder


@pytest.mark.slow
def test_the_upkeep_has_met_every_edge(upkeep: Recorder) -> None:
    happened = [event.what for event in upkeep.events]
    assert sum(bool(re.search(r"unlink: store/pixels/\d+.blobs is gone", w)) for w in happened) > 4
    # The index and the vectors, laid out anew in a folder of their own, got their places.
    for place in (r"index/\d+.ivf", r"vectors/1/\d+.f32", r"vectors/1/\d+.ids"):
        assert sum(bool(re.search(f"→ store/{place}$", w)) for w in happened) >= 2
    *_, (_, _, disk) = upkeep.states()
    assert disk.promise.removed == 11 + 14
    assert upkeep.unsynced_commits == 0


@pytest.mark.usual("how")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "seed"), [(SYNCED, 0), (LAST, 0), (IN_ORDER, 0), *((SOME, seed) for seed in SEEDS)]
)
def test_a_power_cut_during_a_removal_or_an_optimize_loses_nothing(
    upkeep: Recorder, sources: Sources, where: Path, how: str, seed: int
) -> None:
    none_of(replay(upkeep, how, sources, where / "disk", seed))


@pytest.fixture(scope="module")
def adoption(room: Path, sources: Sources) -> Recorder:
    """A store without an encoder takes its first one."""
    where = room / "adoption"
    with recorded(where) as recorder:
        path = create(where, recorder, "none")
        with Store.open(path, limits=LIMITS) as opened:
            opened.ingest(sources.photos)
            opened.ingest(sources.first, encoder=str(sources.encoder))
    return recorder


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_an_encoder_is_adopted_whole_or_not_at_all(
    adoption: Recorder, sources: Sources, where: Path, how: str
) -> None:
    begun, _ = after(adoption, "mkdir: store/encoder")
    told, _ = after(adoption, "told", begun)
    at = range(begun - 1, told + 1)
    none_of(replay(adoption, how, sources, where / "disk", at=at))


@pytest.fixture(scope="module")
def made_in_place(room: Path, sources: Sources) -> Recorder:
    """An empty folder becomes a store."""
    where = room / "made"
    with recorded(where, empty_folder()) as recorder:
        create(where, recorder, sources.encoder)
    return recorder


@pytest.mark.usual
@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_an_empty_folder_that_did_not_become_a_store_still_can(
    made_in_place: Recorder, sources: Sources, where: Path, how: str
) -> None:
    became, _ = after(made_in_place, "→ store/MANIFEST.json")
    none_of(replay(made_in_place, how, sources, where / "disk", at=range(became)))


@pytest.mark.slow
@pytest.mark.parametrize("how", [SYNCED, IN_ORDER])
def test_an_empty_folder_that_became_a_store_can_be_written(
    made_in_place: Recorder, sources: Sources, where: Path, how: str
) -> None:
    became, _ = after(made_in_place, "→ store/MANIFEST.json")
    at = range(became + (how == SYNCED), len(made_in_place.events) + 1)
    none_of(replay(made_in_place, how, sources, where / "disk", at=at, every=1))


@pytest.mark.slow
def test_new_folders_above_a_store_are_as_durable_as_it(sources: Sources, where: Path) -> None:
    with recorded(where) as recorder:
        create(where, recorder, "none", "new/folders/store")
    none_of(replay(recorder, SYNCED, sources, where / "left", name="new/folders/store"))


# --- one crash after another ----------------------------------------------------------------------


def next_writer(begun: DiskState, sources: Sources, where: Path) -> Recorder:
    """Record the writer that comes after a crash."""
    with (
        recorded(where, begun) as recorder,
        Store.open(where / "disk" / "store", limits=LIMITS) as opened,
    ):
        opened.ingest(sources.second)
    return recorder


def any_point(recorder: Recorder, rng: random.Random) -> DiskState:
    """The disk at some point after the store was told of."""
    found = [disk.clone() for _, _, disk in recorder.states() if disk.promise is not None]
    return rng.choice(found)


@pytest.mark.usual
@pytest.mark.slow
@pytest.mark.parametrize("first", [SYNCED, SOME, IN_ORDER])
def test_a_power_cut_after_another_crash_loses_nothing_either(
    life: Recorder, sources: Sources, where: Path, first: str
) -> None:
    for seed in SEEDS:
        rng = random.Random(f"{first} {seed}")
        begun = cut(any_point(life, rng), first, rng)
        recorder = next_writer(begun, sources, where / f"next{seed}")
        for how in HOW:
            every = range(len(recorder.events) + 1)
            at = [*rng.sample(every, sized(6, 40)), *promises(recorder)]
            none_of(replay(recorder, how, sources, where / "disk", seed, at=at))


@pytest.mark.slow
def test_an_extent_that_a_crash_left_without_data_stays_whole(
    life: Recorder, sources: Sources, where: Path
) -> None:
    created, _ = after(life, "open: store/pixels/00000002.blobs")
    renamed, _ = after(life, "→ store/MANIFEST.json", created)
    _, begun = after(life, "fsync: store", renamed)
    recorder = next_writer(begun, sources, where / "next")
    committed, _ = after(recorder, "commit")
    none_of(replay(recorder, IN_ORDER, sources, where / "disk", at=range(committed)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mkdir: store/vectors/1", "→ store/MANIFEST.json", "→ store"])
def test_names_that_a_killed_writer_did_not_sync_are_synced_by_the_next(
    life: Recorder, sources: Sources, where: Path, name: str
) -> None:
    # Of the manifest's renames, the last one before any data are committed.
    used, _ = after(life, "open: store/vectors/1/00000001.ids")
    _, begun = after(life, name, used if name.endswith("json") else 0)
    assert begun.pending
    recorder = next_writer(begun, sources, where / "next")
    none_of(replay(recorder, SYNCED, sources, where / "disk", at=promises(recorder)))


# --- without a sync -------------------------------------------------------------------------------


class Unsynced:
    """An open RocksDB that is never told to sync."""

    def __init__(self, db: Any) -> None:
        self._db = db

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def write(self, batch: Any, options: Any) -> None:
        options.sync = False
        self._db.write(batch, options)


def no_names(module: Any, *last: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Without ``fsync_dir`` in a module, of folders with these names (or ends of names)."""
    real = module.fsync_dir

    def some(path: Path) -> None:
        if not path.name.endswith(last):
            real(path)

    return lambda patch: patch.setattr(module, "fsync_dir", some)


def no_sync(of: str) -> Callable[[pytest.MonkeyPatch], None]:
    """On a disk without the syncs that are recorded under these names."""
    return lambda patch: patch.setattr(Recorder, "left_out", re.compile(of))


def while_in(
    module: Any, name: str, change: Callable[[pytest.MonkeyPatch], None]
) -> Callable[[pytest.MonkeyPatch], None]:
    """A change that holds only while a function of a module runs."""
    real = getattr(module, name)

    def changed(*arguments: Any, **named: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            change(patch)
            return real(*arguments, **named)

    return lambda patch: patch.setattr(module, name, changed)


def no_batches(patch: pytest.MonkeyPatch) -> None:
    real = opening.Rdict
    patch.setattr(opening, "Rdict", lambda *args, **named: Unsynced(real(*args, **named)))


IN_PLACE, NEW, ADOPTED = "made in place", "new", "with its first encoder later"
SYNCS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "appended data": (NEW, no_sync(r"fdatasync: .*")),
    "a commit": (NEW, no_batches),
    "an extent's header": (NEW, no_sync(r"fsync: .*\.(blobs|pdq|f32|ids)")),
    "an extent's name": (NEW, no_names(extents, "pixels", "fingerprints", "1")),
    "a folder of extents": (NEW, no_names(extents, "store")),
    "a folder of vectors": (NEW, no_names(extents, "vectors")),
    "a replaced file": (NEW, no_sync(r"fsync: .*/\.[^/]+\.\d+\.new")),
    "a replaced file's name": (NEW, no_names(durable, "")),
    "a segment": (NEW, no_sync(r"fsync: .*\.ivf")),
    "a segment's name": (NEW, while_in(segment_writer, "write_new", no_names(durable, "index"))),
    "a quantizer": (NEW, no_sync(r"fsync: .*\.quantizer")),
    "the folder of segments": (NEW, no_names(index_files, "store")),
    "a new store's name": (NEW, no_names(create_, "disk")),
    "parts moved in place": (IN_PLACE, no_names(create_, "store")),
    "the encoder's folders": (NEW, no_names(encoder_files, "encoder")),
    "the encoder's folder": (ADOPTED, no_names(encoder_files, "store")),
}


def losses(kind: str, sources: Sources, where: Path) -> Iterator[str]:
    """What power cuts do to a small store: where it was told of, and around the manifest's renames."""
    with recorded(where, empty_folder() if kind == IN_PLACE else None) as recorder:
        path = create(where, recorder, "none" if kind == ADOPTED else sources.encoder)
        with Store.open(path, limits=LIMITS) as opened:
            opened.ingest(sources.first, encoder=str(sources.encoder))
    told = promises(recorder)
    renamed = [
        number
        for number, event in enumerate(recorder.events, 1)
        if (number >= told[0] or kind == IN_PLACE) and event.what.endswith("→ store/MANIFEST.json")
    ]
    # The likeliest first, for a loss that is found ends the test.
    for how, at in [
        (SYNCED, told[-1:]),
        (SYNCED, told[:1]),
        (SYNCED, [number + 1 for number in renamed]),
        (LAST, renamed),
    ]:
        yield from replay(recorder, how, sources, where / "left", at=at, every=1 << 30)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [NEW, IN_PLACE, ADOPTED])
def test_with_every_sync_nothing_is_lost(kind: str, sources: Sources, where: Path) -> None:
    none_of(losses(kind, sources, where))


@pytest.mark.slow
@pytest.mark.parametrize("what", SYNCS)
def test_without_any_one_sync_something_is(what: str, sources: Sources, where: Path) -> None:
    """The recorder has teeth, and the engine no sync that does nothing."""
    kind, leave_out = SYNCS[what]
    with pytest.MonkeyPatch.context() as patch:
        leave_out(patch)
        found = next(losses(kind, sources, where), None)
    assert found is not None


# --- what the system is asked for -----------------------------------------------------------------


def child(path: str, encoder: str, *what: str) -> None:
    """Make a store and fill it, telling of each commit."""
    report_commits(lambda writer, chunk: print("told", flush=True))
    with Store.open(path, create=True, encoder=encoder, limits=LIMITS) as opened:
        opened.ingest(*what)


if __name__ == "__main__":
    child(*sys.argv[1:])


@dataclass(frozen=True)
class Call:
    """One system call of a trace: ``path`` is its descriptor's, or its last argument's."""

    name: str
    path: Path
    text: str  # all of its arguments

    @property
    def creates(self) -> bool:
        return self.name == "openat" and "O_CREAT" in self.text


def calls(trace: str) -> Iterator[Call]:
    """What a trace says was done, a call that others interrupted where it counts.

    That is where it began if it writes, and where it returned if it is a sync.
    """
    begun: dict[str, str] = {}
    for line in trace.splitlines():
        thread, _, rest = line.partition(" ")
        rest = rest.strip()
        writes = rest.startswith(("write(", "pwrite64("))
        if rest.endswith("<unfinished ...>"):
            begun[thread] = rest = rest.removesuffix("<unfinished ...>")
            if not writes:
                continue
        elif resumed := re.match(r"<\.\.\. \w+ resumed>", rest):
            rest = begun.pop(thread, "") + rest[resumed.end() :]  # a test leaves out lines
            if rest.startswith(("write(", "pwrite64(")):
                continue
        name, _, text = rest.partition("(")
        if not name.isidentifier() or re.search(r"= -1 E[A-Z]+", text):
            continue
        writes = name in ("write", "pwrite64")
        named = re.findall(r'(?:<([^>]*)>, )?"([^"]*)"', text) if not writes else []
        opened = re.search(r"= \d+<(.*)>$", text)
        if opened:
            yield Call(name, Path(opened[1]), text)
        elif named:  # in a folder that is open, or by its whole path
            folder, last = named[-1]
            yield Call(name, Path(folder, last), text)
        elif by_fd := re.match(r"\d+<([^>]*)>", text):
            yield Call(name, Path(by_fd[1]), text)


def disorder(trace: str, path: Path) -> Iterator[str]:
    """Where a trace of a writer breaks the order that a commit rests on."""
    unsynced: set[Path] = set()  # files with bytes that are not synced
    unnamed: set[Path] = set()  # files and folders whose name is not
    new: set[Path] = set()  # extents and segments that no manifest names yet
    counts = dict.fromkeys(("commits", "told", "manifests", "extents", "segments"), 0)
    for call in calls(trace):
        at = call.path
        in_keys = path / "keys" in at.parents
        if call.name == "write" and '"told' in call.text:
            counts["told"] += 1
            yield from (f"told before {at.name} is synced" for at in sorted(unsynced | unnamed))
        if at != path and path not in at.parents:
            continue
        is_wal = in_keys and at.suffix == ".log"
        is_data = at.suffix in (".blobs", ".pdq", ".f32", ".ids")
        if (in_keys and not is_wal) or at.name in ("LOCK", "COMMIT", "rejects.jsonl"):
            continue  # RocksDB's own business, or not what counts
        if call.creates or call.name in ("mkdir", "mkdirat"):
            unnamed.add(at)
            if is_data or at.suffix == ".ivf":
                new.add(at)
                counts["extents" if is_data else "segments"] += 1
        elif call.name in ("write", "pwrite64"):
            unsynced.add(at)
            if is_wal:
                late = {one for one in (unsynced | unnamed) - {at} if one.suffix != ".log"}
                yield from (f"{one.name} is synced after the log is written" for one in late)
            if is_data and not re.search(rf", {HEADER_BYTES}, 0\b", call.text):  # its header
                if at in new:
                    yield f"{at.name} is written to before the manifest names it"
                if path / "MANIFEST.json" in unnamed:
                    yield f"{at.name} is written to before the manifest is synced"
        elif call.name in ("fsync", "fdatasync"):
            counts["commits"] += is_wal
            unsynced.discard(at)
            unnamed -= {one for one in unnamed if one.parent == at}
        elif call.name.startswith("rename") and at == path / "MANIFEST.json":
            counts["manifests"] += 1
            before = {one for one in unnamed if one.suffix == ".new"}
            unnamed -= before  # the name that it had is no more
            late = {one for one in unsynced if one in new or one in before} | unnamed
            yield from (f"{one.name} is synced after the manifest names it" for one in late)
            unsynced -= before
            unnamed.add(at)
            new.clear()
    yield from (f"no {what} were seen" for what, count in counts.items() if not count)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, sources: Sources) -> tuple[str, Path]:
    """The system calls of a writer, and its store."""
    strace = shutil.which("strace")
    where = tmp_path_factory.mktemp("traced").resolve()
    log, path = where / "trace", where / "store"
    if strace is None or subprocess.run([strace, "-f", "-o", log, "true"], check=False).returncode:
        pytest.skip("there is no strace, or it is not permitted")
    names = "openat,mkdir,mkdirat,write,pwrite64,fsync,fdatasync,"
    names += "rename,renameat,renameat2,unlink,unlinkat"
    command = [strace, "-f", "-y", "-s", "8", "-o", log, "-e", f"trace={names}"]
    program = [sys.executable, __file__, path, sources.encoder, sources.first, sources.photos]
    done = subprocess.run(
        [*command, *program],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0
    return log.read_text(), path


@pytest.mark.slow
def test_the_system_is_asked_to_sync_in_the_order_of_a_commit(traced: tuple[str, Path]) -> None:
    none_of(disorder(*traced))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sync", "what"),
    [
        (r"fdatasync\(.*\.blobs>", "00000001.blobs is synced after the log is written"),
        (r"fdatasync\(.*\.log>", "told before .*log is synced"),
        (r"fsync\(.*/store/keys>", "told before .*log is synced"),
        (r"fsync\(.*\.f32>", "00000001.f32 is synced after the manifest names it"),
        (r"fsync\(.*/vectors/1>", "00000001.f32 is synced after the manifest names it"),
        (r"fsync\(.*/vectors>", "1 is synced after the manifest names it"),
        (r"fsync\(.*\.ivf>", "00000002.ivf is synced after the manifest names it"),
        (r"fsync\(.*/index>", "00000002.ivf is synced after the manifest names it"),
        (r"fsync\(.*\.new>\)", r"\.MANIFEST.*\.new is synced after the manifest names it"),
        (r"fsync\(.*/store>", "written to before the manifest is synced"),
    ],
    ids=lambda text: re.sub(r"[^a-z0-9/.]+", " ", text).strip(),
)
def test_a_trace_without_a_sync_is_found_out(
    traced: tuple[str, Path], sync: str, what: str
) -> None:
    trace, path = traced
    fewer = "".join(line for line in trace.splitlines(True) if not re.search(sync, line))
    assert fewer != trace
    assert any(re.search(what, problem) for problem in disorder(fewer, path))
