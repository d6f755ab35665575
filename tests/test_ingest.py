"""The write path: what a run adds, what it leaves alone, and how it goes on where it stopped."""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import mask, picture, save
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from PIL import Image

from engine import IngestReport, Kind, Store, UsageError
from engine.config import Limits
from engine.images import canonical, hashing
from engine.ingest.row_commits import runs_of
from engine.sources.arrays import NpyArray
from engine.sources.items import FileItem
from engine.sources.synthetic import SyntheticBits


def save_rows(path: Path, rows: list[np.ndarray], mtime: int | None = None) -> str:
    np.save(path, np.stack(rows))
    if mtime is not None:
        os.utime(path, (mtime, mtime))
    return str(path)


def overwrite_keeping_the_stamp(path: Path) -> None:
    status = path.stat()
    path.write_bytes(b"\0" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def counts(report: IngestReport) -> tuple[int, int, int, int, int]:
    """Added, duplicates, unchanged, rejected and skipped."""
    assert report.seen == report.added + report.duplicates + report.unchanged + report.rejected
    return report.added, report.duplicates, report.unchanged, report.rejected, report.skipped


def sources(store: Store, image: np.ndarray) -> set[str]:
    """The places of the one image that is identical to ``image``."""
    (hit,) = store.lookup(image, tiers=["identical"]).identical
    found = store.sources(hit.id)
    assert len(found) == hit.source_count
    return set(found)


def rejects(store: Store) -> list[tuple[str, str]]:
    """Source and reason of each line of rejects.jsonl."""
    path = store.path / "rejects.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(row["source"], row["reason"]) for row in map(json.loads, lines)]


@pytest.fixture
def limits() -> Limits:
    return Limits()


@pytest.fixture
def store(tmp_path: Path, limits: Limits) -> Iterator[Store]:
    with Store.open(tmp_path / "a.store", create=True, encoder="none", limits=limits) as opened:
        yield opened


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of five pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        save(folder / f"{i}.png", picture(i))
    return folder


# --- what is added, and what is not ---------------------------------------------------------------


def test_each_image_is_added_once_and_numbered_in_the_order_of_the_sources(
    store: Store, photos: Path
) -> None:
    assert counts(store.ingest(photos)) == (5, 0, 0, 0, 0)
    for i in range(5):
        assert store.lookup(picture(i)).identical[0].id == i + 1
        assert sources(store, picture(i)) == {f"{photos}/{i}.png"}


def test_a_second_run_adds_nothing_and_reads_nothing(
    store: Store, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.npy"
    save_rows(rows, [mask(i) for i in range(4)])
    assert store.ingest(photos, rows).added == 9

    def fail(*_: object) -> bytes:
        raise AssertionError("a file was read again")

    monkeypatch.setattr(FileItem, "read", fail)
    for path in (*photos.iterdir(), rows):
        header = path.read_bytes()[:128] if path == rows else b""
        overwrite_keeping_the_stamp(path)
        if header:  # an array's shape is read, its rows are not
            status = path.stat()
            with path.open("r+b") as file:
                file.write(header)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert counts(store.ingest(photos, rows)) == (0, 0, 9, 0, 0)
    for i in range(5):
        assert sources(store, picture(i)) == {f"{photos}/{i}.png"}


def test_a_copy_adds_a_place_and_no_image(store: Store, photos: Path, tmp_path: Path) -> None:
    store.ingest(photos)
    same_file = tmp_path / "same-file.png"
    same_file.write_bytes((photos / "2.png").read_bytes())
    same_pixels = str(save(tmp_path / "same-pixels.ppm", picture(2)))
    assert counts(store.ingest(same_file, same_pixels)) == (0, 2, 0, 0, 0)
    assert sources(store, picture(2)) == {f"{photos}/2.png", str(same_file), same_pixels}
    assert len(store) == 5


def test_equal_images_in_one_chunk_are_one_image(store: Store, tmp_path: Path) -> None:
    places = {
        str(save(tmp_path / f"{i}.{suffix}", mask(1))) for i, suffix in enumerate(["png", "ppm"])
    }
    save_rows(tmp_path / "rows.npy", [mask(1), mask(2), mask(1), mask(1)])
    assert counts(store.ingest(*sorted(places), tmp_path / "rows.npy")) == (2, 4, 0, 0, 0)
    assert sources(store, mask(1)) == places | {f"{tmp_path}/rows.npy#{i}" for i in (0, 2, 3)}
    assert sources(store, mask(2)) == {f"{tmp_path}/rows.npy#1"}


def test_a_file_that_is_named_twice_is_one_place(store: Store, photos: Path) -> None:
    report = store.ingest(photos, photos / "1.png", photos)
    assert report.added == 5
    assert store.info().sources == 5
    assert store.check().ok


def test_a_changed_file_is_from_then_on_the_new_image(store: Store, tmp_path: Path) -> None:
    path = str(save(tmp_path / "a.png", picture(1), mtime=1))
    copy = str(save(tmp_path / "b.png", picture(1), mtime=1))
    store.ingest(path, copy)
    save(tmp_path / "a.png", picture(2), mtime=2)
    assert counts(store.ingest(path, copy)) == (1, 0, 1, 0, 0)
    assert sources(store, picture(1)) == {copy}
    assert sources(store, picture(2)) == {path}

    save(tmp_path / "a.png", picture(1), mtime=3)  # and back
    assert counts(store.ingest(path, copy)) == (0, 1, 1, 0, 0)
    assert sources(store, picture(1)) == {path, copy}
    assert sources(store, picture(2)) == set()
    assert store.info().sources == 2
    assert store.check().ok


def test_a_touched_file_stays_the_image_that_it_was(store: Store, tmp_path: Path) -> None:
    path = str(save(tmp_path / "a.png", picture(1), mtime=1))
    store.ingest(path)
    os.utime(path, (2, 2))
    assert counts(store.ingest(path)) == (0, 1, 0, 0, 0)
    assert counts(store.ingest(path)) == (0, 0, 1, 0, 0)
    assert sources(store, picture(1)) == {path}


def test_other_files_in_a_folder_are_skipped(store: Store, photos: Path) -> None:
    (photos / "notes.txt").write_text("not an image")
    (photos / "no-suffix").write_bytes((photos / "1.png").read_bytes())
    assert counts(store.ingest(photos)) == (5, 1, 0, 0, 1)


def test_folders_inside_are_entered_unless_told_otherwise(store: Store, photos: Path) -> None:
    (photos / "inside").mkdir()
    save(photos / "inside" / "6.png", picture(6))
    assert store.ingest(photos, recursive=False).added == 5
    assert store.ingest(photos).added == 1


def test_names_that_are_no_text_are_kept_as_they_are(store: Store, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    Path(os.fsdecode(path)).write_bytes(save(tmp_path / "a.png", picture(1)).read_bytes())
    store.ingest(os.fsdecode(path))
    (name,) = sources(store, picture(1))
    assert os.fsencode(name) == path
    assert store.lookup(name).identical


def test_bits_8_and_16_bit_images_keep_their_kind(store: Store, tmp_path: Path) -> None:
    deep = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "c.png")
    store.ingest(save(tmp_path / "a.png", mask(1)), save(tmp_path / "b.png", picture(1)))
    store.ingest(tmp_path / "c.png")
    assert [store.get(id_).kind for id_ in (1, 2, 3)] == [Kind.BITS, Kind.U8, Kind.U16]
    (hit,) = store.lookup(deep).identical
    assert hit.id == 3


# --- what cannot be read --------------------------------------------------------------------------


def test_a_broken_file_is_a_row_with_a_reason_and_the_run_goes_on(
    store: Store, photos: Path
) -> None:
    (photos / "2.png").write_bytes((photos / "2.png").read_bytes()[:60])
    (photos / "3.png").write_bytes(b"")
    report = store.ingest(photos)
    assert counts(report) == (3, 0, 0, 2, 0)
    assert report.rejects_file == str(store.path / "rejects.jsonl")
    listed = dict(rejects(store))
    assert set(listed) == {f"{photos}/2.png", f"{photos}/3.png"}
    assert "empty" in listed[f"{photos}/3.png"]
    assert all("\n" not in reason for reason in listed.values())
    assert store.info().rejects == 2


def test_a_reject_is_counted_at_each_run_and_listed_once(store: Store, photos: Path) -> None:
    (photos / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for unchanged in (0, 4):
        assert store.ingest(photos).unchanged == unchanged
        assert len(rejects(store)) == 1
    (photos / "2.png").write_bytes(b"")  # for another reason
    store.ingest(photos)
    assert len(rejects(store)) == 2
    save(photos / "2.png", picture(2))
    assert counts(store.ingest(photos)) == (1, 0, 4, 0, 0)
    assert store.info().rejects == 0


@pytest.mark.slow
def test_a_reject_is_not_read_again_unless_it_or_the_decoder_changes(
    store: Store, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = photos / "2.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    read: list[str] = []
    real = FileItem.read

    def reading(item: FileItem, most: int) -> bytes:
        read.append(item.path.name)
        return real(item, most)

    monkeypatch.setattr(FileItem, "read", reading)
    assert counts(store.ingest(photos)) == (4, 0, 0, 1, 0)
    read.clear()
    assert counts(store.ingest(photos)) == (0, 0, 4, 1, 0)
    assert read == []
    os.utime(broken, (1, 1))
    assert counts(store.ingest(photos)) == (0, 0, 4, 1, 0)
    assert read == ["2.png"]
    read.clear()
    monkeypatch.setattr("engine.images.decode.DECODER", "pillow-99")
    assert counts(store.ingest(photos)) == (0, 0, 4, 1, 0)
    assert read == ["2.png"]
    read.clear()
    assert counts(store.ingest(photos)) == (0, 0, 4, 1, 0)
    assert read == []


@pytest.mark.slow
def test_what_only_lacked_memory_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (6000, 5000), (1, 2, 3)).save(path)
    rows = tmp_path / "rows.npy"
    np.save(rows, np.zeros((1, 3000, 3000, 3), np.uint8))
    for memory, expected in (("128M", (0, 0, 0, 2, 0)), ("1G", (2, 0, 0, 0, 0))):
        with Store.open(tmp_path / "a.store", create=True, encoder="none", memory=memory) as opened:
            assert counts(opened.ingest(path, rows)) == expected
            assert opened.info().rejects == expected[3]


def test_an_array_that_breaks_off_is_not_read_to_there_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(save_rows(tmp_path / "a.npy", [mask(i) for i in range(9)]))
    path.write_bytes(path.read_bytes()[:-1000])
    os.utime(path, (1, 1))
    assert counts(store.ingest(path)) == (7, 0, 0, 1, 0)
    with monkeypatch.context() as patched:
        patched.setattr(NpyArray, "blocks", None)
        assert counts(store.ingest(path)) == (0, 0, 7, 1, 0)
    save_rows(path, [mask(i) for i in range(9)], mtime=2)
    assert counts(store.ingest(path)) == (2, 7, 0, 0, 0)
    assert store.info().rejects == 0


def test_a_file_that_breaks_keeps_the_image_that_it_was(store: Store, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", picture(1), mtime=1)
    store.ingest(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert counts(store.ingest(path)) == (0, 0, 0, 1, 0)
    assert sources(store, picture(1)) == {str(path)}
    assert store.check().ok


def test_a_missing_source_is_an_error_before_anything_is_read(store: Store, photos: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        store.ingest(photos, photos / "gone.png")
    assert len(store) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"keep_pixels": "maybe"}, "auto, yes, no"), ({"workers": 0}, "workers must be 1 or more")],
)
def test_settings_that_make_no_sense_are_refused(
    store: Store, photos: Path, arguments: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        store.ingest(photos, **arguments)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least one source"):
        store.ingest()


# --- arrays and synthetic sets --------------------------------------------------------------------


def stop_after(commits: int, store: Store) -> Callable[[], bool]:
    """Stops a run once so many more chunks are committed."""
    first = store.session.snapshot.state.commit
    return lambda: store.session.snapshot.state.commit - first >= commits


@pytest.mark.parametrize("limits", [Limits(chunk_rows=4)])
def test_an_array_goes_on_behind_its_committed_rows(store: Store, tmp_path: Path) -> None:
    path = save_rows(tmp_path / "rows.npy", [mask(i) for i in range(10)])
    report = store.ingest(path, stop=stop_after(1, store))
    assert report.interrupted
    assert counts(report) == (4, 0, 0, 0, 0)
    report = store.ingest(path)
    assert not report.interrupted
    assert counts(report) == (6, 0, 4, 0, 0)
    for i in range(10):
        assert sources(store, mask(i)) == {f"{path}#{i}"}


def test_a_changed_array_forgets_its_old_rows(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    save_rows(path, [mask(i) for i in range(6)], mtime=1)
    store.ingest(path)
    save_rows(path, [mask(i) for i in (4, 4, 9)], mtime=2)
    assert counts(store.ingest(path)) == (1, 2, 0, 0, 0)
    assert sources(store, mask(0)) == set()
    assert sources(store, mask(4)) == {f"{path}#0", f"{path}#1"}
    assert sources(store, mask(9)) == {f"{path}#2"}
    assert store.info().sources == 3
    assert store.check().ok


@pytest.mark.parametrize("empty", [picture(0)[None][:0], np.zeros((0, 12), np.float32)])
def test_an_array_that_was_emptied_forgets_its_rows(
    store: Store, tmp_path: Path, empty: np.ndarray
) -> None:
    path = save_rows(tmp_path / "a.npy", [picture(i) for i in range(4)])
    store.ingest(path)
    np.save(path, empty)
    for _ in range(2):
        assert counts(store.ingest(path)) == (0, 0, 0, 0, 0)
        assert all(sources(store, picture(i)) == set() for i in range(4))
        assert store.info().sources == 0
        assert store.check().ok
    save_rows(tmp_path / "a.npy", [picture(2)], mtime=9)
    store.ingest(path)
    assert sources(store, picture(2)) == {f"{path}#0"}


def test_names_in_the_list_of_rejects_can_be_read(store: Store, tmp_path: Path) -> None:
    odd = os.fsdecode(b"odd\xff.png")
    for name in ("Ölgemälde.png", odd, "\x9b2J\u202e.png"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    assert store.ingest(tmp_path / "in").rejected == 3
    text = (store.path / "rejects.jsonl").read_text(encoding="utf-8")
    assert "Ölgemälde.png" in text and "odd\\udcff.png" in text
    assert {Path(source).name for source, _ in rejects(store)} >= {odd, "Ölgemälde.png"}
    assert all(line.isprintable() for line in text.splitlines())


def test_an_array_that_was_cut_short_gives_the_rows_that_it_has(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "rows.npy"
    save_rows(path, [mask(i) for i in range(10)])
    whole = path.read_bytes()
    path.write_bytes(whole[: -2 * mask(0).size - 1])
    assert counts(store.ingest(path))[0] == 7
    assert counts(store.ingest(path))[:3] == (0, 0, 7)
    assert [source for source, _ in rejects(store)] == [str(path)]
    assert "cut short" in rejects(store)[0][1]
    path.write_bytes(whole)
    assert store.ingest(path).added == 3
    assert sources(store, mask(9)) == {f"{path}#9"}
    assert (store.info().sources, store.info().rejects) == (10, 0)


def test_each_array_of_an_archive_is_a_source(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "sets.npz"
    np.savez(path, a=np.stack([mask(0), mask(1)]), b=np.stack([mask(1), mask(2)]))
    assert counts(store.ingest(path)) == (3, 1, 0, 0, 0)
    assert sources(store, mask(1)) == {f"{path}#a#1", f"{path}#b#0"}
    for place in sources(store, mask(1)):
        assert store.lookup(place).identical


def test_zeros_and_ones_are_bits_and_other_values_are_not(store: Store, tmp_path: Path) -> None:
    ones = np.stack([mask(i) for i in range(3)]).astype(np.uint8)
    np.save(tmp_path / "bits.npy", ones)
    np.save(tmp_path / "grey.npy", ones[..., 0] * 255)
    store.ingest(tmp_path / "bits.npy", tmp_path / "grey.npy", f"{tmp_path}/bits.npy?kind=8bit")
    kinds = [store.get(id_).kind for id_ in range(1, 10)]
    assert kinds == [Kind.BITS] * 3 + [Kind.U8] * 6
    assert store.lookup(mask(0)).identical[0].sources == (f"{tmp_path}/bits.npy#0",)


def test_a_synthetic_set_grows_and_never_shrinks(store: Store) -> None:
    assert counts(store.ingest("synthetic:bits?n=5&seed=3")) == (5, 0, 0, 0, 0)
    assert counts(store.ingest("synthetic:bits?n=8&seed=3")) == (3, 0, 5, 0, 0)
    assert counts(store.ingest("synthetic:bits?n=2&seed=3")) == (0, 0, 2, 0, 0)
    assert store.info().sources == 8
    (hit,) = store.lookup("synthetic:bits?seed=3#7").identical
    assert hit.sources == ("synthetic:bits?seed=3#7",)
    assert hit.verified == "bytes"


# --- stopping, progress, settings -----------------------------------------------------------------


@pytest.mark.parametrize("limits", [Limits(chunk_files=1)])
def test_a_run_that_was_stopped_goes_on_where_it_was(store: Store, photos: Path) -> None:
    added = 0
    for _ in range(5):
        report = store.ingest(photos, stop=stop_after(1, store))
        assert report.unchanged <= added
        added += report.added
        assert report.interrupted
        assert len(store) == added
        if added == 5:
            break
    assert added == 5
    assert not store.ingest(photos).interrupted
    assert store.check().ok


def test_progress_ends_at_the_total(store: Store, photos: Path, tmp_path: Path) -> None:
    (photos / "0.png").write_bytes(b"")
    save_rows(tmp_path / "rows.npy", [mask(i) for i in range(4)])
    told: list[tuple[int, int | None]] = []
    store.ingest(
        photos,
        tmp_path / "rows.npy",
        "synthetic:bits?n=3",
        progress=lambda done, total: told.append((done, total)),
    )
    assert told[0] == (0, 12)
    assert told[-1] == (12, 12)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep_pixels", "kept"),
    [
        ("no", {"bits": False, "large": False, "picture": False}),
        ("auto", {"bits": True, "large": False, "picture": False}),
        ("yes", {"bits": True, "large": True, "picture": True}),
    ],
)
def test_what_is_kept_decides_how_a_hit_is_verified(
    store: Store, tmp_path: Path, keep_pixels: str, kept: dict[str, bool]
) -> None:
    images = {"bits": mask(1), "large": mask(2, 512, 400), "picture": picture(3)}  # large: 75 KiB
    for name, image in images.items():
        store.ingest(save(tmp_path / f"{name}.png", image), keep_pixels=keep_pixels)
    for id_, (name, image) in enumerate(images.items(), 1):
        assert (store.get(id_).place is not None) == kept[name]
        (hit,) = store.lookup(image).identical
        # Of others than small bit images the file is kept, which is not compared with pixels.
        as_bytes = kept[name] and name == "bits"
        assert hit.verified == ("bytes" if as_bytes else "digest")


def test_of_an_8_bit_image_the_very_file_is_kept(store: Store, photos: Path) -> None:
    store.ingest(photos / "1.png", keep_pixels="yes")
    place = store.get(1).place
    assert place is not None
    assert store.session.snapshot.kept(place) == (photos / "1.png").read_bytes()


def test_sources_may_be_listed_in_a_file(store: Store, photos: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text(f"{photos}/1.png\n\n{photos}/2.png\r\n{tmp_path}/gone.png\n")
    assert counts(store.ingest(files_from=listing)) == (2, 0, 0, 1, 0)


# --- encoders -------------------------------------------------------------------------------------


def test_each_image_gets_a_vector(tmp_path: Path, photos: Path, tiny_encoder: Path) -> None:
    save_rows(tmp_path / "rows.npy", [mask(i) for i in range(3)])
    with Store.open(tmp_path / "store", create=True, encoder=str(tiny_encoder)) as store:
        store.ingest(photos, tmp_path / "rows.npy", photos / "1.png")
        assert store.info().vectors == 8
        assert store.check().ok


def test_images_may_be_added_without_vectors(
    tmp_path: Path, photos: Path, tiny_encoder: Path
) -> None:
    with Store.open(tmp_path / "store", create=True, encoder=str(tiny_encoder)) as store:
        store.ingest(photos / "0.png")
        store.ingest(photos / "1.png", encoder="none")
        store.ingest(photos / "2.png")
        assert (store.info().images, store.info().vectors) == (3, 2)
        hits = store.lookup(picture(9)).similar
        assert {hit.id for hit in hits} == {1, 3}
        assert store.check().ok


def test_a_store_takes_its_first_encoder_and_no_other(
    store: Store, photos: Path, tmp_path: Path, tiny_encoder: Path
) -> None:
    import shutil

    store.ingest(photos / "0.png")
    store.ingest(photos / "1.png", encoder=str(tiny_encoder))
    assert store.info().vectors == 1
    other = shutil.copytree(tiny_encoder, tmp_path / "other")
    body = json.loads((other / "encoder.json").read_text())
    model = (other / "model.onnx").read_bytes() + b"\x7a\x00"  # an empty field: the same model
    (other / "model.onnx").write_bytes(model)
    body["files"]["fp32"]["sha256"] = hashing.file_hash(model).hex()
    (other / "encoder.json").write_text(json.dumps(body))
    with pytest.raises(UsageError, match="was created with the encoder tiny"):
        store.ingest(photos, encoder=str(other))
    shutil.rmtree(other)
    assert store.ingest(photos, encoder=str(tiny_encoder)).added == 3


# --- runs -----------------------------------------------------------------------------------------


@given(
    ids=st.lists(st.integers(1, 6), max_size=40) | st.lists(st.integers(4090, 4100), max_size=40),
    steps=st.lists(st.sampled_from([-1, 0, 0, 1, 1, 1, 5]), max_size=40),
    first=st.integers(0, 1 << 40),
)
def test_runs_say_which_image_each_row_is(ids: list[int], steps: list[int], first: int) -> None:
    for step in steps:  # stretches of equal, rising and falling ids behind the free ones
        ids.append(max(1, (ids[-1] if ids else 1) + step))
    runs = runs_of(7, first, np.array(ids, np.int64))
    expanded = [(run.row + i, run.id + i * run.step) for run in runs for i in range(run.count)]
    assert expanded == list(enumerate(ids, first))
    assert all(run.array == 7 and run.count > 0 and run.step in (0, 1) for run in runs)
    assert len(runs) == fewest_runs(ids)


def fewest_runs(ids: list[int]) -> int:
    count = at = 0
    while at < len(ids):
        end = at + 1
        if end < len(ids) and (step := ids[end] - ids[at]) in (0, 1):
            while end < len(ids) and ids[end] - ids[end - 1] == step:
                end += 1
        count, at = count + 1, end
    return count


# --- against a model ------------------------------------------------------------------------------

MASKS, PICTURES, FILES, ARRAYS = 6, 4, 4, 2


class StoreMachine(RuleBasedStateMachine):
    """Runs over files, arrays and synthetic sets, against a dictionary from pixels to places."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=folder))

    @initialize()
    def start(self) -> None:
        self.limits = Limits(chunk_files=2, chunk_rows=3)
        self.store = Store.open(
            self.folder / "store", create=True, encoder="none", limits=self.limits
        )
        self.clock = 0
        self.images: dict[bytes, np.ndarray | str] = {}  # every image ever seen
        self.places: dict[str, list[bytes]] = {}  # file or array → the images of its rows

    def pool(self, number: int) -> np.ndarray:
        return mask(number) if number < MASKS else picture(number, 6, 5)

    def seen(self, place: str, rows: list[np.ndarray]) -> None:
        self.places[place] = [bytes(canonical.from_array(row).canonical) for row in rows]
        self.images.update(zip(self.places[place], rows, strict=True))

    def sources_of(self, form: bytes) -> set[str]:
        found = set()
        for place, rows in self.places.items():
            one = place.startswith(str(self.folder / "file"))
            found |= {place if one else f"{place}#{i}" for i, row in enumerate(rows) if row == form}
        return found

    @rule(
        files=st.dictionaries(
            st.tuples(st.integers(0, FILES - 1), st.sampled_from(["png", "ppm"])),
            st.integers(0, MASKS + PICTURES - 1),
            min_size=1,
            max_size=5,
        )
    )
    def ingest_files(self, files: dict[tuple[int, str], int]) -> None:
        self.clock += 1
        paths = []
        for (name, suffix), image in files.items():
            path = self.folder / f"file{name}.{suffix}"
            paths.append(str(save(path, self.pool(image), mtime=self.clock)))
            self.seen(str(path), [self.pool(image)])
        self.ingest(*paths)

    @rule(
        name=st.integers(0, ARRAYS - 1),
        rows=st.lists(st.integers(0, MASKS - 1), min_size=1, max_size=8),
    )
    def ingest_array(self, name: int, rows: list[int]) -> None:
        self.clock += 1
        path = save_rows(
            self.folder / f"array{name}.npy", [mask(row) for row in rows], mtime=self.clock
        )
        self.seen(path, [mask(row) for row in rows])
        self.ingest(path)

    @rule(n=st.integers(0, 7))
    def ingest_synthetic(self, n: int) -> None:
        name = "synthetic:bits?seed=1"
        known = self.places.setdefault(name, [])
        for row in range(len(known), n):
            form = bytes(SyntheticBits(name).row(row))
            known.append(form)
            self.images[form] = f"{name}#{row}"
        self.ingest(f"synthetic:bits?n={n}&seed=1")

    def ingest(self, *specs: str) -> None:
        before = len(self.store)
        report = self.store.ingest(*specs)
        assert report.rejected == 0
        assert len(self.store) == before + report.added == len(self.images)
        again = self.store.ingest(*specs)
        assert again.unchanged == again.seen == report.seen

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store.open(self.folder / "store", limits=self.limits)

    @invariant()
    def every_image_is_found_at_its_places_and_nothing_else_is(self) -> None:
        for form, image in self.images.items():
            (hit,) = self.store.lookup(image).identical
            assert set(self.store.sources(hit.id)) == self.sources_of(form)
            assert self.store.get(hit.id).proof == hashing.proof(form)
        for number in range(MASKS + PICTURES):
            image = self.pool(number)
            known = bytes(canonical.from_array(image).canonical) in self.images
            assert bool(self.store.lookup(image).identical) == known
        assert self.store.info().sources == sum(map(len, self.places.values()))

    def teardown(self) -> None:
        import shutil

        if hasattr(self, "store"):
            assert self.store.check().problems == ()
            self.store.close()
            shutil.rmtree(self.folder)


def test_a_store_is_what_a_dictionary_says(tmp_path: Path) -> None:
    run_state_machine_as_test(
        lambda: StoreMachine(tmp_path),
        settings=settings(
            max_examples=8,
            stateful_step_count=8,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("high", [2, 256])
def test_rows_are_dealt_to_any_number_of_workers(
    tmp_path: Path, workers: int, count: int, high: int
) -> None:
    images = np.random.default_rng(count).integers(0, high, (count, 6, 5, 3), np.uint8)
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        assert store.ingest(images, name="x", workers=workers).added == count
        assert store.find_identical(images).tolist() == list(range(1, count + 1))
        assert store.check().problems == ()


def test_each_commit_is_logged_at_info(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_rows(tmp_path / "rows.npy", [mask(i) for i in range(4)])
    with caplog.at_level(logging.INFO, logger="engine.ingest"):
        store.ingest(path)
        store.ingest(path)
    logged = [(one.levelno, one.getMessage()) for one in caplog.records]
    assert {level for level, _ in logged} == {logging.INFO}
    assert len([text for _, text in logged if text.startswith("commit ")]) == 1
    assert "4 rows" in logged[0][1]
