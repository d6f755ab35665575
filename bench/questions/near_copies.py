"""Does a lookup find a copy as *near*, and nothing else? Flipped bit images, changed photographs.

(a) Bit images are made and ingested. Then copies with some random bits flipped, and images that the
set lacks, are looked up. (b) Photographs of the given folders are ingested, each once. Then changed
copies of some are looked up: compressed, shrunk, brightened, darkened, blurred or with noise. Every
other image within the distance counts as a false hit. These are listed, because they may well be
copies.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from engine import Store
from engine.cli.progress import Progress

from ..data import photographs
from ..harness import script
from ..harness.machine import machine, versions
from ..harness.sizes import check_disk, parse_count
from ..report.tables import Target, targets
from .near_bits import FLIPPED, Bits, bits_table, measure_bits
from .near_photos import (
    CHANGES,
    Pair,
    Photos,
    measure_photos,
    pairs_table,
    photos_table,
)


def main() -> bool:
    """Measure and print; true if every target is met."""
    parser = script.parser(__doc__)
    parser.add_argument("--n", default="1e6", help="bit images; 0: none  [1e6]")
    parser.add_argument("--queries", default="1000", help="lookups of each sort  [1000]")
    parser.add_argument("--photos", type=Path, nargs="*", help="folders  [those of the checkout]")
    parser.add_argument("--most", default="10000", help="photographs, at most  [10000]")
    parser.add_argument("--memory", default="1G", help="the memory of the store  [1G]")
    parser.add_argument("--seed", type=int, default=0, help="of images, choice and changes  [0]")
    parser.add_argument(
        "--dir", type=Path, help="folder for the stores, which are removed at the end"
    )
    parser.add_argument("--json", type=Path, help="a file for all of it, curves and pairs too")
    arguments = parser.parse_args()
    n = parse_count(arguments.n) if arguments.n != "0" else 0
    queries, most = parse_count(arguments.queries), parse_count(arguments.most)
    check_disk(n, arguments.dir)
    folders = [photographs.PHOTOS] if arguments.photos is None else arguments.photos
    bits: list[Bits] = []
    photos: list[Photos] = []
    pairs: list[Pair] = []
    images = 0
    with (
        script.work_folder(arguments.dir) as work,
        Progress("near", "lookups") as progress,
    ):
        if n:
            total = (len(FLIPPED) + 1) * queries
            with _new(work / "bits.store", arguments.memory) as store:
                tick = _ticker(progress, total)
                bits = measure_bits(n, store, queries=queries, seed=arguments.seed, tick=tick)
            print(bits_table(n, bits), end="\n\n")
        if folders:
            chosen = photographs.sample(folders, most, arguments.seed)
            total = len(CHANGES) * min(queries, len(chosen))
            with _new(work / "photos.store", arguments.memory) as store:
                store.ingest(*chosen)
                tick = _ticker(progress, total)
                images, photos, pairs = measure_photos(
                    chosen, store, queries=queries, seed=arguments.seed, tick=tick
                )
            print(photos_table(images, photos), end="\n\n")
            print(pairs_table(pairs), end="\n\n")
    wanted = targets_of(bits, photos)
    print(targets(wanted))
    if arguments.json is not None:
        body = {"machine": machine(), "versions": versions(), "n": n, "photographs": images}
        body |= {"bits": [asdict(one) for one in bits], "photos": [asdict(one) for one in photos]}
        body |= {"pairs": [asdict(one) for one in pairs]}
        arguments.json.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return all(one.met for one in wanted)


def _new(path: Path, memory: str) -> Store:
    return Store.open(path, create=True, encoder="none", memory=memory)


def _ticker(progress: Progress, total: int) -> Callable[[], None]:
    done: Iterator[int] = iter(range(1, total + 1))
    return lambda: progress(next(done), total)


def targets_of(bits: Sequence[Bits], photos: Sequence[Photos]) -> list[Target]:
    """The targets and their measurements."""
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


if __name__ == "__main__":
    script.exit_with(main)
