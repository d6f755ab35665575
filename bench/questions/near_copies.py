"""Is a copy found again as *near*, and nothing else? Bit images with flipped bits, changed photographs.

(a) Bit images are made and ingested; then copies of some, with a share of their bits flipped at random,
and images that the set lacks are looked up. (b) Photographs of the given folders are ingested, each
once; then some are looked up that were compressed, shrunk, brightened, darkened, blurred or disturbed.
Every other image within the distance counts as a false hit, and is listed: it may well be a copy.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from engine import PackedBits, Store
from engine.cli.progress import Progress
from engine.config import DEFAULT_MAX_DISTANCE

from ..data import bit_images, photographs
from ..data.distortions import Change, as_file, upright
from ..harness import script
from ..harness.errors import BenchError
from ..harness.machine import machine, versions
from ..harness.sizes import check_disk, parse_count
from ..report.tables import Target, align, targets

FLIPPED = (0.01, 0.05, 0.10)  # of the bits of a copy
FARTHEST = 48  # bits: how far the curve goes
_NEAR = ("near",)
_PAIRS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Bits:
    """Lookups of one sort of bit image: how many, how many found, hits on another image, and ms."""

    what: str
    asked: int
    found: int
    false: int
    milliseconds: list[float]


@dataclass(frozen=True, slots=True)
class Photos:
    """Lookups of photographs that went through one change; ``by_distance[d]`` is (found, false)."""

    what: str
    asked: int
    by_distance: list[tuple[int, int]]
    milliseconds: list[float]

    @property
    def found(self) -> int:
        """Originals within the default distance."""
        return self.by_distance[DEFAULT_MAX_DISTANCE][0]

    @property
    def false(self) -> int:
        """Other images within the default distance."""
        return self.by_distance[DEFAULT_MAX_DISTANCE][1]


@dataclass(frozen=True, slots=True, order=True)
class Pair:
    """Two photographs of which one was a hit for the other, ``distance`` bits away at the nearest."""

    distance: int
    one: str
    other: str


def measure_bits(
    n: int, store: Store, *, queries: int, seed: int, tick: Callable[[], None] = lambda: None
) -> list[Bits]:
    """Take ``n`` bit images into an empty store, and ask for ``queries`` of each sort."""
    store.ingest(f"synthetic:bits?n={n}&seed={seed}")
    draw = np.random.default_rng([seed, n, 2])
    asked = [
        (f"{share:.0%} of the bits flipped", share, draw.integers(0, n, queries))
        for share in FLIPPED
    ]
    asked.append(("not there", 0.0, n + np.arange(queries)))
    found: list[Bits] = []
    for what, share, rows in asked:
        hits = false = 0
        spent = []
        for row in rows.tolist():
            packed = bit_images.packed(seed, row, 1)
            if share:
                packed = packed ^ np.packbits(
                    draw.random((1, bit_images.IMAGE_BYTES)) < share, axis=1
                )
            result = store.lookup(PackedBits(packed, *bit_images.SHAPE[:2]), tiers=_NEAR)
            right = sum(
                hit.sources == (f"synthetic:bits?seed={seed}#{row}",) for hit in result.near
            )
            hits += right
            false += len(result.near) - right
            spent.append(result.milliseconds["near"])
            tick()
        found.append(Bits(what, len(rows), hits, false, spent))
    return found


def _jpeg(image: Image.Image, draw: np.random.Generator) -> bytes:
    return as_file(image, "JPEG", quality=30)


def _half(image: Image.Image, draw: np.random.Generator) -> bytes:
    size = max(1, image.width // 2), max(1, image.height // 2)
    return as_file(image.resize(size, Image.Resampling.LANCZOS), "BMP")


def _gamma(exponent: float) -> Change:
    table = [round(255 * (value / 255) ** exponent) for value in range(256)] * 3
    return lambda image, draw: as_file(image.point(table), "BMP")


def _blur(radius: int) -> Change:
    return lambda image, draw: as_file(image.filter(ImageFilter.GaussianBlur(radius)), "BMP")


def _noise(image: Image.Image, draw: np.random.Generator) -> bytes:
    values = np.asarray(image, np.float32)
    values = values + 10 * draw.standard_normal(values.shape, np.float32)
    return as_file(Image.fromarray(values.round().clip(0, 255).astype(np.uint8)), "BMP")


CHANGES: dict[str, Change] = {
    "JPEG quality 30": _jpeg,
    "half the size": _half,
    "gamma 0.8": _gamma(0.8),
    "gamma 1.3": _gamma(1.3),
    "Gaussian blur, radius 1": _blur(1),
    "Gaussian blur, radius 2": _blur(2),
    "Gaussian noise, σ 10": _noise,
}


def measure_photos(
    photos: Sequence[Path],
    store: Store,
    *,
    queries: int,
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> tuple[int, list[Photos], list[Pair]]:
    """Ask ``store``, which holds ``photos``, for up to ``queries`` of them after each change.

    Returns how many different images there are too, and which of them were hits for another.
    """
    ids: dict[int, Path] = {}
    for photo in photos:
        same = store.lookup(photo.read_bytes(), tiers=["identical"]).identical
        if not same:
            raise BenchError(f"{photo} is not in the store")
        ids.setdefault(same[0].id, photo)
    draw = np.random.default_rng([seed, 3])
    asked = [(id_, ids[id_]) for id_ in draw.permutation(sorted(ids))[:queries].tolist()]
    distances: dict[str, list[tuple[int, bool]]] = {what: [] for what in CHANGES}
    spent: dict[str, list[float]] = {what: [] for what in CHANGES}
    pairs: dict[tuple[str, str], int] = {}
    for id_, photo in asked:
        image = upright(photo.read_bytes())
        for what, change in CHANGES.items():
            result = store.lookup(change(image, draw), tiers=_NEAR, max_distance=FARTHEST)
            spent[what].append(result.milliseconds["near"])
            for hit in result.near:
                distances[what].append((hit.distance, hit.id == id_))
                if hit.id != id_ and hit.distance <= DEFAULT_MAX_DISTANCE:
                    # Not by its source, which is absolute, and of equal files the first.
                    one, other = sorted((str(photo), str(ids[hit.id])))
                    pairs[one, other] = min(pairs.get((one, other), 256), hit.distance)
            tick()
    found = [Photos(what, len(asked), _curve(distances[what]), spent[what]) for what in CHANGES]
    return len(ids), found, sorted(Pair(least, *names) for names, least in pairs.items())


def _curve(hits: Sequence[tuple[int, bool]]) -> list[tuple[int, int]]:
    """How many right and how many false hits there are within each distance up to the farthest."""
    return [
        (
            sum(right for distance, right in hits if distance <= most),
            sum(not right for distance, right in hits if distance <= most),
        )
        for most in range(FARTHEST + 1)
    ]


def main() -> bool:
    """Measure and print; true if every target is met."""
    parser = script.parser(__doc__)
    parser.add_argument("--n", default="1e6", help="bit images; 0: none  [1e6]")
    parser.add_argument("--queries", default="1000", help="lookups of each sort  [1000]")
    parser.add_argument("--photos", type=Path, nargs="*", help="folders  [those of the checkout]")
    parser.add_argument("--most", default="10000", help="photographs, at most  [10000]")
    parser.add_argument("--memory", default="1G", help="the store's bound  [1G]")
    parser.add_argument("--seed", type=int, default=0, help="of images, choice and changes  [0]")
    parser.add_argument("--dir", type=Path, help="where the stores are made, and removed again")
    parser.add_argument("--json", type=Path, help="a file for all of it, curves and pairs too")
    given = parser.parse_args()
    n = parse_count(given.n) if given.n != "0" else 0
    queries, most = parse_count(given.queries), parse_count(given.most)
    check_disk(n, given.dir or Path(tempfile.gettempdir()))
    if given.dir is not None:
        given.dir.mkdir(parents=True, exist_ok=True)
    folders = [photographs.PHOTOS] if given.photos is None else given.photos
    bits: list[Bits] = []
    photos: list[Photos] = []
    pairs: list[Pair] = []
    images = 0
    with (
        tempfile.TemporaryDirectory(prefix="engine-bench-", dir=given.dir) as work,
        Progress("near", "lookups") as progress,
    ):
        if n:
            total = (len(FLIPPED) + 1) * queries
            with _new(Path(work) / "bits.store", given.memory) as store:
                tick = _ticker(progress, total)
                bits = measure_bits(n, store, queries=queries, seed=given.seed, tick=tick)
            print(bits_table(n, bits), end="\n\n")
        if folders:
            chosen = photographs.sample(folders, most, given.seed)
            total = len(CHANGES) * min(queries, len(chosen))
            with _new(Path(work) / "photos.store", given.memory) as store:
                store.ingest(*chosen)
                tick = _ticker(progress, total)
                images, photos, pairs = measure_photos(
                    chosen, store, queries=queries, seed=given.seed, tick=tick
                )
            print(photos_table(images, photos), end="\n\n")
            print(pairs_table(pairs), end="\n\n")
    wanted = wanted_of(bits, photos)
    print(targets(wanted))
    if given.json is not None:
        body = {"machine": machine(), "versions": versions(), "n": n, "photographs": images}
        body |= {"bits": [asdict(one) for one in bits], "photos": [asdict(one) for one in photos]}
        body |= {"pairs": [asdict(one) for one in pairs]}
        given.json.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return all(one.met for one in wanted)


def _new(path: Path, memory: str) -> Store:
    return Store.open(path, create=True, encoder="none", memory=memory)


def _ticker(progress: Progress, total: int) -> Callable[[], None]:
    done: Iterator[int] = iter(range(1, total + 1))
    return lambda: progress(next(done), total)


def wanted_of(bits: Sequence[Bits], photos: Sequence[Photos]) -> list[Target]:
    """The targets, with what was measured."""
    wanted = []
    for flipped in bits:
        if flipped.what.startswith(("1%", "5%")):
            share = flipped.found / flipped.asked
            wanted.append(Target(f"recall, {flipped.what}", 0.99, share, True, 3))
    if bits:
        false = sum(one.false for one in bits)
        spent = statistics.median(ms for one in bits for ms in one.milliseconds)
        wanted.append(Target("false hits, bit images", 0, false, digits=0))
        wanted.append(Target("a lookup, bit images", 20.0, spent, unit=" ms"))
    for changed in photos:
        share = changed.found / changed.asked
        wanted.append(Target(f"recall, {changed.what}", 0.95, share, True, 3))
    return wanted


def bits_table(n: int, found: Sequence[Bits]) -> str:
    """The lookups of bit images as aligned columns."""
    lines = [("bit images", "asked", "found", "%", "false hits", "p50 ms", "p99 ms")]
    for one in found:
        there = one.what != "not there"
        share = f"{100 * one.found / one.asked:.1f}" if there else "-"
        counts = (f"{one.asked:,}", f"{one.found:,}" if there else "-", share, f"{one.false:,}")
        lines.append((one.what, *counts, *_times(one.milliseconds)))
    return f"{n:,} images of 100×100 RGB bits\n{align(lines, left=(0,))}"


def photos_table(images: int, found: Sequence[Photos]) -> str:
    """The lookups of photographs as aligned columns."""
    lines = [("photographs", "asked", "found", "%", "false hits", "p50 ms", "p99 ms")]
    for one in found:
        share = f"{100 * one.found / one.asked:.1f}"
        counts = (f"{one.asked:,}", f"{one.found:,}", share, f"{one.false:,}")
        lines.append((one.what, *counts, *_times(one.milliseconds)))
    return f"{images:,} different images, within {DEFAULT_MAX_DISTANCE} of 256\n" + align(
        lines, left=(0,)
    )


def pairs_table(pairs: Sequence[Pair]) -> str:
    """The images that were hits for another one: copies in the data, or wrong."""
    head = f"{len(pairs):,} pairs behind the false hits" + (":" if pairs else "")
    lines = [f"  {pair.distance:>3}  {pair.one}  {pair.other}" for pair in pairs[:_PAIRS_SHOWN]]
    if len(pairs) > _PAIRS_SHOWN:
        lines.append(f"  … and {len(pairs) - _PAIRS_SHOWN:,} more (--json has them all)")
    return "\n".join([head, *lines])


def _times(milliseconds: Sequence[float]) -> tuple[str, str]:
    ordered = sorted(milliseconds)
    last = ordered[math.ceil(0.99 * len(ordered)) - 1]
    return f"{statistics.median(ordered):.2f}", f"{last:.2f}"


if __name__ == "__main__":
    script.exit_with(main)
