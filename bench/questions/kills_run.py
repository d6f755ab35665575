"""Kills the writers of one store one after the other, and checks the store after each."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from engine import Store
from engine.errors import EngineError

from ..harness.errors import BenchError, WrongAnswerError
from .kills_child import BEGIN, DONE, INDEX, INDEXED, LOOKING, OPEN, small_buffers
from .kills_ledger import BLANK, SYNTHETIC, Chunk, Ledger, Picture, values
from .kills_writer import Writer
from .tiny_encoder import TINY, write_tiny_encoder

FILES, ROWS, SYNTHETIC_ROWS = 8, 60, 45  # new ones each round
MAX_COMMITS = 24  # a child is killed after fewer commits than this,
MAX_SECONDS = 0.04  # and at most this time
SAMPLE = 200  # images of earlier rounds that a reader looks up; the writer looks up all
NO_ENCODER = "none"
OPENING, COMMITTING, INDEXING, BETWEEN = "opening the store", "a commit", "indexing", "in between"
_AT = {OPEN: OPENING, BEGIN: COMMITTING, DONE: BETWEEN, INDEX: INDEXING, INDEXED: BETWEEN}
_IDENTICAL = ["identical"]


@dataclass(slots=True)
class Report:
    """What the kills interrupted, and the content of the store in the end."""

    hits: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0  # chunks in flight at a kill
    landed: int = 0  # chunks of these that were committed but not acknowledged
    commits: int = 0  # that children acknowledged
    images: int = 0
    sources: int = 0
    vectors: int = 0
    segments: int = 0
    extents: int = 0
    tables: int = 0
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        """Kills of children that had begun to write, without those during opening."""
        return self.hits.total() - self.hits[OPENING]


class Kills:
    """One store, written by one child after the other, each of which is killed."""

    def __init__(self, folder: Path, *, seed: int, memory: int, encoder: str) -> None:
        """``folder`` holds the store and the sources, and the encoder if ``encoder`` is "tiny"."""
        self._folder = folder
        self._pictures = folder / "pictures"
        self._pictures.mkdir()
        self._store = folder / "kills.store"
        self._memory = memory
        self._draw = random.Random(seed)
        self._rounds = 0
        self._made: list[Picture] = []
        self.ledger = Ledger()
        self.report = Report()
        if encoder == TINY:
            encoder = str(write_tiny_encoder(folder / TINY))
        self._has_vectors = encoder != NO_ENCODER
        Store.open(self._store, create=True, encoder=encoder, memory=memory).close()

    def run(
        self, count: int, progress: Callable[[int, int | None], None] = lambda done, total: None
    ) -> Report:
        """Kill ``count`` times; ``WrongAnswerError`` as soon as the store is wrong."""
        started = time.perf_counter()
        following = self._spawn()
        try:
            progress(0, count)
            while self.report.kills < count:
                # Started ahead, so that it imports its modules while the store is checked.
                child, following = following, self._spawn()
                try:
                    self._kill(child)
                finally:
                    child.end()
                self._look(child.in_flight)
                progress(self.report.kills, count)
            self._go_to_the_end(following)
            self._look(None)
            self._count()
        except BenchError:
            raise
        except EngineError as error:  # the store cannot be opened, read or recovered
            raise WrongAnswerError(str(error)) from None
        finally:
            following.end()
            self.report.seconds = time.perf_counter() - started
        return self.report

    # --- writing and killing ----------------------------------------------------------------------

    def _spawn(self) -> Writer:
        return Writer(self._folder, self._store, self._memory, self.ledger)

    def _kill(self, child: Writer) -> None:
        """Let a child write some commits, whatever their duration, and kill it a moment later."""
        # The synthetic set is so long that the child never runs out of work.
        child.begin([*self._sources(), f"{SYNTHETIC}&n=1e9"])
        commits, seconds = self._draw.randrange(MAX_COMMITS), self._draw.uniform(0, MAX_SECONDS)
        while child.hear() and child.commits < commits:
            pass
        time.sleep(seconds)
        child.kill()
        self.report.hits[_AT[child.at]] += 1
        self.report.commits += child.commits

    def _go_to_the_end(self, child: Writer) -> None:
        """Let the last child finish: it must report exactly the committed items as unchanged."""
        images, committed = self.ledger.counts()
        child.begin(self._sources(every=True))
        while child.hear():
            pass
        self.report.commits += child.commits
        if child.finished is None:
            raise BenchError(f"a child ended by itself: {child.last_words()}")
        seen = len(self.ledger.files) + sum(map(len, self.ledger.arrays.values()))
        seen += self.ledger.rows[SYNTHETIC]
        due = {"seen": seen, "added": self.ledger.counts()[0] - images, "unchanged": committed}
        found = {name: child.finished[name] for name in due}
        if found != due or self.ledger.counts()[1] != seen:
            raise WrongAnswerError(f"the last ingest reports {found} instead of {due}")

    def _sources(self, *, every: bool = False) -> list[str]:
        """Write this round's files; returns a child's sources, in any order."""
        folder = self._pictures / f"{self._rounds:06}"
        folder.mkdir()
        for number in range(FILES):
            picture = self._picture("8-bit" if number % 3 == 0 else "bits", again=0.25)
            path = folder / f"{number}.{self._draw.choice(['png', 'bmp'])}"
            scale = 255 if picture.kind == "bits" else 1
            Image.fromarray(values(picture) * np.uint8(scale)).save(path)
            self.ledger.files[str(path)] = picture
        rows = [self._picture("bits", again=0.2) for _ in range(ROWS)]
        rows[ROWS // 2] = BLANK  # one image with a source in each array
        path = self._folder / f"{self._rounds:06}.npy"
        np.save(path, np.stack([values(row) for row in rows]).astype(np.bool_))
        self.ledger.arrays[str(path)] = rows
        self._rounds += 1
        # Finished arrays are named again now and then; the folder holds all pictures so far.
        left = [
            name
            for name, rows in self.ledger.arrays.items()
            if every or self.ledger.rows[name] < len(rows) or self._draw.random() < 0.1
        ]
        done = self.ledger.rows[SYNTHETIC]
        sources = [str(self._pictures), *left, f"{SYNTHETIC}&n={done + SYNTHETIC_ROWS}"]
        self._draw.shuffle(sources)
        return sources

    def _picture(self, kind: str, again: float) -> Picture:
        if self._draw.random() < again:
            old = self._draw.choice(self._made or [BLANK])
            if old.kind == kind:
                return old
        new = Picture(kind, len(self._made) + 1)
        self._made.append(new)
        return new

    # --- checking ---------------------------------------------------------------------------------

    def _look(self, in_flight: Chunk | None) -> None:
        """Compare the store with the ledger, as a reader and, recovered, as a writer."""
        before = list(self.ledger.images)
        lost: set[Picture] = set()
        with small_buffers():
            with self._open(read_only=True) as reader:
                there = len(reader), reader.info().sources
                if in_flight is not None:
                    self.report.in_flight += 1
                    if there == self.ledger.counts(in_flight):
                        self.report.landed += 1
                        self.ledger.add(in_flight)
                    else:
                        lost = {picture for picture, _ in self.ledger.places(in_flight)}
                self._compare(reader)
                recent = [
                    picture for picture in self.ledger.images if picture not in self.ledger.ids
                ]
                old = self._draw.sample(before, min(SAMPLE, len(before)))
                self._verify(reader, {*recent, *old}, lost)
            with self._open() as writer:
                writer.ingest(f"{SYNTHETIC}&n=0", encoder=NO_ENCODER)  # recovers it, and no more
                problems = writer.check().problems
                if problems:
                    raise WrongAnswerError(f"check: {problems[0].part}: {problems[0].what}")
                self._compare(writer)
                self._verify(writer, self.ledger.images, lost)

    def _open(self, *, read_only: bool = False) -> Store:
        # A reader needs the writer's limits, which say how many rows an extent has.
        return Store.open(self._store, read_only=read_only, memory=self._memory, limits=LOOKING)

    def _compare(self, store: Store) -> None:
        info = store.info()
        there, due = (len(store), info.sources), self.ledger.counts()
        if there != due or info.images != len(store):
            raise WrongAnswerError(
                f"{there[0]:,} images with {there[1]:,} sources are there, "
                f"{due[0]:,} with {due[1]:,} were committed"
            )
        if self._has_vectors and info.vectors != info.images:
            raise WrongAnswerError(f"{info.images:,} images have {info.vectors:,} vectors")
        report = self.report
        report.images, report.sources, report.vectors = info.images, info.sources, info.vectors
        report.segments = len(info.segments)

    def _verify(self, store: Store, pictures: Iterable[Picture], lost: Iterable[Picture]) -> None:
        """Each picture is found once, by its own pixels, with all its sources; lost ones are not."""
        for picture in pictures:
            sources = self.ledger.images[picture]
            hits = store.lookup(picture.query, tiers=_IDENTICAL).identical
            if [hit.verified for hit in hits] != [picture.verified]:
                raise WrongAnswerError(f"{picture} was committed, and found are {hits}")
            (hit,) = hits
            found = set(hit.sources)
            if hit.source_count > len(found):
                found = set(store.sources(hit.id))
            if found != sources or hit.source_count != len(sources):
                raise WrongAnswerError(f"{picture} was seen in {sources}, and found is {hit}")
            if self.ledger.ids.setdefault(picture, hit.id) != hit.id:
                raise WrongAnswerError(f"{picture} was image {self.ledger.ids[picture]}: {hit}")
        for picture in lost:
            if picture not in self.ledger.images:
                hits = store.lookup(picture.query, tiers=_IDENTICAL).identical
                if hits:
                    raise WrongAnswerError(f"{picture} is of a chunk that is not there: {hits}")

    def _count(self) -> None:
        """Count the parts of the store in the end."""
        paths = [path for path in self._store.rglob("*") if path.is_file()]
        self.report.tables = sum(path.suffix == ".sst" for path in paths)
        families = {"pixels", "fingerprints", "vectors"}
        self.report.extents = sum(not families.isdisjoint(path.parts) for path in paths)
