"""Tar and zip archives: every member in order and once, whatever else is in them, and never to disk."""

import bz2
import functools
import gzip
import io
import json
import lzma
import os
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from engine import Store
from engine.cli import render
from engine.errors import ImageError, SourceError, UsageError
from engine.sources import skip_notes, tar_reader, webdataset
from engine.sources.decompress import plain, zstd
from engine.sources.items import Member, Reject, Skipped
from engine.sources.metadata import METADATA_LIMIT
from engine.sources.query import open_images
from engine.sources.source_stream import Sources
from engine.sources.tar_archive import TarArchive, begins_as_tar
from engine.sources.zip_archive import ZipArchive

RNG = np.random.default_rng(3)
MOST = 1 << 20
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
    "tar.zst": lambda data: zstd().compress(data),
}
SLOW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def png(side: int = 6) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


PNG, OTHER = png(), png()
FILES = {"a.png": PNG, "d/b.PNG": OTHER, "notes.md": b"text", "d/no-suffix": PNG}


def tar_bytes(files: dict[str, bytes] | list, form: int = tarfile.GNU_FORMAT, **more) -> bytes:
    """A tar archive; of a list, also what tarfile.TarInfo says."""
    file = io.BytesIO()
    pairs = files.items() if isinstance(files, dict) else files
    with tarfile.open(fileobj=file, mode="w", format=form, **more) as archive:
        for name, data in pairs:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if data is None:
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def a_tar(path: Path, files: dict[str, bytes] | list | bytes, **options) -> TarArchive:
    data = files if isinstance(files, bytes) else tar_bytes(files, **options)
    path.write_bytes(data)
    return TarArchive(path)


def a_zip(path: Path, files: dict[str, bytes] | list, method: int = zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items() if isinstance(files, dict) else files:
            archive.writestr(name, data)
    return ZipArchive(path)


def read(archive, start: int = 0, most: int = MOST) -> list:
    return list(archive.members(start, most))


def until(archive, most: int = MOST) -> tuple[list, str]:
    """What an archive yields before it breaks off, and why: one line, or nothing."""
    found = []
    try:
        for item in archive.members(0, most):
            found.append(item)
    except SourceError as error:
        assert str(error) and len(str(error).splitlines()) == 1
        return found, str(error)
    return found, ""


def member(item) -> bytes:
    return item.name.rpartition(b"#")[2]


def shown(items: list) -> list[tuple[str, str]]:
    return [(type(item).__name__, member(item).decode()) for item in items]


EXPECTED = [
    ("Member", "a.png"),
    ("Member", "d/b.PNG"),
    ("Skipped", "notes.md"),
    ("Member", "d/no-suffix"),
]


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_images_of_a_tar_come_in_its_order(tmp_path, suffix, form):
    path = tmp_path / f"a.{suffix}"
    archive = a_tar(path, COMPRESS[suffix](tar_bytes(FILES, form)))
    found = read(archive)
    assert shown(found) == EXPECTED
    assert [item.data for item in found if isinstance(item, Member)] == [PNG, OTHER, PNG]
    status = path.stat()
    for item in found:
        assert item.name == os.fsencode(path) + b"#" + member(item)
        if isinstance(item, Member):
            assert (item.mtime_ns, item.size) == (status.st_mtime_ns, status.st_size)
            assert item.metadata is None


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_the_images_of_a_zip_come_in_its_order(tmp_path, method):
    archive = a_zip(tmp_path / "a.zip", FILES, method)
    found = read(archive)
    assert shown(found) == EXPECTED
    assert [item.data for item in found if isinstance(item, Member)][:2] == [PNG, OTHER]
    assert archive.count == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*COMPRESS, "zip"])
@given(data=st.data())
@SLOW
def test_an_archive_is_read_on_from_any_member(tmp_path, kind, data):
    path = tmp_path / f"a.{kind}"
    if not path.exists():
        files = [(f"{i}.png", PNG + bytes(i)) for i in range(6)]
        files[2:2] = [("x", b"text"), ("y.json", b"{}"), ("z.png", bytes(MOST + 1))]
        if kind == "zip":
            a_zip(path, files)
        else:
            side = [("0.json", b'{"of": 0}'), ("0.cls", b"4")]
            path.write_bytes(COMPRESS[kind](tar_bytes(files[:1] + side + files[1:])))
    archive = ZipArchive(path) if kind == "zip" else TarArchive(path)
    whole = read(archive)
    assert len(whole) == 9
    start = data.draw(st.integers(0, 10))
    assert read(archive, start) == whole[start:]
    most = data.draw(st.sampled_from([1, 100, MOST, 2 * MOST]))
    assert [item.name for item in read(archive, start, most)] == [i.name for i in whole[start:]]


def test_folders_are_no_members_and_links_and_devices_are_skipped(tmp_path):
    infos = []
    for kind in [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]:
        info = tarfile.TarInfo(f"{kind.decode()}.png")
        info.type, info.linkname = kind, "/etc/passwd"
        infos.append((info, None))
    old = tarfile.TarInfo("as-files.png/")  # how the oldest archives have folders
    infos.append((old, b""))
    files = [("a.png", PNG), *infos, ("b.png", OTHER)]
    archive = a_tar(tmp_path / "a.tar", files)
    found = read(archive)
    assert shown(found) == [
        ("Member", "a.png"),
        ("Skipped", "2.png"),
        ("Skipped", "1.png"),
        ("Skipped", "6.png"),
        ("Member", "b.png"),
    ]
    assert [i.note for i in found] == [
        "",
        skip_notes.LINKS,
        skip_notes.HARD_LINKS,
        skip_notes.DEVICES,
        "",
    ]
    with pytest.raises(
        ImageError, match="is a hard link in the archive: name '/etc/passwd' instead"
    ):
        archive.read(b"1.png", MOST)
    with pytest.raises(ImageError, match="symbolic link"):
        archive.read(b"2.png", MOST)

    def unix(name: str, mode: int) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, mode << 16
        return info

    archive = a_zip(
        tmp_path / "a.zip",
        [
            ("d/", b""),
            ("with-data.png/", PNG),
            (unix("link.png", 0o120777), b"/etc/passwd"),
            (unix("pipe.png", 0o010644), b""),
            (unix("a.png", 0o100644), PNG),
        ],
    )
    found = read(archive)
    assert shown(found)[-1] == ("Member", "a.png")
    notes = [skip_notes.FOLDERS_WITH_DATA, skip_notes.LINKS, skip_notes.DEVICES]
    assert [item.note for item in found[:-1]] == notes
    with pytest.raises(ImageError, match="symbolic link"):
        archive.read(b"link.png", MOST)


def test_archives_behind_each_other_are_one(tmp_path):
    first = tar_bytes({"0.png": PNG, "0.json": b'{"of": 1}'})
    second = tar_bytes({"0.png": OTHER, "0.json": b'{"of": 2}'}, tarfile.PAX_FORMAT)
    sides = [{"of": 1}, {"of": 2}]  # of each its own, though they have one name
    for name, data in {
        "a.tar": first + second,
        "lone-zeros.tar": first[:3072] + bytes(512) + second,
        "a.tar.gz": gzip.compress(first + bytes(102_400) + second),
        "b.tar.gz": gzip.compress(first) + gzip.compress(second),
        "c.tar.gz": gzip.compress(first) + bytes(70_000) + lzma.compress(second),
    }.items():
        archive = a_tar(tmp_path / name, data)
        found = read(archive)
        assert shown(found) == [("Member", "0.png"), ("Member", "0.png")]
        assert [item.metadata for item in found] == sides
        assert read(archive, 1) == found[1:]
    for name, data in {
        "a.tar": first + b"something else",
        "b.tar": first + RNG.bytes(1024),
        "a.tar.gz": gzip.compress(first) + second,
        "b.tar.gz": gzip.compress(first + b"\1" * 512) + bytes(9),
    }.items():
        archive = a_tar(tmp_path / name, data)
        found = read(archive)
        assert [type(item) for item in found] == [Member, Skipped]
        assert found[1].note == skip_notes.NO_ARCHIVE and not read(archive, 2)
    assert len(read(a_tar(tmp_path / "zeros.tar", bytes(10240)))) == 0


def test_an_ingest_says_what_of_an_archive_is_not_read(tmp_path):
    linked = [tarfile.TarInfo(f"{i}.png") for i in range(3)]
    for info in linked:
        info.type, info.linkname = tarfile.LNKTYPE, "a.png"
    files = [("a.png", PNG), *((info, None) for info in linked), ("b.png", OTHER)]
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes([*files, ("b.json", b"[1]")]) + b"?")
    with Store.open(tmp_path / "s", create=True, encoder="none") as store:
        report = store.ingest(str(path))
        assert (report.added, report.rejected, report.skipped) == (2, 0, 4)
        assert report.notes == {
            skip_notes.HARD_LINKS: 3,
            skip_notes.WITHOUT_METADATA: 1,
            skip_notes.NO_ARCHIVE: 1,
        }
        (line,) = map(json.loads, Path(report.rejects_file or "").read_text().splitlines())
        assert line["source"] == f"{path}#b.png"
        assert line["reason"] == "taken without its metadata: its .json is not an object"
        text = render.ingest_text(report)
        assert f"3 {skip_notes.HARD_LINKS}" in text and f"1 {skip_notes.WITHOUT_METADATA}" in text
        again = store.ingest(str(path))
        assert (again.unchanged, again.skipped, again.notes) == (2, 4, {})


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_what_macos_keeps_beside_an_image_is_none(tmp_path, kind):
    double = bytes.fromhex("00051607000200004d6163204f532058") + bytes(66)
    files = {
        "a.png": PNG,
        "._a.png": double,
        "__MACOSX/._a.png": double,
        "__MACOSX/d/a.png": double,
        "._b.png": OTHER,  # an image, whatever it is called
    }
    make = a_zip if kind == "zip" else a_tar
    assert [pair[0] for pair in shown(read(make(tmp_path / "a", files)))] == [
        "Member",
        *["Skipped"] * 3,
        "Member",
    ]


NAMES = [
    "../../etc/passwd.png",
    "/absolute.png",
    "./here.png",
    "new\nline.png",
    "\x1b[31mred.png",
    "a#1.png",
    "what?.png",
    " .png.png",
    "ü 😀.png",
    "d/" * 60 + "long.png",
    "x" * 300 + ".png",
]


@pytest.mark.parametrize("kind", ["ustar", "gnu", "pax", "zip"])
def test_a_members_name_is_a_name_and_never_a_place(tmp_path, kind):
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    path = folder / ("a.zip" if kind == "zip" else "a.tar")
    names = [name for name in NAMES if kind != "ustar" or len(name) < 100]
    files = {name: png() for name in names}
    if kind == "zip":
        archive = a_zip(path, files)
    else:
        forms = {"ustar": 0, "gnu": 1, "pax": 2}
        archive = a_tar(path, files, form=forms[kind], encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    found = read(archive)
    assert [item.name for item in found] == [
        os.fsencode(path) + b"#" + name.encode() for name in names
    ]
    for item, data in zip(found, files.values(), strict=True):
        assert item.data == data
        (query,) = open_images(os.fsdecode(item.name), MOST)
        assert query.data == data
    assert sorted(tmp_path.rglob("*")) == before


def test_names_that_are_no_utf_8_keep_their_bytes(tmp_path):
    raw = b"caf\xe9\xff.png"
    name = raw.decode(errors="surrogateescape")
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT):
        path = tmp_path / f"{form}.tar"
        archive = a_tar(path, {name: PNG}, form=form, errors="surrogateescape")
        (item,) = read(archive)
        assert member(item) == raw
        (query,) = open_images(os.fsdecode(item.name), MOST)
        assert query.data == PNG


def test_old_zip_names_are_of_code_page_437(tmp_path):
    path = tmp_path / "a.zip"
    a_zip(path, {"cafE.png": PNG})
    path.write_bytes(path.read_bytes().replace(b"cafE.png", b"caf\x82.png"))
    (item,) = read(ZipArchive(path))
    assert member(item) == "café.png".encode()
    (query,) = open_images(f"{path}#café.png", MOST)
    assert query.data == PNG


def test_both_of_two_members_with_one_name_are_there(tmp_path):
    files = [("a.png", PNG), ("a.png", OTHER)]
    with pytest.warns(UserWarning, match="Duplicate"):
        zipped = a_zip(tmp_path / "a.zip", files)
    for archive in (a_tar(tmp_path / "a.tar", files), zipped):
        assert [item.data for item in read(archive)] == [PNG, OTHER]


def test_archives_in_archives_are_left_alone(tmp_path):
    inner = tar_bytes(FILES)
    files = {"in.tar": inner, "in.tar.gz": gzip.compress(inner), "in.zip": b"PK\3\4", "a.png": PNG}
    expected = ["Skipped", "Skipped", "Skipped", "Member"]
    assert [kind for kind, _ in shown(read(a_tar(tmp_path / "a.tar", files)))] == expected
    assert [kind for kind, _ in shown(read(a_zip(tmp_path / "a.zip", files)))] == expected


def test_a_member_over_the_limit_is_passed_by(tmp_path):
    files = {"a.png": PNG, "large.png": bytes(5000), "b.png": OTHER}
    zipped = a_zip(tmp_path / "a.zip", files, zipfile.ZIP_STORED)
    archives = [a_tar(tmp_path / f"a.{s}", c(tar_bytes(files))) for s, c in COMPRESS.items()]
    for archive in (*archives[:3], zipped):
        first, large, last = read(archive, most=4000)
        assert (
            isinstance(large, Reject) and "5,000 bytes are over the limit of 4,000" in large.reason
        )
        assert (large.mtime_ns, large.size) == (0, 0)  # with more memory it may go better
        assert (first.data, last.data) == (PNG, OTHER)


def test_an_archive_without_anything_is_one(tmp_path):
    assert read(a_tar(tmp_path / "a.tar", {})) == []
    assert read(a_zip(tmp_path / "a.zip", {})) == []
    for name in ("empty.tar", "empty.tar.gz", "empty.zip"):
        (tmp_path / name).write_bytes(b"")
        kind = ZipArchive if name.endswith("zip") else TarArchive
        assert "is not a" in until(kind(tmp_path / name))[1]


def test_an_archive_is_told_by_its_first_bytes_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for suffix, compress in COMPRESS.items():
        data = compress(tar_bytes(FILES))
        for name in (f"{suffix}.download", f"no-suffix-{suffix.replace('.', '')}", f"{suffix}.tar"):
            Path(name).write_bytes(data)
            (item,) = Sources([name])
            assert isinstance(item, TarArchive) and shown(read(item)) == EXPECTED
    for name in ("zipped", "book.cbz"):
        a_zip(Path(name), FILES)
        assert isinstance(next(iter(Sources([name]))), ZipArchive)
    a_zip(Path("picture.png"), FILES)
    Path("text").write_text("text" * 500)
    Path("zeros").write_bytes(bytes(5000))
    for name in ("picture.png", "text", "zeros"):
        assert not isinstance(next(iter(Sources([name]))), TarArchive | ZipArchive)
    assert not begins_as_tar(Path("gone"))


# --- samples --------------------------------------------------------------------------------------


def said(tmp_path: Path, files: dict[str, bytes] | list, query: str = "") -> list:
    path = tmp_path / "s.tar"
    path.write_bytes(tar_bytes(files))
    return read(TarArchive(path, query))


def test_what_stands_beside_an_image_is_its_metadata(tmp_path):
    files = {
        "0.cls": b"7\n",
        "0.jpg": PNG,
        "0.json": b'{"width": 3, "label": "of the json", "deep": {"a": [1, null]}}',
        "0.txt": "a cät\n".encode(),
        "1.jpg": OTHER,
        "1.cls": b"cat",
    }
    first, second = said(tmp_path, files)
    assert first.metadata == {
        "width": 3,
        "label": 7,
        "deep": {"a": [1, None]},
        "text": "a cät",
    }
    assert second.metadata == {"label": "cat"}


def test_a_sample_is_equal_up_to_the_first_dot_and_next_to_each_other(tmp_path):
    files = [
        ("d.d/0.left.png", PNG),
        ("d.d/0.right.png", OTHER),
        ("d.d/0.json", b'{"pair": 1}'),
        ("d.d/0.mask.npy", b"array"),
        ("1.png", PNG),
        ("0.json", b'{"late": 1}'),
        ("e/2.txt", b"of no image"),
        ("3.png", PNG),
        ("e/3.txt", b"of another folder"),
    ]
    found = said(tmp_path, files)
    assert [
        (type(i).__name__, member(i).decode(), getattr(i, "metadata", None)) for i in found
    ] == [
        ("Member", "d.d/0.left.png", {"pair": 1}),
        ("Member", "d.d/0.right.png", {"pair": 1}),
        ("Skipped", "d.d/0.mask.npy", None),
        ("Member", "1.png", None),
        ("Skipped", "0.json", None),
        ("Skipped", "e/2.txt", None),
        ("Member", "3.png", None),
        ("Skipped", "e/3.txt", None),
    ]


def test_fields_are_chosen_or_left_out(tmp_path):
    files = {
        "0.png": PNG,
        "0.json": b'{"a": 1, "b": 2}',
        "0.cls": b"7",
        "1.png": PNG,
        "1.json": b"?",
    }
    both = said(tmp_path, files, "metadata=label,b,c")
    assert both[0].metadata == {"label": 7, "b": 2}
    assert both[0].name.endswith(b"s.tar?metadata=label,b,c#0.png")
    assert both[1].metadata is None and both[1].note == "its .json is not JSON"
    assert [item.metadata for item in said(tmp_path, files, "metadata=")] == [None, None]
    with pytest.raises(UsageError, match="metadata="):
        TarArchive(tmp_path / "s.tar", "meta=1")
    with pytest.raises(UsageError, match=r"s\.tar: a zip takes no \?metadata=: leave that out$"):
        ZipArchive(tmp_path / "s.tar", "metadata=")


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("0.json", b"{", "its .json is not JSON"),
        ("0.json", b"[" * 100_000, "limit"),
        ("0.json", b"[" * 60_000, "its .json is not JSON"),
        ("0.json", b"[1]", "its .json is not an object"),
        ("0.json", b'{"a": [NaN]}', "not JSON"),
        ("0.json", b'{"a": {"b": 1e999}}', "not JSON"),
        ("0.json", b'{"a": ' + b"9" * 5000 + b"}", "its .json is not JSON"),
        ("0.json", b'{"a": "\\ud800"}', "not a JSON object"),
        ("0.json", b'{"a": "\xff"}', "its .json is not UTF-8"),
        ("0.txt", b"\xff", "its .txt is not UTF-8"),
        ("0.txt", b"x" * (METADATA_LIMIT + 1), "over the limit"),
        ("0.txt", b"x" * (webdataset.MAX_SIDECAR + 1), "over the limit"),
    ],
)
def test_what_is_said_of_an_image_may_be_lost_but_not_the_image(tmp_path, name, data, why):
    for files in ({"0.png": PNG, name: data}, {name: data, "0.png": PNG}):
        (found,) = said(tmp_path, files)
        assert isinstance(found, Member) and (found.data, found.metadata) == (PNG, None)
        assert why in found.note and len(found.note.splitlines()) == 1
        assert member(found) == b"0.png"


def test_a_sidecar_may_begin_with_a_byte_order_mark(tmp_path):
    (found,) = said(tmp_path, {"0.png": PNG, "0.json": b'\xef\xbb\xbf{"a": 1}'})
    assert (found.metadata, found.note) == ({"a": 1}, "")


def test_a_number_that_is_none_says_nothing(tmp_path):
    (found,) = said(
        tmp_path, {"0.png": PNG, "0.json": b'{"a": NaN, "b": 2.5, "c": -Infinity, "d": 1e999}'}
    )
    assert found.metadata == {"b": 2.5}
    (found,) = said(tmp_path, {"0.png": PNG, "0.json": b'{"a": NaN}'})
    assert isinstance(found, Member) and found.metadata is None


def test_a_sample_is_bounded(tmp_path):
    """Names like IMG.0001.png make a whole archive one sample."""
    files = [(f"IMG.{i:04d}.png", PNG) for i in range(1000)]
    held = max(len(sample) for sample in webdataset.samples(_files_of(files)))
    assert held <= 64
    assert len(said(tmp_path, files)) == 1000
    large = [(f"IMG.{i}.png", bytes(3 << 20)) for i in range(9)]
    assert max(len(sample) for sample in webdataset.samples(_files_of(large))) == 3
    twice = [("a.png", PNG), ("a.txt", b"one"), ("a.txt", b"two")]
    assert [len(sample) for sample in webdataset.samples(_files_of(twice))] == [2, 1]


def _files_of(pairs: list[tuple[str, bytes]]) -> list[webdataset.SampleFile]:
    return [webdataset.SampleFile(n.encode(), n.endswith(".png"), len(d)) for n, d in pairs]


# --- damage ---------------------------------------------------------------------------------------

INTACT = tar_bytes([(f"{i}.png", png()) for i in range(4)])


def cut_at(tmp_path: Path, data: bytes, suffix: str = "tar") -> tuple[list, str]:
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(data)
    return until(TarArchive(path))


@given(at=st.integers(1, len(INTACT.rstrip(b"\0"))))
@example(at=512)
@example(at=1024)
@SLOW
def test_a_tar_that_was_cut_short_says_so_after_what_is_whole(tmp_path, at):
    whole = read(a_tar(tmp_path / "whole.tar", INTACT))
    found, why = cut_at(tmp_path, INTACT[:at])
    assert "cut short" in why or "is not a tar" in why
    assert [item.data for item in found] == [item.data for item in whole[: len(found)]]
    ends = [1024 * i + 512 + len(item.data) for i, item in enumerate(whole)]
    assert len(found) == sum(end <= at for end in ends)
    if found:
        assert f"after member {len(found)}" in why


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [s for s in COMPRESS if s != "tar"])
@given(data=st.data())
@SLOW
def test_a_compressed_tar_that_was_cut_short_says_so(tmp_path, suffix, data):
    packed = COMPRESS[suffix](INTACT)
    whole = read(a_tar(tmp_path / "whole.tar", INTACT))
    found, why = cut_at(tmp_path, packed[: data.draw(st.integers(10, len(packed) - 1))], suffix)
    assert why
    assert [item.data for item in found] == [item.data for item in whole[: len(found)]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*COMPRESS, "zip"])
@given(data=st.data())
@SLOW
def test_damaged_archives_end_in_one_line_or_in_images(tmp_path, kind, data):
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        a_zip(path, {f"{i}.png": PNG for i in range(4)})
        intact = path.read_bytes()
    else:
        intact = COMPRESS[kind](INTACT)
    damaged = bytearray(intact)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    archive = ZipArchive(path) if kind == "zip" else TarArchive(path)
    found, _ = until(archive)
    assert all(len(item.data) <= MOST for item in found if isinstance(item, Member))


@pytest.mark.slow
@given(data=st.binary(max_size=2000))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_is_no_archive(tmp_path, data):
    path = tmp_path / "noise"
    for head in (
        b"",
        b"\x1f\x8b",
        b"BZh9",
        b"\xfd7zXZ\0",
        b"\x28\xb5\x2f\xfd",
        b"PK\3\4",
        b"PK\5\6",
    ):
        path.write_bytes(head + data)
        until(TarArchive(path))
        until(ZipArchive(path))


def test_a_flipped_byte_in_a_compressed_image_is_noticed(tmp_path):
    packed = bytearray(gzip.compress(INTACT, 0))
    packed[len(packed) // 2] ^= 1
    _, why = cut_at(tmp_path, bytes(packed), "tar.gz")
    assert "damaged" in why and "check" in why


def test_several_compressed_pieces_are_one_archive(tmp_path):
    half = len(INTACT) // 2
    for suffix, compress in list(COMPRESS.items())[1:]:
        pieces = compress(INTACT[:half]) + compress(INTACT[half:])
        for padding in (b"", bytes(512)):
            found, why = cut_at(tmp_path, pieces + padding, suffix)
            assert (len(found), why) == (4, "")


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESS if suffix != "tar"])
def test_a_compressed_file_is_read_to_its_end_in_reads_of_any_size(suffix):
    # What comes out of a piece of input fills several reads, and at times ends just with one.
    whole = np.random.default_rng(0).integers(0, 256, (1200, 64), np.uint8).repeat(4, 0).tobytes()
    packed = COMPRESS[suffix](whole)
    for size in (4096, 5000, 1 << 16):
        _, compressed = plain(io.BytesIO(packed), MOST)
        assert compressed is not None
        found = b"".join(iter(functools.partial(compressed.read, size), b""))
        assert found == whole


def test_an_archive_that_changes_meanwhile_is_to_be_read_again(tmp_path):
    files = [(f"{i}.png", bytes(RNG.bytes(100_000))) for i in range(9)]
    for archive in (
        a_tar(tmp_path / "a.tar", files),
        a_tar(tmp_path / "a.tar.gz", gzip.compress(tar_bytes(files))),
        a_zip(tmp_path / "a.zip", files),
    ):
        members = archive.members(0, MOST)
        next(members)
        os.utime(archive._path, ns=(5, 5))
        with pytest.raises(SourceError, match="changed while it was read") as caught:
            list(members)
        assert caught.value.retryable
        with pytest.raises(SourceError, match="changed"):
            read(archive)


def test_an_archive_that_is_gone_is_a_source_error(tmp_path):
    archive = a_tar(tmp_path / "a.tar", FILES)
    archive._path.unlink()
    _, why = until(archive)
    assert "No such file" in why


# --- lies -----------------------------------------------------------------------------------------


def header(name: bytes, size: int, kind: bytes = b"0") -> bytes:
    info = tarfile.TarInfo(name.decode())
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def peak_of(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [b"x", b"L", b"K", b"X"])
def test_a_header_that_claims_gigabytes_is_not_read(tmp_path, kind):
    claim = header(b"long", 10 << 30, kind)
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(INTACT[:1024] + claim + bytes(64 << 20)))
    found: list = []
    peak = peak_of(lambda: found.append(until(TarArchive(path))))
    items, why = found[0]
    assert len(items) == 1
    assert "after member 1" in why and "over the limit" in why
    assert peak < 4 << 20


def test_a_size_that_claims_gigabytes_is_not_read(tmp_path):
    for name in (b"large.png", b"large.txt", b"large"):
        path = tmp_path / "a.tar"
        path.write_bytes(header(name, 10 << 30) + PNG)
        peak = peak_of(lambda path=path: until(TarArchive(path)))
        assert peak < 2 << 20
    size = b"30 size=10737418240\n"
    pax = header(b"p", len(size), b"x") + size.replace(b"30", b"20").ljust(512, b"\0")
    (tmp_path / "p.tar").write_bytes(pax + header(b"a.png", 5) + PNG)
    (item,), why = until(TarArchive(tmp_path / "p.tar"))
    assert isinstance(item, Reject) and "10,737,418,240 bytes" in item.reason
    assert "cut short" in why


@pytest.mark.parametrize(
    "records",
    [
        b"9999 path=a\n",
        b"0 path=a\n",
        b"path=a\n",
        b"-5 path=a\n",
        b" ",
        b"9" * 30 + b" a=b\n",
        b"2 \n",
    ],
)
def test_broken_extended_headers_are_damage(tmp_path, records):
    data = header(b"p", len(records), b"x") + records.ljust(512, b"\0") + INTACT
    _, why = cut_at(tmp_path, data)
    assert "extended header" in why


def test_sizes_may_be_binary_and_checksums_signed(tmp_path):
    data = bytearray(header(b"\xc3\xa9.png", len(PNG)))
    data[124:136] = b"\x80" + len(PNG).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(struct.unpack("512b", bytes(data)))
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(data) + PNG.ljust(-(-len(PNG) // 512) * 512, b"\0") + bytes(1024))
    (item,) = read(TarArchive(path))
    assert item.data == PNG
    negative = bytearray(data)
    negative[124:136] = b"\xff" * 12
    path.write_bytes(bytes(negative) + bytes(1024))
    assert "is not a tar" in until(TarArchive(path))[1]


def test_sparse_files_are_not_what_is_stored(tmp_path):
    info = bytearray(header(b"a.png", 512, b"S"))
    info[482] = 1  # a map goes on behind it
    info[148:156] = b" " * 8
    info[148:156] = b"%06o\0 " % sum(info)
    more = bytearray(512)
    more[504] = 0
    data = bytes(info) + bytes(more) + PNG[:100].ljust(512, b"\0") + INTACT
    (tmp_path / "a.tar").write_bytes(data)
    first, *rest = read(TarArchive(tmp_path / "a.tar"))
    assert isinstance(first, Reject) and "sparse" in first.reason
    assert len(rest) == 4
    name = b"26 GNU.sparse.name=real.png\n"
    record = b"%d" % len(name) + name[2:]
    pax = header(b"p", len(record), b"x") + record.ljust(512, b"\0") + header(b"GNUSparse/0", 0)
    (tmp_path / "b.tar").write_bytes(pax + bytes(1024))
    (item,) = read(TarArchive(tmp_path / "b.tar"))
    assert isinstance(item, Reject) and member(item) == b"real.png"


def test_names_that_no_store_can_keep_are_problems(tmp_path):
    for value, why in [(b"a\0b.png", "null byte"), (b"x" * 5000 + b".png", "name of 5,004 bytes")]:
        record = b" path=" + value + b"\n"
        length = next(n for n in range(9999) if len(b"%d" % n + record) == n)
        record = b"%d" % length + record
        data = header(b"p", len(record), b"x") + record.ljust(-(-len(record) // 512) * 512, b"\0")
        (tmp_path / "a.tar").write_bytes(data + header(b"a.png", 0) + bytes(1024))
        (item,) = read(TarArchive(tmp_path / "a.tar"))
        assert isinstance(item, Reject) and why in item.reason
    data = bytearray(tar_bytes({"a": PNG}))
    data[:512] = header(b"", len(PNG))
    (tmp_path / "a.tar").write_bytes(data)
    (item,) = read(TarArchive(tmp_path / "a.tar"))
    assert isinstance(item, Reject) and "without a name" in item.reason


def test_what_takes_too_much_memory_to_decompress_is_not(tmp_path):
    module = zstd()
    options = {
        module.CompressionParameter.window_log: 27,
        module.CompressionParameter.checksum_flag: 1,
    }
    compressor = module.ZstdCompressor(options=options)
    packed = compressor.compress(INTACT) + compressor.flush()
    found, why = cut_at(tmp_path, packed, "tar.zst")
    assert not found and "raise memory=" in why
    path = tmp_path / "cut.tar.zst"
    assert len(read(TarArchive(path), most=1 << 27)) == 4
    large = lzma.compress(INTACT, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 27}])
    found, why = cut_at(tmp_path, large, "tar.xz")
    assert not found and "raise memory=" in why


def test_a_member_of_a_zip_that_takes_too_much_memory_is_tried_again(tmp_path):
    module = zstd()
    options = {module.CompressionParameter.window_log: 27}
    compressor = module.ZstdCompressor(options=options)
    made = bytearray(made_zip(data=compressor.compress(PNG) + compressor.flush()))
    for at in (8, made.index(b"PK\1\2") + 10):
        made[at : at + 2] = struct.pack("<H", 93)  # zstd
    (tmp_path / "a.zip").write_bytes(made)
    (item,) = read(ZipArchive(tmp_path / "a.zip"))
    assert isinstance(item, Reject) and "raise memory=" in item.reason
    assert (item.mtime_ns, item.size) == (0, 0)


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESS if suffix != "tar"])
@pytest.mark.parametrize("at", [512, 1200])
def test_streams_behind_each_other_are_one(tmp_path, suffix, at):
    compress = COMPRESS[suffix]
    path = tmp_path / f"a.{suffix}"
    for padding in (b"", bytes(100)):
        archive = a_tar(path, compress(INTACT[:at]) + compress(INTACT[at:]) + padding)
        assert len(read(archive)) == 4
    archive = a_tar(path, compress(INTACT[:at]) + compress(INTACT[at:]) + b"\x1f")
    assert [item.note for item in read(archive)[4:]] == [skip_notes.NO_ARCHIVE]
    damaged = bytearray(compress(INTACT[at:]))
    damaged[8:12] = b"\xff" * 4
    _, why = cut_at(tmp_path, compress(INTACT[:at]) + damaged, suffix)
    assert "is damaged" in why and "cut short" not in why


def test_a_later_stream_that_takes_too_much_memory_is_not_padding(tmp_path):
    large = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 27}]
    packed = lzma.compress(INTACT[:1200]) + lzma.compress(INTACT[1200:], filters=large)
    assert "raise memory=" in cut_at(tmp_path, packed, "tar.xz")[1]


@pytest.mark.parametrize("first", [0x50, 0x5F])
def test_zstd_in_frames_that_announce_each_other_is_read(tmp_path, first):
    packed = b""
    for part in (INTACT[:700], INTACT[700:]):  # as pzstd writes it
        frame = zstd().compress(part)
        packed += bytes([first]) + b"\x2a\x4d\x18" + struct.pack("<2L", 4, len(frame)) + frame
    (tmp_path / "frames").write_bytes(packed)
    (archive,) = Sources([str(tmp_path / "frames")])
    assert isinstance(archive, TarArchive) and len(read(archive)) == 4


@pytest.mark.slow
def test_a_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "a.zip"
    bomb = zipfile.ZipInfo("bomb.png")
    bomb.compress_type = zipfile.ZIP_DEFLATED
    a_zip(path, [(bomb, bytes(50 << 20)), ("a.png", PNG)])
    peak = peak_of(lambda: read(ZipArchive(path)))
    assert peak < 4 << 20
    large, image = read(ZipArchive(path))
    assert "over the limit" in large.reason and image.data == PNG
    # The same, but it says that it is small.
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\1\2")
    data[at + 24 : at + 28] = struct.pack("<L", 1000)
    path.write_bytes(data)
    found: list = []
    peak = peak_of(lambda: found.extend(read(ZipArchive(path))))
    assert peak < 4 << 20
    assert "it is larger than the directory says" in found[0].reason and found[1].data == PNG


def test_members_that_overlap_are_not_all_unpacked(tmp_path):
    path = tmp_path / "a.zip"
    files = [(f"{i:03d}.png", RNG.bytes(1000)) for i in range(20)]
    a_zip(path, files, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    start = at = data.find(b"PK\1\2")
    entry = bytes(data[at : data.find(b"PK\1\2", at + 4)])
    end = bytearray(data[-22:])
    count = 400
    end[8:12] = struct.pack("<2H", count, count)
    end[12:20] = struct.pack("<2L", count * len(entry), start)
    path.write_bytes(bytes(data[:start]) + entry * count + bytes(end))
    found, why = until(ZipArchive(path))
    assert "overlap" in why
    assert len(found) < 60


def test_a_directory_that_claims_more_than_there_is_is_damage(tmp_path):
    path = tmp_path / "a.zip"
    a_zip(path, FILES)
    data = bytearray(path.read_bytes())
    end64 = struct.pack(
        "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1 << 40, 1 << 40, 1 << 40, len(data) - 22
    )
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(data) - 22, 1)
    end = data[-22:-14] + b"\xff" * 12 + b"\0\0"
    path.write_bytes(bytes(data[:-22]) + end64 + locator + bytes(end))
    found, why = until(ZipArchive(path))
    assert not found and "damaged" in why
    assert ZipArchive(path).count is None
    data[-14:-10] = struct.pack("<2H", 0xFFFE, 0xFFFE)  # a count alone
    path.write_bytes(data)
    assert len(read(ZipArchive(path))) == 4
    assert (ZipArchive(path).count or 0) < 100


def test_what_is_in_front_of_a_zip_does_not_matter(tmp_path):
    path = tmp_path / "a.zip"
    a_zip(path, FILES)
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    assert shown(read(ZipArchive(path))) == EXPECTED


def made_zip(
    name: bytes = b"a.png",
    data: bytes = PNG,
    *,
    flags: int = 0,
    system: int = 3,
    extra: bytes = b"",
    descriptor: bytes | None = None,  # its signature, where there is one
    long: str = "",  # zip64: "local", "full" (and nothing but that) or "record" (beside the others)
    gap: bytes = b"",  # behind the record of zip64
    prefix: bytes = b"",  # that offsets know of
    comment: bytes = b"",
) -> bytes:
    """A zip archive of one stored member, byte by byte as APPNOTE 6.3 has it."""
    crc, size = zlib.crc32(data), len(data)
    flags |= 8 if descriptor is not None else 0
    told = (0, 0, 0) if descriptor is not None else (crc, size, size)
    width = "Q" if long else "L"
    field = struct.pack("<2H2Q", 1, 16, size, size) if long else b""
    if long:
        told = (told[0], 0xFFFFFFFF, 0xFFFFFFFF)
    out = bytearray(prefix)
    at = len(out)
    out += struct.pack(
        "<4s5H3L2H", b"PK\3\4", 45, flags, 0, 0xFFFF, 0, *told, len(name), len(field)
    )
    out += name + field + data
    if descriptor is not None:
        out += descriptor + struct.pack(f"<L2{width}", crc, size, size)
    start = len(out)
    sizes, where = (size, size), at
    if long == "full":
        extra += struct.pack("<2H3Q", 1, 24, size, size, at)
        sizes, where = (0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFF
    out += struct.pack(
        "<4s4B4HL2L5H2L",
        *(b"PK\1\2", 45, system, 45, 0, flags, 0, 0xFFFF, 0, crc, *sizes, len(name), len(extra)),
        *(0, 0, 0, 0o100644 << 16, where),
    )
    out += name + extra
    length, count = len(out) - start, 1
    if long in ("full", "record"):
        record = len(out)
        out += struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, length, start) + gap
        out += struct.pack("<4sLQL", b"PK\6\7", 0, record, 1)
    if long == "full":
        length, start, count = 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFF
    out += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, length, start, len(comment))
    return bytes(out + comment)


@pytest.mark.parametrize("long", ["", "local", "record", "full"])
@pytest.mark.parametrize("descriptor", [None, b"", b"PK\7\x08"], ids=["none", "bare", "signed"])
def test_a_zip_may_be_written_to_a_pipe_and_be_of_any_size(tmp_path, long, descriptor):
    path = tmp_path / "a.zip"
    make = functools.partial(made_zip, long=long, descriptor=descriptor)
    for data in (
        make(),
        make(prefix=b"#!/bin/sh\n" * 9),  # it extracts itself, and its offsets know of that
        b"#!/bin/sh\n" * 9 + make(),  # or do not
        make(comment=b"a comment"),
        make(comment=b"PK\5\6" + bytes(18)),  # that looks like the end of a directory
        make(gap=b"data of its own" * 3) if long in ("record", "full") else make(),
        make() + b"\n",
    ):
        path.write_bytes(data)
        (found,) = read(ZipArchive(path))
        assert found.data == PNG and member(found) == b"a.png"
        assert ZipArchive(path).count == 1
    path.write_bytes(make(data=b""))
    assert [item.data for item in read(ZipArchive(path))] == [b""]


def test_a_part_of_a_split_zip_says_so(tmp_path):
    data = bytearray(made_zip())
    data[-18:-14] = struct.pack("<2H", 2, 2)
    (tmp_path / "a.zip").write_bytes(data)
    assert "split archive" in until(ZipArchive(tmp_path / "a.zip"))[1]


@pytest.mark.parametrize(
    ("name", "flags", "system", "field", "shown"),
    [
        ("größe.png".encode(), 0, 3, b"", "größe.png"),  # as Unix tools write it
        ("größe.png".encode(), 0, 19, b"", "größe.png"),  # macOS
        ("größe.png".encode(), 0x800, 0, b"", "größe.png"),
        ("größe.png".encode(), 0, 0, b"", "gr├╢├ƒe.png"),
        ("größe.png".encode("cp437"), 0, 0, b"", "größe.png"),
        ("größe.png".encode("cp437"), 0, 3, b"", "größe.png"),  # Unix, but no UTF-8
        ("größe.png".encode("cp437"), 0, 0, "Größe.png".encode(), "Größe.png"),
        (b"gr__e.png", 0, 3, "größe.png".encode(), "größe.png"),
        ("größe.png".encode("cp437"), 0, 0, b"\xff.png", "größe.png"),  # a field of no UTF-8
    ],
)
def test_names_of_zips_are_what_they_say(tmp_path, name, flags, system, field, shown):
    def extra(of: bytes, version: int = 1) -> bytes:
        body = bytes([version]) + struct.pack("<L", zlib.crc32(of)) + field
        return struct.pack("<2H", 0x5455, 1) + b"\3" + struct.pack("<2H", 0x7075, len(body)) + body

    path = tmp_path / "n.zip"
    path.write_bytes(
        made_zip(name, flags=flags, system=system, extra=extra(name) if field else b"")
    )
    archive = ZipArchive(path)
    assert [member(item).decode() for item in read(archive)] == [shown]
    assert archive.read(shown.encode(), MOST) == PNG
    (query,) = open_images(f"{path}#{shown}", MOST)
    assert query.data == PNG
    # As a store may call it that does not know of any of this.
    assert archive.read(name.decode("cp437").encode() if not flags else name, MOST) == PNG
    for wrong in (extra(b"another"), extra(name, 2)) if field else ():
        path.write_bytes(made_zip(name, flags=flags, system=0, extra=wrong))
        (item,) = read(ZipArchive(path))
        assert member(item).decode() == name.decode("cp437")


def test_encrypted_members_are_problems(tmp_path):
    path = tmp_path / "a.zip"
    a_zip(path, FILES)
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\1\2")
    while at >= 0:
        data[at + 8] |= 1
        at = data.find(b"PK\1\2", at + 4)
    path.write_bytes(data)
    kinds = shown(read(ZipArchive(path)))
    assert [kind for kind, _ in kinds] == ["Reject", "Reject", "Skipped", "Skipped"]
    assert "is encrypted" in read(ZipArchive(path))[0].reason


def test_damaged_members_of_a_zip_are_problems_and_the_rest_is_read(tmp_path):
    path = tmp_path / "a.zip"
    a_zip(path, {"a.png": PNG, "b.png": OTHER}, zipfile.ZIP_STORED)
    data = path.read_bytes()
    path.write_bytes(data.replace(PNG, PNG[:50] + b"!" + PNG[51:]))
    first, second = read(ZipArchive(path))
    assert "checksum" in first.reason and second.data == OTHER
    path.write_bytes(data.replace(b"PK\3\4", b"PK\3\5", 1))
    first, second = read(ZipArchive(path))
    assert "not where the directory says" in first.reason and second.data == OTHER
    at = data.find(b"PK\1\2")
    path.write_bytes(data[: at + 10] + b"\x09" + data[at + 11 :])
    reason = "is packed with Deflate64 (method 9): pack it with Deflate"
    assert read(ZipArchive(path))[0].reason == reason


# --- many -----------------------------------------------------------------------------------------


def many_tar(path: Path, count: int) -> None:
    block = PNG.ljust(-(-len(PNG) // 512) * 512, b"\0")
    with path.open("wb") as file:
        for i in range(count):
            file.write(header(b"%06d.png" % i, len(PNG)) + block)
        file.write(bytes(1024))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_memory_does_not_grow_with_the_members(tmp_path):
    many_tar(tmp_path / "a.tar", 100_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", allowZip64=True) as archive:
        for i in range(100_000):  # more than 65,535: a zip64 archive
            archive.writestr(zipfile.ZipInfo(f"{i:06d}.png"), b"\x89PNG")
    for archive in (TarArchive(tmp_path / "a.tar"), ZipArchive(tmp_path / "a.zip")):
        found: list = []
        # Passing by what is done takes the memory that reading takes; tracing it takes time.
        peak = peak_of(lambda a=archive, f=found: f.extend(a.members(99_900, MOST)))
        assert len(found) == 100
        assert peak < 2 << 20
    assert ZipArchive(tmp_path / "a.zip").count == 100_000


def test_a_plain_tar_is_read_on_without_reading_what_is_done(tmp_path, monkeypatch):
    path = tmp_path / "a.tar"
    archive = a_tar(path, [(f"{i}.png", bytes(1 << 20)) for i in range(8)])
    read_ = tar_reader.TarReader.read
    asked: list[int] = []

    def spy(self, most: int) -> bytes:
        asked.append(most)
        return read_(self, most)

    monkeypatch.setattr(tar_reader.TarReader, "read", spy)
    assert len(read(archive, 7)) == 1
    assert sum(asked) <= 1 << 20


# --- through the store ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*COMPRESS, "zip"])
def test_an_archive_is_ingested_looked_up_and_unchanged(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    files = {**FILES, "bad.png": b"text", "../up.png": png()}
    if kind == "zip":
        a_zip(path, files)
    else:
        path.write_bytes(COMPRESS[kind](tar_bytes(files)))
    with Store.open(tmp_path / "s", create=True, encoder="none") as store:
        report = store.ingest(str(path))
        assert (report.added, report.duplicates) == (3, 1)
        assert (report.rejected, report.skipped) == (1, 1)
        again = store.ingest(str(path))
        assert (again.added, again.unchanged, again.skipped) == (0, 4, 1)
        for name, data in files.items():
            if name.endswith("md") or data == b"text":
                continue
            result = store.lookup(data)
            assert f"{path}#{name}" in result.identical[0].sources
            (found,) = (
                store.lookup_many([f"{path}#{name}"])
                if hasattr(store, "lookup_many")
                else [store.lookup(f"{path}#{name}")]
            )
            assert found.identical[0].id == result.identical[0].id


def test_metadata_of_a_shard_is_kept(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes({"0.png": PNG, "0.json": json.dumps({"caption": "a"}).encode()}))
    with Store.open(tmp_path / "s", create=True, encoder="none") as store:
        store.ingest(str(path))
        assert store.get(1).metadata == {"caption": "a"}


def test_an_archive_that_breaks_off_is_rejected_after_what_is_whole(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(INTACT[:2600])
    with Store.open(tmp_path / "s", create=True, encoder="none") as store:
        report = store.ingest(str(path))
        assert (report.added, report.rejected) == (2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "tar.zst", "zip"])
def test_damaged_pixels_are_mended_from_an_archive(tmp_path, kind):
    bits = np.random.default_rng(1).integers(0, 2, (100, 100, 3), np.uint8) * np.uint8(255)
    file = io.BytesIO()
    Image.fromarray(bits).save(file, "PNG")
    path = tmp_path / f"a#1.{kind}"
    if kind == "zip":
        a_zip(path, {"in#side.png": file.getvalue()})
    else:
        name = b"\xff#side.png".decode(errors="surrogateescape")
        path.write_bytes(COMPRESS[kind](tar_bytes({name: file.getvalue()})))
    with Store.open(tmp_path / "s", create=True, encoder="none") as store:
        assert store.ingest(str(path)).added == 1
    (extent,) = (tmp_path / "s" / "pixels").iterdir()
    data = bytearray(extent.read_bytes())
    data[-100] ^= 1
    extent.write_bytes(data)
    with Store.open(tmp_path / "s") as store:
        assert not store.check().ok
        assert store.check(fix=True).ok
        (hit,) = store.lookup(file.getvalue(), tiers=["identical"]).identical
        assert store.lookup(bits // 255).identical[0].verified == "bytes"
        assert hit.source_count == 1
