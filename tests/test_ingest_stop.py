"""A run that is to stop: what is finished is committed, and the next run goes on from there."""

import io
import json
import tarfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import encoded, picture

from engine import IngestReport, Store
from engine.config import Limits, MemoryBudget
from engine.encoders.onnx import OnnxEncoder
from engine.images import hashing
from engine.ingest.stopping import Stopping
from engine.ingest.workers import Preparing
from engine.sources.skip_notes import HARD_LINKS, WITHOUT_METADATA
from engine.storage.ballast import NoRoomError
from engine.storage.changeset import Chunk
from engine.storage.writer import Writer

# Two of them are the same image; one claims to be an image, one does not.
SEEDS = [0, 1, 2, 1, 3, 4, 5, 6]
FILES = {f"{at}.png": encoded(picture(seed)) for at, seed in enumerate(SEEDS)}
FILES |= {"15.png": b"\x89PNG\r\n\x1a\n", "16.txt": b"text"}


def folder(where: Path) -> Path:
    path = where / "folder"
    path.mkdir()
    for name, data in FILES.items():
        (path / name).write_bytes(data)
    return path


def archive(where: Path) -> Path:
    path = where / "archive.tar"
    # What is no image lies between them: what is gone on from counts it.
    order = ["0.png", "16.txt", "1.png", "15.png", *(f"{at}.png" for at in range(2, len(SEEDS)))]
    with tarfile.open(path, "w") as tar:
        for name in order:
            info = tarfile.TarInfo(name)
            info.size = len(FILES[name])
            tar.addfile(info, io.BytesIO(FILES[name]))
    return path


def rows(where: Path) -> Path:
    np.save(where / "rows.npy", np.stack([picture(seed) for seed in SEEDS]))
    return where / "rows.npy"


def collisions(where: Path) -> Path:
    return rows(where)


def places(store: Store) -> dict[int, set[str]]:
    """Where each image was seen, by its seed."""
    found = {}
    for seed in set(SEEDS):
        hits = store.lookup(picture(seed), tiers=["identical"]).identical
        assert len(hits) <= 1
        found[seed] = {source for hit in hits for source in store.sources(hit.id)}
    return found


class Slow:
    """One image takes for ever to prepare; how many others are prepared."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.go_on = threading.Event()
        self.done = 0

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        prepare, begin = Preparing.prepare, Preparing.begin

        def slowly(run: Preparing, item: Any) -> Any:
            if item.name.endswith(self.name.encode()):
                self.go_on.wait()
            return prepare(run, item)

        def counted(run: Preparing, pool: ThreadPoolExecutor, items: Iterable[Any]) -> list[Any]:
            begun = begin(run, pool, items)
            for _, future in begun:
                future.add_done_callback(self._count)
            return begun

        patch.setattr(Preparing, "prepare", slowly)
        patch.setattr(Preparing, "begin", counted)

    def _count(self, future: "Future[Any]") -> None:
        self.done += not future.cancelled()


@pytest.fixture
def slow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    found = Slow(request.param)
    found.patch(monkeypatch)
    yield found
    found.go_on.set()  # else its thread would keep the tests from ending


@pytest.mark.parametrize("slow", ["/0.png"], indirect=True)
def test_an_image_that_takes_for_ever_is_not_waited_for(tmp_path: Path, slow: Slow) -> None:
    source = folder(tmp_path)
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        report = store.ingest(source, workers=2, stop=lambda: slow.done >= len(SEEDS))
        assert report.interrupted
        assert (report.added, report.duplicates, report.rejected) == (6, 1, 1)
        assert places(store)[0] == set()
        assert store.check().ok
        slow.go_on.set()
        report = store.ingest(source, workers=2)
        assert (report.added, report.unchanged, report.rejected) == (1, 7, 1)
        assert places(store)[0] == {f"{source}/0.png"}


@pytest.mark.parametrize("slow", ["#3.png"], indirect=True)
def test_of_an_archive_what_comes_before_it_is_committed(tmp_path: Path, slow: Slow) -> None:
    source = archive(tmp_path)
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        report = store.ingest(source, workers=2, stop=lambda: slow.done >= len(SEEDS))
        assert report.interrupted
        assert (report.added, report.rejected, report.skipped) == (3, 1, 1)
        assert store.check().ok
        slow.go_on.set()
        report = store.ingest(source)
        assert (report.added, report.duplicates, report.unchanged) == (4, 1, 3)
        assert (report.rejected, report.skipped) == (1, 1)
        assert places(store)[1] == {f"{source}#1.png", f"{source}#3.png"}
        assert store.check().ok


@pytest.mark.slow
@pytest.mark.parametrize("make", [folder, archive, rows, collisions])
def test_what_is_encoded_by_then_is_committed(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    if make is collisions:
        key = b"\x07" * hashing.KEY_BYTES
        monkeypatch.setattr(hashing, "key", lambda canonical, seed: key)
        monkeypatch.setattr(hashing, "keys", lambda rows, seed: [key for _ in rows])
    monkeypatch.setattr(MemoryBudget, "encode_batch", 2)
    encoded = 0
    encode = OnnxEncoder.encode

    def counted(encoder: OnnxEncoder, pictures: Any, stop: Any = None) -> Any:
        nonlocal encoded
        vectors = encode(encoder, pictures)
        encoded += len(pictures)
        return vectors

    monkeypatch.setattr(OnnxEncoder, "encode", counted)
    source = make(tmp_path)
    with Store.open(tmp_path / "whole", create=True, encoder=str(tiny_encoder)) as whole:
        whole.ingest(source)
        expected = places(whole)
    encoded = 0
    at_once, encoder = Limits(finishing_seconds=0.0), str(tiny_encoder)
    with Store.open(tmp_path / "store", create=True, encoder=encoder, limits=at_once) as store:
        report = store.ingest(source, stop=lambda: encoded >= 4)
        assert report.interrupted and report.added == 4
        assert (store.info().images, store.info().vectors) == (4, 4)
        assert store.check().ok
        report = store.ingest(source)
        assert report.added == 3 and report.seen == len(SEEDS) + (make in (folder, archive))
        assert places(store) == expected
        for seed in set(SEEDS):
            hits = store.lookup(picture(seed), k=1, tiers=["similar"]).similar
            assert [hit.id for hit in hits] == [
                hit.id for hit in store.lookup(picture(seed), tiers=["identical"]).identical
            ]
        assert store.check().ok


# Of every kind, in an order in which each group of three has some of them.
MIXED = [
    ("0.png", encoded(picture(0))),
    ("a.txt.gz", b"no image"),
    ("1.png", encoded(picture(1))),
    ("1.json", b"{"),
    ("0.png", encoded(picture(2))),  # another image of a name that is there
    ("link.png", None),
    ("broken.png", FILES["15.png"]),
    ("broken.cls", b"\xff"),  # of no image that is taken in
    ("copy.png", encoded(picture(0))),
    ("1.png", encoded(picture(1))),  # the same once more
    ("4.png", FILES["15.png"]),  # broken, and a whole one of its name comes later
    ("3.png", encoded(picture(3))),
    ("3.json", b'{"label": 3}'),
    ("4.png", encoded(picture(4))),
    ("4.cls", b"\xff"),
    ("5.png", encoded(picture(5))),
    ("end.txt.gz", b"no image"),
]
# Without the sidecars 13 members: 10 seen and 3 skipped.
ADDED, DUPLICATES, UNCHANGED, REJECTED, SKIPPED = 5, 1, 1, 3, 3
NOTES = {WITHOUT_METADATA: 2, HARD_LINKS: 1}


def mixed(where: Path) -> Path:
    path = where / "mixed.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in MIXED:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = tarfile.LNKTYPE, "0.png"
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data or b""))
    return path


def counts_of(report: IngestReport) -> tuple[int, ...]:
    counts = (report.added, report.duplicates, report.unchanged, report.rejected, report.skipped)
    assert report.seen == sum(counts[:4])
    return counts


def is_whole(store: Store, source: Path) -> bool:
    """Whether each member is in once, and the archive counts as read with the right numbers."""
    assert {seed: places(store)[seed] for seed in (0, 1, 3, 4, 5)} == {
        0: {f"{source}#0.png", f"{source}#copy.png"},
        **{seed: {f"{source}#{seed}.png"} for seed in (1, 3, 4, 5)},
    }
    assert not store.lookup(picture(2), tiers=["identical"]).identical
    row = store.session.snapshot.archive(bytes(source))
    assert row is not None and row.complete
    assert (row.done, row.images, row.rejected, row.skipped) == (
        len(MIXED) - 4,
        ADDED + DUPLICATES + UNCHANGED,
        REJECTED,
        SKIPPED,
    )
    done: list[int] = []
    again = store.ingest(source, progress=lambda done_, total: done.append(done_))
    assert counts_of(again) == (0, 0, ADDED + DUPLICATES + UNCHANGED, REJECTED, SKIPPED)
    assert done[-1] == len(MIXED) - 4
    lines = map(json.loads, (store.path / "rejects.jsonl").read_text().splitlines())
    sources = sorted(
        line["source"].rpartition("#")[2] for line in lines if "taken" in line["reason"]
    )
    assert sources == ["1.png", "4.png"]
    return store.check().ok


@pytest.mark.slow
@pytest.mark.parametrize("at", range(10))
def test_an_archive_that_was_stopped_anywhere_is_gone_on_with_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    source = mixed(tmp_path)
    prepared = 0
    stopped = False

    def ready(run: Stopping, future: "Future[Any]") -> bool:
        nonlocal prepared, stopped
        prepared += 1
        stopped = stopped or prepared > at
        return not stopped and future.exception() is None

    path, limits = tmp_path / "store", Limits(chunk_files=3)
    with Store.open(path, create=True, encoder="none", limits=limits) as store:
        with monkeypatch.context() as patch:
            patch.setattr(Stopping, "ready", ready)
            first = store.ingest(source, stop=lambda: stopped)
        assert first.interrupted == stopped
        done: list[int] = []
        second = store.ingest(source, progress=lambda done_, total: done.append(done_))
        assert not second.interrupted and done[-1] == len(MIXED) - 4
        # The second one counts what the first one did as unchanged.
        assert first.added + second.added == ADDED
        assert second.seen == ADDED + DUPLICATES + UNCHANGED + REJECTED
        assert (second.rejected, second.skipped) == (REJECTED, SKIPPED)
        notes = {key: first.notes.get(key, 0) + second.notes.get(key, 0) for key in NOTES}
        assert notes == NOTES
        assert is_whole(store, source)


@pytest.mark.slow
@pytest.mark.parametrize("at", range(0, 24, 2))
def test_a_run_that_is_told_to_stop_only_once_is_gone_on_with(tmp_path: Path, at: int) -> None:
    source = mixed(tmp_path)
    asked = 0

    def once() -> bool:
        nonlocal asked
        asked += 1
        return asked == at + 1

    path, limits = tmp_path / "store", Limits(chunk_files=3)
    with Store.open(path, create=True, encoder="none", limits=limits) as store:
        first = store.ingest(source, stop=once)
        assert first.interrupted == (asked > at)
        second = store.ingest(source)
        assert not second.interrupted
        assert first.added + second.added == ADDED
        assert second.seen == ADDED + DUPLICATES + UNCHANGED + REJECTED
        assert is_whole(store, source)


@pytest.mark.slow
@pytest.mark.parametrize("breaks", [None, 0, 4, 5, 6, 7, 8, 9, 10])
def test_an_archive_whose_chunks_do_not_fit_the_disk_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: int | None
) -> None:
    source = mixed(tmp_path)
    commit = Writer.commit
    tried = 0

    def small_disk(files: Writer, chunk: Chunk) -> None:
        nonlocal tried
        tried += bool(chunk.names)
        # Once it stands half done: then not even the smallest part of it fits.
        if len(chunk.names) > 1 or (breaks is not None and tried > breaks):
            raise NoRoomError("no room")
        commit(files, chunk)

    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        done: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(Writer, "commit", small_disk)
            if breaks is not None:
                with pytest.raises(NoRoomError):
                    store.ingest(source)
            else:
                report = store.ingest(source, progress=lambda done_, total: done.append(done_))
                assert counts_of(report) == (ADDED, DUPLICATES, UNCHANGED, REJECTED, SKIPPED)
                assert report.notes == NOTES
                assert done[-1] == len(MIXED) - 4
    with Store.open(tmp_path / "store") as store:
        if breaks is not None:
            assert len(store) < ADDED + 1
            report = store.ingest(source)
            assert report.seen == ADDED + DUPLICATES + UNCHANGED + REJECTED
            assert (report.rejected, report.skipped) == (REJECTED, SKIPPED)
        assert is_whole(store, source)
