"""Changing the encoder of a store: which images get vectors, from where, and what is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import write_encoder
from helpers import encoded, mask, picture, save

from engine import MissingError, Store, StoreError, StoreLockedError, UsageError
from engine.config import Limits
from engine.encoders import registry
from engine.encoders.onnx import OnnxEncoder
from engine.images.canonical import from_array
from engine.storage import file_names, manifest, staged_space

LIMITS = Limits(chunk_files=3, chunk_rows=12, exact_rows=1000, extent_rows=8)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another small encoder than ``tiny_encoder``, of other vectors: 24-d, from 8 × 8 pixels."""
    return write_encoder(tmp_path_factory.mktemp("encoders") / "wide", dim=24, image_size=8)


def vectors_of(encoder: Path, arrays: list[np.ndarray]) -> np.ndarray:
    """What an encoder makes of images, without a store."""
    loaded = OnnxEncoder(registry.find(str(encoder)))
    return loaded.encode([loaded.preprocessing.of(from_array(one)) for one in arrays])


def encoder_of(store: Store) -> str:
    found = store.info().encoder
    return str(found["name"]) if found else "none"


def rows_with_vectors(store: Store) -> list[int]:
    ids = [record.id for record in store]
    there = ~np.isnan(store.vectors(ids)).any(axis=1)
    return [id_ for id_, is_there in zip(ids, there.tolist(), strict=True) if is_there]


def expect_vectors(store: Store, encoder: Path, arrays: dict[int, np.ndarray]) -> None:
    """The vectors of these images are those of the encoder, and the index answers with them."""
    wanted = vectors_of(encoder, list(arrays.values()))
    ids = np.array(list(arrays))
    assert np.allclose(store.vectors(ids), wanted, atol=1e-6)
    scores, found = store.search_vectors(wanted, 1, recall=1)
    assert np.allclose(scores[:, 0], 1, atol=1e-5)
    assert np.allclose(store.vectors(found[:, 0]), wanted, atol=1e-5)


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_a_store_of_every_kind_of_source_changes_its_encoder(
    tmp_path: Path, tiny_encoder: Path, wide: Path
) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = {"photo": picture(0, 20, 30), "kept": mask(1), "member": picture(2, 9, 9)}
    images |= {"row 0": picture(3), "row 1": picture(4), "cell": picture(5), "packed": mask(6)}
    images |= {"inside": picture(7), "in memory": mask(8)}
    save(tmp_path / "photos/a.png", images["photo"])
    save(tmp_path / "photos/b.png", images["kept"])
    tar(tmp_path / "t.tar", {"x/m.png": encoded(images["member"]), "notes.txt": b"no image"})
    np.save(tmp_path / "rows.npy", np.stack([images["row 0"], images["row 1"]]))
    np.savez(tmp_path / "some.npz", one=images["inside"][None])
    np.save(tmp_path / "bits.npy", images["packed"][None])
    table = pa.table({"image": [encoded(images["cell"])]})
    pq.write_table(table, tmp_path / "t.parquet")
    path = tmp_path / "s"
    names = ("photos", "t.tar", "rows.npy", "some.npz", "bits.npy", "t.parquet")
    with Store.open(path, create=True, encoder=str(tiny_encoder), limits=LIMITS) as store:
        store.ingest(*(tmp_path / name for name in names))
        store.ingest(images["in memory"][None], name="m")
        store.ingest("synthetic:bits?n=5&seed=3", keep_pixels="no")
        count = len(store)
        assert count == len(images) + 5
        report = store.reembed(str(wide))
        assert (report.embedded, report.kept, report.unreachable, report.switched) == (
            count,
            0,
            0,
            True,
        )
        assert encoder_of(store) == "wide"
        found = {
            store.lookup(array, tiers=["identical"]).identical[0].id: array
            for array in images.values()
        }
        expect_vectors(store, wide, found)
        assert len(rows_with_vectors(store)) == count
        assert store.check().problems == ()
        assert store.lookup(images["photo"], tiers=["similar"]).similar[0].score > 0.999
        store.ingest([("late", mask(50))], encoder=str(wide))
        assert store.info().vectors == count + 1
    assert sorted(p.name for p in (path / "vectors").iterdir()) == ["2"]
    assert sorted(p.name for p in (path / "encoder").iterdir()) == ["2"]
    assert [p.name for p in (path / "reembed").iterdir()] == ["LOCK"]
    with Store.open(path, limits=LIMITS) as store:
        assert encoder_of(store) == "wide"
        # And back, which gets a generation of its own.
        store.reembed(str(tiny_encoder))
        assert store.info().encoder["generation"] == 4
        expect_vectors(store, tiny_encoder, found)
        assert store.check().problems == ()


def test_a_store_without_an_encoder_gets_one(tmp_path: Path, wide: Path) -> None:
    arrays = {n + 1: mask(n) for n in range(20)}
    with Store.open(tmp_path / "s", create=True, encoder="none", limits=LIMITS) as store:
        store.ingest(np.stack(list(arrays.values())), name="m")
        report = store.reembed(str(wide))
        assert (report.embedded, report.lost, report.switched) == (20, 0, True)
        expect_vectors(store, wide, arrays)
        assert store.check().problems == ()
    with Store.open(tmp_path / "s", limits=LIMITS) as store:
        expect_vectors(store, wide, arrays)


def test_an_empty_store_changes_its_encoder(tmp_path: Path, tiny_encoder: Path, wide: Path) -> None:
    with Store.open(tmp_path / "s", create=True, encoder=str(tiny_encoder), limits=LIMITS) as store:
        assert store.reembed(str(wide)).switched
        assert encoder_of(store) == "wide"
        store.ingest(mask(0)[None], name="m")
        expect_vectors(store, wide, {1: mask(0)})
        assert store.check().problems == ()


def test_the_encoder_of_the_store_embeds_only_images_without_a_vector(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    arrays = {n + 1: mask(n) for n in range(20)}
    blocks = list(arrays.values())
    with Store.open(tmp_path / "s", create=True, encoder=str(tiny_encoder), limits=LIMITS) as store:
        store.ingest(np.stack(blocks[:7]), name="a")
        store.ingest(np.stack(blocks[7:]), name="b", encoder="none")
        assert store.info().vectors == 7
        plan = store.reembed(str(tiny_encoder), dry_run=True)
        assert (plan.kept, plan.unreachable, plan.dry_run) == (7, 0, True)
        report = store.reembed(str(tiny_encoder))
        assert (report.embedded, report.kept, report.switched) == (13, 7, True)
        assert store.info().encoder["generation"] == 1
        expect_vectors(store, tiny_encoder, arrays)
        assert store.check().problems == ()
        again = store.reembed(str(tiny_encoder))
        assert (again.embedded, again.kept) == (0, 20)


def test_imported_vectors_cannot_be_embedded(tmp_path: Path, tiny_encoder: Path) -> None:
    with Store.open(tmp_path / "s", create=True, encoder="none") as store:
        store.ingest(np.eye(3, dtype=np.float32), name="v")
        for dry_run in (True, False):
            with pytest.raises(UsageError, match="holds imported vectors"):
                store.reembed(str(tiny_encoder), dry_run=dry_run)


def test_a_store_in_which_images_have_imported_vectors_is_refused(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    np.save(tmp_path / "v.npy", np.eye(2, 5, dtype=np.float32))
    for n in range(2):
        save(tmp_path / f"photos/{n}.png", picture(n))
    with Store.open(tmp_path / "s", create=True, encoder="none") as store:
        store.ingest(tmp_path / "photos", vectors=tmp_path / "v.npy")
        with pytest.raises(UsageError, match="holds imported vectors"):
            store.reembed(str(tiny_encoder))
        assert store.info().vectors == 2


@pytest.fixture
def photos(tmp_path: Path, tiny_encoder: Path) -> Callable[[int], Store]:
    """Makes a store of ``n`` photographs whose pixels are not kept."""

    def make(n: int) -> Store:
        for i in range(n):
            save(tmp_path / f"photos/{i:03d}.png", picture(i))
        made = Store.open(tmp_path / "s", create=True, encoder=str(tiny_encoder), limits=LIMITS)
        made.ingest(tmp_path / "photos")
        return made

    return make


def test_images_whose_pixels_are_gone_are_named_and_nothing_is_done(
    tmp_path: Path, photos: Callable[[int], Store], wide: Path
) -> None:
    with photos(8) as store:
        (tmp_path / "photos/002.png").unlink()
        (tmp_path / "photos/005.png").unlink()
        plan = store.reembed(str(wide), dry_run=True)
        assert (plan.unreachable, plan.lost, plan.kept) == (2, 2, 0)
        assert "photos/002.png" in plan.examples[0]
        with pytest.raises(MissingError, match="2 of 8 images would lose their vectors") as raised:
            store.reembed(str(wide))
        assert "photos/005.png" in str(raised.value)
        assert encoder_of(store) == "tiny"
        assert store.info().reembed is None
        report = store.reembed(str(wide), allow_missing=True)
        assert (report.embedded, report.unreachable, report.lost) == (6, 2, 2)
        assert report.switched
        assert len(rows_with_vectors(store)) == 6
        # They are still found as identical.
        assert store.lookup(picture(2)).identical[0].id == 3
        assert store.check().problems == ()


def test_a_changed_file_is_noticed_when_it_is_read_and_the_rest_stays(
    tmp_path: Path, photos: Callable[[int], Store], wide: Path
) -> None:
    with photos(8) as store:
        save(tmp_path / "photos/003.png", picture(77))
        assert store.reembed(str(wide), dry_run=True).unreachable == 0
        with pytest.raises(MissingError, match="1 of 8 images"):
            store.reembed(str(wide))
        unfinished = store.info().reembed
        assert unfinished is not None
        assert (unfinished["name"], unfinished["vectors"]) == ("wide", 7)
        assert store.check().problems == ()
        assert store.check().reembed_bytes == unfinished["bytes"]
        save(tmp_path / "photos/003.png", picture(3))
        report = store.reembed(str(wide))
        assert (report.embedded, report.kept, report.unreachable) == (1, 7, 0)
        expect_vectors(store, wide, {n + 1: picture(n) for n in range(8)})
        assert store.info().reembed is None


def test_an_image_without_a_vector_has_none_to_lose(
    tmp_path: Path, photos: Callable[[int], Store], wide: Path
) -> None:
    with photos(3) as store:
        save(tmp_path / "other.png", picture(40))
        store.ingest(tmp_path / "other.png", encoder="none")
        (tmp_path / "other.png").unlink()
        report = store.reembed(str(wide))
        assert (report.embedded, report.unreachable, report.lost) == (3, 1, 0)
        assert report.switched


def test_another_encoder_drops_what_was_staged(
    tmp_path: Path, photos: Callable[[int], Store], wide: Path
) -> None:
    third = write_encoder(tmp_path / "third", dim=5, image_size=4)
    with photos(8) as store:
        save(tmp_path / "photos/003.png", picture(77))
        with pytest.raises(MissingError):
            store.reembed(str(wide))
        save(tmp_path / "photos/003.png", picture(3))
        report = store.reembed(str(third))
        assert (report.embedded, report.kept) == (8, 0)
        assert encoder_of(store) == "third"
        assert store.check().problems == ()
    assert len(list((tmp_path / "s/vectors").iterdir())) == 1
    assert len(list((tmp_path / "s/encoder").iterdir())) == 1


def test_the_same_model_with_other_inputs_is_another_encoder(
    tmp_path: Path, photos: Callable[[int], Store], tiny_encoder: Path
) -> None:
    cropping = tmp_path / "cropping"
    shutil.copytree(tiny_encoder, cropping)
    body = json.loads((cropping / "encoder.json").read_text())
    body |= {"resize": "crop-bilinear-antialias", "shorter_side": 20}
    (cropping / "encoder.json").write_text(json.dumps(body))
    with photos(3) as store:
        assert store.reembed(str(cropping)).embedded == 3
        assert store.info().encoder["generation"] == 2
        expect_vectors(store, cropping, {n + 1: picture(n) for n in range(3)})


def test_what_is_staged_can_be_dropped(
    tmp_path: Path, photos: Callable[[int], Store], wide: Path
) -> None:
    with photos(8) as store:
        assert store.discard_reembed() == 0
        save(tmp_path / "photos/003.png", picture(77))
        with pytest.raises(MissingError):
            store.reembed(str(wide))
        bytes_ = store.info().reembed["bytes"]
        assert store.discard_reembed() == bytes_ > 7 * 24 * 4
        assert store.info().reembed is None
        assert store.check().reembed_bytes == 0
        assert encoder_of(store) == "tiny"
    assert [p.name for p in (tmp_path / "s/vectors").iterdir()] == ["1"]
    assert [p.name for p in (tmp_path / "s/encoder").iterdir()] == ["1"]


def test_the_next_writer_keeps_what_is_staged(
    tmp_path: Path, photos: Callable[[int], Store], wide: Path
) -> None:
    with photos(8) as store:
        save(tmp_path / "photos/003.png", picture(77))
        with pytest.raises(MissingError):
            store.reembed(str(wide))
    save(tmp_path / "photos/003.png", picture(3))
    with Store.open(tmp_path / "s", limits=LIMITS) as store:
        save(tmp_path / "more.png", picture(60))
        store.ingest(tmp_path / "more.png")
        store.remove(ids=[1])
        assert store.check().leftover_bytes == 0
        store.optimize()
        copied = store.backup(tmp_path / "copy")
        assert copied.images == 8
    with Store.open(tmp_path / "copy", limits=LIMITS) as copy:
        assert copy.info().reembed is None
        assert copy.check().problems == ()
    with Store.open(tmp_path / "s", limits=LIMITS) as store:
        report = store.reembed(str(wide))
        # The removed image is among those that were made.
        assert (report.embedded, report.kept) == (2, 7)
        assert store.info().vectors == 8
        assert store.check().problems == ()
        wanted = {n + 1: picture(n) for n in range(1, 8)} | {9: picture(60)}
        expect_vectors(store, wide, wanted)
        assert not np.isin(store.search_vectors(np.eye(24), 20)[1], [1]).any()


def test_a_second_reembed_is_refused_while_one_runs(
    tmp_path: Path, photos: Callable[[int], Store], wide: Path
) -> None:
    with photos(2) as store, staged_space.locked(tmp_path / "s"):
        with pytest.raises(StoreLockedError, match="another reembed is running"):
            store.reembed(str(wide))
        with pytest.raises(StoreLockedError, match="another reembed is running"):
            store.discard_reembed()


def test_a_stopped_run_goes_on(tmp_path: Path, photos: Callable[[int], Store], wide: Path) -> None:
    done: list[int] = []
    with photos(30) as store:
        stopped = store.reembed(
            str(wide), progress=lambda n, _: done.append(n), stop=lambda: len(done) > 2
        )
        assert stopped.interrupted
        assert not stopped.switched
        assert encoder_of(store) == "tiny"
        report = store.reembed(str(wide))
        assert report.kept == stopped.embedded
        assert report.embedded == 30 - stopped.embedded
        expect_vectors(store, wide, {n + 1: picture(n) for n in range(30)})


@pytest.mark.parametrize("part", ["f32", "ids", "chunks", "staged.json"])
def test_damage_to_what_is_staged_costs_no_more_than_what_follows_it(
    tmp_path: Path, photos: Callable[[int], Store], wide: Path, part: str
) -> None:
    with photos(9) as store:
        save(tmp_path / "photos/008.png", picture(77))
        with pytest.raises(MissingError):
            store.reembed(str(wide))
        save(tmp_path / "photos/008.png", picture(8))
    names = {"f32": "vectors/2/00000001.f32", "ids": "vectors/2/00000001.ids"}
    path = tmp_path / "s" / names.get(part, f"reembed/{part}")
    data = bytearray(path.read_bytes())
    at = -1 if part == "chunks" else 4096 + 2 if part in names else len(data) // 2
    data[at] ^= 1
    path.write_bytes(bytes(data))
    with Store.open(tmp_path / "s", limits=LIMITS) as store:
        assert store.check().problems == ()
        report = store.reembed(str(wide))
        assert report.embedded + report.kept == 9
        assert report.kept == {"chunks": 6, "f32": 0, "ids": 0, "staged.json": 0}[part]
        expect_vectors(store, wide, {n + 1: picture(n) for n in range(9)})
        assert store.check().problems == ()


def test_a_reader_that_loads_its_encoder_late_follows_to_the_new_one(
    tmp_path: Path, photos: Callable[[int], Store], wide: Path
) -> None:
    with (
        photos(9) as store,
        Store.open(tmp_path / "s", read_only=True) as loaded,
        Store.open(tmp_path / "s", read_only=True) as late,
    ):
        assert loaded.lookup(picture(4), tiers=["similar"]).similar[0].id == 5
        assert len(late) == 9
        store.reembed(str(wide))
        for reader in (loaded, late):
            # As if it had not looked for newer commits at the start of the call.
            reader.session.follow = lambda **_: None  # type: ignore[method-assign]
        assert loaded.index.current is not None
        # Its files are mapped, and its encoder is loaded: it may go on with the old eye.
        assert loaded.lookup(picture(4), tiers=["similar"]).similar[0].score > 0.999
        found = late.lookup(picture(4), tiers=["similar"])
        assert found.similar[0].id == 5
        assert found.similar[0].score > 0.999
        assert late.index.current is not None
        assert late.index.current.vectors.dim == 24
        assert late.encode([picture(4)]).shape == (1, 24)


def test_a_hostile_record_is_no_staged_space(
    tmp_path: Path, photos: Callable[[int], Store], wide: Path
) -> None:
    with photos(2) as store:
        save(tmp_path / "photos/001.png", picture(77))
        with pytest.raises(MissingError):
            store.reembed(str(wide))
    path = tmp_path / "s"
    record = path / staged_space.RECORD
    named = manifest.load(path)
    good = json.loads(record.read_text())
    for change in (
        {"replaces": 7},
        {"replaces": -1},
        {"entry": good["entry"] | {"generation": 1}},
        {"entry": good["entry"] | {"file": "encoder/2/../../x"}},
        {"entry": good["entry"] | {"file": ""}},
        {"entry": None},
        {"described": []},
        {"installed": 1},
    ):
        body = good | change
        body.pop("xxh64")
        body["xxh64"] = staged_space._checksum(body)
        record.write_text(json.dumps(body))
        assert staged_space.staged_in(path, named) is None, change
    record.write_bytes(b"[" * 100_000)
    assert staged_space.staged_in(path, named) is None
    record.unlink()
    record.symlink_to("/etc/passwd")
    assert staged_space.staged_in(path, named) is None
    with pytest.raises(StoreError), Store.open(path, limits=LIMITS) as store:
        save(tmp_path / "photos/001.png", picture(1))
        store.reembed(str(wide))


def test_names_of_a_reembed_are_those_that_its_folder_may_hold() -> None:
    for name in ("staged.json", "chunks", "LOCK", ".staged.json.17.new"):
        assert file_names.OF_REEMBED.fullmatch(name)
    for name in ("mine.txt", "staged.json.bak", os.fsdecode(b"\xff")):
        assert not file_names.OF_REEMBED.fullmatch(name)
