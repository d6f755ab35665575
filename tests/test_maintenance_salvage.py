"""A store that cannot be opened: made openable again, or left alone with a line that says why."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damage import OWN_DISK, flip, interrupted
from helpers import mask
from PIL import Image

from engine import (
    CheckReport,
    EngineError,
    Store,
    StoreDamagedError,
    StoreFormatError,
    StoreLockedError,
    StoreNotFoundError,
)
from engine.cli.app import main
from engine.config import FORMAT_VERSION, Limits
from engine.maintenance import salvage
from engine.storage import commit_file, manifest
from engine.storage.commit_file import Notice, commit_of
from engine.storage.rocks import opening

pytestmark = pytest.mark.usefixtures("one_thread")

SYNTHETIC = "synthetic:bits?seed=0"
COUNT = 51
COMMITS = 5
LIMITS = Limits(chunk_rows=15, exact_rows=40)


def ingest_all(opened: Store, folder: Path) -> None:
    opened.ingest(folder / "photos")
    opened.ingest(folder / "rows.npy")
    opened.ingest(f"{SYNTHETIC}&n=42")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """A store that was closed, and beside it one as it is while its writer has it open."""
    made = tmp_path_factory.mktemp("folder")
    (made / "photos").mkdir()
    for i in range(3):
        Image.fromarray(mask(i).astype(np.uint8) * 255).save(made / "photos" / f"{i}.png")
    np.save(made / "rows.npy", np.stack([mask(i) for i in range(3, 9)]))
    with Store.open(
        made / "closed", create=True, encoder=str(tiny_encoder), limits=LIMITS
    ) as opened:
        ingest_all(opened, made)
        assert opened.session.snapshot.state.commit == COMMITS
        assert len(opened.session.snapshot.manifest.segments) == 1
        shutil.copytree(made / "closed", made / "open")
    for unneeded in made.glob("*/keys/LOG*"):
        unneeded.unlink()
    return made


@pytest.fixture
def closed(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "closed", tmp_path / "store"))


@pytest.fixture
def opened(folder: Path, tmp_path: Path) -> Path:
    """All that was committed is in RocksDB's write-ahead log."""
    where = Path(shutil.copytree(folder / "open", tmp_path / "store"))
    assert log_of(where).stat().st_size > 1000
    return where


def log_of(where: Path) -> Path:
    return max((where / "keys").glob("*.log"), key=lambda path: path.stat().st_size)


def found(where: Path | Store) -> list[int]:
    """Of the images of ``folder``, those that a store has; each in its place."""
    if isinstance(where, Path):
        with Store.open(where, read_only=True) as store:
            return found(store)
    ids = []
    for number in range(COUNT):
        query = mask(number) if number < 9 else f"{SYNTHETIC}#{number - 9}"
        hits = where.lookup(query, tiers=["identical"]).identical
        assert [(hit.id, hit.verified) for hit in hits] in ([], [(number + 1, "bytes")])
        ids += [hit.id for hit in hits]
    return ids


def is_whole(where: Path, folder: Path) -> None:
    """Everything is found, by both tiers, the check is clean, and a writer goes on."""
    with Store.open(where) as store:
        assert store.check().problems == ()
        ingest_all(store, folder)
        assert found(store) == list(range(1, COUNT + 1))
        for row in range(0, 42, 4):
            (hit,) = store.lookup(f"{SYNTHETIC}#{row}", k=1, tiers=["similar"]).similar
            assert (hit.id, round(hit.score, 3)) == (10 + row, 1)
        assert store.ingest("synthetic:bits?seed=7&n=2").added == 2
        assert store.check().problems == ()


def contents(where: Path, *, but: tuple[str, ...] = ("LOCK",)) -> dict[str, bytes]:
    return {
        str(path.relative_to(where)): path.read_bytes()
        for path in where.rglob("*")
        if path.is_file() and path.name not in but
    }


def one_line(where: Path) -> str:
    """What opening says, to whoever opens, and that it is one line."""
    said = set()
    for read_only in (True, False):
        with pytest.raises(EngineError) as caught:
            Store.open(where, read_only=read_only)
        said.add(str(caught.value))
    with pytest.raises(EngineError) as caught:
        Store.open(where, create=True, encoder="none")
    assert all("\n" not in line and str(where) in line for line in said)
    return str(caught.value)


# --- nothing to do --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("which", ["closed", "open"])
def test_a_store_that_can_be_opened_stays_as_it_is(
    folder: Path, tmp_path: Path, which: str
) -> None:
    where = Path(shutil.copytree(folder / which, tmp_path / "store"))
    before = contents(where)
    assert Store.salvage(where) == []
    assert contents(where) == before
    is_whole(where, folder)


def test_what_was_mended_is_reported_though_the_check_then_fails(tmp_path: Path) -> None:
    class Broken(Store):
        def check(self, *, fix: bool = False) -> CheckReport:
            raise StoreDamagedError("a table cannot be read")

    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(f"{SYNTHETIC}&n=3")
    (tmp_path / "store" / "MANIFEST.json").write_bytes(b"{")
    report = Broken.check_at(tmp_path / "store", fix=True)
    *mended, last = report.problems
    assert last.what == "a table cannot be read" and not report.ok
    assert mended and all(problem.fixed for problem in mended)
    assert Store.check_at(tmp_path / "store").ok


def test_what_is_no_store_is_not_touched(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="there is no store"):
        Store.salvage(tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreFormatError, match="is a file, not a store"):
        Store.salvage(tmp_path / "file")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    with pytest.raises(StoreFormatError, match="is not a store"):
        Store.salvage(tmp_path / "notes")
    (tmp_path / "notes" / "MANIFEST.json").write_text('{"name": "something else"}')
    with pytest.raises(StoreFormatError, match="is not a store: it has no keys"):
        Store.salvage(tmp_path / "notes")
    assert set(contents(tmp_path)) == {"file", "notes/notes.txt", "notes/MANIFEST.json"}


@pytest.mark.slow
@pytest.mark.parametrize("field", ["min_reader", "min_writer"])
def test_a_store_of_a_newer_engine_is_not_touched(
    opened: Path, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = opened / "MANIFEST.json"
    newer = {"format": FORMAT_VERSION + 8, field: FORMAT_VERSION + 1}
    path.write_text(json.dumps(json.loads(path.read_text()) | newer))
    flip(log_of(opened), 2000)  # which is theirs to mend
    before = contents(opened)
    with pytest.raises(StoreFormatError, match=f"format version {FORMAT_VERSION + 8}.*a newer"):
        Store.salvage(opened)
    assert main(["check", "--fix", "--store", str(opened)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert contents(opened) == before


HOLD = """
import sys
from engine import Store
with Store.open(sys.argv[1]) as store:
    store.session.become_writer()
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_a_store_that_another_process_writes_to_is_left_to_it(
    closed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(closed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        (closed / "MANIFEST.json").unlink()
        before = contents(closed, but=())
        with pytest.raises(StoreLockedError, match=f"process {process.pid}"):
            Store.salvage(closed)
        assert main(["check", "--fix", "--store", str(closed)]) == 2
        assert f"process {process.pid}" in capsys.readouterr().err
        assert contents(closed, but=()) == before
        process.kill()


# --- the manifest ---------------------------------------------------------------------------------


def replace_in(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) >= 1
    path.write_bytes(data.replace(old, new, 1))


def flip_digit(field: bytes) -> Callable[[Path], None]:
    """One bit of a number's last digit: what is written is a number still."""

    def damage(path: Path) -> None:
        data = path.read_bytes()
        at = data.index(b'"%s": ' % field) + len(field) + 4
        while data[at + 1 : at + 2].isalnum():
            at += 1
        flip(path, at, 1 if data[at : at + 1] != b"9" else 0x08)

    return damage


MANIFEST_DAMAGE: dict[str, Callable[[Path], None]] = {
    "gone": Path.unlink,
    "empty": lambda path: os.truncate(path, 0),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "no text": lambda path: flip(path, 30, 0x80),
    "what it is": lambda path: replace_in(path, b"engine store", b"engine stose"),
    "a family": lambda path: replace_in(path, b'"pixels.blobs"', b'"pixels.blobr"'),
    "an extent": lambda path: replace_in(path, b"   1\n", b"   3\n"),
    "the uuid": lambda path: replace_in(path, b'"uuid": "', b'"uuid": "0'),
    "the seed": flip_digit(b"hash_seed"),
    "the generation": flip_digit(b"generation"),
    "the dimensions": flip_digit(b"dim"),
    "the fingerprint": flip_digit(b"xxh64"),
    "a segment's lists": flip_digit(b"quantizer"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", MANIFEST_DAMAGE)
def test_a_damaged_manifest_is_made_anew(closed: Path, folder: Path, what: str) -> None:
    MANIFEST_DAMAGE[what](closed / "MANIFEST.json")
    assert "'engine check --fix' rebuilds" in one_line(closed)
    (problem,) = Store.salvage(closed)
    assert (problem.part, problem.fixed) == ("MANIFEST.json", True)
    assert str(closed) in problem.what
    with Store.open(closed, read_only=True) as store:
        assert (
            store.session.snapshot.manifest.segments == ()
        )  # derived: the next ingest makes them again
    assert found(closed) == list(range(1, COUNT + 1))
    is_whole(closed, folder)


@pytest.mark.slow
def test_no_bit_of_a_manifest_can_change_an_answer(folder: Path) -> None:
    """What is read is what was written, or it is refused."""
    where = folder / "closed"
    sound, data = manifest.load(where), (where / "MANIFEST.json").read_bytes()
    refused = 0
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert manifest.parse(where, bytes(flipped)) == sound
        except StoreFormatError:
            refused += 1
    assert refused > 7 * len(data)


@pytest.mark.slow
def test_the_index_comes_back_with_the_next_ingest(closed: Path) -> None:
    (closed / "MANIFEST.json").unlink()
    Store.salvage(closed)
    with Store.open(closed, limits=LIMITS) as store:
        assert store.ingest("synthetic:bits?seed=7&n=2").added == 2
        assert [entry.rows for entry in store.session.snapshot.manifest.segments] == [COUNT + 2]
        assert store.check().problems == ()
        assert store.check().leftover_bytes == 0


def test_the_manifest_of_a_store_without_a_commit_is_nothing_to_go_by(tmp_path: Path) -> None:
    where = tmp_path / "store"
    Store.open(where, create=True, encoder="none").close()
    (where / "MANIFEST.json").unlink()
    with pytest.raises(StoreDamagedError, match="make another store"):
        Store.salvage(where)


# --- the write-ahead log --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_flipped_log_is_replayed_up_to_there_and_the_rest_ingested_again(
    opened: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = log_of(opened)
    flip(damaged, damaged.stat().st_size * 2 // 3)
    data = damaged.read_bytes()
    assert "run 'engine check'" in one_line(opened)
    assert main(["check", "--store", str(opened)]) == 1
    assert "run 'engine check --fix' to repair" in capsys.readouterr().out

    assert main(["check", "--fix", "--json", "--store", str(opened)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is True
    (problem,) = said["problems"]
    assert (problem["part"], problem["fixed"]) == ("keys", True)
    left = found(opened)
    assert left == list(range(1, len(left) + 1))
    assert 0 < len(left) < COUNT
    with Store.open(opened, read_only=True) as store:
        assert f"after commit {store.session.snapshot.state.commit} is lost" in problem["what"]
        assert store.check().problems == ()
        assert store.check().leftover_bytes > 0  # of what is lost: the next writer cuts it
    assert (opened / "damaged" / damaged.name).read_bytes() == data
    assert main(["check", "--store", str(opened)]) == 0

    is_whole(opened, folder)


@pytest.mark.slow
@pytest.mark.parametrize("at", [0.0, 0.3, 0.6, 0.999])
def test_wherever_a_log_is_flipped_it_is_told(opened: Path, at: float) -> None:
    path = log_of(opened)
    flip(path, int(at * path.stat().st_size), 0x04)
    one_line(opened)
    (problem,) = Store.salvage(opened)
    assert "is lost" in problem.what
    left = found(opened)
    assert left == list(range(1, len(left) + 1))
    with Store.open(opened) as store:
        assert store.check().problems == ()


@pytest.mark.slow
def test_what_was_set_aside_before_is_not_overwritten(opened: Path, folder: Path) -> None:
    (opened / "damaged").mkdir()
    (opened / "damaged" / log_of(opened).name).write_text("of an earlier repair")
    flip(log_of(opened), 2000)
    (problem,) = Store.salvage(opened)
    assert f"{opened}/damaged-2" in problem.what
    assert (opened / "damaged" / next((opened / "damaged-2").iterdir()).name).read_text() == (
        "of an earlier repair"
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 3000, -1, None])
def test_a_log_that_lost_its_end_is_never_taken_for_an_empty_store(
    opened: Path, folder: Path, size: int | None
) -> None:
    """RocksDB takes it for what a crash left behind; the notice knows how far it was."""
    path = log_of(opened)
    if size is None:
        path.unlink()
    else:
        os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    assert f"but commit {COMMITS} was made" in one_line(opened)
    before = contents(opened)
    (problem,) = Store.salvage(opened)
    assert f"the keys end before commit {COMMITS}" in problem.what
    aside = contents(opened / "damaged")
    assert aside == {
        name.removeprefix("keys/"): data for name, data in before.items() if "keys/" in name
    }
    left = found(opened)
    assert left == list(range(1, len(left) + 1))
    assert len(left) < COUNT
    is_whole(opened, folder)


@pytest.mark.slow
def test_a_commit_that_nobody_was_told_of_may_go(opened: Path, folder: Path) -> None:
    """What a crash leaves: half of a batch, behind the last commit that returned."""
    notice = Notice(opened)
    notice.publish(COMMITS - 1)
    notice.close()
    path = log_of(opened)
    os.truncate(path, path.stat().st_size - 100)
    assert Store.salvage(opened) == []
    assert len(found(opened)) == 39
    is_whole(opened, folder)


@pytest.mark.slow
def test_an_index_over_vectors_that_are_lost_is_dropped(opened: Path, folder: Path) -> None:
    """Others take their rows, and an index of the old ones would not find them."""
    path = log_of(opened)
    flip(path, path.stat().st_size - 300)  # the last commit, which the segment covers
    Store.salvage(opened)
    with Store.open(opened, read_only=True) as store:
        assert len(store) == 39
    with Store.open(opened) as store:
        store.ingest("synthetic:bits?seed=8&n=20")
        assert store.session.snapshot.manifest.segments == ()
        for row in range(20):
            (hit,) = store.lookup(f"synthetic:bits?seed=8#{row}", k=1, tiers=["similar"]).similar
            assert (hit.id, round(hit.score, 3)) == (40 + row, 1.0)
        assert store.check().problems == ()


# --- RocksDB's own files --------------------------------------------------------------------------


def rocks_manifest(where: Path) -> Path:
    (path,) = (where / "keys").glob("MANIFEST-*")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    ["CURRENT gone", "CURRENT empty", "CURRENT flipped", "MANIFEST gone", "MANIFEST empty"],
)
def test_without_them_the_tables_say_everything(
    closed: Path, folder: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, damage = what.split()
    path = closed / "keys" / "CURRENT" if name == "CURRENT" else rocks_manifest(closed)
    if damage == "gone":
        path.unlink()
    elif damage == "empty":
        os.truncate(path, 0)
    else:
        flip(path, 3)
    assert "run 'engine check'" in one_line(closed)
    assert main(["check", "--store", str(closed)]) == 1
    capsys.readouterr()
    assert main(["check", "--fix", "--json", "--store", str(closed)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["ok"], {problem["fixed"] for problem in said["problems"]}) == (True, {True})
    assert found(closed) == list(range(1, COUNT + 1))
    is_whole(closed, folder)


@pytest.mark.slow
def test_without_keys_only_a_copy_helps(
    closed: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = contents(closed)
    shutil.rmtree(closed / "keys")
    one_line(closed)
    with pytest.raises(StoreDamagedError, match="restore the store from a copy") as caught:
        Store.salvage(closed)
    assert "\n" not in str(caught.value)
    assert main(["check", "--fix", "--json", "--store", str(closed)]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["ok"], len(said["problems"])) == (False, 1)
    assert not (closed / "damaged").exists()
    for name, data in sound.items():  # the copy
        (closed / name).parent.mkdir(exist_ok=True)
        (closed / name).write_bytes(data)
    is_whole(closed, folder)


@pytest.mark.slow
def test_a_cut_manifest_of_rocksdb_loses_nothing(closed: Path, folder: Path) -> None:
    """It is a log as well: without its end RocksDB sees an older store, or none."""
    path = rocks_manifest(closed)
    size = path.stat().st_size
    before = contents(closed)
    refused = 0
    for left in [*range(1, size, size // 9), size - 60]:
        os.truncate(path, left)
        with contextlib.suppress(StoreDamagedError):
            assert found(closed) == list(range(1, COUNT + 1))
            refused -= 1
        refused += 1
        Store.salvage(closed)
        with Store.open(closed) as store:
            assert store.check(fix=True).ok
        assert found(closed) == list(range(1, COUNT + 1))
        shutil.rmtree(closed)
        for name, content in before.items():
            (closed / name).parent.mkdir(parents=True, exist_ok=True)
            (closed / name).write_bytes(content)
        shutil.copy(folder / "closed" / "LOCK", closed)
    assert refused >= 2
    is_whole(closed, folder)


# --- interrupted ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (salvage, "write_new"),
        (salvage, "fsync_dir"),
        (opening, "open_writer"),
        (Notice, "publish"),
        (OWN_DISK, "fsync"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_salvage_that_is_interrupted_is_finished_by_the_next(
    opened: Path, folder: Path, owner: object, name: str
) -> None:
    path = log_of(opened)
    flip(path, path.stat().st_size * 2 // 3)
    (opened / "MANIFEST.json").unlink()
    for nth in range(1, 20):
        with interrupted(owner, name, nth) as calls:
            Store.salvage(opened)
        if calls.made < nth:
            break
    assert nth > 1
    Store.salvage(opened)
    left = found(opened)
    assert left == list(range(1, len(left) + 1))
    assert 0 < len(left) < COUNT
    is_whole(opened, folder)


@pytest.mark.slow
def test_a_store_whose_writer_was_killed_needs_no_salvage(folder: Path, tmp_path: Path) -> None:
    where = tmp_path / "store"
    program = """
import os, signal, sys
from engine import Store
with Store.open(sys.argv[1], create=True, encoder="none") as store:
    store.ingest("synthetic:bits?n=5")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program, str(where)],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL
    assert commit_of(Notice(where).read()) == 1
    assert Store.salvage(where) == []
    assert not (where / "damaged").exists()
    with Store.open(where) as store:
        assert len(store) == 5
        assert store.check().problems == ()


@pytest.mark.slow
def test_keys_that_lost_their_end_after_a_removal_are_of_one_age(tmp_path: Path) -> None:
    where = tmp_path / "store"
    with Store.open(where, create=True, encoder="none") as store:
        store.ingest(f"{SYNTHETIC}&n=300", "synthetic:bits?seed=1&n=5")
        store.remove(ids=[*range(1, 140), 150, 300, 301, 305])
        last = store.session.snapshot.state.commit
    (where / "COMMIT").write_bytes(commit_file.pack(last + 1))
    with pytest.raises(StoreDamagedError, match=f"end with commit {last}"):
        Store.open(where)
    (problem,) = Store.salvage(where)
    assert problem.fixed
    with Store.open(where) as store:
        assert store.check().problems == ()
        assert len(store) == 305 - 143
        assert store.ingest(f"{SYNTHETIC}&n=300").added == 141
