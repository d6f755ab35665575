"""Does a killed writer lose anything? Kills one with SIGKILL again and again, and looks after each.

A child ingests files and rows of arrays in small chunks, and tells of each commit through a pipe. It
is killed at seeded random moments. The store is then opened for reading: it has to hold what the
child told of, and of the chunk in flight all or nothing. Then it is opened for writing, which
recovers it: check has to find nothing, and every image that was told of has to be found, verified,
with all its sources. The next child goes on with the same sources, and may add nothing again.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine import Store
from engine.cli.progress import Progress
from engine.config import parse_memory
from engine.errors import EngineError, UsageError

from . import script
from .errors import BenchError, WrongAnswerError
from .kills_child import BEGIN, DONE, END, INDEX, INDEXED, LIMITS, OPEN, small_pieces
from .process import PACKAGE, environment, python
from .report import align

SIDE = 12  # pixels, of pictures and rows of arrays
FILES, ROWS, SYNTHETIC_ROWS = 8, 60, 45  # new ones each round
MAX_COMMITS = 24  # a child is left alone for so many of them at most,
MAX_SECONDS = 0.04  # and then for so long at most
SAMPLE = 200  # images of earlier rounds that a reader is asked for; the writer is asked for all
SYNTHETIC = "synthetic:bits?seed=0"
NO_ENCODER, TINY = "none", "tiny"
OPENING, COMMITTING, INDEXING, BETWEEN = "opening the store", "a commit", "indexing", "in between"
_AT = {OPEN: OPENING, BEGIN: COMMITTING, DONE: BETWEEN, INDEX: INDEXING, INDEXED: BETWEEN}
_IDENTICAL = ["identical"]

Values = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that can be made anew at any time: "bits", "8-bit", or a row of the synthetic set."""

    kind: str
    number: int

    @property
    def query(self) -> Values | str:
        """What ``Store.lookup`` takes."""
        return f"{SYNTHETIC}#{self.number}" if self.kind == "synthetic" else values(self)

    @property
    def verified(self) -> str:
        """How a hit is to be verified: the pixels of bit images are kept."""
        return "digest" if self.kind == "8-bit" else "bytes"


BLANK = Picture("bits", 0)  # a row of every array


@functools.cache
def values(picture: Picture) -> Values:
    """The pixels of a picture, (H, W, 3); those of bits are 0 and 1."""
    high = 2 if picture.kind == "bits" else 256
    draw = np.random.default_rng([picture.number, high])
    return draw.integers(0, high, (SIDE, SIDE, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one commit holds: files by name, and arrays with the number of rows that are done."""

    names: tuple[str, ...]
    arrays: tuple[tuple[str, int], ...]


@dataclass(slots=True)
class Told:
    """What there is to be ingested, and what of it a child told of: the truth, outside the store."""

    files: dict[str, Picture] = field(default_factory=dict)
    arrays: dict[str, list[Picture]] = field(default_factory=dict)
    committed: set[str] = field(default_factory=set)  # files
    rows: Counter[str] = field(default_factory=Counter)  # committed, by array
    images: dict[Picture, set[str]] = field(default_factory=dict)  # committed, with their sources
    ids: dict[Picture, int] = field(default_factory=dict)  # those that were ever seen

    def places(self, chunk: Chunk) -> list[tuple[Picture, str]]:
        """The images of a chunk with their sources; none of it may be committed already."""
        again = [name for name in chunk.names if name in self.committed]
        again += [name for name, rows in chunk.arrays if rows <= self.rows[name]]
        if again:
            raise WrongAnswerError(f"{again[0]} is committed, and was committed again")
        found = [(self.files[name], name) for name in chunk.names]
        for name, rows in chunk.arrays:
            for row in range(self.rows[name], rows):
                is_synthetic = name == SYNTHETIC
                picture = Picture("synthetic", row) if is_synthetic else self.arrays[name][row]
                found.append((picture, f"{name}#{row}"))
        return found

    def add(self, chunk: Chunk) -> None:
        """From now on this chunk is committed."""
        for picture, source in self.places(chunk):
            self.images.setdefault(picture, set()).add(source)
        self.committed.update(chunk.names)
        self.rows.update({name: rows - self.rows[name] for name, rows in chunk.arrays})

    def counts(self, chunk: Chunk | None = None) -> tuple[int, int]:
        """How many images and sources have to be there, with those of one more chunk."""
        more = self.places(chunk) if chunk is not None else []
        new = {picture for picture, _ in more} - self.images.keys()
        sources = len(self.committed) + self.rows.total()
        return len(self.images) + len(new), sources + len(more)


@dataclass(slots=True)
class Report:
    """What the kills hit, and what was there in the end."""

    hits: Counter[str] = field(default_factory=Counter)
    flights: int = 0  # chunks that were in flight
    landed: int = 0  # those of them that were committed, though the child could not say so any more
    commits: int = 0  # that children told of
    images: int = 0
    sources: int = 0
    vectors: int = 0
    segments: int = 0
    extents: int = 0
    tables: int = 0
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        """Kills of a child that had begun to write; those of one that was opening come on top."""
        return self.hits.total() - self.hits[OPENING]


class Child:
    """A process that writes to a store. What it tells of is told from then on."""

    def __init__(self, folder: Path, store: Path, memory: int, told: Told) -> None:
        self._told = told
        self._errors = folder / "errors.txt"
        self.at = ""  # what it last told that it was at
        self.flight: Chunk | None = None  # begun and not acknowledged
        self.commits = 0  # acknowledged
        self.finished: dict[str, Any] | None = None  # its report, if it came to its end
        spec = {"store": str(store), "memory": memory}
        with self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                python(f"{PACKAGE}.kills_child", json.dumps(spec)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # FAISS's threads would wait for each other. What a kill leaves in TMPDIR goes with
                # the rest of the folder.
                env=environment() | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
            )

    def begin(self, sources: list[str]) -> None:
        """Let it ingest."""
        print(json.dumps(sources), file=self._process.stdin, flush=True)

    def hear(self) -> bool:
        """Take one message; false if there are no more, but for one that a kill cut short."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            return False
        message = json.loads(line)
        if "error" in message:
            raise WrongAnswerError(f"a child could not write: {message['error']}")
        self.at = message["what"]
        if self.at == BEGIN:
            arrays = tuple((name, rows) for name, rows in message["arrays"])
            self.flight = Chunk(tuple(message["names"]), arrays)
        elif self.at == DONE and self.flight is not None:
            self._told.add(self.flight)
            self.flight = None
            self.commits += 1
        elif self.at == END:
            self.finished = message
        return True

    def kill(self) -> None:
        """Kill it; ``BenchError`` if it was not alive any more."""
        self._process.kill()
        if self._process.wait() != -signal.SIGKILL or self.finished is not None:
            raise BenchError(f"a child ended by itself: {self.last_words()}")
        while self.hear():  # what it told of before it was killed
            pass

    def last_words(self) -> str:
        """The last line on its standard error."""
        return self._errors.read_text("utf-8", "replace").strip().rpartition("\n")[2]

    def end(self) -> None:
        """Make sure that it is gone, and give its pipes back."""
        self._process.kill()
        self._process.communicate()


class Kills:
    """One store that is written by one child after the other, each of which is killed."""

    def __init__(self, folder: Path, *, seed: int, memory: int, encoder: str) -> None:
        """``folder`` takes the store and the sources; ``encoder``: "tiny" is made there too."""
        self._folder = folder
        self._pictures = folder / "pictures"
        self._pictures.mkdir()
        self._store = folder / "kills.store"
        self._memory = memory
        self._draw = random.Random(seed)
        self._rounds = 0
        self._made: list[Picture] = []
        self.told = Told()
        self.report = Report()
        if encoder == TINY:
            encoder = str(tiny_encoder(folder / TINY))
        self._has_vectors = encoder != NO_ENCODER
        Store.open(self._store, create=True, encoder=encoder, memory=memory).close()

    def run(
        self, count: int, progress: Callable[[int, int | None], None] = lambda done, total: None
    ) -> Report:
        """Kill ``count`` times; ``WrongAnswerError`` as soon as something is not as it has to be."""
        started = time.perf_counter()
        following = self._spawn()
        try:
            progress(0, count)
            while self.report.kills < count:
                # Started ahead: it imports what it needs while the store is looked at.
                child, following = following, self._spawn()
                try:
                    self._kill(child)
                finally:
                    child.end()
                self._look(child.flight)
                progress(self.report.kills, count)
            self._go_to_the_end(following)
            self._look(None)
            self._count()
        except BenchError:
            raise
        except EngineError as error:  # of a store that cannot be opened, read or recovered
            raise WrongAnswerError(str(error)) from None
        finally:
            following.end()
            self.report.seconds = time.perf_counter() - started
        return self.report

    # --- writing and killing ----------------------------------------------------------------------

    def _spawn(self) -> Child:
        return Child(self._folder, self._store, self._memory, self.told)

    def _kill(self, child: Child) -> None:
        """Let a child write some commits, however long they take here, and kill it a moment later."""
        child.begin([*self._sources(), f"{SYNTHETIC}&n=1e9"])  # it never has nothing to do
        commits, seconds = self._draw.randrange(MAX_COMMITS), self._draw.uniform(0, MAX_SECONDS)
        while child.hear() and child.commits < commits:
            pass
        time.sleep(seconds)
        child.kill()
        self.report.hits[_AT[child.at]] += 1
        self.report.commits += child.commits

    def _go_to_the_end(self, child: Child) -> None:
        """Let the last child live: what was committed is unchanged, and nothing else is."""
        images, committed = self.told.counts()
        child.begin(self._sources(every=True))
        while child.hear():
            pass
        self.report.commits += child.commits
        if child.finished is None:
            raise BenchError(f"a child ended by itself: {child.last_words()}")
        seen = len(self.told.files) + sum(map(len, self.told.arrays.values()))
        seen += self.told.rows[SYNTHETIC]
        due = {"seen": seen, "added": self.told.counts()[0] - images, "unchanged": committed}
        found = {name: child.finished[name] for name in due}
        if found != due or self.told.counts()[1] != seen:
            raise WrongAnswerError(f"the last ingest reports {found} instead of {due}")

    def _sources(self, *, every: bool = False) -> list[str]:
        """Write this round's files; returns what a child is to ingest, in any order."""
        folder = self._pictures / f"{self._rounds:06}"
        folder.mkdir()
        for number in range(FILES):
            picture = self._picture("8-bit" if number % 3 == 0 else "bits", again=0.25)
            path = folder / f"{number}.{self._draw.choice(['png', 'bmp'])}"
            scale = 255 if picture.kind == "bits" else 1
            Image.fromarray(values(picture) * np.uint8(scale)).save(path)
            self.told.files[str(path)] = picture
        rows = [self._picture("bits", again=0.2) for _ in range(ROWS)]
        rows[ROWS // 2] = BLANK  # one image that has a source in each array
        path = self._folder / f"{self._rounds:06}.npy"
        np.save(path, np.stack([values(row) for row in rows]).astype(np.bool_))
        self.told.arrays[str(path)] = rows
        self._rounds += 1
        # Arrays that are done are named again now and then; the folder holds all pictures so far.
        left = [
            name
            for name, rows in self.told.arrays.items()
            if every or self.told.rows[name] < len(rows) or self._draw.random() < 0.1
        ]
        done = self.told.rows[SYNTHETIC]
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

    # --- looking ----------------------------------------------------------------------------------

    def _look(self, flight: Chunk | None) -> None:
        """Compare the store with what was told, as a reader and, recovered, as a writer."""
        before = list(self.told.images)
        lost: set[Picture] = set()
        with small_pieces():
            with Store.open(self._store, read_only=True, memory=self._memory) as reader:
                there = len(reader), reader.info().sources
                if flight is not None:
                    self.report.flights += 1
                    if there == self.told.counts(flight):
                        self.report.landed += 1
                        self.told.add(flight)
                    else:
                        lost = {picture for picture, _ in self.told.places(flight)}
                self._compare(reader)
                recent = [picture for picture in self.told.images if picture not in self.told.ids]
                old = self._draw.sample(before, min(SAMPLE, len(before)))
                self._verify(reader, {*recent, *old}, lost)
            with Store.open(self._store, memory=self._memory, limits=LIMITS) as writer:
                writer.ingest(f"{SYNTHETIC}&n=0", encoder=NO_ENCODER)  # recovers it, and no more
                problems = writer.check().problems
                if problems:
                    raise WrongAnswerError(f"check: {problems[0].part}: {problems[0].what}")
                self._compare(writer)
                self._verify(writer, self.told.images, lost)

    def _compare(self, store: Store) -> None:
        info = store.info()
        there, due = (len(store), info.sources), self.told.counts()
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
        """Each picture is found once, by its own pixels, with all its sources; the lost are not."""
        for picture in pictures:
            sources = self.told.images[picture]
            hits = store.lookup(picture.query, tiers=_IDENTICAL).identical
            if [hit.verified for hit in hits] != [picture.verified]:
                raise WrongAnswerError(f"{picture} was committed, and found are {hits}")
            (hit,) = hits
            found = set(hit.sources)
            if hit.source_count > len(found):
                found = set(store.sources(hit.id))
            if found != sources or hit.source_count != len(sources):
                raise WrongAnswerError(f"{picture} was seen in {sources}, and found is {hit}")
            if self.told.ids.setdefault(picture, hit.id) != hit.id:
                raise WrongAnswerError(f"{picture} was image {self.told.ids[picture]}: {hit}")
        for picture in lost:
            if picture not in self.told.images:
                hits = store.lookup(picture.query, tiers=_IDENTICAL).identical
                if hits:
                    raise WrongAnswerError(f"{picture} is of a chunk that is not there: {hits}")

    def _count(self) -> None:
        """What the store is made of in the end."""
        paths = [path for path in self._store.rglob("*") if path.is_file()]
        self.report.tables = sum(path.suffix == ".sst" for path in paths)
        families = {"pixels", "fingerprints", "vectors"}
        self.report.extents = sum(not families.isdisjoint(path.parts) for path in paths)


def tiny_encoder(folder: Path) -> Path:
    """Write an encoder of a few bytes, in the form that ``engine train`` does; returns its folder."""
    if importlib.util.find_spec("onnx") is None:
        raise UsageError("the package onnx makes the tiny encoder: install it, or --encoder none")
    from onnx import TensorProto, helper, numpy_helper

    size, dim = 8, 16
    weights = np.random.default_rng(0).standard_normal((size * size * 3, dim)).astype(np.float32)
    constants: dict[str, npt.NDArray[Any]] = {
        "weights": weights,
        "bias": np.ones((1, dim), np.float32),  # so that black is not the zero vector
        "across": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["row"]),
        helper.make_node("MatMul", ["row", "weights"], ["projected"]),
        helper.make_node("Add", ["projected", "bias"], ["shifted"]),
        helper.make_node("ReduceL2", ["shifted", "across"], ["length"], keepdims=1),
        helper.make_node("Div", ["shifted", "length"], ["embedding"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", size, size, 3])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dim])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", [pixels], [embedding], tensors)
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model)
    files = {"fp32": {"path": "model.onnx", "sha256": hashlib.sha256(model).hexdigest()}}
    body = {"name": TINY, "dim": dim, "image_size": size, "files": files}
    (folder / "encoder.json").write_text(json.dumps(body))
    return folder


def main() -> bool:
    """Kill and print; true if nothing was lost."""
    parser = script.parser(__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of a child that writes  [100]")
    parser.add_argument("--seed", type=int, default=0, help="of the sources and moments  [0]")
    parser.add_argument("--memory", default="128M", help="the store's bound  [128M]")
    parser.add_argument(
        "--encoder", help="tiny, none, a name or a folder  [tiny where onnx is installed, or none]"
    )
    parser.add_argument("--dir", type=Path, help="where the store is made, and removed again")
    given = parser.parse_args()
    if given.kills < 1:
        raise UsageError(f"kills must be 1 or more, not {given.kills}")
    budget = parse_memory(given.memory).total
    encoder = given.encoder or (TINY if importlib.util.find_spec("onnx") else NO_ENCODER)
    work = Path(tempfile.mkdtemp(prefix="engine-bench-", dir=given.dir)).absolute()
    keep = False
    try:
        kills = Kills(work, seed=given.seed, memory=budget, encoder=encoder)
        with Progress("kills", unit="kills") as progress:
            kills.run(given.kills, progress)
    except WrongAnswerError as error:
        keep = True
        print(f"kill {kills.report.hits.total()}: {error}; see {work}: MISSED")
        return False
    finally:
        if not keep:
            shutil.rmtree(work, ignore_errors=True)
    print(table(kills.report))
    print("after each kill nothing was lost, and nothing added twice: met")
    return True


def table(report: Report) -> str:
    """What was hit and what was there, as aligned columns."""
    lines = [("kills", "that hit")]
    lines += [(f"{report.hits[at]:,}", at) for at in (COMMITTING, BETWEEN, INDEXING, OPENING)]
    end = (
        f"{report.kills:,} kills of a child that wrote and {report.hits[OPENING]:,} of one that was "
        f"opening, in {report.seconds:,.0f} s",
        f"{report.flights:,} chunks were in flight; {report.landed:,} of them were there, whole",
        f"{report.commits:,} commits were acknowledged; in the end there were {report.images:,} images "
        f"with {report.sources:,} sources and {report.vectors:,} vectors,",
        f"in {report.extents:,} extents, {report.tables:,} tables of keys and {report.segments:,} "
        f"segments of the index",
    )
    return "\n".join((align(lines, left=(1,)), *end))


if __name__ == "__main__":
    script.exit_with(main)
