"""Which threshold fits? Precision and recall of the near and the similar tier, by what they let through.

Photographs are ingested. Copies of some of them, changed in nine ways, are then looked up in both tiers.
A hit is right if it is the photograph that the copy was made of; all others count as false, also where
they are copies themselves. Near hits are counted up to each distance, and similar ones down to each
score, with all vectors compared and every hit listed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from engine import Store

from ..data import photographs
from ..data.distortions import Change, as_file, brightness, crop_to, flip, upright
from ..harness import script
from ..harness.machine import machine, versions
from ..harness.sizes import parse_count
from ..report.tables import align
from . import near_photos
from .near_tier import photos_by_id

DISTANCES = (4, 8, 12, 16, 20, 24, 31)  # bits of 256
SCORES = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def _grey(image: Image.Image, draw: np.random.Generator) -> bytes:
    return as_file(ImageOps.grayscale(image), "BMP")


CHANGES: dict[str, Change] = {
    "JPEG quality 30": near_photos.CHANGES["JPEG quality 30"],
    "half the size": near_photos.CHANGES["half the size"],
    "brightness ± 20 %": brightness,
    "Gaussian blur, radius 2": near_photos.CHANGES["Gaussian blur, radius 2"],
    "Gaussian noise, σ 10": near_photos.CHANGES["Gaussian noise, σ 10"],
    "grey": _grey,
    "crop 5 % a side": crop_to(0.95),
    "crop 20 % a side": crop_to(0.8),
    "mirrored": flip,
}


@dataclass(frozen=True, slots=True)
class Tier:
    """What one tier found. ``right[change][i]``: originals that threshold number i lets through."""

    name: str
    thresholds: tuple[float, ...]
    asked: int  # copies of each change
    right: dict[str, list[int]]
    false: list[int]  # other images, of all changes together
    # The same where only the first hit of each lookup counts.
    first_right: list[int]
    first_false: list[int]

    @property
    def all_right(self) -> list[int]:
        """Originals of all changes together."""
        return [sum(counts) for counts in zip(*self.right.values(), strict=True)]


class _Counts:
    """The hits of one tier, counted as they come."""

    def __init__(self, thresholds: Sequence[float], *, lower_is_nearer: bool) -> None:
        self.thresholds = np.array(thresholds)
        self.lower_is_nearer = lower_is_nearer
        self.right = {what: np.zeros(len(thresholds), np.int64) for what in CHANGES}
        self.false, self.first_right, self.first_false = np.zeros((3, len(thresholds)), np.int64)

    def add(self, what: str, original: int, hits: Sequence[tuple[int, float]]) -> None:
        """Count the hits, (id, distance or score) each, nearest first, of one copy."""
        for place, (id_, value) in enumerate(hits):
            passes = value <= self.thresholds if self.lower_is_nearer else value >= self.thresholds
            is_right = id_ == original
            counts = self.right[what] if is_right else self.false
            counts += passes
            if place == 0:
                counts = self.first_right if is_right else self.first_false
                counts += passes

    def tier(self, name: str, asked: int) -> Tier:
        """What was counted, of so many copies a change."""
        right = {what: counts.tolist() for what, counts in self.right.items()}
        rest = (counts.tolist() for counts in (self.false, self.first_right, self.first_false))
        return Tier(name, tuple(self.thresholds.tolist()), asked, right, *rest)


def measure(
    photos: Sequence[Path], store: Store, *, queries: int, seed: int
) -> tuple[int, Tier, Tier]:
    """Ask ``store``, which holds ``photos``, for up to ``queries`` of them after each change.

    Returns how many different images there are, and what the near and the similar tier found.
    """
    ids = photos_by_id(photos, store)
    draw = np.random.default_rng([seed, 5])
    asked = draw.permutation(sorted(ids))[:queries].tolist()
    near = _Counts(DISTANCES, lower_is_nearer=True)
    similar = _Counts(SCORES, lower_is_nearer=False)
    for id_ in asked:
        image = upright(ids[id_].read_bytes())
        for what, change in CHANGES.items():
            copy = change(image, draw)
            # One tier at a time, so that a stricter one that finds it too does not take it away.
            found = store.lookup(
                copy, tiers=["near"], max_distance=DISTANCES[-1], near_limit=None, max_sources=1
            )
            near.add(what, id_, [(hit.id, hit.distance) for hit in found.near])
            found = store.lookup(
                copy, tiers=["similar"], k=len(ids), min_score=SCORES[0], recall=1, max_sources=1
            )
            similar.add(what, id_, [(hit.id, hit.score) for hit in found.similar])
    return len(ids), near.tier("near", len(asked)), similar.tier("similar", len(asked))


def table(images: int, tier: Tier) -> str:
    """One tier as aligned columns: recall by change, then of all, then precision, in percent."""
    bound = "within, of 256" if tier.name == "near" else "score of at least"
    head = f"{tier.name}: {images:,} images, {tier.asked:,} copies of each sort"
    lines = [(bound, *(f"{one:g}" for one in tier.thresholds))]
    lines += [
        (f"recall, {what}", *(_percent(count, tier.asked) for count in counts))
        for what, counts in tier.right.items()
    ]
    copies = tier.asked * len(tier.right)
    lines.append(("recall, all", *(_percent(count, copies) for count in tier.all_right)))
    precision = zip(tier.all_right, tier.false, strict=True)
    lines.append(("precision", *(_percent(right, right + false) for right, false in precision)))
    firsts = zip(tier.first_right, tier.first_false, strict=True)
    lines.append(
        ("precision, first hit", *(_percent(right, right + false) for right, false in firsts))
    )
    lines.append(("false hits a copy", *(f"{count / copies:.3f}" for count in tier.false)))
    return f"{head}\n{align(lines, left=(0,))}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"


def main() -> bool:
    """Measure and print; there is no target."""
    parser = script.parser(__doc__)
    parser.add_argument("--photos", type=Path, nargs="+", help="folders  [those of the checkout]")
    parser.add_argument("--most", default="4000", help="photographs, at most  [4000]")
    parser.add_argument("--queries", default="200", help="copies of each sort  [200]")
    parser.add_argument("--encoder", default="simclr", help="a name or a folder  [simclr]")
    parser.add_argument("--seed", type=int, default=0, help="of choice and changes  [0]")
    parser.add_argument("--dir", type=Path, help="where the store is made, and removed again")
    parser.add_argument("--json", type=Path, help="a file for all that was counted")
    arguments = parser.parse_args()
    folders = arguments.photos or [photographs.PHOTOS]
    chosen = photographs.sample(folders, parse_count(arguments.most), arguments.seed)
    with (
        script.work_folder(arguments.dir) as work,
        Store.open(work / "photos.store", create=True, encoder=arguments.encoder) as store,
    ):
        store.ingest(*chosen)
        images, *tiers = measure(
            chosen, store, queries=parse_count(arguments.queries), seed=arguments.seed
        )
    print("\n\n".join(table(images, tier) for tier in tiers))
    if arguments.json is not None:
        body = {"machine": machine(), "versions": versions(), "images": images}
        body |= {"tiers": [asdict(tier) for tier in tiers]}
        arguments.json.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return True


if __name__ == "__main__":
    script.exit_with(main)
