"""The benchmark of the near tier at tiny sizes: that it asks what it says, and counts right."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.data import photographs
from bench.questions import near_bits, near_copies, near_photos
from engine import Store, UsageError

pytestmark = pytest.mark.slow

PHOTOS = Path(__file__).parent.parent / "scripts" / "photos"


def new(path: Path) -> Store:
    return Store.open(path, create=True, encoder="none")


def test_flipped_bit_images_are_found_and_new_ones_are_not(tmp_path: Path) -> None:
    ticks: list[None] = []
    with new(tmp_path / "store") as store:
        found = near_bits.measure_bits(
            60, store, queries=5, seed=3, tick=lambda: ticks.append(None)
        )
    assert [one.what for one in found] == [
        "1% of the bits flipped",
        "5% of the bits flipped",
        "10% of the bits flipped",
        "not there",
    ]
    assert [one.found for one in found[:2]] == [5, 5]
    assert found[3].found == 0
    assert all((one.asked, one.false, len(one.milliseconds)) == (5, 0, 5) for one in found)
    assert len(ticks) == 20


def test_photographs_are_chosen_once_by_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    rng = np.random.default_rng(0)
    big = rng.integers(0, 256, (120, 100, 3), np.uint8)
    Image.fromarray(big).save(tmp_path / "below" / "good.png")
    Image.fromarray(big).save(tmp_path / "same.bmp")
    Image.fromarray(big[:90]).save(tmp_path / "small.png")
    Image.fromarray(np.dstack([big, big[..., 0]])).save(tmp_path / "transparent.png")
    Image.fromarray((big > 99).astype(np.uint8) * 255).save(tmp_path / "bits.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    chosen = photographs.sample([tmp_path], 10, 0)
    assert {path.name for path in chosen} == {"good.png", "same.bmp"}
    assert len(photographs.sample([tmp_path], 1, 0)) == 1
    with pytest.raises(UsageError, match="no photograph"):
        photographs.sample([tmp_path / "nothing"], 10, 0)
    with new(tmp_path / "store") as store:
        store.ingest(*chosen)
        images, found, pairs = near_photos.measure_photos(chosen, store, queries=10, seed=0)
    assert images == 1  # each image once, in however many files
    assert {one.asked for one in found} == {1}
    assert pairs == []


def test_a_copy_in_the_data_is_counted_and_named_as_a_pair(tmp_path: Path) -> None:
    with Image.open(PHOTOS / "goldfish.jpg") as image:
        image.convert("RGB").save(tmp_path / "one.png")
        image.convert("RGB").save(tmp_path / "other.jpg", quality=60)
    with Image.open(PHOTOS / "clownfish.jpg") as image:
        image.convert("RGB").save(tmp_path / "third.png")
    with new(tmp_path / "store") as store:
        chosen = photographs.sample([tmp_path], 10, 0)
        store.ingest(*chosen)
        images, found, pairs = near_photos.measure_photos(chosen, store, queries=10, seed=0)
    assert images == 3
    assert [(Path(pair.one).name, Path(pair.other).name) for pair in pairs] == [
        ("one.png", "other.jpg")
    ]
    assert 0 <= pairs[0].distance <= 31
    for one in found:
        assert one.found == 3
        assert one.false == 2  # each of the two for the other one
        right, wrong = zip(*one.by_distance, strict=True)
        assert list(right) == sorted(right) and list(wrong) == sorted(wrong)
        assert len(right) == near_photos.FARTHEST + 1


def test_a_pair_is_one_pair_in_relative_folders_and_with_equal_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Image.open(PHOTOS / "goldfish.jpg") as image:
        for name in ("a", "b", "c"):
            image.convert("RGB").save(f"{name}.png")
        image.convert("RGB").save("other.jpg", quality=60)
    chosen = [Path("c.png"), Path("other.jpg"), Path("a.png"), Path("b.png")]
    with new(tmp_path / "store") as store:
        store.ingest(*chosen)
        images, _, pairs = near_photos.measure_photos(chosen, store, queries=10, seed=0)
    assert images == 2
    assert [(pair.one, pair.other) for pair in pairs] == [("c.png", "other.jpg")]


@pytest.mark.slow
def test_all_of_it_is_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--n", "40", "--queries", "3", "--most", "4", "--dir", str(tmp_path / "work")]
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["bench", *arguments, "--json", str(out)])
    met = near_copies.main()
    printed = capsys.readouterr().out
    assert "40 images of 100×100 RGB bits" in printed
    assert "4 different images, within 31 of 256" in printed
    assert met == ("MISSED" not in printed)
    missed = [line for line in printed.splitlines() if "MISSED" in line]
    assert all(line.startswith("a lookup") for line in missed)  # how long it takes is no behaviour
    body = json.loads(out.read_text())
    assert len(body["bits"]) == 4
    assert len(body["photos"]) == len(near_photos.CHANGES)
    assert {"machine", "versions", "pairs"} <= set(body)
    assert list((tmp_path / "work").iterdir()) == []


def test_a_missed_target_is_told() -> None:
    lost = near_bits.Bits("1% of the bits flipped", 100, 90, 0, [1.0])
    slow = near_bits.Bits("not there", 100, 0, 1, [50.0] * 9)
    curve = [(9, 0)] * (near_photos.FARTHEST + 1)
    photos = near_photos.Photos("half the size", 10, curve, [1.0])
    wanted = near_copies.targets_of([lost, slow], [photos])
    assert [one.met for one in wanted] == [False, False, False, False]
