# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""Which images a training run takes, and how it reads them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import UsageError

torch = pytest.importorskip("torch")

from engine.training import data


def photo(path: Path, size: tuple[int, int] = (60, 40), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size).save(path)
    return path


def read(
    files: list[tuple[Path, str]], folder: Path, side: int = 20, square: int = 16
) -> tuple[data.Pictures, data.Pictures, list[str], list[tuple[int, int]]]:
    ticks: list[tuple[int, int]] = []
    with ThreadPoolExecutor(2) as pool:
        shrunk, squashed, rejected = data.read_images(
            files,
            data.PixelFile(folder),
            side=side,
            square=square,
            pool=pool,
            tick=lambda done, total: ticks.append((done, total)),
        )
    return shrunk, squashed, [f"{r.source}: {r.reason}" for r in rejected], ticks


def test_a_folder_is_searched_with_its_subfolders_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.JPG", "a/b.jpeg", "c/d/e.bmp"):
        photo(tmp_path / name)
    for name in ("notes.txt", ".hidden.png", ".git/x.png", "labels.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = data.list_images([str(tmp_path)])
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == ["b.png", "a/b.jpeg", "a/z.JPG", "c/d/e.bmp"]
    assert data.list_held_out([str(tmp_path)]) == []


@pytest.mark.parametrize("images", ["", "images/"])
def test_a_roboflow_folder_keeps_its_splits_apart(tmp_path: Path, images: str) -> None:
    for split, n in (("train", 3), ("valid", 2), ("test", 1)):
        for i in range(n):
            photo(tmp_path / split / f"{images}{i}_jpg.rf.abc.jpg")
            (tmp_path / split / "labels").mkdir(exist_ok=True)
            (tmp_path / split / "labels" / f"{i}_jpg.rf.abc.txt").write_text("0 .5 .5 1 1")
    (tmp_path / "data.yaml").write_text("nc: 80")
    trained = data.list_images([str(tmp_path)])
    held_out = data.list_held_out([str(tmp_path)])
    assert [path.relative_to(tmp_path).parts[0] for path in trained] == ["train"] * 3
    assert [path.relative_to(tmp_path).parts[0] for path in held_out] == ["valid"] * 2 + ["test"]


def test_a_train_folder_alone_is_a_folder_like_any_other(tmp_path: Path) -> None:
    photo(tmp_path / "train" / "a.png")
    photo(tmp_path / "more" / "b.png")
    assert len(data.list_images([str(tmp_path)])) == 2


def test_sources_may_overlap_and_may_be_files(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png")
    assert data.list_images([str(path), str(tmp_path)]) == [path]


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder or image"):
        data.list_images([str(tmp_path / "absent")])


def test_pictures_are_shrunk_and_never_enlarged(tmp_path: Path) -> None:
    photo(tmp_path / "a.png", (60, 40))
    photo(tmp_path / "b.png", (40, 90))
    photo(tmp_path / "c.png", (10, 12))
    shrunk, squashed, rejected, ticks = read(data.named_images([str(tmp_path)]), tmp_path)
    assert shrunk.sizes == [(20, 30), (45, 20), (12, 10)]
    assert squashed.sizes == [(16, 16)] * 3
    assert rejected == [] and ticks == [(3, 3)]
    assert shrunk[1].shape == (45, 20, 3) and shrunk[1].dtype == torch.uint8


def test_a_squashed_picture_is_the_whole_picture_through_pillow(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png", (64, 48))
    _, squashed, _, _ = read([(path, "a.png")], tmp_path)
    with Image.open(path) as image:
        wanted = image.resize((16, 16), Image.Resampling.BILINEAR, reducing_gap=None)
    assert np.array_equal(squashed[0].numpy(), np.asarray(wanted))


def test_unreadable_images_are_reported_and_left_out(tmp_path: Path) -> None:
    good = photo(tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "noise.png").write_bytes(b"this is no image")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    files = [*data.named_images([str(tmp_path)]), (tmp_path / "gone.png", "gone.png")]
    shrunk, _, rejected, _ = read(files, tmp_path)
    assert [picture.name for picture in shrunk.pictures] == ["good.png"]
    assert len(rejected) == 4 and all("\n" not in line for line in rejected)
    assert any("0 bytes" in line for line in rejected)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    path = photo(tmp_path / "in" / "a.png")
    (tmp_path / "out").mkdir()
    shrunk, _, _, _ = read([(path, "a.png")], tmp_path / "out")
    assert shrunk[0].float().std() > 0
    assert list((tmp_path / "out").iterdir()) == []


def test_the_fingerprint_is_of_names_and_sizes(tmp_path: Path) -> None:
    def fingerprint(folder: str) -> str:
        return read(data.named_images([str(tmp_path / folder)]), tmp_path)[0].fingerprint

    for folder in ("one", "same", "renamed", "grown"):
        photo(tmp_path / folder / "a.png", seed=1)
    (tmp_path / "renamed" / "a.png").rename(tmp_path / "renamed" / "b.png")
    photo(tmp_path / "grown" / "a.png", (61, 43), seed=1)
    assert len(fingerprint("one")) == 32
    assert fingerprint("one") == fingerprint("same")
    assert len({fingerprint(folder) for folder in ("one", "renamed", "grown")}) == 3
