"""Many bit images, exactly: how fast are they taken in, and how fast is each found again?

Images of 100×100 RGB bits that lie packed in memory are ingested until they are durable on disk:
with their pixels; then their keys and proofs only, beside SQLite and LMDB doing the same. Then each
store is asked, from the packed image to the verified answer, in batches of 1,000 and one at a time;
and for growing n, beside a dict, a list and brute force.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.cli.progress import Progress
from engine.config import parse_memory
from engine.errors import UsageError

from ..data import bit_images
from ..harness import memory, script
from ..harness.process import run_child
from ..harness.sizes import check_disk, parse_count, steps_up_to
from ..peers.key_tables import LMDB, SQLITE
from ..peers.methods import DICT, ENGINE, LIST, PIXELS
from ..report.tables import Target, align, targets
from .exact_store_child import BATCH

KEYS = "keys and proofs"
SAMPLE = 20_000  # images asked for, in batches
_HEADROOM = 1.3  # memory needed, beside that of the images themselves
_SIZES = 4  # of the table of growth, each ten times the one before
# What holds the set in memory is asked up to the size at which it becomes tedious.
_IN_MEMORY = {DICT: 1_000_000, LIST: 100_000, PIXELS: 10_000}


@dataclass(frozen=True, slots=True)
class Job:
    """One way to take the set in."""

    method: str
    keep_pixels: str
    what: str

    @property
    def store(self) -> str:
        """The name of its store's folder."""
        return f"{self.method}-{self.keep_pixels}"


KEPT = Job(ENGINE, "auto", "engine, pixels kept")
JOBS = (
    KEPT,
    Job(ENGINE, "no", f"engine, {KEYS}"),
    Job(SQLITE, "no", f"SQLite, {KEYS}"),
    Job(LMDB, "no", f"LMDB, {KEYS}"),
)
_ASKED = (KEPT, JOBS[2], JOBS[3])


@dataclass(frozen=True, slots=True)
class Taken:
    """One ingest: seconds, bytes that were written, and bytes of disk in the end."""

    n: int
    generate_s: float
    seconds: float
    cpu_s: float  # of all threads: what a busy machine changes least
    written: int
    disk: int

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.n / self.seconds


@dataclass(frozen=True, slots=True)
class Answers:
    """Medians of µs an image: in batches, and one at a time."""

    hit: float
    miss: float
    hit_one: float
    miss_one: float


class Bench:
    """Children over one set of stores, which lie in ``folder``."""

    def __init__(self, folder: Path, *, memory: int, seed: int, sample: int = SAMPLE) -> None:
        """``memory``: the engine's bound in bytes, of which the peers get what its keys get."""
        self._folder = folder
        self._given = {"seed": seed, "memory_bytes": memory}
        self._sample = sample

    def take(self, job: Job, n: int) -> Taken:
        """Take ``n`` images in, into a new store."""
        self.drop(job)
        spec = {"job": "take", "method": job.method, "n": n, "keep_pixels": job.keep_pixels}
        found = run_child(
            "questions.exact_store_child", spec | self._given | self._place(job)
        ).result
        return Taken(n, **found)

    def ask(self, job: Job, n: int) -> Answers:
        """Ask the store that ``take`` made."""
        spec = {"job": "ask", "method": job.method, "n": n, "sample": self._sample}
        return Answers(
            **run_child("questions.exact_store_child", spec | self._given | self._place(job)).result
        )

    def ask_in_memory(self, method: str, n: int) -> float:
        """The median of µs a hit of one that has no store."""
        spec = {"method": method, "n": n, "folder": "", "lookups": True}
        spec |= {
            "images": {"seed": self._given["seed"]},
            "memory_bytes": self._given["memory_bytes"],
        }
        hits: list[float] = run_child("peers.method_child", spec).result["hit_us"]
        return statistics.median(hits)

    def drop(self, job: Job) -> None:
        """Remove the store of a job, if it is there."""
        shutil.rmtree(self._path(job), ignore_errors=True)

    def _path(self, job: Job) -> Path:
        return self._folder / job.store

    def _place(self, job: Job) -> dict[str, str]:
        return {"folder": str(self._path(job).absolute())}


def take_all(
    bench: Bench, n: int, rounds: int, tick: Callable[[str], None]
) -> dict[Job, list[Taken]]:
    """Every job once a round, each round beginning with another one; the last stores remain."""
    taken: dict[Job, list[Taken]] = {job: [] for job in JOBS}
    for number in range(rounds):
        for i in range(len(JOBS)):
            job = JOBS[(number + i) % len(JOBS)]
            tick(job.what)
            taken[job].append(bench.take(job, n))
            if number < rounds - 1 or job not in _ASKED:
                bench.drop(job)
    return taken


def ask_all(bench: Bench, n: int, rounds: int, tick: Callable[[str], None]) -> dict[Job, Answers]:
    """Medians over the rounds of what each store answers in."""
    found: dict[Job, list[Answers]] = {job: [] for job in _ASKED}
    for _ in range(rounds):
        for job in _ASKED:
            tick(f"lookups, {job.what}")
            found[job].append(bench.ask(job, n))
    return {
        job: Answers(
            *(
                statistics.median(getattr(one, name) for one in answers)
                for name in Answers.__dataclass_fields__
            )
        )
        for job, answers in found.items()
    }


def main() -> bool:
    """Measure and print; true if every target is met."""
    parser = script.parser(__doc__)
    parser.add_argument("--n", default="1e6", help="images  [1e6]")
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are taken  [3]")
    parser.add_argument("--memory", default="1G", help="the store's bound  [1G]")
    parser.add_argument("--seed", type=int, default=0, help="of the images  [0]")
    parser.add_argument("--sample", default=f"{SAMPLE}", help=f"images asked for  [{SAMPLE}]")
    parser.add_argument("--dir", type=Path, help="where the stores are made, and removed again")
    given = parser.parse_args()
    n, sample = parse_count(given.n), parse_count(given.sample)
    rounds = max(1, given.rounds)
    sizes = steps_up_to(n, _SIZES)
    check_memory(n)
    check_disk(n, given.dir or Path(tempfile.gettempdir()))
    if given.dir is not None:
        given.dir.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="engine-bench-", dir=given.dir) as work,
        Progress("exact_store", "children") as progress,
    ):
        memory_bytes = parse_memory(given.memory).total
        bench = Bench(Path(work), memory=memory_bytes, seed=given.seed, sample=sample)
        small = len(sizes) - 1
        in_memory = sum(size <= most for size in sizes for most in _IN_MEMORY.values())
        total = rounds * (len(JOBS) + len(_ASKED) * len(sizes)) + small * len(_ASKED) + in_memory
        done = iter(range(total))

        def tick(what: str) -> None:
            progress.note(what)
            progress(next(done), total)

        taken = take_all(bench, n, rounds, tick)
        print(taken_table(taken), end="\n\n")
        answers = {n: ask_all(bench, n, rounds, tick)}
        print(answers_table(answers[n]), end="\n\n")
        for size in reversed(sizes[:-1]):
            for job in _ASKED:
                tick(job.what)
                bench.take(job, size)
            answers[size] = ask_all(bench, size, rounds, tick)
        held: dict[str, dict[int, float]] = {method: {} for method in _IN_MEMORY}
        for method, most in _IN_MEMORY.items():
            for size in sizes:
                if size <= most:
                    tick(method)
                    held[method][size] = bench.ask_in_memory(method, size)
    print(growth_table(sizes, answers, held), end="\n\n")
    wanted = wanted_of(taken, answers[n])
    print(targets(wanted))
    return all(one.met for one in wanted)


def check_memory(n: int) -> None:
    """``UsageError`` unless a child can hold ``n`` packed images."""
    need, free = n * bit_images.PACKED_BYTES * _HEADROOM, memory.available()
    if free and need > free:
        raise UsageError(
            f"{n:,} packed images take about {need / 1e9:,.1f} GB of memory and {free / 1e9:,.1f} "
            f"GB are free: measure fewer"
        )


def wanted_of(taken: dict[Job, list[Taken]], answers: dict[Job, Answers]) -> list[Target]:
    """The targets, with what was measured for 100×100 RGB bit images."""
    kept, keys, sqlite, lmdb = (taken[job] for job in JOBS)
    engine = answers[KEPT]
    share = statistics.median(one.written / (one.n * bit_images.PACKED_BYTES) for one in kept)
    return [
        Target(f"ingest, {KEPT.what}", 110_000, _rate(kept), True, 0, "/s"),
        Target("bytes written, a byte of pixels", 1.1, share, digits=3),
        Target(f"ingest, {JOBS[1].what}", 150_000, _rate(keys), True, 0, "/s"),
        Target("the same, times SQLite's", 1.0, _times(keys, sqlite), True, 2),
        Target("the same, times LMDB's", 0.8, _times(keys, lmdb), True, 2),
        Target(f"a verified hit, of {BATCH:,} at once", 6.0, engine.hit, unit=" µs"),
        Target(f"a miss, of {BATCH:,} at once", 2.0, engine.miss, unit=" µs"),
        Target("a verified hit, one at a time", 15.0, engine.hit_one, unit=" µs"),
    ]


def _rate(taken: Sequence[Taken]) -> float:
    return statistics.median(one.rate for one in taken)


def _times(mine: Sequence[Taken], other: Sequence[Taken]) -> float:
    """How many times as fast, round by round: what disturbs a round disturbs both."""
    return statistics.median(a.rate / b.rate for a, b in zip(mine, other, strict=True))


def taken_table(taken: dict[Job, list[Taken]]) -> str:
    """The ingests as aligned columns: medians, and the slowest and fastest round; MB are 10^6 bytes."""
    generate = statistics.median(one.generate_s for rounds in taken.values() for one in rounds)
    lines = [
        (
            "ingest",
            "images/s",
            "slowest",
            "fastest",
            "CPU µs/image",
            "written B/image",
            "disk B/image",
        )
    ]
    for job, rounds in taken.items():
        rates = [one.rate for one in rounds]
        n = rounds[0].n
        lines.append(
            (
                job.what,
                f"{statistics.median(rates):,.0f}",
                f"{min(rates):,.0f}",
                f"{max(rates):,.0f}",
                f"{statistics.median(one.cpu_s for one in rounds) / n * 1e6:.1f}",
                f"{statistics.median(one.written for one in rounds) / n:,.0f}",
                f"{statistics.median(one.disk for one in rounds) / n:,.0f}",
            )
        )
    head = f"{n:,} images, made in memory beforehand ({generate:.1f} s, not counted)"
    return f"{head}\n{align(lines, left=(0,))}"


def answers_table(answers: dict[Job, Answers]) -> str:
    """The lookups of one size as aligned columns: µs an image."""
    lines: list[tuple[str, ...]] = [
        ("warm lookup, µs an image", "hit, batch", "miss, batch", "hit, one", "miss, one")
    ]
    for job, one in answers.items():
        times = (one.hit, one.miss, one.hit_one, one.miss_one)
        lines.append((job.what, *(f"{value:.2f}" for value in times)))
    return align(lines, left=(0,))


def growth_table(
    sizes: Sequence[int],
    answers: dict[int, dict[Job, Answers]],
    held: dict[str, dict[int, float]],
) -> str:
    """Hits by n as aligned columns, with the exponent of n that fits their times best."""
    rows: dict[str, dict[int, float]] = {}
    for job in _ASKED:
        rows[f"{job.what}, one"] = {size: answers[size][job].hit_one for size in sizes}
        rows[f"{job.what}, batch"] = {size: answers[size][job].hit for size in sizes}
    for method, found in held.items():
        rows[f"{method}, one"] = found
    lines: list[tuple[str, ...]] = [
        ("warm lookup, µs an image", *(f"n = {size:,}" for size in sizes), "exponent")
    ]
    for name, times in rows.items():
        cells = [f"{times[size]:,.2f}" if size in times else "-" for size in sizes]
        fitted = exponent(times)
        lines.append((name, *cells, "-" if fitted is None else f"{fitted:.2f}"))
    return align(lines, left=(0,))


def exponent(times: dict[int, float]) -> float | None:
    """e of the n^e that fits times by n best; None of fewer than two."""
    if len(times) < 2:
        return None
    return float(np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)[0])


if __name__ == "__main__":
    script.exit_with(main)
