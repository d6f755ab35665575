"""Labelled public pictures that no encoder of the engine was trained on, out of packages.

Debian's packages are downloaded with "apt-get download" and unpacked with "dpkg -x", those of npm with
"npm pack". Nothing is installed.
"""

from __future__ import annotations

import gzip
import re
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..harness.errors import BenchError

Picture = npt.NDArray[np.uint8]

CLOTHES = 2000
EMOJI = 1000
_MIN_OF_A_KIND = 4  # pictures, so that three others of a category can be found
_LANDSCAPES = frozenset(
    [
        "badlands",
        "beach",
        "canyon",
        "city",
        "desert",
        "dune",
        "fields",
        "fog",
        "forest",
        "hills",
        "lava",
        "mountain",
        "sea",
        "sky",
        "snow",
        "space",
        "station",
        "valley",
        "water",
    ]
)
_HANDS = ("google", "twitter")  # who drew the emoji: Noto, Twemoji
_EMOJI_VERSION = "16.0.0"
_PLACES = frozenset(
    [
        "actions",
        "apps",
        "categories",
        "devices",
        "emblems",
        "emotes",
        "mimetypes",
        "places",
        "status",
    ]
)


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Pictures (H, W, 3) with their categories; the ``nearest`` others of each are looked at."""

    name: str
    what: str
    pictures: list[Picture]
    labels: list[str]
    nearest: int


def landscapes(packages: Path) -> LabelledSet:
    """Photographs and paintings of places, by what they show."""
    folder = debian(packages, "endless-sky-data") / "usr/share/games/endless-sky/images/land"
    found = [(_letters(path), path) for path in sorted(folder.glob("*.jpg"))]
    kept = [(label, path) for label, path in found if label in _LANDSCAPES]
    return _of_files("landscapes", "endless-sky-data, by what they show", kept)


def clippings(packages: Path) -> LabelledSet:
    """Photographs and drawings of single things on white, by category."""
    base = debian(packages, "pysiogame") / "usr/share/games/pysiogame/res/images/art4apps"
    found = [(path.parent.name, path) for path in sorted(base.glob("*/*.jpg"))]
    return _of_files("clippings", "pysiogame, by category", found)


def clothes(packages: Path) -> LabelledSet:
    """Test pictures of Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017, arXiv:1708.07747), 28 × 28 grey."""
    base = debian(packages, "dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist"
    pixels = gzip.decompress((base / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((base / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    grey = np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28)[:CLOTHES]
    rgb = [np.repeat(one[:, :, None], 3, axis=2) for one in grey]
    return LabelledSet(
        "clothes", "Fashion-MNIST, by class", rgb, [str(n) for n in labels[:CLOTHES]], 3
    )


def emoji(packages: Path) -> LabelledSet:
    """Emoji as two hands drew them, Noto and Twemoji: the nearest should be the same by the other."""
    folders = [
        npm(packages, f"emoji-datasource-{hand}", _EMOJI_VERSION, f"img/{hand}/64")
        for hand in _HANDS
    ]
    # Emoji of several parts, such as flags and skins, differ too little from each other.
    names = sorted(path.name for path in folders[0].glob("*.png") if "-" not in path.stem)
    both = [name for name in names if all((folder / name).exists() for folder in folders)]
    step = max(1, len(both) // EMOJI)
    pairs = [(name, folder / name) for folder in folders for name in both[::step][:EMOJI]]
    return _of_files("emoji", "the same emoji by another hand", pairs, nearest=1)


def icons(packages: Path) -> LabelledSet:
    """Icons of two themes, GNOME and Oxygen: the nearest should have the same name in the other."""
    gnome = debian(packages, "gnome-icon-theme") / "usr/share/icons/gnome/256x256"
    oxygen = debian(packages, "oxygen-icon-theme") / "usr/share/icons/oxygen/base/256x256"
    pairs = []
    for path in sorted(gnome.glob("*/*.png")):
        other = oxygen / path.parent.name / path.name
        if path.parent.name in _PLACES and not path.is_symlink() and other.is_file():
            pairs += [(path.stem, path), (path.stem, other)]
    return _of_files("icons", "the same icon in another theme", pairs, nearest=1)


SETS: dict[str, Callable[[Path], LabelledSet]] = {
    "landscapes": landscapes,
    "clippings": clippings,
    "clothes": clothes,
    "emoji": emoji,
    "icons": icons,
}


def debian(packages: Path, name: str) -> Path:
    """The folder of an unpacked package of Debian, downloaded if it is not there."""
    folder = packages / name
    if not folder.is_dir():
        packages.mkdir(parents=True, exist_ok=True)
        _run(["apt-get", "download", "-qq", name], packages)
        file = next(packages.glob(f"{name}_*.deb"))
        partial = folder.with_name(folder.name + ".part")
        partial.mkdir(exist_ok=True)
        _run(["dpkg", "-x", str(file), str(partial)], packages)
        partial.rename(folder)
        file.unlink()
    return folder


def npm(packages: Path, name: str, version: str, inside: str) -> Path:
    """The folder ``inside`` of a package of npm, downloaded if it is not there."""
    folder = packages / f"{name}-{version}"
    if not folder.is_dir():
        packages.mkdir(parents=True, exist_ok=True)
        _run(["npm", "pack", "--silent", f"{name}@{version}"], packages)
        file = packages / f"{name}-{version}.tgz"
        partial = folder.with_name(folder.name + ".part")
        with tarfile.open(file) as archive:
            members = [one for one in archive if one.name.startswith(f"package/{inside}/")]
            archive.extractall(partial, members, filter="data")
        partial.rename(folder)
        file.unlink()
    return folder / "package" / inside


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(
            f"'{' '.join(command)}' failed ({error}): it needs Debian 12 and npm"
        ) from None


def _letters(path: Path) -> str:
    match = re.match(r"[a-z]+", path.stem)
    return match.group() if match else ""


def _of_files(
    name: str, what: str, found: Iterable[tuple[str, Path]], nearest: int = 3
) -> LabelledSet:
    """The files of categories that have enough of them; transparent pixels become white."""
    pairs = list(found)
    counts = Counter(label for label, _ in pairs)
    kept = [
        (label, path) for label, path in pairs if nearest < 3 or counts[label] >= _MIN_OF_A_KIND
    ]
    return LabelledSet(
        name, what, [_picture(path) for _, path in kept], [label for label, _ in kept], nearest
    )


def _picture(path: Path) -> Picture:
    with Image.open(path) as image:
        rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    white.alpha_composite(rgba)
    return np.asarray(white.convert("RGB"))
