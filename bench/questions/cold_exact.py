"""What does an exact lookup cost when nothing is in memory? Counts the disk's reads, and times them.

The process that asks has 256 MB for everything, page cache included, and a store that is far larger.
Before it starts, nothing of the store is cached. It looks up random images, one at a time and in batches
of 1,000, and as many misses. The disk's own speed at random reads is measured beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.cli.progress import Progress
from engine.config import parse_memory
from engine.errors import UsageError

from ..harness import disk, script
from ..harness.measurement import quantiles
from ..harness.memory_limit import limited
from ..harness.process import run_child
from ..harness.sizes import STORE_BYTES, check_disk, parse_count
from ..report.tables import Target, align, targets
from .cold_exact_child import ROW_BYTES

MEMORY = 128 << 20  # of the engine; the page cache gets the rest of the limit
COUNT = 20_000  # images looked up
_KEYS_BYTES = 250  # of disk, during the ingest, an image whose pixels are not kept
_MAKE_MEMORY = 1 << 30  # of the ingest, which is not measured


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of lookup in one of the stores."""

    what: str
    kept: bool  # whether it searches the store with pixels, else that of keys
    there: bool
    batched: bool


HITS = Kind("hits, one at a time", True, True, False)
MISSES = Kind("misses, one at a time", True, False, False)
HITS_BATCHED = Kind("hits, 1,000 at once", True, True, True)
MISSES_BATCHED = Kind("misses, 1,000 at once", True, False, True)
KEY_HITS = Kind("hits, keys only", False, True, False)
KEY_MISSES = Kind("misses, keys only", False, False, False)
KINDS = (HITS, MISSES, HITS_BATCHED, MISSES_BATCHED, KEY_HITS, KEY_MISSES)


@dataclass(frozen=True, slots=True)
class Cold:
    """One child that did ``count`` lookups; ``seconds`` are of single calls, or of batches."""

    count: int
    seconds: list[float]
    opening_reads: int  # to open the store; not counted below
    reads: int  # of the disk in that time, for any program
    disk_bytes: int  # of those reads
    own_bytes: int  # the part of them that this child read
    peak: int  # bytes of memory, page cache included
    at_bound: int  # how often the kernel had to reclaim memory to stay within the limit

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.count / sum(self.seconds)

    @property
    def each(self) -> float:
        """Reads a lookup."""
        return self.reads / self.count


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """Seconds of one read alone, and reads a second in several ways."""

    latency: float
    rates: dict[str, float]

    @property
    def best(self) -> float:
        """Reads a second in the way that is fastest on this disk."""
        return max(self.rates.values())


@dataclass(frozen=True, slots=True)
class Set:
    """One store: how many images, whether with pixels, and where."""

    n: int
    seed: int
    kept: bool
    folder: Path

    @property
    def store(self) -> Path:
        """The folder of the store."""
        name = f"{'pixels' if self.kept else 'keys'}-{self.n}-{self.seed}.store"
        return (self.folder / name).absolute()

    def make(self, done: Callable[[int], None]) -> None:
        """Ingest the images that the store does not have yet."""
        spec = {"job": "make", "memory_bytes": _MAKE_MEMORY, **self._given()}
        run_child(
            "questions.cold_exact_child",
            spec | {"keep_pixels": "auto" if self.kept else "no"},
            done,
        )

    def ask(self, kind: Kind, bound: int, count: int = COUNT) -> Cold:
        """Look images up, with nothing cached, within ``bound`` bytes of memory."""
        disk.forget(self.store)
        spec = {"job": "ask", "memory_bytes": MEMORY, "count": count, **self._given()}
        spec |= {"there": kind.there, "batched": kind.batched}
        with limited(bound) as limit:
            return Cold(**run_child("questions.cold_exact_child", spec, within=limit.within).result)

    def read_disk(self, number: int, bound: int, count: int = COUNT) -> DiskSpeed:
        """The disk's speed at reads as long as an image's kept pixels; ``number`` seeds the places."""
        disk.forget(self.store)
        spec = {"job": "disk", "seed": number, "folder": str(self.store), "count": count}
        with limited(bound) as limit:
            return DiskSpeed(
                **run_child("questions.cold_exact_child", spec, within=limit.within).result
            )

    def _given(self) -> dict[str, object]:
        return {"n": self.n, "seed": self.seed, "folder": str(self.store)}


def main() -> bool:
    """Measure and print; true if every target is met."""
    parser = script.parser(__doc__)
    parser.add_argument("--n", default="1e6", help="images of the store with pixels  [1e6]")
    parser.add_argument("--keys", default="1e7", help="of the one without  [1e7]")
    parser.add_argument("--limit", default="256M", help="memory, page cache included  [256M]")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds, whose medians are printed  [3]"
    )
    parser.add_argument("--count", default=f"{COUNT}", help=f"images to look up  [{COUNT}]")
    parser.add_argument("--seed", type=int, default=0, help="of the images  [0]")
    parser.add_argument("--dir", type=Path, help="folder for the stores")
    parser.add_argument("--keep", action="store_true", help="keep them there for the next run")
    arguments = parser.parse_args()
    n, keys, count = (
        parse_count(arguments.n),
        parse_count(arguments.keys),
        parse_count(arguments.count),
    )
    bound = parse_memory(arguments.limit).total
    if arguments.keep and arguments.dir is None:
        raise UsageError("--keep needs a --dir to leave the stores in")
    with limited(bound) as limit:  # before a store is made in vain
        how = limit.how
    with script.work_folder(arguments.dir, arguments.keep) as folder:
        kept, bare = Set(n, arguments.seed, True, folder), Set(keys, arguments.seed, False, folder)
        missing = [STORE_BYTES * n] * (not kept.store.exists())
        missing += [_KEYS_BYTES * keys] * (not bare.store.exists())
        check_disk(n + keys, folder, sum(missing) // (n + keys))
        with Progress("cold_exact") as progress:
            for one in (kept, bare):
                one.make(lambda done, n=one.n: progress(done, n))  # type: ignore[misc]
        asked: dict[Kind, list[Cold]] = {kind: [] for kind in KINDS}
        speeds: list[DiskSpeed] = []
        rounds = max(1, arguments.rounds)
        with Progress("cold_exact", "children") as progress:
            done = iter(range(rounds * (len(KINDS) + 1)))
            for number in range(rounds):
                for kind in KINDS:
                    progress.note(kind.what)
                    progress(next(done), rounds * (len(KINDS) + 1))
                    asked[kind].append((kept if kind.kept else bare).ask(kind, bound, count))
                    if kind is HITS_BATCHED:
                        progress.note("disk")
                        progress(next(done), rounds * (len(KINDS) + 1))
                        speeds.append(kept.read_disk(number, bound, count))
    print(f"within {bound / 1e6:,.0f} MB, page cache included ({how}); pixels of {n:,} images")
    print(f"are kept, of {keys:,} they are not, and their hits are verified by SHA-256\n")
    print(asked_table(asked), end="\n\n")
    print(disk_table(speeds), end="\n\n")
    wanted = targets_of(n, keys, asked, speeds)
    print(targets(wanted))
    return all(one.met for one in wanted)


def targets_of(
    n: int, keys: int, asked: dict[Kind, list[Cold]], speeds: Sequence[DiskSpeed]
) -> list[Target]:
    """The targets and their measurements."""
    shares = [
        cold.rate / speed.best for cold, speed in zip(asked[HITS_BATCHED], speeds, strict=True)
    ]
    return [
        Target(f"reads a verified hit, {n:,} images", 1.3, _each(asked[HITS]), digits=2),
        Target(f"reads a miss, {n:,} images", 0.1, _each(asked[MISSES]), digits=3),
        # These hits have no pixels; with kept pixels each would need one more read.
        Target(f"reads a hit, {keys:,} keys, + 1", 2.2, _each(asked[KEY_HITS]) + 1, digits=2),
        Target(
            "hits in batches, of the disk's rate",
            75,
            100 * statistics.median(shares),
            True,
            0,
            " %",
        ),
    ]


def _each(rounds: Sequence[Cold]) -> float:
    return _fewest(rounds).each


def _fewest(rounds: Sequence[Cold]) -> Cold:
    """The round with the fewest reads: all ask the same, and reads of other programs only add."""
    return min(rounds, key=lambda one: one.each)


def asked_table(asked: dict[Kind, list[Cold]]) -> str:
    """Medians of times, the fewest reads, as aligned columns; MB are 10^6 bytes, kB 10^3.

    "ours" is the child's share of the bytes that the disk read; other programs read the rest.
    """
    head = ("cold", "reads each", "kB each", "ours %", "p50 µs", "p99 µs", "images/s")
    lines: list[tuple[str, ...]] = [(*head, "to open", "peak MB", "at bound")]
    for kind, rounds in asked.items():
        times = [quantiles(one.seconds) for one in rounds]
        single = not kind.batched
        fewest = _fewest(rounds)
        lines.append(
            (
                kind.what,
                f"{fewest.each:.3f}",
                f"{fewest.own_bytes / fewest.count / 1e3:.2f}",
                f"{100 * _ours(fewest):.0f}",
                f"{statistics.median(p50 for p50, _ in times) * 1e6:,.0f}" if single else "-",
                f"{statistics.median(p99 for _, p99 in times) * 1e6:,.0f}" if single else "-",
                f"{statistics.median(one.rate for one in rounds):,.0f}",
                f"{statistics.median(one.opening_reads for one in rounds):,.0f}",
                f"{max(one.peak for one in rounds) / 1e6:,.0f}",
                f"{statistics.median(one.at_bound for one in rounds):,.0f}",
            )
        )
    return align(lines, left=(0,))


def _ours(cold: Cold) -> float:
    return cold.own_bytes / cold.disk_bytes if cold.disk_bytes else 1.0


def disk_table(speeds: Sequence[DiskSpeed]) -> str:
    """The disk's speed, medians over the rounds as aligned columns."""
    lines = [(f"disk, {ROW_BYTES:,} bytes at random", "reads/s")]
    latency = statistics.median(speed.latency for speed in speeds)
    lines.append((f"one at a time ({latency * 1e6:,.0f} µs)", f"{1 / latency:,.0f}"))
    for way in speeds[0].rates:
        lines.append((way, f"{statistics.median(speed.rates[way] for speed in speeds):,.0f}"))
    return align(lines, left=(0,))


if __name__ == "__main__":
    script.exit_with(main)
