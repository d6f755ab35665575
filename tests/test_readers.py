"""Readers beside a live writer, each in a process of its own: whole commits, no error, no waiting.

The child writes with memtables of a few kilobytes, so that RocksDB flushes and compacts all the time,
and tells of each commit once it has returned. What it told of before a store was opened here has to
be there. This file is also the child's program.
"""

from __future__ import annotations

import bisect
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import SILENCE, Lines, report_commits, small_tables, until_input_ends
from helpers import sized
from PIL import Image

from engine import Store, StoreError, StoreLockedError
from engine.config import Limits
from engine.storage.changeset import Chunk
from engine.storage.rocks import open_reader, opening
from engine.storage.writer import Writer as StoreWriter

pytestmark = pytest.mark.slow

OPENS = int(os.environ.get("ENGINE_READER_OPENS", sized(100, 1000)))
ROWS = 40  # of each array
# Bytes, of all tables together: a flush every few commits.
WRITE_BUFFERS = int(os.environ.get("ENGINE_WRITER_BUFFERS", str(16 << 20)))
PAUSE = float(os.environ.get("ENGINE_WRITER_PAUSE", "0.01"))  # seconds between two commits
STOPS = 30
QUICK_OPENS = 25
MOST_COMMITS = 10_000  # minutes of them; a hundred suffice
IDENTICAL = ["identical"]


# Chunks, extents and segments of a few rows.
LIMITS = Limits(
    chunk_files=2, chunk_rows=10, unindexed_rows=100, extent_rows=500, extent_bytes=20_000
)


def mask(number: int, row: int) -> np.ndarray:
    """Row ``row`` of array ``number``, as far as there is one behind its last."""
    draw = np.random.default_rng([number, row])
    return draw.integers(0, 2, (8, 8, 3)).astype(np.bool_)


def same(row: int) -> int:
    """The row that a row looks like: every fifth is the one before it again."""
    return row - (row % 5 == 4)


# --- the child ------------------------------------------------------------------------------------


def write(store: str, folder: str) -> None:
    """Ingest an array and three pictures, and more of them until standard input ends."""
    small_tables(pytest.MonkeyPatch(), WRITE_BUFFERS)
    stop = until_input_ends()
    with Store.open(store, limits=LIMITS) as opened:

        def report(files: StoreWriter, chunk: Chunk) -> None:
            names = [new.name.decode() for new in chunk.names]
            arrays = [(name.decode(), array.rows) for name, array in chunk.arrays]
            if names or arrays:
                print(json.dumps([len(opened), names, arrays]), flush=True)
                time.sleep(PAUSE)

        report_commits(report)
        number = 0
        while not stop.is_set():
            array = Path(folder, f"{number}.npy")
            np.save(array, np.stack([mask(number, same(row)) for row in range(ROWS)]))
            pictures = []
            for row in range(ROWS - 1, ROWS + 2):  # the array's last row, and two that it has not
                pictures.append(Path(folder, f"{number}-{row}.png"))
                bits = mask(number, same(row)).astype(np.uint8) * 255
                Image.fromarray(bits).save(pictures[-1])
            opened.ingest(array, *pictures, stop=stop.is_set)
            number += 1


def write_when_told(store: str) -> None:
    """Try to write once a line comes, say how it went, and hold what was got until the next line."""
    with Store.open(store) as opened:
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            opened.ingest("synthetic:bits?n=1")
        except StoreLockedError as error:
            print(f"locked: {error}", flush=True)
        else:
            print("wrote", flush=True)
        sys.stdin.readline()


def read(store: str, query: str) -> None:
    """Do what can be done with a store that nobody may write."""
    try:
        Path(store, "new").touch()
    except OSError:
        pass
    else:
        raise AssertionError("it can be written")
    for read_only in (True, False):
        with Store.open(store, read_only=read_only) as opened:
            (hit,) = opened.lookup(query, tiers=IDENTICAL).identical
            assert hit.sources == (query,)
            assert opened.info().images == len(opened) > 0
            assert opened.check().problems == ()
            opened.refresh()
            assert opened.lookup(query, tiers=IDENTICAL).identical == (hit,)
    with Store.open(store) as opened:
        try:
            opened.ingest("synthetic:bits?n=1")
        except StoreError as error:
            assert "cannot be written" in str(error)
            assert "can still be read" in str(error)
        else:
            raise AssertionError("it was written")
    print("read", flush=True)


PARTS = {part.__name__: part for part in (write, write_when_told, read)}


def command(part: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, __file__, part, *map(str, arguments)]


# --- what it told of ------------------------------------------------------------------------------


class Writer:
    """The child that writes, and everything that it told of: commit by commit."""

    def __init__(self, store: Path, folder: Path, **environment: str) -> None:
        folder.mkdir()
        self.store = store
        self.folder = folder
        self.images: list[int] = []  # behind each commit
        self.sources: list[int] = []
        self.chunks: list[list[tuple[int, int]]] = []  # the images of each commit
        self.seen: dict[tuple[int, int], list[tuple[int, str]]] = {}  # commit and source of each
        self._rows: dict[str, int] = {}
        self.process = subprocess.Popen(
            command("write", store, folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # One thread: FAISS's would wait for each other.
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        assert self.process.stdout is not None
        self._lines = Lines(self.process.stdout)

    @property
    def commits(self) -> int:
        return len(self.images)

    def hear(self, commits: int = 0) -> None:
        """Take what was told by now; wait until there were so many commits."""
        assert self._lines.hear(commits), "the writer ended"
        self._take()

    def _take(self) -> None:
        for line in self._lines.lines[self.commits :]:
            self._told(*json.loads(line))

    def _told(self, images: int, names: list[str], arrays: list[tuple[str, int]]) -> None:
        places = []
        for name in names:
            number, row = Path(name).stem.split("-")
            places.append(((int(number), same(int(row))), name))
        for name, rows in arrays:
            for row in range(self._rows.get(name, 0), rows):
                places.append(((int(Path(name).stem), same(row)), f"{name}#{row}"))
            self._rows[name] = rows
        for image, source in places:
            self.seen.setdefault(image, []).append((self.commits, source))
        assert images == len(self.seen), "every image once, and no commit without a new one"
        self.sources.append(len(places) + (self.sources[-1] if self.sources else 0))
        self.chunks.append(sorted({image for image, _ in places}))
        self.images.append(images)

    def commit_of(self, store: Store) -> int:
        """The commit that a store shows; it is one, and not half of one."""
        info = store.info()
        while info.images > self.images[-1]:
            self.hear(self.commits + 1)  # it is durable before we are told of it
        commit = bisect.bisect_left(self.images, info.images)
        assert (info.images, info.sources) == (self.images[commit], self.sources[commit])
        return commit

    def look(self, store: Store, commit: int, shown: int) -> None:
        """The images of a commit are there, with all sources up to the commit that is shown."""
        for image in self.chunks[commit]:
            (hit,) = store.lookup(mask(*image), tiers=IDENTICAL).identical
            found = set(hit.sources)
            assert (hit.source_count, hit.verified) == (len(found), "bytes")
            if not found <= {source for _, source in self.seen[image]}:
                self.hear(self.commits + 1)  # a store may show what is committed meanwhile
            assert found <= {source for _, source in self.seen[image]}
            assert found >= {source for at, source in self.seen[image] if at <= shown}

    def end(self) -> None:
        """Let it come to its end, and look at everything."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self._lines.hear_all()
        self._take()
        assert self.process.wait(SILENCE) == 0
        with Store.open(self.store, limits=LIMITS) as store:
            assert self.commit_of(store) == self.commits - 1
            assert store.ingest("synthetic:bits?n=0").seen == 0  # opens it for writing, no more
            assert store.check().problems == ()
            for commit in range(0, self.commits, max(1, self.commits // 200)):
                self.look(store, commit, self.commits - 1)


def count_opens(patch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that each opening of the keys for reading takes from now on.

    More than stores are opened: one that stays open may open them again to see what is new.
    """
    real, took = open_reader.open_reader, []

    def timed(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        opened = real(*arguments, **named)
        took.append(time.perf_counter() - started)
        return opened

    patch.setattr(open_reader, "open_reader", timed)
    return took


@pytest.fixture(autouse=True)
def quick_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A reader opens the keys through a folder of links: half of its time, where that is on a disk."""
    memory = Path("/dev/shm")
    where = memory if memory.is_dir() and os.access(memory, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=where) as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield


@contextmanager
def a_writer(store: Path, folder: Path, **environment: str) -> Iterator[Writer]:
    """A child that is writing."""
    writer = Writer(store, folder, **environment)
    try:
        writer.hear(1)
        yield writer
        writer.end()
    finally:
        writer.process.kill()
        writer.process.wait()
        for pipe in (writer.process.stdin, writer.process.stdout):
            assert pipe is not None
            pipe.close()


# --- readers --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_reader_sees_whole_commits_up_to_the_last_at_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tables(monkeypatch, WRITE_BUFFERS)
    opens = count_opens(monkeypatch)
    where = tmp_path / "store"
    Store.open(where, create=True, encoder="none").close()
    draw = random.Random(0)
    turns = 0
    with a_writer(where, tmp_path / "images") as writer:
        while max(turns, len(opens)) < OPENS:
            turns += 1
            writer.hear()
            told = writer.commits - 1
            with Store.open(where, read_only=True) as store:
                shown = writer.commit_of(store)
                assert shown >= told, "a commit that was acknowledged is missing"
                writer.look(store, told, shown)
                writer.look(store, draw.randrange(told + 1), shown)
                if turns % 50 == 0:  # a reader that stays does not keep the writer from going on
                    writer.hear(writer.commits + 2)
                    told = writer.commits - 1
                    writer.look(store, shown, shown)
                    store.refresh()
                    shown = writer.commit_of(store)
                    assert shown >= told
                    writer.look(store, told, shown)


@pytest.mark.exhaustive
def test_a_writer_that_flushes_at_every_commit_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no moment between two commits that is long enough to open a store in."""
    small_tables(monkeypatch, WRITE_BUFFERS)
    where = tmp_path / "store"
    Store.open(where, create=True, encoder="none").close()
    opened: list[int] = []
    real = opening.open_files

    def count(folder: Path, *arguments: Any, **named: Any) -> Any:
        opened.append(1)
        return real(folder, *arguments, **named)

    monkeypatch.setattr(opening, "open_files", count)
    quick = {"ENGINE_WRITER_BUFFERS": str(64 << 10), "ENGINE_WRITER_PAUSE": "0"}
    with a_writer(where, tmp_path / "images", **quick) as writer, Store.open(where) as stays:
        for _ in range(QUICK_OPENS):
            writer.hear(writer.commits + 1)
            told = writer.commits - 1
            with Store.open(where) as comes:
                assert writer.commit_of(comes) >= told, "a commit that was acknowledged is missing"
            calls = len(opened)
            shown = writer.commit_of(stays)
            assert shown >= told
            assert len(opened) - calls <= 1, "it is opened once, in a moment that was held"
            writer.look(stays, told, shown)


@pytest.mark.slow
def test_readers_search_vectors_while_the_index_is_built_and_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_encoder: Path
) -> None:
    small_tables(monkeypatch, WRITE_BUFFERS)
    where = tmp_path / "store"
    Store.open(where, create=True, encoder=str(tiny_encoder)).close()
    draw = np.random.default_rng(0)
    segments = set()
    with a_writer(where, tmp_path / "images") as writer:
        opens = 0
        # A writer that adds no segments is an error, and no reason to wait for ever.
        while (opens < OPENS // 20 or len(segments) < 4) and writer.commits < MOST_COMMITS:
            opens += 1
            # After enough opens at any moment, one for each commit meets every segment.
            writer.hear(writer.commits + (opens > OPENS // 20))
            told = writer.commits - 1
            with Store.open(where, read_only=True) as store:
                query = draw.standard_normal((1, 16))
                scores, ids = store.search_vectors(query, k=8)
                assert ids.min() >= 1
                assert len(set(ids[0])) == 8
                assert (np.diff(scores[0]) <= 0).all()
                exact, _ = store.search_vectors(query, k=1, recall=1)
                assert exact[0, 0] >= scores[0, 0] - 1e-5
                info = store.info()
                assert info.vectors == info.images
                segments |= {part["rows"] for part in info.segments}
                assert writer.commit_of(store) >= told
    assert opens >= OPENS // 20 and len(segments) >= 4


@pytest.mark.slow
def test_a_writer_that_stands_still_keeps_no_reader_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped wherever it is, in the middle of a commit too, with all that it holds."""
    small_tables(monkeypatch, WRITE_BUFFERS)
    where = tmp_path / "store"
    Store.open(where, create=True, encoder="none").close()
    draw = random.Random(0)
    with a_writer(where, tmp_path / "images") as writer, Store.open(where) as stays:
        pid = writer.process.pid
        for _ in range(STOPS):
            writer.hear(writer.commits + draw.randrange(3))
            time.sleep(draw.uniform(0, 2 * PAUSE))
            os.kill(pid, signal.SIGSTOP)
            try:
                os.waitpid(pid, os.WUNTRACED)
                writer.hear()
                told = writer.commits - 1
                with Store.open(where) as comes:
                    for store in (comes, stays):
                        store.refresh()
                        # What is committed and was not told of will not be told of now.
                        assert store.info().images >= writer.images[told]
                        for image in writer.chunks[told]:
                            (hit,) = store.lookup(mask(*image), tiers=IDENTICAL).identical
                            assert hit.verified == "bytes"
                        assert store.check().problems == ()
                    with pytest.raises(StoreLockedError, match=f"process {pid} on "):
                        comes.ingest("synthetic:bits?n=1")
            finally:
                os.kill(pid, signal.SIGCONT)


# --- writers --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_of_writers_that_begin_together_one_writes(tmp_path: Path) -> None:
    where = tmp_path / "store"
    Store.open(where, create=True, encoder="none").close()
    for _ in range(sized(1, 3)):
        writers = [
            subprocess.Popen(
                command("write_when_told", where),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        try:
            for writer in writers:
                assert writer.stdout is not None
                assert writer.stdout.readline() == "ready\n"
            for writer in writers:
                print("go", file=writer.stdin, flush=True)
            said = [writer.stdout.readline() for writer in writers if writer.stdout]
            assert sorted(line.partition(":")[0].strip() for line in said) == [
                "locked",
                "locked",
                "locked",
                "wrote",
            ]
            (winner,) = [w for w, line in zip(writers, said, strict=True) if line == "wrote\n"]
        finally:
            # The one that has the lock is killed with it; the next ones find what it left.
            for writer in writers:
                writer.kill()
                writer.communicate()
        assert winner.returncode == -signal.SIGKILL
        with Store.open(where, read_only=True) as store:
            assert len(store) == 1


# --- a store that nobody may write ----------------------------------------------------------------


def read_only_command(store: Path, at: Path, query: str) -> list[str] | None:
    """What runs ``read`` with ``store`` mounted read-only at ``at``; None where that cannot be had."""
    script = 'mount --bind "$1" "$2" && mount -o remount,bind,ro "$1" "$2" && shift 2 && exec "$@"'
    for how in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        if shutil.which("unshare") is None:
            return None
        # In a namespace of its own, which goes with the process: nobody else sees the mount.
        start = [*how, "sh", "-c", script, "sh", str(store), str(at)]
        if subprocess.run([*start, "true"], capture_output=True, check=False).returncode == 0:
            return [*start, *command("read", at, query)]
    return None


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    found = {str(path): path.stat() for path in [folder, *folder.rglob("*")]}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("left_by", ["a writer that closed it", "a writer that was killed"])
def test_a_store_on_a_read_only_mount_is_read(tmp_path: Path, left_by: str) -> None:
    where, at = tmp_path / "store", tmp_path / "mounted"
    at.mkdir()
    Store.open(where, create=True, encoder="none").close()
    with a_writer(where, tmp_path / "images") as writer:
        writer.hear(20)
        query = f"{writer.folder}/0.npy#17"
        if left_by == "a writer that was killed":
            writer.process.kill()
            writer.process.wait()
            writer.end = lambda: None  # type: ignore[method-assign]
    before = files_of(where)
    run = read_only_command(where, at, query)
    if run is None and os.geteuid() == 0:
        pytest.skip("no read-only mount can be made here, and root may write anywhere")
    modes = {path: path.stat().st_mode for path in [where, *where.rglob("*")]} if not run else {}
    try:
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        done = subprocess.run(
            run or command("read", where, query), capture_output=True, text=True, check=False
        )
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr
    assert files_of(where) == before


if __name__ == "__main__":
    PARTS[sys.argv[1]](*sys.argv[2:])
