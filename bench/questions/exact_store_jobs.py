"""The jobs of ``exact_store``: ingests and lookups, run in children."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..harness.process import run_child
from ..peers.key_tables import LMDB, SQLITE
from ..peers.methods import ENGINE

KEYS = "keys and proofs"
SAMPLE = 20_000  # images looked up in batches


@dataclass(frozen=True, slots=True)
class Job:
    """One way to ingest the set."""

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
ASKED = (KEPT, JOBS[2], JOBS[3])


@dataclass(frozen=True, slots=True)
class Taken:
    """One ingest: seconds, written bytes, and bytes of disk in the end."""

    n: int
    generate_s: float
    seconds: float
    cpu_s: float  # of all threads; a busy machine changes this least
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
        """``memory`` is the engine's limit in bytes; peers get the engine's share for keys."""
        self._folder = folder
        self._given = {"seed": seed, "memory_bytes": memory}
        self._sample = sample

    def take(self, job: Job, n: int) -> Taken:
        """Ingest ``n`` images into a new store."""
        self.drop(job)
        spec = {"job": "take", "method": job.method, "n": n, "keep_pixels": job.keep_pixels}
        found = run_child(
            "questions.exact_store_child", spec | self._given | self._place(job)
        ).result
        return Taken(n, **found)

    def ask(self, job: Job, n: int) -> Answers:
        """Look images up in the store that ``take`` made."""
        spec = {"job": "ask", "method": job.method, "n": n, "sample": self._sample}
        return Answers(
            **run_child("questions.exact_store_child", spec | self._given | self._place(job)).result
        )

    def ask_in_memory(self, method: str, n: int) -> float:
        """The median of µs a hit of a method without a store."""
        spec = {"method": method, "n": n, "folder": "", "lookups": True}
        spec |= {
            "images": {"seed": self._given["seed"]},
            "memory_bytes": self._given["memory_bytes"],
        }
        hits: list[float] = run_child("peers.method_child", spec).result["hit_us"]
        return statistics.median(hits)

    def drop(self, job: Job) -> None:
        """Remove the store of a job, if it exists."""
        shutil.rmtree(self._path(job), ignore_errors=True)

    def _path(self, job: Job) -> Path:
        return self._folder / job.store

    def _place(self, job: Job) -> dict[str, str]:
        return {"folder": str(self._path(job).absolute())}


def take_all(
    bench: Bench, n: int, rounds: int, tick: Callable[[str], None]
) -> dict[Job, list[Taken]]:
    """Run every job once a round, each round beginning with another one; the last stores remain."""
    taken: dict[Job, list[Taken]] = {job: [] for job in JOBS}
    for number in range(rounds):
        for i in range(len(JOBS)):
            job = JOBS[(number + i) % len(JOBS)]
            tick(job.what)
            taken[job].append(bench.take(job, n))
            if number < rounds - 1 or job not in ASKED:
                bench.drop(job)
    return taken


def ask_all(bench: Bench, n: int, rounds: int, tick: Callable[[str], None]) -> dict[Job, Answers]:
    """Medians over the rounds of the times of each store's lookups."""
    found: dict[Job, list[Answers]] = {job: [] for job in ASKED}
    for _ in range(rounds):
        for job in ASKED:
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
