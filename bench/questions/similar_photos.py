"""Are photographs found? In other containers as *identical*, after changes as *similar*.

Every photograph is ingested. (a) Then each is written as PNG and as BMP, and must be found
identical. (b) 40 of them are changed in 5 ways, and the original should be first in the similar
tier.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine import Store

from ..data import photographs
from ..data.distortions import CHANGES, as_file, upright
from ..harness import script
from ..harness.errors import BenchError
from ..report.tables import align

CONTAINERS = ("PNG", "BMP")
ORIGINALS = 40  # photographs to change, if there are as many
_NO_ENCODER = "none"


@dataclass(frozen=True, slots=True)
class Found:
    """How often the original was found, and which photographs were missed."""

    what: str
    tier: str
    asked: int
    missed: tuple[str, ...]

    @property
    def found(self) -> int:
        """Queries whose answer was the original."""
        return self.asked - len(self.missed)


def measure(photos: Sequence[Path], store: Store, seed: int = 0) -> list[Found]:
    """Look up every rewritten and every changed photograph in ``store``, which holds ``photos``.

    Without an encoder there is no similar tier, so only the rewritten ones are looked up.
    """
    ids = {photo: _identical(store, photo.read_bytes()) for photo in photos}
    lost = [photo.name for photo, found in ids.items() if len(found) != 1]
    if lost:
        raise BenchError(f"not stored, or more than once: {', '.join(lost)}")
    results = []
    for container in CONTAINERS:
        missed = [
            photo.name
            for photo in photos
            if _identical(store, as_file(upright(photo.read_bytes()), container)) != ids[photo]
        ]
        results.append(Found(f"written as {container}", "identical", len(photos), tuple(missed)))
    if store.info().encoder is None:
        return results
    draw = np.random.default_rng(seed)
    chosen = [photos[i] for i in sorted(draw.permutation(len(photos))[:ORIGINALS])]
    for number, (what, change) in enumerate(CHANGES.items()):
        missed = []
        for photo in chosen:
            place = np.random.default_rng([seed, number, photos.index(photo)])
            query = change(upright(photo.read_bytes()), place)
            # Only this tier: a stricter one that also finds the image would remove it from here.
            similar = store.lookup(query, k=1, tiers=["similar"]).similar
            if [hit.id for hit in similar] != ids[photo]:
                missed.append(photo.name)
        results.append(Found(what, "similar, first", len(chosen), tuple(missed)))
    return results


def main() -> bool:
    """Measure and print; true if every rewritten photograph was found identical."""
    parser = script.parser(__doc__)
    parser.add_argument(
        "--photos", type=Path, default=photographs.PHOTOS, help="a folder of photographs"
    )
    parser.add_argument("--encoder", default="simclr", help="a name, a folder or none  [simclr]")
    parser.add_argument("--seed", type=int, default=0, help="of the changes  [0]")
    parser.add_argument("--missed", action="store_true", help="name the photographs not found")
    arguments = parser.parse_args()
    photos = photographs.listed(arguments.photos)
    with (
        tempfile.TemporaryDirectory(prefix="engine-bench-") as work,
        Store.open(Path(work) / "photos.store", create=True, encoder=arguments.encoder) as store,
    ):
        store.ingest(*photos, encoder=arguments.encoder)
        results = measure(photos, store, arguments.seed)
    print(table(results))
    if arguments.encoder == _NO_ENCODER:
        print("no encoder: changed photographs were not looked up")
    if arguments.missed:
        for result in results:
            for name in result.missed:
                print(f"missed, {result.what}: {name}")
    return not any(result.missed for result in results if result.tier == "identical")


def table(results: Sequence[Found]) -> str:
    """The results as aligned columns, with a line for all changes together."""
    lines = [("photographs", "tier", "asked", "found", "%")]
    lines += [_line(result) for result in results]
    changed = [result for result in results if result.tier != "identical"]
    if changed:
        missed = tuple(name for result in changed for name in result.missed)
        asked = sum(result.asked for result in changed)
        lines.append(_line(Found("all changes", changed[0].tier, asked, missed)))
    return align(lines, left=(0, 1))


def _line(result: Found) -> tuple[str, str, str, str, str]:
    share = f"{100 * result.found / result.asked:.1f}"
    return result.what, result.tier, str(result.asked), str(result.found), share


def _identical(store: Store, file: bytes) -> list[int]:
    return [hit.id for hit in store.lookup(file, tiers=["identical"]).identical]


if __name__ == "__main__":
    script.exit_with(main)
