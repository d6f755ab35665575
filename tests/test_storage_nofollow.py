"""What is not a store's own is not made, changed, deleted, copied or waited for, whatever it holds."""

import json
import os
import shutil
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from helpers import mask
from PIL import Image

from engine import EngineError, Store, StoreDamagedError, StoreError
from engine.config import Limits, MemoryBudget
from engine.records import Place
from engine.storage import file_names, manifest, nofollow, openat2
from engine.storage.commit_row import CommitRow
from engine.storage.image_rows import ImageRow
from engine.storage.rocks import opening
from engine.storage.safe_folders import ForeignError
from engine.storage.state import State

HANGS = 60  # seconds: nothing here takes one
MARK = b"somebody else's, which nothing may copy"


class HungError(BaseException):
    """Something waits for what does not come."""


@contextmanager
def no_hang() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise HungError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


LIMITS = Limits(exact_rows=20, ballast_store=1, ballast_bytes=4096)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """A folder with a store that has one of everything, and what is ingested from."""
    where = tmp_path_factory.mktemp("beneath")
    np.save(where / "rows.npy", np.stack([mask(seed) for seed in range(40)]))
    np.save(where / "more.npy", np.stack([mask(seed) for seed in range(100, 104)]))
    (where / "photos").mkdir()
    Image.fromarray(mask(50).astype(np.uint8) * 200).save(where / "photos" / "a.png")
    (where / "photos" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with Store.open(
        where / "store", create=True, encoder=str(tiny_encoder), limits=LIMITS
    ) as store:
        store.ingest(where / "rows.npy", where / "photos")
        assert store.info().segments
    parts = {*file_names.FILES, *file_names.FOLDERS} - {file_names.MENDED, file_names.REEMBED}
    assert {entry.name for entry in (where / "store").iterdir()} == parts
    return where


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template / "store", tmp_path / "store"))


def use_it_all(store: Path, template: Path, out: Path) -> dict[str, str | None]:
    """What each command says of a store: the line of its error, or None."""
    said: dict[str, str | None] = {}

    def ask(name: str, command: Callable[[], Any]) -> None:
        try:
            found = command()
            problems = getattr(found, "problems", ())
            said[name] = "; ".join(problem.what for problem in problems) or None
        except EngineError as error:
            assert "\n" not in str(error)
            said[name] = str(error)

    def all_of(read_only: bool, commands: dict[str, Callable[[Store], Any]]) -> None:
        try:
            opened = Store.open(store, read_only=read_only, limits=LIMITS)
        except EngineError as error:
            assert "\n" not in str(error)
            said.update(dict.fromkeys(commands, str(error)))
            return
        with opened:
            for name, command in commands.items():
                ask(name, lambda command=command: command(opened))

    all_of(
        True,
        {
            "lookup": lambda opened: opened.lookup(mask(3), k=3),
            "info": lambda opened: opened.info(),
            "check": lambda opened: opened.check(),
            "backup": lambda opened: opened.backup(out / "backup"),
            "export": lambda opened: opened.export(out / "export"),
        },
    )
    all_of(
        False,
        {
            "ingest": lambda opened: opened.ingest(template / "more.npy", template / "photos"),
            "remove": lambda opened: opened.remove(ids=list(range(5, 25))),
            "optimize": lambda opened: opened.optimize(),
        },
    )
    ask("salvage", lambda: Store.salvage(store))
    all_of(False, {"fix": lambda opened: opened.check(fix=True)})
    return said


def seen(folder: Path) -> dict[str, tuple[object, ...]]:
    """All that can be told of what lies in a folder, without following a link."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        kept = (status.st_mode, status.st_ino, status.st_nlink, status.st_mtime_ns, status.st_size)
        found[str(path.relative_to(folder))] = (*kept, data)
    return found


def entries_of(store: Path) -> list[str]:
    """All that it has; of what RocksDB has, one of each kind that is read or written to."""
    found = [str(path.relative_to(store)) for path in sorted(store.rglob("*"))]
    rocksdb = ("CURRENT", "MANIFEST", "LOG", "rocksdict-config.json", ".log", ".sst")
    kept = {
        next(name for name in found if f"keys/{part}" in name or name.endswith(part))
        for part in rocksdb
    }
    return [name for name in found if not name.startswith("keys/") or name in kept]


# --- everything in it something else --------------------------------------------------------------


def be_a_link(path: Path, outside: Path) -> None:
    """As if somebody had moved it: what it leads to is all right."""
    moved = outside / "moved"
    moved.mkdir()
    path.rename(moved / path.name)
    path.symlink_to(moved / path.name)
    if path.is_dir():
        (path / "00000009.blobs").write_bytes(MARK)
        (path / "theirs").mkdir()
        (path / "theirs" / "000009.sst").write_bytes(MARK)


def be_a_link_to_others(path: Path, outside: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
        path.symlink_to(outside)
    else:
        path.unlink()
        path.symlink_to(outside / "file")


def be_a_link_to_nothing(path: Path, outside: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(outside / "new")


def be_a_pipe(path: Path, outside: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.mkfifo(path)


def be_the_other(path: Path, outside: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
        path.write_bytes(b"in the way")
    else:
        path.unlink()
        path.mkdir()
        (path / "theirs").write_bytes(MARK)


KINDS = [be_a_link, be_a_link_to_others, be_a_link_to_nothing, be_a_pipe, be_the_other]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_nothing_outside_is_touched_whatever_a_part_is(
    template: Path, tmp_path: Path, kind: Callable[[Path, Path], None]
) -> None:
    for number, name in enumerate(entries_of(template / "store")):
        at = tmp_path / str(number)
        store, outside = at / "store", at / "outside"
        shutil.copytree(template / "store", store)
        (outside / "pixels").mkdir(parents=True)
        for inner in ("file", "theirs.txt", "00000009.blobs", "pixels/00000008.blobs"):
            (outside / inner).write_bytes(MARK)
        kind(store / name, outside)
        before = seen(outside)
        with no_hang():
            said = use_it_all(store, template, at / "out")
        assert seen(outside) == before, name
        silent = [command for command in ("check", "fix") if said[command] is None]
        assert not silent, (name, said)
        if name.count("/") == 0 or name.startswith("keys/"):
            wrong = {
                command: line for command, line in said.items() if f"store/{name}" not in str(line)
            }
            assert not wrong, name
        copied = [path for path in files_below(at / "out") if MARK in path.read_bytes()]
        assert not copied, name
        shutil.rmtree(at)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_socket_in_place_of_a_file_is_named(
    store: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store / "COMMIT").unlink()
    monkeypatch.chdir(store)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("COMMIT")
        with pytest.raises(StoreError, match=r"COMMIT is a socket, and should be a file"):
            Store.open(store)


@pytest.mark.slow
def test_the_store_itself_may_be_a_link(store: Path, template: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store)
    said = use_it_all(tmp_path / "link", template, tmp_path / "out")
    assert {line for line in said.values() if line} == set()
    assert (tmp_path / "link").is_symlink()


# --- files with a second name ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_copy_by_hard_links_and_its_store_do_not_change_each_other(
    store: Path, template: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store, copy, copy_function=os.link)
    before = {path: path.read_bytes() for path in files_below(copy)}
    with (store / "pixels" / "00000001.blobs").open("ab") as file:
        file.write(bytes(1000))  # what an interrupted writer leaves
    before[copy / "pixels" / "00000001.blobs"] += bytes(1000)
    said = use_it_all(store, template, tmp_path / "out")
    assert {line for line in said.values() if line} == set()
    assert {path: path.read_bytes() for path in files_below(copy)} == before
    now = {path: path.read_bytes() for path in files_below(store)}
    with Store.open(copy) as opened:
        assert opened.ingest(template / "more.npy").added == 4
        assert opened.check().problems == ()
    assert {path: path.read_bytes() for path in files_below(store)} == now


@pytest.mark.slow
def test_a_file_of_others_that_is_linked_in_is_not_written_to(
    store: Path, template: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in (
        *file_names.FILES[1:],
        "keys/rocksdict-config.json",
        "keys/LOG",
        "keys/MANIFEST-000099",
    ):
        (store / name).unlink(missing_ok=True)
        (outside / name.replace("/", "-")).write_bytes(MARK)
        os.link(outside / name.replace("/", "-"), store / name)
    before = {path: path.read_bytes() for path in files_below(outside)}
    (store / "COMMIT").unlink()  # one that says too much is damage of its own
    use_it_all(store, template, tmp_path / "out")
    assert {path: path.read_bytes() for path in files_below(outside)} == before


def test_an_extent_that_is_copied_keeps_its_holes_and_its_mode(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.write(b"begin")
        file.truncate(8 << 20)
        file.seek(4 << 20)
        file.write(b"middle")
    (tmp_path / "a").chmod(0o640)
    os.link(tmp_path / "a", tmp_path / "b")
    data = (tmp_path / "a").read_bytes()
    fd = nofollow.open_file(tmp_path, "a", os.O_WRONLY)
    os.pwrite(fd, b"x", 9)
    os.close(fd)
    assert (tmp_path / "b").read_bytes() == data
    assert (tmp_path / "a").read_bytes() == data[:9] + b"x" + data[10:]
    status = (tmp_path / "a").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_nlink) == (0o640, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


# --- what is deleted ------------------------------------------------------------------------------

THEIRS = (
    "pixels/notes.txt",
    "pixels/old/00000009.blobs",
    "fingerprints/00000009.blobs",
    "vectors/1/9.f32",
    "vectors/old/00000009.f32",
    "vectors/00000009.f32",
    "index/1/00000009.ivf",
    "index/.hidden.new",
    "encoder/1/more/model.onnx",
    ".mine.new",
    ".mine.begun/LOCK",
    ".store.0123456.new/MANIFEST.json",
    ".index.build-01234567.new/theirs",
    ".index.build-01234567.new/keys/theirs",
)
OURS = (
    "pixels/00000009.blobs",
    "pixels/.00000001.blobs.77.new",
    "vectors/1/00000009.f32",
    "vectors/7/00000001.ids",
    "index/00000099.ivf",
    "index/00000099.quantizer",
    ".MANIFEST.json.77.new",
    ".index.build-01234567.new/index/00000001.ivf",
    ".index.build-01234567.new/coded/index/00000001.ivf",
    ".index.build-01234567.new/vectors/1/00000000.f32",
    ".store.01234567.new/keys/000004.log",
    ".store.01234567.new/MANIFEST.json",
    ".index.build-89abcdef.begun/LOCK",
)


@pytest.mark.slow
def test_only_files_of_ours_are_deleted(store: Path, template: Path, tmp_path: Path) -> None:
    for name in (*THEIRS, *OURS):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(MARK)
    said = use_it_all(store, template, tmp_path / "out")
    assert {line for line in said.values() if line} == set()
    assert [name for name in THEIRS if not (store / name).is_file()] == []
    assert [name for name in OURS if (store / name).exists()] == []
    left = {path.name for path in store.iterdir() if path.name.startswith(".")}
    assert left == {Path(name).parts[0] for name in THEIRS if name.startswith(".")}


@pytest.mark.slow
def test_the_encoder_that_given_vectors_replace_goes_and_nothing_with_it(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    np.save(tmp_path / "vectors.npy", np.eye(5, 8, dtype=np.float32))
    Store.open(tmp_path / "store", create=True, encoder=str(tiny_encoder)).close()
    folder = tmp_path / "store" / "encoder" / "1"
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "model.onnx").write_bytes(MARK)
    (folder / "more").mkdir()
    (folder / "more" / "model.onnx").write_bytes(MARK)
    (folder / "link").symlink_to(tmp_path / "outside")
    with Store.open(tmp_path / "store") as store:
        assert store.ingest(tmp_path / "vectors.npy").added == 5
    assert sorted(path.name for path in folder.iterdir()) == ["link", "more"]
    assert (folder / "more" / "model.onnx").read_bytes() == MARK
    assert (tmp_path / "outside" / "model.onnx").read_bytes() == MARK


# --- names and numbers ----------------------------------------------------------------------------


def resaved(store: Path, text: str) -> None:
    (store / manifest.NAME).write_text(text)


def tampered(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest so that its checksum is right."""
    body = json.loads((store / manifest.NAME).read_text())
    change(body)
    body["xxh64"] = manifest._checksum(body)
    resaved(store, json.dumps(body))


FILES = (
    ".",
    "..",
    "../outside/model.onnx",
    "link/sub/x",
    "link/1/model.onnx",
    "encoder/1/../../../outside/x",
    "encoder/1/link/model.onnx",
    "encoder//model.onnx",
    "encoder/2/model.onnx",
    "encoder/1/.",
    "encoder/1/..",
    "encoder/1/",
    "encoder/1/model\0.onnx",
    "encoder/1/model\n.onnx",
    "encoder/01/model.onnx",
    "/etc/passwd",
    "keys/1/CURRENT",
)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_a_manifest_that_names_the_encoder_elsewhere_is_refused(
    tmp_path: Path, tiny_encoder: Path, file: str
) -> None:
    store, outside = tmp_path / "store", tmp_path / "outside"
    np.save(tmp_path / "vectors.npy", np.eye(5, 8, dtype=np.float32))
    Store.open(store, create=True, encoder=str(tiny_encoder)).close()
    (outside / "sub").mkdir(parents=True)
    (outside / "sub" / "x").write_bytes(MARK)
    (outside / "model.onnx").write_bytes(MARK)
    (store / "link").symlink_to(outside)
    (store / "encoder" / "1" / "link").symlink_to(outside)
    tampered(store, lambda body: body["encoder"].update(file=file))
    before = seen(tmp_path)
    for read_only in (True, False):
        with pytest.raises(StoreError, match=r"MANIFEST\.json cannot be read") as caught:
            Store.open(store, read_only=read_only)
        assert "\n" not in str(caught.value)
    assert seen(tmp_path) == before


HOSTILE: tuple[object, ...] = (
    -1,
    1 << 63,
    10**30,
    1.5,
    True,
    None,
    "..",
    "/etc/passwd",
    "a\0b",
    "x" * 10_000,
    [],
    [[]],
    {},
    {"a": {}},
)


def leaves(body: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of each value, the inner ones too."""
    if path:
        yield path
    inner = (
        body.items()
        if isinstance(body, dict)
        else enumerate(body)
        if isinstance(body, list)
        else ()
    )
    for key, value in inner:
        yield from leaves(value, (*path, key))


def put(body: Any, path: tuple[Any, ...], value: object) -> Any:
    changed = json.loads(json.dumps(body))
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


# Values that say nothing of files and lengths, or may be missing.
FREE = {("encoder", "name"), ("encoder", "fingerprint")}
EMPTY = {("encoder",), ("measured",), ("segments",), ("quantizers",), ("extents",), ("features",)}


@pytest.mark.slow
def test_each_value_of_a_manifest_is_checked_when_it_is_read(template: Path) -> None:
    body = json.loads((template / "store" / manifest.NAME).read_text())
    checked = 0
    for path in leaves(body):
        if path in {("what",), ("xxh64",), ("format",)}:
            continue
        for value in HOSTILE:
            changed = put(body, path, value)
            try:
                changed["xxh64"] = manifest._checksum(changed)
                found = manifest.parse(template, json.dumps(changed).encode())
            except StoreError as error:
                assert "\n" not in str(error)
                assert len(str(error)) < 1000
                checked += 1
                continue
            text = json.dumps(value)
            assert (
                (path in FREE and isinstance(value, str | int))
                or (path in EMPTY and value in ([], {}, None))
                or (path[-1] == "reach" and value in (None, 1.5))
                or (path[-1] in ("target", "recall", "surely", "closeness", "reach"))
                or (path[:1] in {("extents",), ("measured",)} and value == [])
                or (path == ("measured", "random_pairs") and value is None)
                # Scores and the number of pairs are free, as long as scores ascend.
                or (path[:2] == ("measured", "random_pairs") and isinstance(value, int | float))
                or (path[-1] in ("ordered", "normalized") and value is True)
                or (path[-1] in ("xxh64", "hash_seed") and value == 1 << 63)
                or (path[:1] == ("settings",) and value == 1 << 63)
            ), (path, text, found)
    assert checked > 800


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"what": ' + "9" * 1_000_000 + "}",
        '{"what": 1, "what": 1}',
        '{"what": NaN}',
        '{"what": "image-index-engine store", "min_reader": Infinity}',
        '{"what": "image-index-engine store", "min_reader": 1e999}',
        '"' + "x" * 1_000_000,
    ],
    ids=["arrays", "objects", "digits", "twice", "nan", "infinite", "large", "text"],
)
def test_text_that_is_no_manifest_is_one_short_line(store: Path, text: str) -> None:
    resaved(store, text)
    with pytest.raises(StoreError, match=r"cannot be read \(.*--fix' rebuilds") as caught:
        Store.open(store)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_each_value_of_the_state_is_checked_when_it_is_read() -> None:
    good = State(
        commit=3,
        next_id=9,
        images=8,
        vectors={"1": 8},
        removed_vectors={"1": 0},
        extents={"fingerprints.pdq": [[1, 256]], "pixels.blobs": [[1, 10], [2, 20]]},
        dead={"1": 4},
    )
    body = json.loads(good.pack())
    assert State.unpack(good.pack()) == good
    for path in leaves(body):
        for value in (*HOSTILE, 1 << 62):
            try:
                State.unpack(json.dumps(put(body, path, value)).encode())
            except StoreDamagedError as error:
                assert "\n" not in str(error)
            else:
                assert value in ([], {}, 1 << 62), (path, value)
    for name in ("..", "pixels", "vectors/../x.f32", "vectors/1", "/etc.f32", "pixels.blobs\0"):
        with pytest.raises(StoreDamagedError):
            State.unpack(json.dumps({**body, "extents": {name: [[1, 1]]}}).encode())
    with pytest.raises(StoreDamagedError, match="more than there can be"):
        State.unpack(json.dumps({**body, "next_id": 1 << 47}).encode())
    for lengths in ([[1, (1 << 63) - 1]], [[number, 1 << 61] for number in (1, 2, 3)]):
        with pytest.raises(StoreDamagedError, match="more bytes than there can be"):
            State.unpack(json.dumps({**body, "extents": {"pixels.blobs": lengths}}).encode())
    for text in (b"", b"[", b"[" * 100_000, b"7", b'{"other": 1}'):
        with pytest.raises(StoreDamagedError):
            State.unpack(text)


@pytest.mark.parametrize("value", HOSTILE)
def test_what_a_commit_appended_is_checked_when_it_is_read(value: object) -> None:
    good = ["pixels.blobs", 1, 0, 10, 5]
    key = bytes(8)
    assert len(CommitRow.unpack(key, json.dumps([good]).encode()).appends) == 1
    for at in range(4 if value == 1 << 63 else 5):  # a checksum may be as large
        with pytest.raises(StoreDamagedError):
            CommitRow.unpack(key, json.dumps([[*good[:at], value, *good[at + 1 :]]]).encode())


CHANGES: dict[str, Callable[[Path], object]] = {
    "an extent of a large number": lambda store: tampered(
        store, lambda body: body["extents"].update({"pixels.blobs": [1, file_names.MAX_EXTENT]})
    ),
    "a segment of a large number": lambda store: tampered(
        store, lambda body: body["segments"][0].update(number=file_names.MAX_NUMBER)
    ),
    "a generation of a large number": lambda store: tampered(
        store,
        lambda body: body["encoder"].update(
            generation=file_names.MAX_GENERATION,
            file=f"encoder/{file_names.MAX_GENERATION}/model.onnx",
        ),
    ),
    "lengths that are huge": lambda store: tampered(
        store,
        lambda body: (
            body["segments"][0].update(bytes=1 << 62),
            body["quantizers"][0].update(nlist=1 << 24),
        ),
    ),
    "a huge range": lambda store: tampered(
        store, lambda body: body["segments"][0].update(ranges=[[1, 1 << 62, 1 << 62]])
    ),
    "vectors of another length": lambda store: tampered(
        store, lambda body: body["encoder"].update(dim=1 << 20)
    ),
    "a state of huge lengths": lambda store: restated(
        store, lambda body: [pairs[0].__setitem__(1, 1 << 62) for pairs in body["extents"].values()]
    ),
    "a state of other extents": lambda store: restated(
        store, lambda body: [pairs[0].__setitem__(0, 999) for pairs in body["extents"].values()]
    ),
    "a state that counts huge": lambda store: restated(
        store,
        lambda body: body.update(
            images=1 << 62, sources=1 << 62, removed=1 << 62, next_array=1 << 62
        ),
    ),
    "a state that is none": lambda store: rekeyed(store, "meta", lambda key: key == b"state", b"["),
    "settings that are none": lambda store: rekeyed(
        store, "meta", lambda key: key == b"settings", b"{}"
    ),
    "commits that are none": lambda store: rekeyed(
        store, "commits", lambda key: True, b'[["..", 1, 2, 3, 4]]'
    ),
    "commits of huge places": lambda store: rekeyed(
        store,
        "commits",
        lambda key: True,
        json.dumps([["pixels.blobs", 1, 1 << 61, 1 << 61, 0]]).encode(),
    ),
    "places that are none": lambda store: misplaced(store),
    "CURRENT leads out": lambda store: (store / "keys" / "CURRENT").write_text(
        "../../outside/theirs\n"
    ),
    "options of others": lambda store: next((store / "keys").glob("OPTIONS-*")).write_text(
        f"[DBOptions]\n  db_log_dir={store.parent}/outside\n  wal_dir={store.parent}/outside\n"
    ),
    "a header of another": lambda store: (store / "pixels" / "00000001.blobs").write_bytes(
        b"\xff" * (store / "pixels" / "00000001.blobs").stat().st_size
    ),
}


def rekeyed(store: Path, table: str, which: Callable[[bytes], bool], value: bytes) -> None:
    opened = opening.open_writer(store, MemoryBudget())
    batch = opened.batch()
    for key, _ in opened.scan(table):
        if which(key):
            batch.put(table, key, value)
    opened.commit(batch)
    opened.close()


def restated(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    opened = opening.open_writer(store, MemoryBudget())
    body = json.loads(opened.get("meta", b"state") or b"")
    change(body)
    batch = opened.batch()
    batch.put("meta", b"state", json.dumps(body).encode())
    opened.commit(batch)
    opened.close()


def misplaced(store: Path) -> None:
    opened = opening.open_writer(store, MemoryBudget())
    batch = opened.batch()
    places = [
        Place(1, (1 << 40) - 1, 96),
        Place(file_names.MAX_EXTENT, 0, 96),
        Place(1, 0, (1 << 32) - 1),
    ]
    for at, (key, value) in enumerate(opened.scan("images")):
        row = ImageRow.unpack(value)
        batch.put("images", key, row._replace(place=places[at % len(places)]).pack())
    opened.commit(batch)
    opened.close()


@pytest.mark.usual
@pytest.mark.slow
@pytest.mark.parametrize("what", CHANGES)
def test_hostile_values_do_no_harm_outside(
    store: Path, template: Path, tmp_path: Path, what: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "theirs").write_bytes(MARK)
    CHANGES[what](store)
    before = seen(outside)
    with no_hang():
        said = use_it_all(store, template, tmp_path / "out")
    assert seen(outside) == before
    assert sorted(path.name for path in tmp_path.iterdir()) in (
        ["outside", "store"],
        ["out", "outside", "store"],
    )
    # What is only named, or not live, is no damage.
    harmless = ("of others", "a huge range", "an extent of", "a segment of")
    assert said["check"] or any(part in what for part in harmless), said


# --- the module itself ----------------------------------------------------------------------------


@pytest.fixture(params=["by the kernel", "step by step"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "step by step":
        monkeypatch.setattr(openat2, "open_beneath", None)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "root" / "a" / "b").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(MARK)
    root = tmp_path / "root"
    (root / "a" / "b" / "file").write_bytes(b"ours")
    (root / "a" / "link").symlink_to(tmp_path / "outside")
    (root / "a" / "inner").symlink_to("b")
    (root / "a" / "b" / "link").symlink_to(tmp_path / "outside" / "file")
    (root / "a" / "b" / "inner").symlink_to("file")
    os.mkfifo(root / "a" / "b" / "pipe")
    return root


FOREIGN = {
    "a/link/file": "a symbolic link, and should be a folder",
    "a/inner/file": "a symbolic link, and should be a folder",
    "a/b/link": "a symbolic link, and should be a file",
    "a/b/inner": "a symbolic link, and should be a file",
    "a/b/pipe": "a pipe, and should be a file",
    "a/b": "a folder, and should be a file",
    "a/b/file/x": "a file, and should be a folder",
    "a/b/pipe/x": "a pipe, and should be a folder",
}


@pytest.mark.slow
@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_file_is_named_by_every_call(tree: Path, name: str) -> None:
    before = seen(tree.parent)
    calls: list[Callable[[], object]] = [
        lambda: nofollow.open_file(tree, name),
        lambda: nofollow.open_file(tree, name, os.O_WRONLY | os.O_CREAT),
        lambda: nofollow.open_file(tree, name, os.O_RDWR),
        lambda: nofollow.open_lock(tree, name, os.O_RDWR | os.O_CREAT),
        lambda: nofollow.create_file(tree, name),
        lambda: nofollow.read_file(tree, name),
        lambda: nofollow.status(tree, name),
        lambda: nofollow.size(tree, name),
        lambda: nofollow.remove(tree, name),
        lambda: nofollow.rename(tree, name, tree, "new"),
        lambda: nofollow.rename(tree, "a/b/file", tree, name),
    ]
    with no_hang():
        for call in calls:
            with pytest.raises(ForeignError, match=FOREIGN[name]) as caught:
                call()
            assert "\n" not in str(caught.value)
        nofollow.discard(tree, name, file_names.ROCKSDB)
    assert seen(tree.parent) == before


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    "name",
    ["..", "../outside/file", "a/../a/b/file", "/etc/passwd", "a//b", ".", "a/./b", "a\0", "a/"],
)
def test_a_name_that_leads_out_is_refused(tree: Path, name: str) -> None:
    calls: list[Callable[[str], object]] = [
        lambda name: nofollow.open_file(tree, name),
        lambda name: nofollow.create_file(tree, name),
        lambda name: nofollow.remove(tree, name),
        lambda name: nofollow.entries(tree, name),
        lambda name: nofollow.make_folder(tree, name),
    ]
    for call in calls:
        with pytest.raises(StoreDamagedError):
            call(name)


@pytest.mark.usefixtures("each_way")
def test_files_are_made_listed_moved_and_deleted(tree: Path) -> None:
    os.close(nofollow.create_file(tree, "a/b/new"))
    assert nofollow.size(tree, "a/b/new") == 0
    nofollow.rename(tree, "a/b/new", tree, "a/moved")
    assert nofollow.size(tree, "a/b/new") is None
    assert nofollow.read_file(tree, "a/b/file") == b"ours"
    assert nofollow.read_file(tree, "a/b/file", 2) == b"ou"
    assert nofollow.make_folder(tree, "a/c")
    assert not nofollow.make_folder(tree, "a/c")
    assert [entry.name for entry in nofollow.entries(tree, "a") if entry.is_folder] == ["b", "c"]
    assert [entry.name for entry in nofollow.entries(tree, "a") if entry.is_file] == ["moved"]
    assert nofollow.entries(tree, "none/of/it") == []
    nofollow.remove(tree, "a/moved")
    nofollow.remove(tree, "a/moved")
    nofollow.remove_folder(tree, "a/c")
    for call in (nofollow.open_file, nofollow.read_file):
        with pytest.raises(FileNotFoundError, match="root/a/moved"):
            call(tree, "a/moved")


def descriptors() -> list[Path]:
    return list(Path("/dev/fd").iterdir())


def test_no_descriptor_is_left_open(tree: Path) -> None:
    before = descriptors()
    for name in (*FOREIGN, "a/b/none", "none/x"):
        for flags in (os.O_RDONLY, os.O_WRONLY):
            with pytest.raises((OSError, StoreError)):
                os.close(nofollow.open_file(tree, name, flags))
    os.close(nofollow.open_file(tree, "a/b/file", os.O_WRONLY))
    assert len(descriptors()) == len(before)


def test_a_file_that_leads_to_no_id_is_damage(store: Path, template: Path) -> None:
    opened = opening.open_writer(store, MemoryBudget())
    batch = opened.batch()
    for key, value in opened.scan("files"):
        batch.put("files", key, value * 2)
    opened.commit(batch)
    opened.close()
    with (
        Store.open(store) as reader,
        pytest.raises(StoreDamagedError, match="'files' has a malformed row"),
    ):
        reader.lookup(template / "photos" / "a.png")


@pytest.mark.slow
def test_settings_that_cannot_be_read_are_those_of_the_manifest_again(store: Path) -> None:
    opened = opening.open_writer(store, MemoryBudget())
    batch = opened.batch()
    batch.put("meta", b"settings", b'{"hash_seed": 1}')
    opened.commit(batch)
    opened.close()
    with pytest.raises(StoreDamagedError, match="the settings among the keys cannot be read"):
        Store.open(store)
    assert [problem.fixed for problem in Store.salvage(store)] == [True]
    with Store.open(store) as mended:
        assert mended.check(fix=True).problems == ()
        assert mended.lookup(mask(3)).identical
