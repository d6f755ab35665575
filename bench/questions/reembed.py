"""Does a killed ``engine reembed`` lose anything, or mix the vectors of two encoders?

A store of synthetic bit images changes its encoder. Its pixels are not kept, so that they are made
again. The command is killed with SIGKILL at seeded places: while it embeds, evenly spread, and around
the switch. After each kill a reader has to find vectors of one encoder only, those of the old one until
the switch, and all that was staged before. The next run goes on. In the end every vector is compared
with what the encoder makes of its image, and ``check`` has to find nothing.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine import Store
from engine.cli.progress import Progress
from engine.config import parse_memory
from engine.errors import EngineError, UsageError

from ..harness import script
from ..harness.errors import BenchError, WrongAnswerError
from ..report.tables import align
from .tiny_encoder import write_tiny_encoder

AROUND_THE_SWITCH = 0.3  # share of the kills
SWITCH_SECONDS = 0.3  # after the last vector is staged, at most
SAMPLE = 200  # images whose vectors a reader compares
TOLERANCE = 1e-5
PAUSE = 0.01  # seconds between two looks at what is staged
OLD, NEW = "old", "new"


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill, and what a reader found after it."""

    wanted: str
    before: int  # vectors that were staged when the run began
    after: int
    encoder: str
    seconds: float  # of the run that was killed


@dataclass(slots=True)
class Report:
    """All kills, and the content of the store in the end."""

    kills: list[Kill]
    images: int = 0
    switches: int = 0
    last_seconds: float = 0.0  # of the run that was not killed
    last_kept: int = 0  # vectors that it found staged


class Reembeds:
    """One store whose encoder changes, by one command after another, each of which is killed."""

    def __init__(self, folder: Path, *, n: int, seed: int, memory: int) -> None:
        """``folder`` holds the store and two encoders."""
        self._store, self._n, self._memory, self._seed = folder / "s.store", n, memory, seed
        self._draw = random.Random(seed)
        # The encoder of the store and the other one; they change places with each switch.
        self._names = {OLD: "first", NEW: "second"}
        self._encoders = {
            name: write_tiny_encoder(folder / name, number)
            for number, name in enumerate(("first", "second"))
        }
        self._own = {name: self._encoding(folder, name) for name in self._encoders}
        encoder = str(self._encoders["first"])
        with Store.open(self._store, create=True, encoder=encoder, memory=memory) as store:
            store.ingest(f"synthetic:bits?n={n}&seed={seed}", keep_pixels="no")
        self._fingerprint = self._fingerprint_of(self._store)
        self.report = Report([], images=n)

    def _encoding(self, folder: Path, name: str) -> Path:
        """An empty store with an encoder, which says what the encoder makes of an image."""
        path = folder / f"{name}.store"
        encoder = str(self._encoders[name])
        Store.open(path, create=True, encoder=encoder, memory=self._memory).close()
        return path

    def _fingerprint_of(self, path: Path) -> str:
        with Store.open(path, read_only=True, memory=self._memory) as store:
            found = store.info().encoder
        if found is None:
            raise BenchError(f"{path} has no encoder")
        return str(found["fingerprint"])

    def run(
        self, count: int, progress: Callable[[int, int | None], None] = lambda done, total: None
    ) -> Report:
        """Kill ``count`` times; ``WrongAnswerError`` as soon as the store is wrong."""
        late = round(count * AROUND_THE_SWITCH)
        shares = [(k + 1) / (count - late + 1) for k in range(count - late)]
        try:
            for number in range(count):
                progress(number, count)
                share = shares[number] if number < len(shares) else None
                self._kill(share)
            self._finish()
            progress(count, count)
        except BenchError:
            raise
        except EngineError as error:  # the store cannot be opened or read
            raise WrongAnswerError(str(error)) from None
        return self.report

    def _command(self) -> list[str]:
        encoder = self._encoders[self._names[NEW]]
        options = ["--encoder", str(encoder), "--memory", str(self._memory), "--json"]
        return [sys.executable, "-m", "engine", "reembed", "--store", str(self._store), *options]

    def _staged(self, store: Store) -> int:
        found = store.info().reembed
        return int(str(found["vectors"])) if found else 0

    def _kill(self, share: float | None) -> None:
        """Run the command until a share of the vectors is staged, or until about the switch; kill it."""
        wait = self._draw.uniform(0, SWITCH_SECONDS)
        wanted = round(self._n * share) if share is not None else self._n
        started = time.perf_counter()
        with Store.open(self._store, read_only=True, memory=self._memory) as store:
            before = self._staged(store)
            with subprocess.Popen(
                self._command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as child:
                while child.poll() is None and self._staged(store) < wanted:
                    if self._switched(store):
                        break
                    time.sleep(PAUSE)
                if share is None:
                    time.sleep(wait)
                child.send_signal(signal.SIGKILL)
                _, said = child.communicate()
            if child.returncode not in (0, -signal.SIGKILL):
                raise WrongAnswerError(said.decode(errors="replace").strip())
        seconds = time.perf_counter() - started
        self.look(f"{share:.0%}" if share is not None else f"all + {wait:.2f} s", before, seconds)

    def _switched(self, store: Store) -> bool:
        found = store.info().encoder
        return found is not None and found["fingerprint"] != self._fingerprint

    def look(self, wanted: str, before: int, seconds: float) -> None:
        """Read the store after a kill; ``WrongAnswerError`` if it is wrong."""
        with Store.open(self._store, read_only=True, memory=self._memory) as store:
            switched, after = self._switched(store), self._staged(store)
            if not switched and after < before:
                raise WrongAnswerError(f"{before:,} vectors were staged, and {after:,} are left")
            encoder = NEW if switched else OLD
            ids = sorted(self._draw.sample(range(1, self._n + 1), min(SAMPLE, self._n)))
            self.compare(store, self._names[encoder], ids)
            self.report.kills.append(Kill(wanted, before, after, encoder, seconds))
        if switched:
            self.report.switches += 1
            self._names = {OLD: self._names[NEW], NEW: self._names[OLD]}
            self._fingerprint = self._fingerprint_of(self._store)

    def compare(self, store: Store, name: str, ids: list[int]) -> None:
        """All of these images have the vectors of one encoder, and are found by them."""
        rows = [f"synthetic:bits?seed={self._seed}#{id_ - 1}" for id_ in ids]
        with Store.open(self._own[name], read_only=True, memory=self._memory) as own:
            wanted = own.encode(rows)
        found = store.vectors(ids)
        if not np.allclose(found, wanted, atol=TOLERANCE):
            bad = int((~np.isclose(found, wanted, atol=TOLERANCE).all(axis=1)).sum())
            raise WrongAnswerError(f"{bad} of {len(ids)} vectors are not those of the encoder")
        scores, _ = store.search_vectors(wanted[:10], 1, recall=1)
        if not np.allclose(scores[:, 0], 1, atol=1e-4):
            raise WrongAnswerError("an image is not found by its vector")

    def _finish(self) -> None:
        """Let a run end, and compare every vector."""
        started = time.perf_counter()
        with Store.open(self._store, memory=self._memory) as store:
            report = store.reembed(str(self._encoders[self._names[NEW]]))
            self.report.last_seconds = time.perf_counter() - started
            self.report.last_kept = report.kept
            if not report.switched or report.kept + report.embedded != self._n:
                raise WrongAnswerError("the last run did not embed all images")
            for first in range(1, self._n + 1, 10_000):
                ids = [*range(first, min(first + 10_000, self._n + 1))]
                self.compare(store, self._names[NEW], ids)
            problems = store.check().problems
            if problems or store.info().reembed is not None:
                raise WrongAnswerError(f"the check finds {len(problems)} problems, or leftovers")


def main() -> bool:
    """Kill and print; true if nothing was lost."""
    parser = script.parser(__doc__)
    parser.add_argument("--n", type=float, default=1e5, help="images  [1e5]")
    parser.add_argument("--kills", type=int, default=20, help="of the command  [20]")
    parser.add_argument("--seed", type=int, default=0, help="of the images and moments  [0]")
    parser.add_argument("--memory", default="256M", help="the memory of the command  [256M]")
    parser.add_argument(
        "--dir", type=Path, help="folder for the store, which is removed at the end"
    )
    arguments = parser.parse_args()
    if arguments.kills < 1 or arguments.n < 1:
        raise UsageError("kills and n must be 1 or more")
    memory = parse_memory(arguments.memory).total
    with script.work_folder(arguments.dir) as work:
        run = Reembeds(work, n=int(arguments.n), seed=arguments.seed, memory=memory)
        try:
            with Progress("kills", unit="kills") as progress:
                run.run(arguments.kills, progress)
        except WrongAnswerError as error:
            print(table(run.report))
            print(f"kill {len(run.report.kills) + 1}: {error}: MISSED")
            return False
    print(table(run.report))
    print("after each kill nothing was lost, and no vectors were mixed: met")
    return True


def table(report: Report) -> str:
    """The kills, one a line, and the last run."""
    lines = [("kill", "at", "staged before", "staged after", "answers with", "seconds")]
    lines += [
        (
            str(number),
            one.wanted,
            f"{one.before:,}",
            f"{one.after:,}",
            f"the {one.encoder} encoder",
            f"{one.seconds:.1f}",
        )
        for number, one in enumerate(report.kills, 1)
    ]
    return "\n".join(
        (
            align(lines, left=(4,)),
            f"{report.images:,} images; {report.switches} of {len(report.kills)} kills came after the "
            f"switch; the last run found {report.last_kept:,} vectors and took "
            f"{report.last_seconds:.1f} s",
        )
    )


if __name__ == "__main__":
    script.exit_with(main)
