"""MANIFEST.json: read whole or refused with a reason; replaced whole or not at all."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from damage import FailingDisk

from engine import Store, StoreError, StoreFormatError, StoreNotFoundError
from engine.config import FORMAT_VERSION, StructuralSettings
from engine.storage import manifest
from engine.storage.disk import Disk, using
from engine.storage.manifest import (
    Manifest,
    Measured,
    OperatingPoint,
    QuantizerEntry,
    SegmentEntry,
)
from engine.storage.vector_space import EncoderEntry

FULL = Manifest(
    uuid="00112233445566778899aabbccddeeff",
    settings=StructuralSettings(hash_seed=(1 << 64) - 1),
    encoder=EncoderEntry("tiny", 1, 16, "ab" * 32, "encoder/1/model.onnx"),
    extents={"pixels.blobs": [1, 2], "fingerprints.pdq": [1]},
    segments=(
        SegmentEntry(3, 1, 2, ((1, 0, 100), (2, 7, 1)), True, 1234, (1 << 64) - 1),
        SegmentEntry(4, 1, 2, ((3, 0, 5),), False, 1, 0),
    ),
    quantizers=(QuantizerEntry(2, 1, 40, 1000, 0.8125, 99, 1),),
    measured=Measured(
        0.97,
        2,
        1000,
        500,
        (
            (10, (OperatingPoint(1, 10, 0.5, 0.4), OperatingPoint(8, 20, 0.99, 0.98, 1.5))),
            (100, ()),
        ),
    ),
)


def edit(store: Path, **values: Any) -> None:
    path = store / manifest.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    imported = EncoderEntry("vectors", 2, 7, "", "", normalized=True)
    assert imported.is_imported
    assert not FULL.encoder.is_imported
    for written in (FULL, Manifest(FULL.uuid, FULL.settings), replace(FULL, encoder=imported)):
        written.save(tmp_path)
        assert manifest.load(tmp_path) == written
    assert [path.name for path in tmp_path.iterdir()] == [manifest.NAME]


@pytest.mark.parametrize(
    "hostile",
    [
        replace(FULL, quantizers=(replace(FULL.quantizers[0], trained_on=0),)),
        replace(FULL, measured=Measured(0.97, 2, 0, 500, ())),
    ],
    ids=["trained on nothing", "measured on nothing"],
)
def test_numbers_that_others_are_divided_by_are_not_zero(tmp_path: Path, hostile: Manifest) -> None:
    hostile.save(tmp_path)
    with pytest.raises(StoreFormatError, match="cannot be read"):
        manifest.load(tmp_path)
    replace(FULL, measured=Measured(0.97)).save(tmp_path)
    assert manifest.load(tmp_path).measured == Measured(0.97)


def test_an_extent_is_added_to_its_family(tmp_path: Path) -> None:
    grown = FULL.with_extent("fingerprints.pdq", 2).with_extent("vectors/1.f32", 1)
    assert grown.extents["fingerprints.pdq"] == [1, 2]
    assert grown.extents["vectors/1.f32"] == [1]
    assert FULL.extents["fingerprints.pdq"] == [1]


def test_a_store_that_only_newer_engines_read_is_refused(tmp_path: Path) -> None:
    FULL.save(tmp_path)
    edit(tmp_path, format=9, min_reader=FORMAT_VERSION + 1)
    with pytest.raises(StoreFormatError, match=r"format version 9.*install a newer"):
        manifest.load(tmp_path)


def test_a_newer_store_that_this_engine_may_read_is_read_and_not_written(tmp_path: Path) -> None:
    Store.open(tmp_path / "a", create=True, encoder="none").close()
    edit(tmp_path / "a", format=FORMAT_VERSION + 1, min_writer=FORMAT_VERSION + 1)
    with Store.open(tmp_path / "a") as store:
        assert len(store) == 0
        with pytest.raises(StoreFormatError, match=r"can read but not write: install a newer"):
            store.ingest("synthetic:bits?n=1")
        assert len(store) == 0, "it is still open for reading"


def test_what_may_not_be_written_is_not_touched_on_a_full_disk(tmp_path: Path) -> None:
    class Full(Disk):
        def free(self, folder: Path) -> int:
            return 0

    path = tmp_path / "a"
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=2")
    edit(path, min_writer=FORMAT_VERSION + 1)
    (path / "RESERVE").write_bytes(bytes(100))
    for extent in path.glob("*/*.pdq"):  # what a newer engine may have there
        with extent.open("ab") as file:
            file.write(bytes(100))

    def seen() -> dict[Path, bytes]:
        return {one: one.read_bytes() for one in path.rglob("*") if one.is_file()}

    before = seen()
    with Store.open(path) as store:
        with using(Full()), pytest.raises(StoreFormatError, match="can read but not write"):
            store.remove(ids=[1])
        assert store.info().images == 2
    assert seen() == before


def test_unknown_features_are_refused_by_name(tmp_path: Path) -> None:
    FULL.save(tmp_path)
    edit(tmp_path, features=["compressed-extents"])
    with pytest.raises(StoreFormatError, match=r"uses compressed-extents, .* install a newer"):
        manifest.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        '"what"',
        "\x00\xff",
        '{"what": "something else"}',
        '{"what": "image-index-engine store"}',
        '{"what": "image-index-engine store", "min_reader": "new", "features": []}',
    ],
)
def test_what_is_no_manifest_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / manifest.NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreFormatError) as caught:
        manifest.load(tmp_path)
    assert "cannot be read" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "field",
    ["what", "min_reader", "min_writer", "features", "uuid", "settings", "extents", "segments"],
)
@pytest.mark.parametrize("value", ["missing", None, 7, "text", [1], {"a": "b"}])
def test_a_manifest_with_a_broken_field_is_refused_or_harmless(
    tmp_path: Path, field: str, value: object
) -> None:
    FULL.save(tmp_path)
    path = tmp_path / manifest.NAME
    body = json.loads(path.read_text())
    if value == "missing":
        del body[field]
    else:
        body[field] = value
    path.write_text(json.dumps(body))
    try:
        manifest.load(tmp_path)
    except StoreFormatError as error:
        assert "\n" not in str(error)
    else:  # nothing that a reader would stumble over later
        assert (field, value) == ("min_writer", 7)


def test_where_there_is_no_manifest_the_reason_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="there is no store at"):
        manifest.load(tmp_path / "gone")
    with pytest.raises(StoreFormatError, match="is not a store"):
        manifest.load(tmp_path)
    (tmp_path / "keys").mkdir()
    with pytest.raises(StoreFormatError, match=r"MANIFEST\.json is missing; .*--fix' rebuilds it"):
        manifest.load(tmp_path)


# --- replacing it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_failed_save_leaves_the_old_one(tmp_path: Path, call: str) -> None:
    FULL.save(tmp_path)
    with using(FailingDisk(call)), pytest.raises(OSError, match="No space left"):
        FULL.with_extent("pixels.blobs", 3).save(tmp_path)
    assert manifest.load(tmp_path) == FULL
    assert [path.name for path in tmp_path.iterdir()] == [manifest.NAME]


class Noting(Disk):
    """A disk that notes in which order files are synced and renamed."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def fsync(self, fd: int) -> None:
        self.done.append("fsync")
        super().fsync(fd)

    def rename(self, *names: Any, **folders: Any) -> None:
        self.done.append("rename")
        super().rename(*names, **folders)


def test_a_save_is_on_disk_before_it_is_renamed(tmp_path: Path) -> None:
    FULL.save(tmp_path)
    with using(disk := Noting()):
        FULL.save(tmp_path)
    assert disk.done == ["fsync", "rename", "fsync"]  # the file, its name, the folder


class Dead(Disk):
    """A disk as of a process that was killed: nothing is renamed, and nothing tidied up."""

    def rename(self, *names: Any, **folders: Any) -> None:
        raise StoreError("killed")

    def unlink(self, *name: Any, **folder: Any) -> None:
        pass


def test_what_a_kill_before_the_rename_left_is_ignored_and_tidied_up(tmp_path: Path) -> None:
    where = tmp_path / "a"
    Store.open(where, create=True, encoder="none").close()
    with Store.open(where) as store:
        store.session.become_writer()
        with using(Dead()), pytest.raises(StoreError, match="killed"):
            store.ingest("synthetic:bits?n=1")
    assert len(list(where.glob(".MANIFEST.json.*.new"))) == 1
    with Store.open(where) as store:
        assert len(store) == 0
        assert store.ingest("synthetic:bits?n=1").added == 1
    assert list(where.glob(".*.new")) == []
