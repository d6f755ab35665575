"""What the benchmarks share, and the small ones: at small sizes, and that answers are checked."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.data import bit_images, photographs
from bench.data.distortions import CHANGES, as_file, upright
from bench.data.image_sets import BitSet
from bench.harness import script
from bench.harness.errors import BenchError, WrongAnswerError
from bench.harness.process import run_child
from bench.harness.sizes import check_disk, parse_count, steps_up_to
from bench.peers import method_child
from bench.peers.methods import ENGINE, DictOfHashes, ListOfHashes, PixelByPixel
from bench.peers.methods import Engine as EngineMethod
from bench.questions import cold_lookup, memory_growth, similar_photos
from engine import Store, UsageError

LINUX = Path("/proc/self/status").exists()

# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "n"), [("100000", 100_000), ("1e5", 100_000), ("1_000", 1000), ("2.5E3", 2500)]
)
def test_n_is_written_as_people_do(text: str, n: int) -> None:
    assert parse_count(text) == n


@pytest.mark.parametrize("text", ["0", "-5", "abc", "", "1.5", "1e-3", "nan", "inf", "1e400"])
def test_n_that_is_no_number_of_images_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^n .*1e5|^n must be at least 1") as caught:
        parse_count(text)
    assert "\n" not in str(caught.value)


def test_sizes_rise_by_ten_up_to_n() -> None:
    assert steps_up_to(100_000, 3) == [1000, 10_000, 100_000]
    assert steps_up_to(35, 4) == [3, 35]
    assert steps_up_to(1, 4) == [1]
    with pytest.raises(UsageError, match="steps must be 1 or more"):
        steps_up_to(10, 0)


def test_a_set_that_the_disk_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"1,000,000,000,000 images take about 3,900\.0 TB"):
        check_disk(10**12, tmp_path / "out")
    with pytest.raises(UsageError, match=r"104\.9 TB of disk and .* GB free"):
        check_disk(10**8, tmp_path / "out", 1 << 20)


# --- answers --------------------------------------------------------------------------------------


def test_images_depend_on_seed_and_row_only() -> None:
    rows = bit_images.unpacked(1, 0, 5)
    assert rows.shape == (5, 100, 100, 3) and rows.dtype == np.uint8 and rows.max() == 1
    np.testing.assert_array_equal(rows[3:], bit_images.unpacked(1, 3, 2))
    for row, image in bit_images.hits(5, 1, 20):
        np.testing.assert_array_equal(image, rows[row])
    apart = [int((image != rows).sum((1, 2, 3)).min()) for _, image in bit_images.misses(5, 1, 20)]
    assert set(apart[1::2]) == {1}, "every other one is a bit away from an image of the set"
    assert min(apart[::2]) > 10_000


def test_a_wrong_answer_is_an_error(tmp_path: Path) -> None:
    n, images = 20, BitSet(0)
    for method in (
        PixelByPixel(n, images),
        ListOfHashes(n, images),
        DictOfHashes(n, images),
        EngineMethod(n, images, tmp_path / "bits.store", 128 << 20),
    ):
        method.build(lambda done: None)
        source, there = next(images.hits(n, 1))
        _, missing = next(images.misses(n, 1))
        assert len(method_child._ask(method, [(source, there), (None, missing)])) == 2
        with pytest.raises(WrongAnswerError, match="not there"):
            method_child._ask(method, [(None, there)])
        with pytest.raises(WrongAnswerError, match=re.escape(f"{source} gave")):
            method_child._ask(method, [(source, missing)])


def test_the_engine_has_to_say_which_image_it_is(tmp_path: Path) -> None:
    method = EngineMethod(20, BitSet(0), tmp_path / "bits.store", 128 << 20)
    method.build(lambda done: None)
    with pytest.raises(WrongAnswerError):
        method_child._ask(method, [("synthetic:bits?seed=0#4", bit_images.unpacked(0, 5, 1)[0])])


def test_slow_lookups_are_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(DictOfHashes):
        def find(self, image: bit_images.Images) -> bool:
            time.sleep(0.002)
            return super().find(image)

    method = Slow(3, BitSet(0))
    method.build(lambda done: None)
    monkeypatch.setattr(method_child, "LOOKUP_SECONDS", 0.001)
    assert len(method_child._ask(method, BitSet(0).hits(3, 100))) == method_child.FEWEST_LOOKUPS


@pytest.mark.slow
def test_a_child_that_fails_is_an_error_with_its_reason(tmp_path: Path) -> None:
    spec = {"method": ENGINE, "n": 5, "folder": str(tmp_path / "s"), "lookups": False}
    spec |= {"images": {"seed": 0}}
    with pytest.raises(BenchError, match="at least 128M"):
        run_child("peers.method_child", spec | {"memory_bytes": 1})
    with pytest.raises(BenchError, match="status 1: KeyError: 'guess'"):
        run_child("peers.method_child", spec | {"memory_bytes": 1 << 30, "method": "guess"})


# --- the scripts ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of soft colours, one on its side."""
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for number in range(4):
        small = draw.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((90, 70), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        if number == 0:
            exif[274] = 6
        picture.save(folder / f"photo{number}.jpg", exif=exif)
    (folder / "SOURCES.md").write_text("not a photograph")
    return folder


def test_changes_are_what_they_say(photos: Path) -> None:
    image = upright((photos / "photo0.jpg").read_bytes())
    assert image.size == (70, 90), "turned as its EXIF orientation says"
    sizes = {}
    for what, change in CHANGES.items():
        made = [change(image, np.random.default_rng(1)) for _ in range(2)]
        assert made[0] == made[1], "seeded"
        sizes[what] = upright(made[0]).size
    assert sizes.pop("crop to 80 % a side") == (56, 72)
    assert sizes.pop("half the size") == (35, 45)
    assert set(sizes.values()) == {(70, 90)}


def ingested(folder: Path, store: Path, encoder: str) -> Iterator[similar_photos.Found]:
    found = photographs.listed(folder)
    with Store.open(store, create=True, encoder=encoder) as opened:
        opened.ingest(*found)
        yield from similar_photos.measure(found, opened)


def test_rewritten_photographs_are_identical(photos: Path, tmp_path: Path) -> None:
    results = list(ingested(photos, tmp_path / "s.store", "none"))
    assert [(one.what, one.found, one.asked) for one in results] == [
        ("written as PNG", 4, 4),
        ("written as BMP", 4, 4),
    ]


@pytest.mark.slow
def test_changed_photographs_are_counted_by_change(
    photos: Path, tmp_path: Path, tiny_encoder: Path
) -> None:
    results = list(ingested(photos, tmp_path / "s.store", str(tiny_encoder)))
    similar = {one.what: one for one in results[2:]}
    assert list(similar) == list(CHANGES)
    assert all(one.asked == 4 for one in similar.values())
    assert similar["JPEG quality 50"].found == similar["half the size"].found == 4
    assert similar_photos.table(results).splitlines()[-1].split()[:2] == ["all", "changes"]


def test_a_photograph_that_is_not_stored_is_an_error(photos: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.store", create=True, encoder="none") as store:
        store.ingest(photos / "photo1.jpg")
        with pytest.raises(BenchError, match=r"photo0\.jpg, photo2\.jpg, photo3\.jpg"):
            similar_photos.measure(photographs.listed(photos), store)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_cold_lookup_is_measured(photos: Path, tmp_path: Path) -> None:
    store = tmp_path / "photos.store"
    cold_lookup.make_store(photos, store, "none")
    run = cold_lookup.measure(photos / "photo1.jpg", store)
    assert run.searched[0] == "identical"
    assert 0 < run.inside_ms < run.seconds * 1e3
    assert "photo1.jpg" in cold_lookup.table([run])
    # Asked for by a small process, as the script is one: a child counts what its parent had when it
    # was split off, and this one may have all of torch.
    code = "import sys; from pathlib import Path; from bench.questions.cold_lookup import measure; "
    code += "print(measure(*map(Path, sys.argv[1:])).resident)"
    command = [sys.executable, "-c", code, str(photos / "photo1.jpg"), str(store)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 20_000_000 < int(done.stdout) < 500_000_000
    with pytest.raises(BenchError, match="ended with 2: engine: "):
        cold_lookup.measure(photos / "photo1.jpg", tmp_path / "none.store")


@pytest.mark.slow
def test_memory_growth_is_measured(tmp_path: Path) -> None:
    grown = memory_growth.measure(300, memory=128 << 20, folder=tmp_path)
    assert grown.n == 300 and grown.seconds > 0 and grown.disk > 300 * 3_750
    if LINUX:
        assert 10_000_000 < grown.anonymous < grown.resident
    assert list(tmp_path.iterdir()) == []
    assert memory_growth.table([grown]).splitlines()[1].split()[0] == "300"


@pytest.mark.parametrize(("met", "status"), [(True, 0), (False, 1)])
def test_a_script_says_by_its_status_whether_its_target_is_met(met: bool, status: int) -> None:
    with pytest.raises(SystemExit) as caught:
        script.exit_with(lambda: met)
    assert caught.value.code == status


def test_a_script_that_fails_says_so_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def work() -> bool:
        return bool(photographs.listed(tmp_path))

    with pytest.raises(SystemExit) as caught:
        script.exit_with(work)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    # Not every script has an option for that.
    assert line == f"bench: there is no photograph in {tmp_path}: name another folder"


def test_a_script_that_breaks_does_not_say_that_its_target_is_missed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def work() -> bool:
        return bool((tmp_path / "absent").read_text())

    with pytest.raises(SystemExit) as caught:
        script.exit_with(work)
    assert caught.value.code == 2
    assert "FileNotFoundError" in capsys.readouterr().err


@pytest.mark.parametrize("keep", [False, True])
def test_the_folder_that_a_script_works_in_is_made(tmp_path: Path, keep: bool) -> None:
    with script.work_folder(tmp_path / "new" / "one", keep) as work:
        (work / "file").touch()
    assert (tmp_path / "new" / "one" / "file").exists() == keep


def test_pictures_survive_being_written_as_files() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    for container in ("PNG", "BMP"):
        np.testing.assert_array_equal(upright(as_file(image, container)), image)
