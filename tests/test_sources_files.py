"""Image files in folders: which, in what order, and what stands in the way."""

import contextlib
import os
import signal
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import picture, save
from PIL import Image

from engine import Store
from engine.cli.render import ingest_text
from engine.errors import ImageError
from engine.sources import files, items
from engine.sources.items import FileItem, Reject, Skipped
from engine.sources.skip_notes import ARCHIVES_IN_FOLDERS
from engine.storage.source_rows import NameRow

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


@pytest.fixture
def promptly():
    """Fail rather than hang."""

    def stop(number, frame):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(path: Path, data: bytes = PNG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def walked(folder: Path, recursive: bool = True) -> list:
    return list(files.walk(folder, recursive=recursive))


def found(folder: Path, recursive: bool = True) -> list[str]:
    items = [item for item in walked(folder, recursive) if isinstance(item, FileItem)]
    return [os.path.relpath(os.fsdecode(item.name), folder) for item in items]


def named(items: list, kind: type) -> list[str]:
    return [Path(os.fsdecode(item.name)).name for item in items if isinstance(item, kind)]


def test_a_folders_own_files_come_by_name_and_then_its_subfolders(tmp_path):
    for name in ["b.png", "a.png", "C.png", "b/z.png", "b/a/y.png", "a/x.png", "a.d/w.png"]:
        put(tmp_path / name)
    expected = ["C.png", "a.png", "b.png", "a/x.png", "a.d/w.png", "b/z.png", "b/a/y.png"]
    assert found(tmp_path) == expected == found(tmp_path)


@pytest.mark.parametrize(
    "mtime",
    [
        0,
        -1,
        1 << 62,
        (1 << 63) - 1,
        -(1 << 63),
        1 << 63,
        -(1 << 63) - 1,
        1 << 64,
        -116444736 * 10**11,
    ],
)
def test_a_time_stamp_of_any_year_is_one(mtime):
    near = [
        items.stamp_of(SimpleNamespace(st_mtime_ns=mtime + i, st_size=7)) for i in (0, 1, 10**9)
    ]
    assert len(set(near)) == 3
    for ns, size in near:
        assert NameRow.unpack(NameRow(1, ns, size).pack()) == NameRow(1, ns, size)
    if -(1 << 63) <= mtime < 1 << 63:
        assert near[0] == (mtime, 7)


def test_files_of_any_year_are_ingested_and_known_again(tmp_path):
    years = {"then.png": -(10**18), "soon.png": 10_413_792_000 * 10**9, "epoch.png": 0}
    names = [*years, "a.tar", "b.zip", "c.npy", "now.png"]
    for i, name in enumerate([*years, "now.png"]):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / name)
    member = tarfile.TarInfo("0.png")
    member.size = (tmp_path / "now.png").stat().st_size
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for number, member.mtime in enumerate((-(10**12), 1 << 60, 1)):
            member.name = f"{number}.png"
            archive.addfile(member, (tmp_path / "now.png").open("rb"))
    with tarfile.open(tmp_path / "a.tar", "a", format=tarfile.PAX_FORMAT) as archive:
        for number, member.mtime in enumerate((-1.5, 1e300, 2.5), 3):
            member.name = f"{number}.png"
            archive.addfile(member, (tmp_path / "now.png").open("rb"))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as zipped:
        zipped.writestr("0.png", (tmp_path / "now.png").read_bytes())
    data = bytearray((tmp_path / "b.zip").read_bytes())
    data[10:14] = data[data.find(b"PK\1\2") + 12 :][:4] = b"\xff" * 4  # no such day
    (tmp_path / "b.zip").write_bytes(data)
    np.save(tmp_path / "c.npy", np.ones((2, 5, 5), bool))
    for name in ("a.tar", "b.zip", "c.npy"):
        os.utime(tmp_path / name, ns=(0, years["soon.png"]))
    for name, ns in years.items():
        os.utime(tmp_path / name, ns=(0, ns))
    assert (tmp_path / "soon.png").stat().st_mtime_ns > 1 << 62
    sources = [tmp_path / name for name in names]
    with Store.open(tmp_path / "s", create=True, encoder="none") as store:
        report = store.ingest(*sources)
        assert (report.added, report.duplicates, report.rejected) == (5, 8, 0)
        assert store.ingest(*sources).unchanged == 13
        assert store.check().ok and store.remove(missing=True).images == 0
        os.utime(tmp_path / "soon.png", ns=(0, years["soon.png"] + 1))
        assert store.ingest(*sources).unchanged == 12


def test_what_macos_keeps_beside_an_image_is_skipped(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "._a.png", bytes.fromhex("0005160700020000") + bytes(74))
    put(tmp_path / "._b.png")  # an image, whatever it is called
    assert found(tmp_path) == ["._b.png", "a.png"]
    assert named(walked(tmp_path), Skipped) == ["._a.png"]


def test_subfolders_are_left_alone_when_asked_to(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "b" / "c.png")
    assert found(tmp_path, recursive=False) == ["a.png"]
    assert files.count(tmp_path, recursive=False) == 1
    assert files.count(tmp_path, recursive=True) == 2


def test_an_item_carries_the_files_name_and_stamp(tmp_path):
    path = put(tmp_path / "a.png")
    (item,) = walked(tmp_path)
    status = path.stat()
    assert item == FileItem(path, os.fsencode(path), status.st_mtime_ns, status.st_size)
    assert item.read(1000) == PNG


def test_a_relative_folder_gives_absolute_names(tmp_path, monkeypatch):
    put(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert [item.name for item in walked(Path())] == [os.fsencode(tmp_path / "a.png")]


def test_a_file_is_taken_for_an_image_by_its_name_or_by_its_signature(tmp_path):
    put(tmp_path / "broken.JPG", b"text")
    put(tmp_path / "no-suffix")
    put(tmp_path / "wrong-suffix.txt")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "real.gif")
    for name in ["notes.txt", "data.npy", "empty", ".hidden"]:
        put(tmp_path / name, b"" if name == "empty" else b"text")
    assert found(tmp_path) == ["broken.JPG", "no-suffix", "real.gif", "wrong-suffix.txt"]
    assert named(walked(tmp_path), Skipped) == [".hidden", "data.npy", "empty", "notes.txt"]
    assert files.count(tmp_path, recursive=True) == len(walked(tmp_path)) == 8


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "format_"),
    [("a.HEIC", "HEIC"), ("b.cr2", "camera raw"), ("c.dng", "camera raw"), ("d.psd", "Photoshop")],
)
def test_formats_that_are_not_read_yet_are_counted_by_name(tmp_path, name, format_):
    """A raw file is signed as a TIFF, and the first picture in it is a thumbnail."""
    folder = tmp_path / "in"
    raw = put(folder / name, b"II*\0" + bytes(60))
    put(folder / f"._{name}", bytes(60))
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(raw, f"inside/{name}")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.write(raw, f"inside/{name}")
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        report = store.ingest(folder, folder / "a.tar", folder / "a.zip")
        assert report.notes == {f"{format_} files are not read yet": 3, ARCHIVES_IN_FOLDERS: 2}
        assert (report.seen, report.rejected, report.skipped) == (0, 0, 6)
        named_directly = store.ingest(raw)
    assert named_directly.rejected == 1
    (line,) = (tmp_path / "store" / "rejects.jsonl").read_text().splitlines()
    assert f"{format_} is not read yet" in line


def test_a_link_to_a_file_keeps_its_own_name(tmp_path):
    target = put(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "link.png").symlink_to(target)
    assert found(tmp_path / "photos") == ["link.png"]


def test_links_to_folders_are_not_followed(tmp_path):
    put(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "circle").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert found(tmp_path) == ["a/x.png"]


def test_a_link_in_a_circle_does_not_stop_the_walk(tmp_path):
    for name in ["loop", "loop.png"]:
        (tmp_path / name).symlink_to(name)
    put(tmp_path / "z.png")
    skipped, problem, image = walked(tmp_path)
    assert isinstance(skipped, Skipped)
    assert isinstance(problem, Reject)
    assert image.path.name == "z.png"


def test_a_dangling_link_does_not_stop_the_walk(tmp_path):
    (tmp_path / "gone").symlink_to("nowhere")
    put(tmp_path / "z.png")
    assert found(tmp_path) == ["z.png"]


# --- what stands in the way -----------------------------------------------------------------------


@pytest.fixture
def deep_folder(tmp_path):
    """1,200 folders in each other with one image at the end; removed again, as rmtree would fail."""
    before, depth = Path.cwd(), 1200
    os.chdir(tmp_path)
    for _ in range(depth):
        Path("d").mkdir()
        os.chdir("d")
    put(Path("deep.png"))
    os.chdir(before)
    yield "d/" * depth + "deep.png"
    os.chdir(tmp_path / ("d/" * depth))
    Path("deep.png").unlink()
    for _ in range(depth):
        os.chdir("..")
        Path("d").rmdir()
    os.chdir(before)


@pytest.mark.slow
def test_folders_may_be_nested_deeper_than_calls_may_be(tmp_path, deep_folder):
    assert found(tmp_path) == [deep_folder]
    assert files.count(tmp_path, recursive=True) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_is_closed_to_us_is_a_problem_and_the_rest_is_read(tmp_path):
    put(tmp_path / "closed" / "a.png")
    put(tmp_path / "closed.png").chmod(0)
    put(tmp_path / "open" / "b.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "closed" / "a.png")
    (tmp_path / "closed").chmod(0)
    try:
        items = walked(tmp_path)
        assert named(items, Reject) == ["link.png", "closed"]
        assert found(tmp_path) == ["closed.png", "open/b.png"]
        with pytest.raises(ImageError, match="Permission denied"):
            items[0].read(1000)
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_a_folder_that_is_not_there_is_a_problem(tmp_path):
    (problem,) = walked(tmp_path / "nowhere")
    assert "cannot be listed" in problem.reason


@pytest.mark.usefixtures("promptly")
def test_pipes_and_sockets_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    put(tmp_path / "z.png")
    assert found(tmp_path) == ["z.png"]
    assert isinstance(files.one(tmp_path / "pipe.png"), Reject)
    assert isinstance(files.one(Path("/dev/null")), Reject)


@pytest.mark.parametrize(
    "name", ["a#1.png", "what?.png", "new\nline.png", " .png", "ü 😀.png", "-"]
)
def test_any_name_may_be_a_files_name(tmp_path, name):
    put(tmp_path / name)
    assert [item.name for item in walked(tmp_path)] == [os.fsencode(tmp_path / name)]


def test_a_name_that_is_no_utf_8_keeps_its_bytes(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    with contextlib.suppress(OSError):  # some file systems have no such names
        Path(os.fsdecode(name)).write_bytes(PNG)
        (item,) = walked(tmp_path)
        assert item.name == name
        assert item.read(100) == PNG


# --- one file -------------------------------------------------------------------------------------


def test_a_named_file_is_an_item_whatever_it_is(tmp_path):
    assert isinstance(files.one(put(tmp_path / "notes.txt", b"text")), FileItem)


def test_a_named_file_that_is_not_there_is_a_problem(tmp_path):
    problem = files.one(tmp_path / "gone.png")
    assert problem.name == os.fsencode(tmp_path / "gone.png")
    assert "No such file" in problem.reason


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path):
    item = files.one(put(tmp_path / "a.png", bytes(1000)))
    assert len(item.read(1000)) == 1000
    with pytest.raises(ImageError, match="1,000 bytes are over the limit of 999"):
        item.read(999)


def test_a_file_that_grew_or_went_is_an_image_error(tmp_path):
    path = put(tmp_path / "a.png", bytes(10))
    item = files.one(path)
    path.write_bytes(bytes(100))
    with pytest.raises(ImageError, match="grew"):
        item.read(50)
    path.unlink()
    with pytest.raises(ImageError, match="No such file"):
        item.read(50)


def test_arrays_and_archives_in_a_folder_are_counted_with_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save(folder / "a.png", picture(1))
    np.save(folder / "rows.npy", picture(2)[None])
    save(tmp_path / "image.png", picture(3)).rename(folder / "an image.zip")
    for name in ("more.tar.gz", "more.zip", "table.parquet", "notes.txt", "b.heic"):
        (folder / name).write_bytes(b"x" * 40)
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        report = store.ingest(folder)
    assert (report.added, report.skipped) == (2, 6)
    assert list(report.notes.values()) == [1, 3, 1]
    text = ingest_text(report).splitlines()
    assert text[1] == "1 skipped: files that do not claim to be images"
    assert "3 archive and table files are not read in folders: name each as a source" in text
    assert "1 array file is not read in folders: name each as a source" in text
    assert "1 HEIC file is not read yet" in text
