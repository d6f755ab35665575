"""Real vectors to search: SIFT descriptors of photographs as RootSIFT, made once and kept as .npy.

Each photograph is shrunk first, and gives at most 3,000 descriptors. Each descriptor is L1-normalised,
and its square root is a unit vector of 128 dimensions (RootSIFT). Queries come from photographs that
give no vectors. Flat descriptors are left out, and all but one of equal ones. This needs OpenCV, which
comes with ``pip install '.[peers]'``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.cli.progress import Progress
from engine.errors import UsageError, how_to_install

from ..harness import script
from ..harness.errors import BenchError
from ..harness.sizes import parse_count
from . import photographs
from .arrays import Vectors, write_array
from .distortions import upright
from .photographs import MIN_SIDE, shuffled

DIM = 128
LONGEST_SIDE = 1024  # pixels of a photograph whose descriptors are taken
EACH = 3_000  # descriptors of one photograph: none should outweigh the others
EACH_ASKED = 100  # descriptors of one photograph that gives queries
MAX_PIXELS = 1 << 25  # of a picture: larger ones take too much memory

Bytes = npt.NDArray[np.uint8]


def described(photo: Path, most: int) -> Bytes:
    """The strongest SIFT descriptors of one photograph, OpenCV's whole numbers: (n, 128).

    No rows if the picture is too small, too large, not opaque or unreadable.
    """
    cv2 = _opencv()
    try:
        with Image.open(photo) as file:
            if min(file.size) < MIN_SIDE or file.width * file.height > MAX_PIXELS:
                return np.empty((0, DIM), np.uint8)
        image = upright(photo.read_bytes()).convert("L")
    except Exception:  # an unreadable file is not a photograph
        return np.empty((0, DIM), np.uint8)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    _, found = cv2.SIFT_create(nfeatures=most).detectAndCompute(np.asarray(image), None)
    if found is None:
        return np.empty((0, DIM), np.uint8)
    rows: Bytes = found[found.any(axis=1)].astype(np.uint8)
    return rows[:most]  # OpenCV may give one more


def root_sift(rows: Bytes) -> Vectors:
    """RootSIFT: the square root of each L1-normalised descriptor; (n, 128) float32, unit length."""
    values = rows.astype(np.float32)
    roots: Vectors = np.sqrt(values / values.sum(axis=1, keepdims=True))
    return roots


def collect(
    photos: Iterator[Path], n: int, queries: int, seed: int, progress: Callable[[int, int], None]
) -> tuple[Bytes, Bytes]:
    """``n`` different descriptors and ``queries`` others, from other photographs: (n, 128) uint8 each.

    ``BenchError`` if the photographs have fewer.
    """
    # Twice the number: if a photograph occurs in two sizes, some of these are in the vectors too.
    asked = _take(photos, 2 * queries, EACH_ASKED, lambda done: None)
    kept = _take(photos, n + n // 8, EACH, lambda done: progress(min(done, n), n))
    both = np.concatenate([kept, asked])
    _, first = np.unique(both.view(f"V{DIM}").ravel(), return_index=True)
    first = np.sort(first)
    rows = both[first[first < len(kept)][:n]]
    others = both[first[first >= len(kept)]]
    if len(rows) < n or len(others) < queries:
        raise BenchError(
            f"these photographs have {len(rows):,} different descriptors and {len(others):,} more "
            f"to ask for, not {n:,} and {queries:,}: give more of them with --photos"
        )
    chosen = np.random.default_rng([seed, n]).choice(len(others), queries, replace=False)
    return rows, others[np.sort(chosen)]


def _take(photos: Iterator[Path], n: int, each: int, done: Callable[[int], None]) -> Bytes:
    """``n`` descriptors or more, up to ``each`` a photograph; fewer if the photographs run out."""
    found: list[Bytes] = [np.empty((0, DIM), np.uint8)]
    count = 0
    while count < n and (photo := next(photos, None)) is not None:
        found.append(described(photo, each))
        count += len(found[-1])
        done(count)
    return np.concatenate(found)


def make(
    folders: Sequence[Path], folder: Path, n: int, queries: int, seed: int
) -> tuple[Path, Path]:
    """The files of the vectors and of the queries, float32 (n, 128); made if they do not exist.

    Their names describe their contents, so a later call finds them again.
    """
    paths = (folder / f"sift-{n}-{seed}.npy", folder / f"sift-{n}-{seed}-queries-{queries}.npy")
    if all(path.exists() for path in paths):
        return paths
    _opencv()
    folder.mkdir(parents=True, exist_ok=True)
    with Progress("descriptors", "descriptors") as progress:
        rows, asked = collect(shuffled(folders, seed), n, queries, seed, progress)
    for path, values in zip(paths, (rows, asked), strict=True):
        write_array(path, (root_sift(values),), len(values), DIM)
    return paths


def main() -> bool:
    """Make the two files and print their paths."""
    parser = script.parser(__doc__)
    parser.add_argument(
        "--photos",
        type=Path,
        nargs="+",
        default=[photographs.PHOTOS],
        help="folders of photographs",
    )
    parser.add_argument("--n", default="7e5", help="vectors  [7e5]")
    parser.add_argument("--queries", default="5000", help="queries  [5000]")
    parser.add_argument("--seed", type=int, default=0, help="of the photographs' order  [0]")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the two files")
    arguments = parser.parse_args()
    n, queries = parse_count(arguments.n), parse_count(arguments.queries)
    for path in make(arguments.photos, arguments.out, n, queries, arguments.seed):
        print(path)
    return True


def _opencv() -> Any:
    try:
        return import_module("cv2")
    except ModuleNotFoundError:
        raise UsageError(f"OpenCV is not installed: {how_to_install('peers')}") from None


if __name__ == "__main__":
    script.exit_with(main)
