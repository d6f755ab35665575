"""Make the folder in which the examples of the documentation run.

    python scripts/examples.py examples

It holds photographs, copies of some of them, masks, an archive, vectors, and one broken file.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parent
MASKS, MASK_SIDE = 200, 32
VECTORS, DIM = 5000, 64


def make(out: Path) -> None:
    """Fill the new folder ``out``."""
    photos = copy_photos(ROOT / "photos", out / "photos")
    strangers = copy_photos(ROOT / "photos-held-out", out / "held-out")
    copies_of(out / "photos" / "kingfisher.jpg", out)
    new_pictures(photos, strangers, out / "new")
    split(photos, strangers, out)
    uploads(photos, strangers, out)
    masks(out)
    archive(photos[:6], out / "scans.tar")
    vectors(out)
    (out / "broken.jpg").write_bytes(photos[0].read_bytes()[:2000])


def copy_photos(source: Path, into: Path) -> list[Path]:
    into.mkdir(parents=True, exist_ok=True)
    found = sorted(path for path in source.iterdir() if path.suffix != ".md")
    return [Path(shutil.copy(path, into / path.name)) for path in found]


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def copies_of(photo: Path, out: Path) -> None:
    """One photograph as PNG, at half its size, and with a tenth cut off each side."""
    original = opened(photo)
    width, height = original.size
    box = (width // 10, height // 10, width - width // 10, height - height // 10)
    original.save(out / f"{photo.stem}.png")
    original.resize((width // 2, height // 2)).save(out / f"{photo.stem}-small.jpg", quality=40)
    original.crop(box).save(out / f"{photo.stem}-cropped.jpg", quality=50)


def new_pictures(photos: list[Path], strangers: list[Path], out: Path) -> None:
    """A folder to clean: unchanged copies, changed copies, and new pictures."""
    out.mkdir(exist_ok=True)
    named = {path.stem: path for path in photos}
    shutil.copy(named["clownfish"], out / "IMG_0001.jpg")
    opened(named["grey-cat"]).save(out / "IMG_0002.png")
    for number, (name, quality) in enumerate([("goldfish", 50), ("tiger-in-snow", 30)], 3):
        opened(named[name]).save(out / f"IMG_{number:04}.jpg", quality=quality)
    red = opened(named["red-panda"])
    red.resize((red.width * 2 // 3, red.height * 2 // 3)).save(out / "IMG_0005.jpg", quality=85)
    for number, path in enumerate(strangers[:2], 6):
        shutil.copy(path, out / f"IMG_{number:04}{path.suffix}")


def split(photos: list[Path], strangers: list[Path], out: Path) -> None:
    """Training and test pictures, with two pictures in both sets."""
    for folder in ("train", "test"):
        (out / folder).mkdir(exist_ok=True)
    for path in photos[:20]:
        shutil.copy(path, out / "train" / path.name)
    for path in [*photos[30:34], *strangers]:
        shutil.copy(path, out / "test" / path.name)
    opened(photos[4]).save(out / "test" / "t1.png")
    opened(photos[11]).resize((200, 150)).save(out / "test" / "t2.jpg", quality=60)


def uploads(photos: list[Path], strangers: list[Path], out: Path) -> None:
    """A list of unwanted pictures, and incoming pictures."""
    for folder in ("unwanted", "uploads"):
        (out / folder).mkdir(exist_ok=True)
    for path in photos[40:44]:
        shutil.copy(path, out / "unwanted" / path.name)
    opened(photos[41]).save(out / "uploads" / "a.jpg", quality=35)
    shutil.copy(photos[43], out / "uploads" / f"b{photos[43].suffix}")
    shutil.copy(strangers[0], out / "uploads" / f"c{strangers[0].suffix}")


def masks(out: Path) -> None:
    """Masks of one ellipse each, (n, side, side) uint8 of 0 and 1, and one of them as PNG."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:MASK_SIDE, :MASK_SIDE]
    middles = draw.uniform(8, MASK_SIDE - 8, (MASKS, 2, 1, 1))
    axes = draw.uniform(3, 9, (MASKS, 2, 1, 1))
    inside = ((y - middles[:, 0]) / axes[:, 0]) ** 2 + ((x - middles[:, 1]) / axes[:, 1]) ** 2 < 1
    np.save(out / "masks.npy", inside.astype(np.uint8))
    Image.fromarray(inside[17]).save(out / "mask-17.png")


def archive(photos: list[Path], path: Path) -> None:
    """A WebDataset tar: each picture has a JSON file with its label and year beside it."""
    with tarfile.open(path, "w") as tar:
        for number, photo in enumerate(photos):
            said = json.dumps({"label": photo.stem.split("-")[0], "year": 1995 + number})
            for name, data in (
                (photo.name, photo.read_bytes()),
                (f"{photo.stem}.json", said.encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def vectors(out: Path) -> None:
    """Embeddings, (n, dim) float32, and some more that are close to the first ones."""
    draw = np.random.default_rng(1)
    rows = draw.standard_normal((VECTORS, DIM), np.float32)
    np.save(out / "embeddings.npy", rows)
    np.save(out / "queries.npy", rows[:3] + 0.1 * draw.standard_normal((3, DIM), np.float32))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make(Path(sys.argv[1]))
