"""Lookups of changed photographs in the near tier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from engine import Store
from engine.config import DEFAULT_MAX_DISTANCE

from ..data.distortions import Change, as_file, upright
from ..report.tables import align
from .near_tier import NEAR, milliseconds_of, photos_by_id

FARTHEST = 48  # bits: the end of the curve
_PAIRS_SHOWN = 20


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
    """Two photographs, one a hit for the other; ``distance`` is the smallest, in bits."""

    distance: int
    one: str
    other: str


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
    """Look up to ``queries`` of ``photos``, which ``store`` holds, up after each change.

    Also returns how many different images there are, and which of them were hits for another.
    """
    ids = photos_by_id(photos, store)
    draw = np.random.default_rng([seed, 3])
    asked = [(id_, ids[id_]) for id_ in draw.permutation(sorted(ids))[:queries].tolist()]
    distances: dict[str, list[tuple[int, bool]]] = {what: [] for what in CHANGES}
    spent: dict[str, list[float]] = {what: [] for what in CHANGES}
    pairs: dict[tuple[str, str], int] = {}
    for id_, photo in asked:
        image = upright(photo.read_bytes())
        for what, change in CHANGES.items():
            result = store.lookup(change(image, draw), tiers=NEAR, max_distance=FARTHEST)
            spent[what].append(result.milliseconds["near"])
            for hit in result.near:
                distances[what].append((hit.distance, hit.id == id_))
                if hit.id != id_ and hit.distance <= DEFAULT_MAX_DISTANCE:
                    # Not by its source: that is absolute, and equal files have only the first.
                    one, other = sorted((str(photo), str(ids[hit.id])))
                    pairs[one, other] = min(pairs.get((one, other), 256), hit.distance)
            tick()
    found = [Photos(what, len(asked), _curve(distances[what]), spent[what]) for what in CHANGES]
    return len(ids), found, sorted(Pair(least, *names) for names, least in pairs.items())


def _curve(hits: Sequence[tuple[int, bool]]) -> list[tuple[int, int]]:
    """The numbers of right and of false hits within each distance up to the farthest."""
    return [
        (
            sum(right for distance, right in hits if distance <= most),
            sum(not right for distance, right in hits if distance <= most),
        )
        for most in range(FARTHEST + 1)
    ]


def photos_table(images: int, found: Sequence[Photos]) -> str:
    """The lookups of photographs as aligned columns."""
    lines = [("photographs", "asked", "found", "%", "false hits", "p50 ms", "p99 ms")]
    for one in found:
        share = f"{100 * one.found / one.asked:.1f}"
        counts = (f"{one.asked:,}", f"{one.found:,}", share, f"{one.false:,}")
        lines.append((one.what, *counts, *milliseconds_of(one.milliseconds)))
    return f"{images:,} different images, within {DEFAULT_MAX_DISTANCE} of 256\n" + align(
        lines, left=(0,)
    )


def pairs_table(pairs: Sequence[Pair]) -> str:
    """The pairs of images that were hits for each other: copies in the data, or wrong hits."""
    head = f"{len(pairs):,} pairs behind the false hits" + (":" if pairs else "")
    lines = [f"  {pair.distance:>3}  {pair.one}  {pair.other}" for pair in pairs[:_PAIRS_SHOWN]]
    if len(pairs) > _PAIRS_SHOWN:
        lines.append(f"  … and {len(pairs) - _PAIRS_SHOWN:,} more (--json has them all)")
    return "\n".join([head, *lines])
