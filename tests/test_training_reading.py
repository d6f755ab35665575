"""What is held out, and the labels."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("torch")

from engine.training.reading import Read, read_images


def pictures(folder: Path, n: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.new("RGB", (20, 18), (i, 0, 0)).save(folder / f"{i:03}.png")
    return folder


def read(source: Path, out: Path, held_out: float) -> Read:
    out.mkdir(exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        return read_images(
            [str(source)],
            out,
            side=16,
            square=16,
            held_out=held_out,
            pool=pool,
            tick=lambda done, total: None,
            stop=lambda: False,
        )


def names(part: object) -> set[str]:
    return {picture.name for picture in part.pictures}  # type: ignore[attr-defined]


def test_a_share_is_held_out_by_its_name(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 80)
    one = read(source, tmp_path / "one", 0.05)
    assert (len(one.pictures), len(one.held_out)) == (76, 4)
    assert not names(one.pictures) & names(one.held_out)
    (source / min(names(one.pictures))).unlink()
    again = read(source, tmp_path / "two", 0.05)
    assert names(again.held_out) == names(one.held_out)
    assert len(again.held_out_squashed) == 4
    assert len(read(source, tmp_path / "three", 0.0).held_out) == 0


def test_of_few_images_none_are_held_out(tmp_path: Path) -> None:
    few = read(pictures(tmp_path / "in", 63), tmp_path / "out", 0.5)
    assert (len(few.pictures), len(few.held_out)) == (63, 0)


def test_labels_are_folders_without_the_split(tmp_path: Path) -> None:
    for name in ("train/cats", "train/dogs/big", "train", "valid/cats"):
        pictures(tmp_path / "in" / name, 2)
    found = read(tmp_path / "in", tmp_path / "out", 0.5)
    assert sorted(found.pictures.labels, key=str) == [None, None, "cats", "cats", *["dogs/big"] * 2]
    assert found.held_out.labels == ["cats", "cats"]
