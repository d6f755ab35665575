"""How long does a lookup take that finds much, and how long do many lookups at once?

Three questions, each with its target:

sources  an identical hit with many sources takes at most 1.2 times as long as one with one source
near     a lookup that finds 1,300 near images of 200,000 sources takes no more than 30 ms
many     one lookup_many of 500 files is at least 1.8 times as fast as 500 calls of lookup, on two cores

Times are the least of some rounds. The two sides of a ratio take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image

from engine import Store

from ..data import photographs
from ..harness import script
from ..harness.errors import BenchError
from ..report.tables import align

SIDE = 100  # of a bit image
FLIPPED = 100  # of its bits, in each image near it
ROWS_AT_ONCE = 20_000  # of an array
PHOTOGRAPH = (480, 640)
MOST_MORE, MOST_MS, LEAST_FASTER = 1.2, 30.0, 1.8


@dataclass(frozen=True, slots=True)
class Answer:
    """One question: its measurement, its target, and whether the target is met."""

    what: str
    measured: str
    wanted: str
    met: bool


def measure_sources(work: Path, sources: int, rounds: int) -> Answer:
    """An identical hit of an image in ``sources`` files, beside one in one file."""
    draw = np.random.default_rng(1)
    common, rare = (draw.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(2))
    for number in range(sources):
        _save(work / "sources" / "common" / f"{number}.png", common)
    rare_file = _save(work / "sources" / "rare.png", rare)
    common_file = work / "sources" / "common" / "0.png"
    with Store.open(work / "sources.store", create=True, encoder="none") as store:
        store.ingest(work / "sources")
        for file, count in ((common_file, sources), (rare_file, 1)):
            hits = store.lookup(file, tiers=["identical"]).identical
            _require([hit.source_count for hit in hits] == [count], f"{count} sources of {file}")
        one, many = _least_of(
            rounds,
            lambda: store.lookup(rare_file, tiers=["identical"]),
            lambda: store.lookup(common_file, tiers=["identical"]),
        )
    what = f"an identical hit of {sources:,} sources, of one with one"
    return Answer(what, f"{many / one:.2f}", f"at most {MOST_MORE}", many <= MOST_MORE * one)


def measure_near(work: Path, images: int, sources: int, rounds: int) -> Answer:
    """A lookup that finds ``images`` near ones, seen in ``sources`` rows of arrays."""
    draw = np.random.default_rng(2)
    query = draw.integers(0, 2, (SIDE, SIDE, 3), np.uint8)
    near = np.repeat(query[None], images, axis=0)
    for image in near.reshape(images, -1)[1:]:
        image[draw.choice(image.size, FLIPPED, replace=False)] ^= 1
    with Store.open(work / "near.store", create=True, encoder="none") as store:
        order = np.concatenate([np.arange(images), draw.integers(0, images, sources - images)])
        for at in range(0, sources, ROWS_AT_ONCE):
            store.ingest(near[order[at : at + ROWS_AT_ONCE]], name=f"part{at}")
        found = store.lookup(query, tiers=["near"])
        counts = np.bincount(order, minlength=images)
        _require(found.near_count == images, f"{images} near images, not {found.near_count}")
        listed = {hit.id: hit.source_count for hit in found.near}
        _require(
            listed == {id_: counts[id_ - 1] for id_ in listed}, "the sources of each near image"
        )
        (least,) = _least_of(rounds, lambda: store.lookup(query, tiers=["near"]))
    what = f"a lookup that finds {images:,} near images of {sources:,} sources"
    return Answer(what, f"{least:.1f} ms", f"at most {MOST_MS:g} ms", least <= MOST_MS)


def measure_many(work: Path, files: Sequence[Path], encoder: str, rounds: int) -> Answer:
    """``lookup_many`` of files beside a call of ``lookup`` for each."""
    with Store.open(work / "many.store", create=True, encoder=encoder) as store:
        store.ingest(*files)
        batch = [[hit.id for hit in result.identical] for result in store.lookup_many(files)]
        _require(all(batch), "each file is there")
        alone = [[hit.id for hit in store.lookup(file).identical] for file in files]
        _require(batch == alone, "the same answers in batches")
        many, each = _least_of(
            rounds,
            lambda: sum(1 for _ in store.lookup_many(files)),
            lambda: [store.lookup(file) for file in files],
        )
    what = f"lookup_many of {len(files):,} files, of as many calls of lookup"
    faster = each / many
    return Answer(
        what, f"{faster:.2f}x as fast", f"at least {LEAST_FASTER}x", faster >= LEAST_FASTER
    )


def made_photographs(folder: Path, count: int) -> list[Path]:
    """JPEG files of smooth noise, used if there are no photographs."""
    draw = np.random.default_rng(3)
    found = []
    for number in range(count):
        small = draw.integers(0, 256, (12, 16, 3), np.uint8)
        picture = Image.fromarray(small).resize(PHOTOGRAPH[::-1], Image.Resampling.BICUBIC)
        folder.mkdir(parents=True, exist_ok=True)
        found.append(folder / f"{number}.jpg")
        picture.save(found[-1], quality=90)
    return found


def main() -> bool:
    """Measure and print; true if each target is met."""
    parser = script.parser(__doc__)
    parser.add_argument("--sources", type=int, default=1000, help="of an identical hit")
    parser.add_argument("--near", type=int, default=1300, help="images near one query")
    parser.add_argument("--places", type=int, default=200_000, help="sources of the near images")
    parser.add_argument("--files", type=int, default=500, help="looked up at once")
    parser.add_argument("--photos", type=Path, help="a folder of photographs; else some are made")
    parser.add_argument("--encoder", default="simclr", help="of the store of photographs, or none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--dir", type=Path, help="folder for the stores, which are removed at the end"
    )
    args = parser.parse_args()
    with script.work_folder(args.dir) as work:
        if args.photos is not None:
            files = photographs.sample([args.photos], args.files, 0)
        else:
            files = made_photographs(work / "photos", args.files)
        answers = [
            measure_sources(work, args.sources, 20 * args.rounds),
            measure_near(work, args.near, args.places, args.rounds),
            measure_many(work, files, args.encoder, args.rounds),
        ]
    lines = [("question", "measured", "wanted", "")]
    for one in answers:
        lines.append((one.what, one.measured, one.wanted, "met" if one.met else "missed"))
    print(align(lines, left=(0, 2, 3)))
    return all(one.met for one in answers)


def _least_of(rounds: int, *asks: Callable[[], object]) -> list[float]:
    """The least milliseconds of each of several calls, which take turns."""
    least = [float("inf")] * len(asks)
    for _ in range(rounds):
        for number, ask in enumerate(asks):
            started = perf_counter()
            ask()
            least[number] = min(least[number], (perf_counter() - started) * 1e3)
    return least


def _save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def _require(right: bool, what: str) -> None:
    if not right:
        raise BenchError(f"a wrong answer: {what}")


if __name__ == "__main__":
    script.exit_with(main)
