"""``check --fix``: damage of every kind to every file is mended, or named; nothing is silently gone."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from damage import OWN_DISK, FailingDisk, Interrupted, flip, interrupted, path_of
from helpers import mask, picture, save
from PIL import Image

from engine import CheckReport, EngineError, Store
from engine.cli.app import main
from engine.cli.text import size
from engine.config import Limits
from engine.index import build
from engine.maintenance.repair.outcome import named
from engine.records import Buffer
from engine.storage.disk import Disk, using
from engine.storage.extents import HEADER_BYTES
from engine.storage.manifest import Manifest
from engine.storage.rocks import database

pytestmark = pytest.mark.usefixtures("one_thread")

SYNTHETIC = "synthetic:bits?seed=0"
LATER = "synthetic:bits?seed=1"
COUNT = 51  # images of the store below


# Commits of a few rows, and a segment that some vectors come after.
LIMITS = Limits(chunk_rows=15, exact_rows=40)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """A store with photos, masks, rows and a synthetic set, of which all pixels are kept."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "photos").mkdir()
    for i in range(6):
        save(folder / "photos" / f"photo{i}.png", picture(i))
    for i in range(3):
        save(folder / "photos" / f"mask{i}.png", mask(i))
    np.save(folder / "rows.npy", np.stack([mask(i) for i in range(1, 9)]))  # two of them are files
    with Store.open(
        folder / "store", create=True, encoder=str(tiny_encoder), limits=LIMITS
    ) as store:
        store.ingest(folder / "photos", keep_pixels="yes")
        store.ingest(folder / "rows.npy")
        store.ingest(f"{SYNTHETIC}&n=32")
        store.ingest(f"{LATER}&n=4")
        assert len(store) == COUNT
        assert [entry.rows for entry in store.session.snapshot.manifest.segments] == [47]
        assert [store.lookup(q).identical[0].id for q in queries()] == list(range(1, COUNT + 1))
    for unneeded in (folder / "store" / "keys").glob("LOG*"):  # it is copied again and again
        unneeded.unlink()
    return folder / "store"


@pytest.fixture(scope="module")
def truth(whole: Path) -> list[object]:
    with Store.open(whole, read_only=True) as opened:
        return answers(opened)


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to damage; its sources are all there."""
    return Path(shutil.copytree(whole, tmp_path / "store"))


def queries() -> list[np.ndarray | str]:
    """Every image of the store, in the order of their ids."""
    found: list[np.ndarray | str] = [mask(i) for i in range(3)]
    found += [picture(i) for i in range(6)]
    found += [mask(i) for i in range(3, 9)]
    found += [f"{SYNTHETIC}#{i}" for i in range(32)]
    return found + [f"{LATER}#{i}" for i in range(4)]


def answers(opened: Store) -> list[object]:
    """What a store says of every image that it has, of some that it has not, and of itself."""
    said: list[object] = []
    said += [opened.lookup(query, tiers=["identical"]).identical for query in queries()]
    for query in queries()[::5]:
        (closest,) = opened.lookup(query, k=1, tiers=["similar"]).similar
        said.append((closest.id, round(closest.score, 3), closest.sources))
    photos = Path(opened.sources(1)[0]).parent
    said += [opened.lookup(path, tiers=["identical"]).identical for path in photos.iterdir()]
    said += [opened.lookup(mask(seed), tiers=["identical"]).identical for seed in (50, 51)]
    unknown = np.random.default_rng(3).standard_normal((4, 16)).astype(np.float32)
    scores, ids = opened.search_vectors(unknown, 5, recall=1)
    said += [scores.round(3).tolist(), ids.tolist()]
    for id_ in range(1, COUNT + 1):
        said.append({name: x for name, x in asdict(opened.get(id_)).items() if name != "place"})
        said.append(opened.sources(id_))
    info = opened.info()
    return [*said, info.images, info.vectors, info.sources]


def check(where: Path) -> CheckReport:
    with Store.open(where, read_only=True) as opened:
        return opened.check()


def fix(where: Path) -> CheckReport:
    with Store.open(where) as opened:
        return opened.check(fix=True)


def is_as_before(where: Path, truth: list[object]) -> None:
    """Whole, with the same answers, and a writer goes on."""
    with Store.open(where) as opened:
        assert opened.check().problems == ()
        assert answers(opened) == truth
        assert opened.ingest("synthetic:bits?seed=9&n=3").added == 3
        assert opened.lookup("synthetic:bits?seed=9#1").identical[0].verified == "bytes"
        assert opened.check().problems == ()


def nothing_is_silently_gone(where: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each image is found, or an error or a warning says why not; and a check finds out."""
    try:
        with Store.open(where, read_only=True) as opened:
            for number, query in enumerate(queries()):
                caplog.clear()
                for tiers in (["identical"], None) if number % 5 == 0 else (["identical"],):
                    with contextlib.suppress(EngineError):
                        hits = opened.lookup(query, k=1, tiers=tiers).identical
                        assert [hit.id for hit in hits] == [number + 1] or caplog.text
            assert not opened.check().ok
            caplog.clear()
            with contextlib.suppress(EngineError):
                ids = opened.find_identical(np.stack([mask(i) for i in range(9)]))
                assert ids.tolist() == [1, 2, 3, *range(10, 16)] or caplog.text
    except EngineError as error:
        assert "\n" not in str(error)


# --- each file ------------------------------------------------------------------------------------


def flipped(at: Callable[[int], int]) -> Callable[[Path], None]:
    return lambda path: flip(path, at(path.stat().st_size))


def cut(to: Callable[[int], int]) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, to(path.stat().st_size))


FILES = {
    "pixels": "pixels/00000001.blobs",
    "fingerprints": "fingerprints/00000001.pdq",
    "vectors": "vectors/1/00000001.f32",
    "ids": "vectors/1/00000001.ids",
    "quantizer": "index/00000001.quantizer",
    "index": "index/00000002.ivf",
}
DAMAGE: dict[str, Callable[[Path], None]] = {
    "header flipped": flipped(lambda size: 12),
    "flipped": flipped(lambda size: (HEADER_BYTES + size) // 2 if size > HEADER_BYTES else 2000),
    "empty": cut(lambda size: 0),
    "cut to the header": cut(lambda size: min(HEADER_BYTES, size - 9)),
    "cut in the middle": cut(lambda size: (HEADER_BYTES + size) // 2 if size > 4500 else size // 2),
    "cut by a byte": cut(lambda size: size - 1),
    "gone": Path.unlink,
}


ALL = tuple(DAMAGE)
SOME = ("header flipped", "flipped", "empty", "cut in the middle", "gone")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name in ("pixels", "vectors") for damage in ALL]
    + [(name, damage) for name in ("fingerprints", "ids", "index") for damage in SOME],
)
def test_a_damaged_file_is_mended(
    store: Path, truth: list[object], caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    DAMAGE[damage](store / FILES[name])
    nothing_is_silently_gone(store, caplog)
    report = fix(store)
    assert report.ok
    assert report.problems
    assert all(problem.fixed for problem in report.problems)
    is_as_before(store, truth)


@pytest.mark.slow
def test_all_of_them_at_once_are_mended(store: Path, truth: list[object]) -> None:
    for name in FILES:
        (store / FILES[name]).unlink()
    assert fix(store).ok
    is_as_before(store, truth)


@pytest.mark.slow
def test_folders_that_are_gone_are_made_again(store: Path, truth: list[object]) -> None:
    for folder in ("pixels", "fingerprints", "vectors", "index"):
        shutil.rmtree(store / folder)
    assert fix(store).ok
    is_as_before(store, truth)


@pytest.mark.slow
def test_an_extent_of_another_store_is_not_taken_for_its_own(
    store: Path, truth: list[object], tmp_path: Path
) -> None:
    with Store.open(tmp_path / "other", create=True, encoder="none") as other:
        other.ingest("synthetic:bits?seed=5&n=60")
    for name in ("pixels", "fingerprints"):
        shutil.copy(tmp_path / "other" / FILES[name], store / FILES[name])
    assert any("another store" in problem.what for problem in check(store).problems)
    assert fix(store).ok
    is_as_before(store, truth)


@pytest.mark.slow
def test_extents_of_a_few_rows_are_mended_across_their_borders(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    where = tmp_path / "store"
    limits = replace(LIMITS, extent_rows=10, extent_bytes=20_000)
    with Store.open(where, create=True, encoder=str(tiny_encoder), limits=limits) as opened:
        opened.ingest(f"{SYNTHETIC}&n=48")
    with Store.open(where, read_only=True) as opened:
        before = [opened.lookup(f"{SYNTHETIC}#{i}", k=48).similar for i in range(48)]
    for name in ("pixels/00000002.blobs", "fingerprints/00000002.pdq"):
        (where / name).unlink()
    for number in (2, 4):
        (where / "vectors" / "1" / f"{number:08d}.f32").unlink()
        (where / "vectors" / "1" / f"{number:08d}.ids").unlink()
    shutil.rmtree(where / "index")
    assert fix(where).ok
    assert check(where).problems == ()
    with Store.open(where, read_only=True) as opened:
        for i in range(48):
            result = opened.lookup(f"{SYNTHETIC}#{i}", k=48)
            assert [(hit.id, hit.verified) for hit in result.identical] == [(i + 1, "bytes")]
            assert {hit.id: round(hit.score, 4) for hit in result.similar} == {
                hit.id: round(hit.score, 4) for hit in before[i]
            }


@pytest.mark.slow
def test_what_the_manifest_does_not_name_is_named_again(store: Path, truth: list[object]) -> None:
    with Store.open(store, read_only=True) as opened:
        found = opened.session.snapshot.manifest
    Manifest(found.uuid, found.settings, found.encoder, {"pixels.blobs": [1]}).save(store)
    flip(store / FILES["fingerprints"], HEADER_BYTES + 5)
    assert {problem.part for problem in check(store).problems} == {
        "MANIFEST.json",
        FILES["fingerprints"],
    }
    assert fix(store).ok
    is_as_before(store, truth)


# --- the encoder ----------------------------------------------------------------------------------

ENCODER_DAMAGE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "the model is flipped": ("model", flipped(lambda size: size // 2)),
    "the model is empty": ("model", cut(lambda size: 0)),
    "the description is cut": ("encoder", cut(lambda size: size // 2)),
    "both are gone": ("", lambda folder: shutil.rmtree(folder)),
}


def damage_encoder(where: Path, what: str) -> None:
    stem, damage = ENCODER_DAMAGE[what]
    folder = where / "encoder" / "1"
    damage(next(folder.glob(f"{stem}.*")) if stem else folder)


@pytest.mark.slow
def test_the_starter_encoder_is_copied_again_from_the_package(tmp_path: Path) -> None:
    where = tmp_path / "store"
    with Store.open(where, create=True) as opened:
        opened.ingest(f"{SYNTHETIC}&n=3")
        before = opened.lookup(f"{SYNTHETIC}#1").similar
    for what in ENCODER_DAMAGE:
        damage_encoder(where, what)
        (problem,) = check(where).problems
        assert problem.part == "encoder/1", what
        report = fix(where)
        assert (report.ok, len(report.problems)) == (True, 1), what
        assert check(where).problems == (), what
    with Store.open(where) as opened:
        assert opened.lookup(f"{SYNTHETIC}#1", tiers=["identical", "similar"]).similar == before
        assert opened.ingest(f"{LATER}&n=3").added == 3


@pytest.mark.slow
@pytest.mark.parametrize("what", ENCODER_DAMAGE)
def test_a_foreign_encoder_is_asked_for_and_the_rest_mended(
    store: Path, truth: list[object], tiny_encoder: Path, what: str
) -> None:
    damage_encoder(store, what)
    flip(store / FILES["fingerprints"], HEADER_BYTES + 5)
    report = fix(store)
    assert {problem.part: problem.fixed for problem in report.problems} == {
        FILES["fingerprints"]: True,
        "encoder/1": False,
    }
    (problem,) = check(store).problems
    assert f"copy the files of the encoder 'tiny' to {store}/encoder/1" in problem.what
    with Store.open(store, read_only=True) as opened:
        assert opened.lookup(mask(1)).identical[0].verified == "bytes"
        with pytest.raises(EngineError):
            opened.lookup(mask(1), tiers=["similar"])
    shutil.copytree(tiny_encoder, store / "encoder" / "1", dirs_exist_ok=True)
    is_as_before(store, truth)


@pytest.mark.slow
def test_a_description_that_does_not_fit_its_model_is_found(store: Path) -> None:
    path = store / "encoder" / "1" / "encoder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_size": 17}))
    (problem,) = check(store).problems
    assert problem.part == "encoder/1"


@pytest.mark.slow
def test_vectors_wait_for_their_encoder(
    store: Path, truth: list[object], tiny_encoder: Path
) -> None:
    shutil.rmtree(store / "encoder")
    for name in ("pixels", "fingerprints", "vectors", "ids", "index"):
        flip(store / FILES[name], 3000 if name == "index" else HEADER_BYTES + 300)
    report = fix(store)
    left = {problem.part for problem in report.problems if not problem.fixed}
    assert left == {"encoder/1", FILES["vectors"], FILES["index"]}
    assert left == {problem.part for problem in check(store).problems}
    shutil.copytree(tiny_encoder, store / "encoder" / "1")
    assert fix(store).ok
    is_as_before(store, truth)


# --- what is not derived --------------------------------------------------------------------------


def tables_of(where: Path, table: str) -> list[Path]:
    """The files that hold a table."""
    with Store.open(where, read_only=True) as opened:
        rows = [key for key, _ in opened.session.snapshot.keys.scan(table)]
        found = opened.session.snapshot.keys._db.live_files()
    ends = (rows[0], rows[-1])
    return [
        where / "keys" / file["name"].lstrip("/")
        for file in found
        if (file["start_key"], file["end_key"]) == ends
    ]


@pytest.mark.slow
@pytest.mark.parametrize("table", ["images", "records", "commits"])
def test_a_damaged_table_is_mended_with_the_rest(
    store: Path, truth: list[object], caplog: pytest.LogCaptureFixture, table: str
) -> None:
    (path,) = tables_of(store, table)
    flip(path, 20)
    for name in ("pixels", "fingerprints", "vectors", "index"):
        if name == "fingerprints" or table != "commits":  # nothing else tells of what they held
            flip(store / FILES[name], (store / FILES[name]).stat().st_size - 40)
    nothing_is_silently_gone(store, caplog)
    report = fix(store)
    assert report.ok
    assert any(p.part == "keys" and table in p.what and p.fixed for p in report.problems)
    is_as_before(store, truth)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["gone", "empty", "cut in the middle"])
def test_a_lost_table_is_mended_from_the_others_and_the_sources(
    store: Path, truth: list[object], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = tables_of(store, "images")
    DAMAGE[damage](path)
    with pytest.raises(EngineError) as caught:
        Store.open(store, read_only=True)
    assert "\n" not in str(caught.value)
    assert main(["check", "--json", "--store", str(store)]) == 1
    out, err = capsys.readouterr()
    (problem,) = json.loads(out)["problems"]
    assert (problem["part"], problem["fixed"], err) == ("keys", False, "")
    assert main(["check", "--fix", "--json", "--store", str(store)]) == 0
    is_as_before(store, truth)


# --- sources that are gone ------------------------------------------------------------------------


def kinds_of_sources(folder: Path) -> tuple[Path, dict[int, np.ndarray]]:
    """A store of a mask, a photo, two rows and an image in memory; the images by id. Pixels are kept."""
    save(folder / "mask.png", mask(0))
    save(folder / "photo.png", picture(1))
    np.save(folder / "rows.npy", np.stack([mask(2), mask(3)]))
    where = folder / "store"
    with Store.open(where, create=True, encoder="none") as opened:
        for name in ("mask.png", "photo.png", "rows.npy"):
            opened.ingest(folder / name, keep_pixels="yes")
        opened.ingest(mask(4)[np.newaxis], name="camera")
    return where, {1: mask(0), 2: picture(1), 3: mask(2), 4: mask(3), 5: mask(4)}


def verified(where: Path, images: dict[int, np.ndarray]) -> dict[int, str]:
    """Look up each image, which has to be found; how each hit was verified, by id."""
    with Store.open(where, read_only=True) as opened:
        hits = {id_: opened.lookup(image).identical for id_, image in images.items()}
        assert {id_: [hit.id for hit in found] for id_, found in hits.items()} == {
            id_: [id_] for id_ in images
        }
        return {id_: found[0].verified for id_, found in hits.items()}


def delete(folder: Path) -> None:
    for name in ("mask.png", "photo.png", "rows.npy"):
        (folder / name).unlink()


def change(folder: Path) -> None:
    save(folder / "mask.png", mask(90))
    save(folder / "photo.png", picture(91))
    np.save(folder / "rows.npy", np.stack([mask(92), mask(93)]))


def break_off(folder: Path) -> None:
    for name in ("mask.png", "photo.png", "rows.npy"):
        os.truncate(folder / name, 40)


def put_folders_there(folder: Path) -> None:
    delete(folder)
    for name in ("mask.png", "photo.png", "rows.npy"):
        (folder / name).mkdir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "damage"),
    [(delete, "gone"), (change, "flipped"), (break_off, "gone"), (put_folders_there, "flipped")],
)
def test_pixels_whose_sources_are_gone_are_set_aside_and_named(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    what: Callable[[Path], None],
    damage: str,
) -> None:
    where, images = kinds_of_sources(tmp_path)
    if damage == "gone":
        (where / FILES["pixels"]).unlink()
    else:
        with Store.open(where, read_only=True) as opened:
            places = [opened.get(id_).place for id_ in images]
        for place in places:
            assert place is not None
            flip(where / FILES["pixels"], HEADER_BYTES + place.offset + place.length // 2)
    what(tmp_path)
    report = fix(where)
    assert report.ok
    (aside,) = (p for p in report.problems if "no source has them any more" in p.what)
    assert (aside.part, aside.fixed) == ("pixels", True)
    assert aside.what.startswith("images 1 to 5: ")
    caplog.clear()
    assert verified(where, images) == dict.fromkeys(images, "digest")
    assert not caplog.text  # nothing is wrong any more
    assert fix(where).problems == ()
    with Store.open(where) as opened:  # what comes again is known by its proof
        assert opened.ingest(mask(0)[np.newaxis], name="again").duplicates == 1


@pytest.mark.slow
def test_only_what_is_gone_is_set_aside(tmp_path: Path) -> None:
    where, images = kinds_of_sources(tmp_path)
    before = verified(where, images)
    assert before == {1: "bytes", 2: "digest", 3: "bytes", 4: "bytes", 5: "bytes"}
    (where / FILES["pixels"]).unlink()
    save(tmp_path / "mask.png", mask(90))
    np.save(tmp_path / "rows.npy", np.stack([mask(92), mask(3)]))
    report = fix(where)
    assert report.ok
    (aside,) = (p for p in report.problems if "no source has them any more" in p.what)
    assert aside.what.startswith("images 1, 3, 5: ")
    assert verified(where, images) == before | dict.fromkeys((1, 3, 5), "digest")
    with Store.open(where, read_only=True) as opened:
        place = opened.get(2).place
        assert place is not None
        assert opened.session.snapshot.kept(place) == (tmp_path / "photo.png").read_bytes()
    assert check(where).problems == ()


@pytest.mark.slow
def test_the_same_pixels_from_another_file_do_for_pixels_and_not_for_a_kept_file(
    tmp_path: Path,
) -> None:
    where, images = kinds_of_sources(tmp_path)
    for name in ("mask.png", "photo.png"):
        with Image.open(tmp_path / name) as image:
            image.save(tmp_path / name, compress_level=0)
    (where / FILES["pixels"]).unlink()
    report = fix(where)
    (aside,) = (p for p in report.problems if "no source has them any more" in p.what)
    assert aside.what.startswith("images 2, 5: ")
    assert report.ok
    assert verified(where, images)[1] == "bytes"


@pytest.mark.slow
def test_any_of_many_sources_will_do(tmp_path: Path) -> None:
    for i in range(30):
        save(tmp_path / f"{i:02d}.png", mask(0))
    where = tmp_path / "store"
    with Store.open(where, create=True, encoder="none") as opened:
        for i in range(30):
            opened.ingest(tmp_path / f"{i:02d}.png")
    for i in range(29):
        (tmp_path / f"{i:02d}.png").unlink()
    flip(where / FILES["pixels"], HEADER_BYTES + 20)
    assert fix(where).ok
    assert verified(where, {1: mask(0)}) == {1: "bytes"}


@pytest.mark.slow
def test_images_that_share_a_key_are_mended_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.images.hashing.key", lambda canonical, seed: b"k" * 16)
    monkeypatch.setattr("engine.images.hashing.keys", lambda some, seed: [b"k" * 16 for _ in some])
    where, images = kinds_of_sources(tmp_path)
    before = verified(where, images)
    (where / FILES["pixels"]).unlink()
    (tmp_path / "mask.png").unlink()
    assert fix(where).ok
    assert check(where).problems == ()
    assert verified(where, images) == before | {1: "digest", 5: "digest"}


@pytest.mark.slow
def test_where_pixels_are_not_kept_and_sources_are_gone_good_rows_stay(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    """One byte of many rows is wrong: the rows beside it are no worse than before."""
    for i in range(4):
        save(tmp_path / f"{i}.png", picture(i))
    where = tmp_path / "store"
    with Store.open(where, create=True, encoder=str(tiny_encoder)) as opened:
        opened.ingest(*(tmp_path / f"{i}.png" for i in range(4)), keep_pixels="no")
    good = {name: (where / FILES[name]).read_bytes() for name in ("vectors", "fingerprints")}
    flip(where / FILES["vectors"], HEADER_BYTES + 64 * 1 + 3)  # an exponent: it cannot be right
    flip(where / FILES["vectors"], HEADER_BYTES + 64 * 2 + 0, bit=1)  # hardly a difference
    flip(where / FILES["fingerprints"], HEADER_BYTES + 32 * 1)
    for i in range(1, 4):
        (tmp_path / f"{i}.png").unlink()
    report = fix(where)
    assert report.ok
    aside = {p.what.partition(":")[0]: p.what for p in report.problems if "no longer" in p.what}
    assert set(aside) == {"image 2", "images 3 to 4", "images 2 to 4"}
    assert "no vector is left" in aside["image 2"]
    assert "a vector may be wrong" in aside["images 3 to 4"]
    assert "a fingerprint may be wrong" in aside["images 2 to 4"]
    found = (where / FILES["vectors"]).read_bytes()
    at = HEADER_BYTES
    assert found[at + 64 : at + 128] == bytes(64)
    assert found[at + 192 :] == good["vectors"][at + 192 :]
    assert np.allclose(
        np.frombuffer(found[at + 128 :], np.float32),
        np.frombuffer(good["vectors"][at + 128 :], np.float32),
        atol=1e-6,
    )
    prints, before = (where / FILES["fingerprints"]).read_bytes(), good["fingerprints"]
    assert prints[:at] + prints[at + 64 :] == before[:at] + before[at + 64 :]
    assert check(where).problems == ()
    with Store.open(where, read_only=True) as opened:
        for i in range(4):
            assert [hit.id for hit in opened.lookup(picture(i)).identical] == [i + 1]
        scores = {hit.id: hit.score for hit in opened.lookup(picture(9)).similar}
        assert scores[2] == 0
        assert 0 not in (scores[1], scores[3], scores[4])


@pytest.mark.slow
def test_nothing_is_given_up_while_a_disk_may_be_away(tmp_path: Path, tiny_encoder: Path) -> None:
    disk, away = tmp_path / "disk", tmp_path / "away"
    for i in range(4):
        save(disk / f"{i}.png", picture(i))
    save(disk / "mask.png", mask(0))
    where = tmp_path / "store"
    with Store.open(where, create=True, encoder=str(tiny_encoder)) as opened:
        opened.ingest(disk)
    good = {name: (where / FILES[name]).read_bytes() for name in ("vectors", "fingerprints")}
    shutil.copytree(where, tmp_path / "copy")
    flip(where / FILES["vectors"], HEADER_BYTES + 64 * 1 + 3)
    flip(where / FILES["fingerprints"], HEADER_BYTES + 32 * 2)
    flip(where / FILES["pixels"], HEADER_BYTES + 99)
    disk.rename(away)
    disk.mkdir()  # an empty folder, as a mount point is
    for _ in range(2):
        report = fix(where)
        assert not report.ok
        left = [p.what for p in report.problems if not p.fixed]
        assert len([what for what in left if "may be unmounted" in what]) >= 3
        assert not [p for p in report.problems if "no longer" in p.what or "any more" in p.what]
    with Store.open(where, read_only=True) as opened:  # it can be used meanwhile
        assert [hit.id for hit in opened.lookup(picture(0)).identical]
    disk.rmdir()
    away.rename(disk)
    assert fix(where).ok
    assert check(where).problems == ()
    assert (where / FILES["fingerprints"]).read_bytes() == good["fingerprints"]
    was, now = (
        np.frombuffer(data[HEADER_BYTES:], np.float32)
        for data in (good["vectors"], (where / FILES["vectors"]).read_bytes())
    )
    assert np.allclose(was, now, atol=1e-6)
    with Store.open(where, read_only=True) as opened:
        assert opened.lookup(mask(0)).identical[0].verified == "bytes"


@pytest.mark.slow
def test_imported_vectors_are_not_given_up_while_the_disk_of_their_array_may_be_away(
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    rows = np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32)
    np.save(disk / "rows.npy", rows)
    where = tmp_path / "store"
    with Store.open(where, create=True, encoder="none") as opened:
        opened.ingest(disk / "rows.npy")
    flip(where / FILES["vectors"], HEADER_BYTES + 64 * 3 + 3)
    (disk / "rows.npy").rename(tmp_path / "rows.npy")
    report = fix(where)
    assert not report.ok
    assert [p for p in report.problems if "may be unmounted" in p.what and not p.fixed]
    (tmp_path / "rows.npy").rename(disk / "rows.npy")
    assert fix(where).ok
    with Store.open(where, read_only=True) as opened:
        assert np.allclose(opened.vectors([4]), rows[3:4], atol=1e-6)


def test_images_are_named_by_ranges() -> None:
    assert named([7]) == "image 7"
    assert named([7, 3, 4, 5]) == "images 3 to 5, 7"
    many = named(range(0, 1000, 2))
    assert many.startswith("images 0, 2, 4") and many.endswith(" and 400 more")


# --- interrupted ----------------------------------------------------------------------------------


def damage_some(where: Path) -> None:
    """Something for every kind of write that a repair does."""
    flip(where / FILES["ids"], 12)
    for name in ("pixels", "fingerprints", "vectors", "ids"):
        flip(where / FILES[name], HEADER_BYTES + 40)
    os.truncate(where / FILES["fingerprints"], (where / FILES["fingerprints"]).stat().st_size - 5)


@pytest.mark.usual
@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "least"),
    [(OWN_DISK, "fsync", 6), (database.Keys, "commit", 5), (build, "write_segment", 1)],
    ids=["fsync", "commit", "index"],
)
def test_a_repair_that_is_interrupted_is_finished_by_the_next(
    store: Path,
    truth: list[object],
    owner: object,
    name: str,
    least: int,
) -> None:
    """The n-th write is the last, whichever it is."""
    damage_some(store)
    damaged = store.with_name("damaged")
    store.rename(damaged)
    for nth in range(1, 100):
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(damaged, store)
        with interrupted(owner, name, nth) as calls:
            assert fix(store).ok
        if calls.made < nth:
            break
        assert fix(store).ok
    assert nth > least
    is_as_before(store, truth)


# Patterns of the paths of what a repair writes.
EXTENTS_OR_MANIFEST = [r"\.(blobs|pdq|f32|ids)", r"MANIFEST\.json"]


@pytest.mark.slow
@pytest.mark.parametrize("only", EXTENTS_OR_MANIFEST, ids=["extents", "manifest"])
def test_what_is_written_by_half_is_written_again(
    store: Path, truth: list[object], only: str
) -> None:
    damage_some(store)
    half = FailingDisk("pwrite", Interrupted(), only=only, half=True)
    with using(half), pytest.raises(Interrupted):
        fix(store)
    assert fix(store).ok
    is_as_before(store, truth)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pixels", "fingerprints", "vectors", "ids"])
def test_a_header_is_mended_without_a_moment_at_which_the_data_is_gone(
    tmp_path: Path, tiny_encoder: Path, name: str
) -> None:
    """Nothing else has what is in the file: its source was in memory."""
    where = tmp_path / "store"
    with Store.open(where, create=True, encoder=str(tiny_encoder)) as opened:
        opened.ingest(mask(0)[np.newaxis], name="camera")
    before = (where / FILES[name]).read_bytes()
    flip(where / FILES[name], 12)

    for call in ("pwrite", "fsync", "ftruncate"):
        with using(FailingDisk(call, Interrupted())), contextlib.suppress(Interrupted):
            fix(where)
        assert (where / FILES[name]).read_bytes()[HEADER_BYTES:] == before[HEADER_BYTES:]
    fix(where)
    assert (where / FILES[name]).read_bytes() == before
    assert verified(where, {1: mask(0)}) == {1: "bytes"}


@pytest.mark.slow
def test_a_disk_that_is_full_is_reported_and_leaves_the_damage_to_be_found(
    store: Path, truth: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for only in (*EXTENTS_OR_MANIFEST, "RocksDB"):
        damage_some(store)
        with using(FailingDisk("pwrite", only=only)), monkeypatch.context() as patch:
            if only == "RocksDB":  # which writes past our disk
                patch.setattr(database.Keys, "commit", full)
            report = fix(store)
        assert not report.ok
        assert any("No space left on device" in problem.what for problem in report.problems)
        assert not check(store).ok
        assert fix(store).ok
    is_as_before(store, truth)


class Killing(Disk):
    """A disk whose process is killed half-way through a write to a file of this name."""

    def __init__(self, only: str) -> None:
        self._only = only

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        if not re.search(self._only, path_of(fd)):
            return super().pwrite(fd, data, offset)
        super().pwrite(fd, bytes(data)[: len(data) // 2], offset)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def child(where: str, only: str) -> None:
    """Mend a store, and be killed at a write."""
    with using(Killing(only)):
        fix(Path(where))


@pytest.mark.slow
def test_a_repair_that_is_killed_is_finished_by_the_next(store: Path, truth: list[object]) -> None:
    damage_some(store)
    for only in (EXTENTS_OR_MANIFEST[0], r"\.ivf"):
        ran = subprocess.run(
            [sys.executable, __file__, str(store), only],
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(store.parent)},
            check=False,
        )
        assert ran.returncode == -signal.SIGKILL, ran.stderr.decode()
        with Store.open(store, read_only=True) as opened:
            for number, query in enumerate(queries(), 1):
                assert [h.id for h in opened.lookup(query, tiers=["identical"]).identical] == [
                    number
                ]
    assert fix(store).ok
    is_as_before(store, truth)


# --- beside an open store, and what is printed ----------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("writes", [True, False])
def test_files_that_go_while_the_store_is_open_are_not_read_or_written_on(
    store: Path, truth: list[object], writes: bool
) -> None:
    """An open file outlives its name; what is mended is the one that has the name."""
    with Store.open(store) as opened:
        if writes:
            assert opened.ingest("synthetic:bits?seed=4&n=2").added == 2
        for query in queries():
            opened.lookup(query)
        for name in FILES:
            (store / FILES[name]).unlink()
        assert opened.check(fix=True).ok
        assert opened.check().problems == ()
        assert opened.ingest("synthetic:bits?seed=5&n=2").added == 2
        assert opened.check().problems == ()
    assert check(store).problems == ()
    with Store.open(store, read_only=True) as opened:
        for number, query in enumerate(queries(), 1):
            (hit,) = opened.lookup(query, tiers=["identical"]).identical
            assert (hit.id, hit.verified) == (number, "digest" if 4 <= number <= 9 else "bytes")
        for seed in (4, 5) if writes else (5,):
            (hit,) = opened.lookup(f"synthetic:bits?seed={seed}#1").identical
            assert hit.verified == "bytes"


@pytest.mark.slow
def test_a_vector_that_cannot_be_right_is_never_a_hit(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An exponent that is flipped makes numbers that beat every other vector."""
    for row, value in ((48, np.float32(1e30)), (49, np.float32("nan")), (50, np.float32("inf"))):
        with (store / FILES["vectors"]).open("r+b") as file:
            file.seek(HEADER_BYTES + 64 * row)
            file.write(value.tobytes())
    with Store.open(store, read_only=True) as opened:
        for query in queries()[:9]:
            for hit in opened.lookup(query, tiers=["similar"]).similar:
                assert hit.id not in (49, 50, 51)
                assert abs(hit.score) <= 1
    assert "its vector is damaged" in caplog.text
    assert fix(store).ok


@pytest.mark.slow
def test_what_an_interrupted_writer_left_is_told_and_no_damage(
    store: Path, truth: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    left = 0
    for name in ("pixels", "fingerprints", "vectors", "ids"):
        with (store / FILES[name]).open("ab") as file:
            left += file.write(b"x" * 1000)
    for stray in ("pixels/00000002.blobs", "index/00000009.ivf", "vectors/1/00000002.ids"):
        left += (store / stray).write_bytes(b"left by a crash")
    for options in ([], ["--fix"]):  # there is nothing to mend
        assert main(["check", "--json", "--store", str(store), *options]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["ok"], found["problems"], found["leftover_bytes"]) == (True, [], left)
    assert main(["check", "--store", str(store)]) == 0
    said = capsys.readouterr().out
    assert "the store is whole" in said and f"{size(left)} that an interrupted writer left" in said
    with Store.open(store) as opened:
        assert answers(opened) == truth
        opened.ingest("synthetic:bits?seed=9&n=1")
        assert opened.check().leftover_bytes == 0
    assert check(store).leftover_bytes == 0


@pytest.mark.slow
def test_the_command_prints_one_object_and_says_what_it_mended(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(store / FILES["fingerprints"], HEADER_BYTES + 1)
    command = ["check", "--store", str(store)]
    assert main([*command, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], [p["fixed"] for p in found["problems"]]) == (False, [False])
    assert main([*command, "--fix", "--json"]) == 0
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    found = json.loads(line)
    assert (found["ok"], [p["fixed"] for p in found["problems"]], err) == (True, [True], "")
    flip(store / FILES["fingerprints"], HEADER_BYTES + 1)
    assert main([*command, "--fix"]) == 0
    assert "(repaired)" in capsys.readouterr().out
    assert main(command) == 0


if __name__ == "__main__":
    child(*sys.argv[1:])
