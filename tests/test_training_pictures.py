# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""Which images a training run takes, and how it reads them."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine.errors import UsageError

torch = pytest.importorskip("torch")

from engine.training import decoding
from engine.training.pictures import RunPictures, read_pictures
from engine.training.shrinking import target_sizes


def photo(path: Path, size: tuple[int, int] = (60, 40), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(size, seed))
    return path


def png(size: tuple[int, int] = (60, 40), seed: int = 0) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize(size).save(out, "png")
    return out.getvalue()


def read(*sources: str | Path, folder: Path | None = None, **given: Any) -> RunPictures:
    given = {"side": 20, "square": 16, "tick": lambda done, total: None} | given
    with ThreadPoolExecutor(2) as pool:
        return read_pictures(
            [str(source) for source in sources],
            folder=folder or Path(str(sources[0])).parent,
            pool=pool,
            **given,
        )


def reasons(found: RunPictures) -> list[str]:
    return [f"{one.source}: {one.reason}" for one in found.rejected]


def test_a_folder_is_searched_with_its_subfolders_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.JPG", "a/b.jpeg", "c/d/e.bmp"):
        photo(tmp_path / "in" / name)
    for name in ("notes.txt", ".hidden.png", ".git/x.png", "labels.json"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text("x")
    ticks: list[tuple[int, int]] = []
    found = read(tmp_path / "in", tick=lambda done, total: ticks.append((done, total)))
    assert found.pictures.names == ["b.png", "a/b.jpeg", "a/z.JPG", "c/d/e.bmp"]
    assert found.pictures.labels == [None, "a", "a", "c"]
    assert len(found.held_out) == 0 and found.rejected == []
    assert ticks[-1] == (4, 4) and ticks == sorted(ticks)


@pytest.mark.parametrize("images", ["", "images/"])
def test_a_roboflow_folder_keeps_its_splits_apart(tmp_path: Path, images: str) -> None:
    for split, n in (("train", 3), ("valid", 2), ("test", 1)):
        for i in range(n):
            photo(tmp_path / "in" / split / f"{images}{i}_jpg.rf.abc.jpg")
            (tmp_path / "in" / split / "labels").mkdir(exist_ok=True)
            (tmp_path / "in" / split / "labels" / f"{i}_jpg.rf.abc.txt").write_text("0 .5 .5 1 1")
    (tmp_path / "in" / "data.yaml").write_text("nc: 80")
    found = read(tmp_path / "in")
    assert [name.split("/")[0] for name in found.pictures.names] == ["train"] * 3
    assert [name.split("/")[0] for name in found.held_out.names] == ["valid"] * 2 + ["test"]
    assert set(found.pictures.labels + found.held_out.labels) == {None}
    assert len(read(tmp_path / "in", held_out=None).held_out) == 3
    every = read(tmp_path / "in", held_out=0.0)
    assert (len(every.pictures), len(every.held_out)) == (6, 0)
    assert set(every.pictures.labels) == {None}


def test_labels_are_relative_to_a_split(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "train" / "cat" / "a.png")
    photo(tmp_path / "in" / "test" / "cat" / "b.png")
    found = read(tmp_path / "in")
    assert found.pictures.labels == found.held_out.labels == ["cat"]


def test_a_train_folder_alone_is_a_folder_like_any_other(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "train" / "a.png")
    photo(tmp_path / "in" / "more" / "b.png")
    assert len(read(tmp_path / "in").pictures) == 2


def test_sources_may_overlap_and_may_be_files(tmp_path: Path) -> None:
    path = photo(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "link.png").symlink_to(path)
    assert read(path, tmp_path / "in", folder=tmp_path).pictures.names == ["a.png"]


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        read(tmp_path / "absent")


def test_archives_tables_and_arrays_are_sources_too(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (
            ("dogs/1.png", png(seed=1)),
            ("2.png", png(seed=2)),
            ("2.cls", b"wolf"),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("cats/3.png", png(seed=3))
        archive.writestr("cats/broken.png", png(seed=3)[:40])
    table = pa.table({"image": [png(seed=4), png(seed=5)], "label": [7, 8]})
    parquet.write_table(table, tmp_path / "c.parquet")
    grey = np.random.default_rng(0).integers(0, 256, (3, 30, 24), dtype=np.uint8)
    np.save(tmp_path / "d.npy", grey)
    np.savez(tmp_path / "e.npz", bits=grey > 99)
    np.save(tmp_path / "vectors.npy", np.ones((4, 8), np.float32))
    names = ("a.tar", "b.zip", "c.parquet", "d.npy", "e.npz", "vectors.npy")
    found = read(*(tmp_path / name for name in names), "synthetic:bits?n=2&seed=3")
    labels = dict(zip(found.pictures.names, found.pictures.labels, strict=True))
    assert labels == {
        "a.tar#dogs/1.png": "dogs",
        "a.tar#2.png": "wolf",
        "b.zip#cats/3.png": "cats",
        "c.parquet#0": "7",
        "c.parquet#1": "8",
        **{f"d.npy#{row}": None for row in range(3)},
        **{f"e.npz#bits#{row}": None for row in range(3)},
        **{f"synthetic:bits?seed=3#{row}": None for row in range(2)},
    }
    at = found.pictures.names.index("d.npy#1")
    assert found.pictures.sizes[at] == (25, 20)
    told = "\n".join(reasons(found))
    assert len(found.rejected) == 2
    assert "broken.png: " in told and "vectors.npy: holds vectors" in told


def test_shards_are_named_with_a_pattern(tmp_path: Path) -> None:
    for number in range(3):
        with zipfile.ZipFile(tmp_path / f"s-{number}.zip", "w") as archive:
            archive.writestr("x.png", png(seed=number))
    found = read(tmp_path / "s-{0..3}.zip")
    assert found.pictures.names == [f"s-{number}.zip#x.png" for number in range(3)]
    assert len(found.rejected) == 1  # the one that is missing


def test_bits_are_0_and_255(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (2, 12, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "bits.npy", bits)
    found = read(tmp_path / "bits.npy")
    for picture, wanted in zip(found.pictures, bits, strict=True):
        assert picture.dtype == torch.uint8
        assert np.array_equal(picture.numpy(), wanted * 255)


def test_an_array_that_is_cut_short_gives_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.full((100, 8, 8), 9, np.uint8))
    path.write_bytes(path.read_bytes()[: 128 + 64 * 50])
    found = read(path)
    assert len(found.pictures) == 50 - len(found.held_out)
    assert len(found.rejected) == 1 and "cut short" in found.rejected[0].reason


def test_a_damaged_archive_is_a_row_and_the_rest_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\3\4" + bytes(200))
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(200))
    good = photo(tmp_path / "good.png")
    found = read(tmp_path / "a.zip", tmp_path / "a.parquet", good)
    assert found.pictures.names == ["good.png"] and len(found.rejected) == 2
    assert all("\n" not in line for line in reasons(found))


def test_pictures_are_shrunk_and_never_enlarged(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png", (60, 40))
    photo(tmp_path / "in" / "b.png", (40, 90))
    photo(tmp_path / "in" / "c.png", (10, 12))
    found = read(tmp_path / "in")
    assert found.pictures.sizes == [(20, 30), (45, 20), (12, 10)]
    assert found.squashed.sizes == [(16, 16)] * 3
    assert found.pictures[1].shape == (45, 20, 3) and found.pictures[1].dtype == torch.uint8


def test_a_strip_is_not_kept_as_long_as_it_is(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png", (9000, 3))
    assert read(tmp_path / "in").pictures.sizes == [(1, 160)]


def test_a_squashed_picture_is_the_whole_picture_through_pillow(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png", (64, 48))
    with Image.open(path) as image:
        wanted = image.resize((16, 16), Image.Resampling.BILINEAR, reducing_gap=None)
    assert np.array_equal(read(path).squashed[0].numpy(), np.asarray(wanted))


def test_unreadable_images_are_reported_and_left_out(tmp_path: Path) -> None:
    good = photo(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "empty.png").write_bytes(b"")
    (tmp_path / "in" / "noise.png").write_bytes(b"this is no image")
    (tmp_path / "in" / "cut.png").write_bytes(good.read_bytes()[:60])
    found = read(tmp_path / "in")
    assert found.pictures.names == ["good.png"]
    assert len(found.rejected) == 3 and all("\n" not in line for line in reasons(found))
    assert any("0 bytes" in line for line in reasons(found))


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    (tmp_path / "out").mkdir()
    found = read(tmp_path / "in", folder=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert found.pictures[0].float().std() > 0
    found.close()
    assert found.pictures[0].float().std() > 0


def test_a_run_is_stopped_while_it_reads(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        read("synthetic:bits?n=1e6", folder=tmp_path, cache=tmp_path / "kept", stop=lambda: True)
    assert list((tmp_path / "kept").iterdir()) == []


def test_the_fingerprint_is_of_the_order_too(tmp_path: Path) -> None:
    sources = [photo(tmp_path / folder / "a.png", seed=1).parent for folder in ("one", "two")]
    photo(tmp_path / "two" / "b.png", seed=2)
    there, back = read(*sources), read(*reversed(sources))
    assert sorted(there.pictures.names) == sorted(back.pictures.names)
    assert there.pictures.fingerprint != back.pictures.fingerprint


def test_the_fingerprint_is_of_names_and_sizes(tmp_path: Path) -> None:
    for folder in ("one", "same", "renamed", "grown"):
        photo(tmp_path / folder / "a.png", seed=1)
    (tmp_path / "renamed" / "a.png").rename(tmp_path / "renamed" / "b.png")
    photo(tmp_path / "grown" / "a.png", (61, 43), seed=1)
    prints = {
        folder: read(tmp_path / folder).pictures.fingerprint
        for folder in ("one", "same", "renamed", "grown")
    }
    assert len(prints["one"]) == 32
    assert prints["one"] == prints["same"]
    assert len(set(prints.values())) == 3


def test_a_share_is_held_out_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (200, 4, 5), np.uint8))
    found = read(tmp_path / "a.npy", held_out=0.1)
    assert len(found.held_out) == 20 and len(found.pictures) == 180
    assert len(found.held_out_squashed) == 20 and len(found.squashed) == 180
    assert not set(found.held_out.names) & set(found.pictures.names)
    assert found.held_out.names == read(tmp_path / "a.npy", held_out=0.1).held_out.names
    more = set(read(tmp_path / "a.npy", held_out=0.2).held_out.names)
    assert set(found.held_out.names) < more
    for share in (0.0, None):
        assert len(read(tmp_path / "a.npy", held_out=share).held_out) == 0


@pytest.mark.slow
def test_of_a_few_images_and_of_very_many_at_most_so_many_are_held_out(tmp_path: Path) -> None:
    sixty = np.random.default_rng(0).integers(0, 256, (63, 4, 4), np.uint8)
    np.save(tmp_path / "few.npy", sixty)
    assert len(read(tmp_path / "few.npy", held_out=0.5).held_out) == 0
    np.save(tmp_path / "many.npy", np.zeros((3000, 2, 2), np.uint8))
    assert len(read(tmp_path / "many.npy", held_out=0.5).held_out) == 1024


@pytest.mark.parametrize(
    ("images", "share", "note"),
    [
        (63, 0.2, "held_out= 0.2 holds nothing out: it takes at least 64 images, not 63"),
        (64, 0.2, ""),
        (64, 0.0, ""),
        (63, None, ""),
        (100, 0.01, "held_out= 0.01 of 100 images is 1, but scoring takes at least 2: raise it "
         "to 0.02 or more"),
        (100, 0.004, "held_out= 0.004 of 100 images is 0, but scoring takes at least 2: raise "
         "it to 0.02 or more"),
        (3000, 0.4, "held_out= 0.4 of 3,000 images is 1,200: only 1,024, the maximum, are held out"),
    ],
)  # fmt: skip
def test_a_share_that_is_not_held_out_is_explained(
    tmp_path: Path, images: int, share: float | None, note: str
) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", rng.integers(0, 256, (images, 2, 2), np.uint8))
    assert read(tmp_path / "a.npy", held_out=share, square=2, side=2).held_out_note == note


@pytest.mark.parametrize("share", [0.2, 0.05, None, 0.0])
def test_a_share_beside_a_folder_that_is_held_out_is_explained(
    tmp_path: Path, share: float | None
) -> None:
    for split, n in (("train", 3), ("valid", 2)):
        for i in range(n):
            photo(tmp_path / "in" / split / f"{i}.png")
    note = "held_out= 0.2 is not used: 2 of the 5 images are held out by their folder"
    # 0.05 is that of the recipe "large", which takes the folders where there are some.
    expected = note if share == 0.2 else ""
    assert read(tmp_path / "in", held_out=share).held_out_note == expected


def test_pictures_take_no_more_disk_than_they_may(tmp_path: Path) -> None:
    for number in range(6):
        photo(tmp_path / "in" / f"{number}.png", (80, 60), seed=number)
    whole = read(tmp_path / "in", side=40)
    assert whole.side == 40
    each = 3 * (27 * 20 + 16 * 16)  # of both sizes, at 20 pixels
    found = read(tmp_path / "in", side=40, max_bytes=6 * each)
    assert found.side == 20 and found.pictures.sizes == [(20, 27)] * 6
    assert found.pictures.names == whole.pictures.names


def test_what_is_too_much_even_when_small_is_refused(tmp_path: Path) -> None:
    for number in range(6):
        photo(tmp_path / "in" / f"{number}.png", (80, 60), seed=number)
    with pytest.raises(UsageError, match=r"6 pictures of 16 pixels a side take 0\.00 GiB"):
        read(tmp_path / "in", side=40, max_bytes=5000)


@given(
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    st.integers(16, 400),
)
def test_shrunk_sizes_are_bounded_and_keep_their_shape(size: tuple[int, int], side: int) -> None:
    height, width = target_sizes(np.array([size]), side)[0].tolist()
    assert 1 <= height <= size[0] and 1 <= width <= size[1]
    assert max(height, width) <= 8 * side
    if max(size) <= 7 * min(size):
        assert min(height, width) == min(side, *size)
        assert abs(height / size[0] - width / size[1]) <= 1 / min(size)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many images have been decoded so far."""
    calls: list[int] = []
    real = decoding.decode.decode

    def decode(*args: Any, **given: Any) -> Any:
        calls.append(1)
        return real(*args, **given)

    monkeypatch.setattr(decoding.decode, "decode", decode)
    return lambda: len(calls)


def test_a_cache_spares_the_next_run_all_decoding(
    tmp_path: Path, decoded: Callable[[], int]
) -> None:
    for number in range(5):
        photo(tmp_path / "in" / "x" / f"{number}.png", (80, 60), seed=number)
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    first = read(tmp_path / "in", cache=tmp_path / "kept")
    before = decoded()
    second = read(tmp_path / "in", cache=tmp_path / "kept")
    assert decoded() == before and second.reused and not first.reused
    assert second.pictures.names == first.pictures.names
    assert second.pictures.labels == first.pictures.labels
    assert second.rejected == first.rejected and len(first.rejected) == 1
    assert second.pictures.fingerprint == first.pictures.fingerprint
    for one, other in zip(
        [*first.pictures, *first.squashed], [*second.pictures, *second.squashed], strict=True
    ):
        assert torch.equal(one, other)


def test_a_cache_is_of_these_images_in_these_sizes(tmp_path: Path) -> None:
    for number in range(3):
        photo(tmp_path / "in" / f"{number}.png", seed=number)
    cache = tmp_path / "kept"
    read(tmp_path / "in", cache=cache)
    assert not read(tmp_path / "in", cache=cache, side=21).reused
    assert not read(tmp_path / "in", cache=cache, square=17).reused
    photo(tmp_path / "in" / "1.png", seed=9)
    changed = read(tmp_path / "in", cache=cache)
    assert not changed.reused
    photo(tmp_path / "in" / "new.png", seed=7)
    assert len(read(tmp_path / "in", cache=cache).pictures) == 4


def test_a_synthetic_set_of_another_size_is_another(tmp_path: Path) -> None:
    assert len(read("synthetic:bits?n=2", folder=tmp_path, cache=tmp_path / "k").pictures) == 2
    assert len(read("synthetic:bits?n=3", folder=tmp_path, cache=tmp_path / "k").pictures) == 3


def test_a_file_that_cannot_be_read_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(tmp_path / "in" / "a.png")
    shut = photo(tmp_path / "in" / "b.png")
    real = Path.open

    def refuses(path: Path, *args: Any, **given: Any) -> Any:
        if path == shut:
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **given)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuses)
        assert len(read(tmp_path / "in", cache=tmp_path / "kept").pictures) == 1
    assert len(read(tmp_path / "in", cache=tmp_path / "kept").pictures) == 2
