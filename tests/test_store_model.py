"""A random walk of writes and reads over one store, beside a plain dict that says what is in it.

The dict is from an image (kind, shape, pixels) to its id; names of files and rows of arrays point at
images. Two stores are open on the folder all the time, of which one writes, and each shows what is
committed by then, whoever committed it.
"""

from __future__ import annotations

import copy
import importlib
import io
import os
import random
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from helpers import sized
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from PIL import Image

import engine
from engine import ImageError, Store, StoreLockedError, UsageError
from engine.config import SOURCES_SHOWN, Limits
from engine.images import hashing
from engine.records import Buffer, IngestReport, Kind, RemoveReport
from engine.sources.synthetic import ROW_BYTES, SIDE, SyntheticBits
from engine.storage import extents, runs, scan, tombstones

EXAMPLES, STEPS = sized(10, 40), 30
PICTURES = ("a.png", "b.bmp", "c.png", "d.bmp", "e.png")
ARRAYS = ("x.npy", "y.npy", "z.npy")
AS_8BIT = "?kind=8bit"
FOLDER = "all pictures"
SEEDS = st.integers(0, 4)  # few, so that the same images come again and again; 0 is black
UNKNOWN = 1000  # a seed of which no image is made
IDENTICAL = ["identical"]


# Chunks, extents and runs of a few rows, so that all their edges are met.
LIMITS = Limits(
    chunk_files=2,
    chunk_rows=3,
    extent_rows=5,
    extent_bytes=200,
    removal_batch=3,
    compact_batch=3,
    compact_bytes=40,
    compact_extents=2,
)


def small_buckets(patch: pytest.MonkeyPatch) -> None:
    """Buckets and bitmaps of a few ids."""
    package = Path(engine.__path__[0])
    for path in package.rglob("*.py"):  # whoever knows how runs are found by id, loaded or not
        if "BUCKET" in path.read_text(encoding="utf-8"):
            name = ".".join(path.relative_to(package.parent).with_suffix("").parts)
            module = importlib.import_module(name)
            for constant, value in (("BUCKET_BITS", 2), ("BUCKET", 1 << 2)):
                if hasattr(module, constant):
                    patch.setattr(module, constant, value)
    assert (runs.BUCKET_BITS, scan.BUCKET) == (2, 4)
    for name, value in (("_BITS", 5), ("_IDS", 32), ("_BITMAP", 4)):
        patch.setattr(tombstones, name, value)


# --- images and files -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """An image, by what makes it this one and no other. Values of bits are 0 and 1."""

    kind: Kind
    height: int
    width: int
    values: bytes  # (height, width, 3) uint8

    def array(self) -> np.ndarray:
        return np.frombuffer(self.values, np.uint8).reshape(self.height, self.width, 3)


def picture(kind: Kind, values: np.ndarray) -> Picture:
    """The image of (H, W) or (H, W, 3) values; grey is RGB with three equal channels."""
    if values.ndim == 2:
        values = np.repeat(values[..., None], 3, axis=-1)
    return Picture(kind, *values.shape[:2], values.astype(np.uint8).tobytes())


@dataclass(frozen=True)
class Look:
    """What images of a file look like; of some, other bits are drawn than their kind says."""

    kind: Kind
    shape: tuple[int, int]
    grey: bool

    def values(self, seed: int) -> np.ndarray:
        """Values as an array has them: 0 and 1 if they are bits."""
        shape = self.shape if self.grey else (*self.shape, 3)
        most = 1 if self.kind is Kind.BITS else 255
        draw = np.random.default_rng(seed)
        return draw.integers(0, most + 1, shape, np.uint8) * np.uint8(seed != 0)


looks = st.sampled_from(
    [
        Look(Kind.BITS, (2, 5), False),
        Look(Kind.BITS, (2, 5), True),
        Look(Kind.BITS, (5, 2), False),
        Look(Kind.U8, (2, 5), False),
        Look(Kind.U8, (5, 2), True),
    ]
)


seed_lists = st.lists(SEEDS, min_size=1, max_size=12)


@dataclass(frozen=True)
class File:
    """A file on disk, or a synthetic set: the images that can be read of it."""

    stamp: tuple[int, int]  # time and size
    found: list[Picture | None]  # None: a row that was removed, of one that is in a store
    container: str = "array"
    whole: bool = True  # false where reading it ends with an error

    @property
    def as_8bit(self) -> File:
        """The same file with its kind overridden."""
        return replace(self, found=[replace(one, kind=Kind.U8) for one in self.found if one])


NOTHING = File((0, 0), [], whole=False)


def synthetic(seed: int, n: int) -> File:
    source = SyntheticBits(f"synthetic:bits?seed={seed}")
    bits = [np.unpackbits(source.row(row)[-ROW_BYTES:]) for row in range(n)]
    return File((0, 0), [picture(Kind.BITS, one.reshape(SIDE, SIDE, 3)) for one in bits])


specs = st.one_of(
    st.sampled_from(PICTURES),
    st.sampled_from(ARRAYS),
    st.sampled_from(ARRAYS).map(lambda name: name + AS_8BIT),
    st.builds("synthetic:bits?seed={}&n={}".format, st.integers(1, 2), st.integers(0, 14)),
    st.just(FOLDER),
)


# --- the model ------------------------------------------------------------------------------------


@dataclass
class Counts:
    """What an ingest is to report."""

    added: int = 0
    duplicates: int = 0
    unchanged: int = 0
    rejected: int = 0
    skipped: int = 0

    @classmethod
    def of(cls, report: IngestReport) -> Counts:
        return cls(**{name: getattr(report, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class First:
    """An image's id, and how it came in when it was first seen."""

    id: int
    verified: str
    container: str
    file_bytes: int
    metadata: dict[str, int] | None = None


@dataclass
class View:
    """What a store has to show as of one commit."""

    images: dict[Picture, First]
    sources: dict[Picture, set[str]]
    rejects: int
    next_id: int


@dataclass
class Model:
    """What is committed: the images, and which of them each name stands for."""

    images: dict[Picture, First] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)
    arrays: dict[str, File] = field(default_factory=dict)  # as far as they were read
    rejects: set[str] = field(default_factory=set)
    next_id: int = 1

    def view(self) -> View:
        sources: dict[Picture, set[str]] = {found: set() for found in self.images}
        for name, file in self.files.items():
            sources[file.found[0]].add(name)
        for name, array in self.arrays.items():
            for row, found in enumerate(array.found):
                if found is not None:
                    sources[found].add(f"{name}#{row}")
        return View(dict(self.images), sources, len(self.rejects), self.next_id)

    def ingest_file(self, name: str, file: File, keep: str, counts: Counts) -> None:
        if name in self.files and self.files[name].stamp == file.stamp:
            counts.unchanged += 1
        elif not file.whole:
            counts.rejected += 1
            self.rejects.add(name)  # and it stays the image that it was
        else:
            # Of an image with 8 bits a channel the file is kept, which is not compared with pixels.
            kept = keep != "no" and file.found[0].kind is Kind.BITS
            self._add(file.found[0], kept, file.container, file.stamp[1], counts)
            self.files[name] = file
            self.rejects.discard(name)

    def ingest_array(self, name: str, array: File, keep: str, counts: Counts) -> None:
        before = self.arrays.get(name)
        goes_on = before is not None and before.stamp == array.stamp
        done = list(before.found) if before is not None and goes_on else []
        counts.unchanged += min(len(done), len(array.found))
        for found in array.found[len(done) :]:
            kept = keep == "yes" or (keep == "auto" and found.kind is Kind.BITS)
            self._add(found, kept, "array", 0, counts)
            done.append(found)
            self.arrays[name] = replace(array, found=done)
            self.rejects.discard(name)
        if not array.whole:
            counts.rejected += 1
            self.rejects.add(name)

    def _add(self, found: Picture, kept: bool, container: str, size: int, counts: Counts) -> None:
        if found in self.images:
            counts.duplicates += 1
            return
        counts.added += 1
        # Ids are in the order in which images come, and never used again.
        verified = "bytes" if kept else "digest"
        self.images[found] = First(self.next_id, verified, container, size)
        self.next_id += 1

    def remove_images(self, ids: set[int]) -> None:
        """An image goes with all its sources."""
        gone = {found for found, first in self.images.items() if first.id in ids}
        self.images = {found: first for found, first in self.images.items() if found not in gone}
        self.files = {n: file for n, file in self.files.items() if file.found[0] not in gone}
        for name, array in list(self.arrays.items()):
            self._lose(name, {row for row, found in enumerate(array.found) if found in gone})

    def remove_source(self, name: str) -> bool:
        """A source goes with what is inside of it, and images with the last of theirs."""
        before = self.view().sources
        read_otherwise = [one for one in self.arrays if one == name + AS_8BIT]
        inside = f"{name}/"
        named = [one for one in self.files if one == name or one.startswith(inside)]
        for one in named:
            del self.files[one]
        array, _, row = name.rpartition("#")
        rows = {int(row)} if array in self.arrays and name not in self.files else set()
        rows &= {at for at, found in enumerate(self.arrays[array].found) if found} if rows else rows
        if rows:
            self._lose(array, rows)
        arrays = [one for one in self.arrays if one == name or one.startswith(inside)]
        arrays += read_otherwise
        for one in arrays:
            del self.arrays[one]
        rejects = {one for one in self.rejects if one == name or one.startswith(inside)}
        rejects |= self.rejects & set(read_otherwise)
        self.rejects -= rejects
        after = self.view().sources
        gone = {found for found in before if before[found] and not after[found]}
        self.images = {found: first for found, first in self.images.items() if found not in gone}
        return bool(named or rows or arrays or rejects)

    def _lose(self, name: str, rows: set[int]) -> None:
        if rows:
            array = self.arrays[name]
            left = [None if row in rows else found for row, found in enumerate(array.found)]
            # The next ingest reads it again, from its beginning.
            self.arrays[name] = replace(array, stamp=(-1, -1), found=left)
            if not any(left):
                del self.arrays[name]


# --- the walk -------------------------------------------------------------------------------------


@dataclass
class Handle:
    """An open store, and what it has to show."""

    store: Store
    read_only: bool
    seen: View
    writing: bool = False  # from its first write on it holds the lock


class Walk(RuleBasedStateMachine):
    """Files change, are ingested and looked up, by two stores that are open on one folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir=folder))
        self.where = self.root / "store"
        self.pictures = self.root / "pictures"
        self.pictures.mkdir()
        (self.pictures / "notes.txt").write_text("no image")
        self.clock = 0
        self.disk: dict[str, File] = {}
        self.as_files: dict[Picture, str] = {}
        self.model = Model()
        Store.open(self.where, create=True, encoder="none").close()
        self.handles = [self.open(read_only=False), self.open(read_only=True)]

    def open(self, *, read_only: bool) -> Handle:
        return Handle(
            Store.open(self.where, read_only=read_only, limits=LIMITS), read_only, self.model.view()
        )

    def teardown(self) -> None:
        for handle in self.handles:
            handle.store.close()
        with Store.open(self.where, limits=LIMITS) as store:
            assert store.ingest("synthetic:bits?n=0").seen == 0  # opens it for writing, no more
            self.compare(store, self.model.view())
            assert store.check().problems == ()
        shutil.rmtree(self.root)

    # --- files change -----------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        return (self.pictures if name in PICTURES else self.root) / name

    def stamp(self, name: str) -> tuple[int, int]:
        """A time of its own for each change of a file: what is skipped by its stamp has the same."""
        self.clock += 1
        os.utime(self.path(name), ns=(self.clock, self.clock * 10**9))
        status = self.path(name).stat()
        return status.st_mtime_ns, status.st_size

    @initialize(
        shown=st.lists(st.tuples(looks, SEEDS), min_size=5, max_size=5),
        filled=st.lists(st.tuples(looks, seed_lists), min_size=3, max_size=3),
    )
    def begin(self, shown: list[tuple[Look, int]], filled: list[tuple[Look, list[int]]]) -> None:
        for name, content in zip(PICTURES, shown, strict=True):
            self.write_picture(name, *content)
        for name, rows_ in zip(ARRAYS, filled, strict=True):
            self.write_array(name, *rows_, as_bool=True)

    @rule(name=st.sampled_from(PICTURES), look=looks, seed=SEEDS)
    def write_picture(self, name: str, look: Look, seed: int) -> None:
        values = look.values(seed)
        if look.kind is Kind.BITS:
            values = values * np.uint8(255)
        image = Image.fromarray(values)
        if look.kind is Kind.BITS and look.grey:
            image = image.convert("1")
        image.save(self.path(name))
        bits = bool(np.isin(values, (0, 255)).all())
        found = picture(Kind.BITS, values // 255) if bits else picture(Kind.U8, values)
        self.disk[name] = File(self.stamp(name), [found], name[-3:])

    @rule(name=st.sampled_from(ARRAYS), look=looks, seeds=seed_lists, as_bool=st.booleans())
    def write_array(self, name: str, look: Look, seeds: list[int], as_bool: bool) -> None:
        block = np.stack([look.values(seed) for seed in seeds])
        # An array is of one kind as a whole: one that is black all over is of bits.
        kind = Kind.BITS if block.max() <= 1 else Kind.U8
        np.save(self.path(name), block.astype(np.bool_) if as_bool and kind is Kind.BITS else block)
        self.disk[name] = File(self.stamp(name), [picture(kind, row) for row in block])

    @rule(name=st.sampled_from(ARRAYS), look=looks, seeds=seed_lists, lost=st.integers(1, 12))
    def write_array_cut_short(self, name: str, look: Look, seeds: list[int], lost: int) -> None:
        self.write_array(name, look, seeds + [0] * lost, as_bool=False)
        each = int(np.prod(look.values(0).shape))
        path = self.path(name)
        os.truncate(path, path.stat().st_size - lost * each)
        found = self.disk[name].found[: len(seeds)]
        self.disk[name] = File(self.stamp(name), found, whole=False)

    @rule(
        name=st.sampled_from((*PICTURES, *ARRAYS)),
        how=st.sampled_from(["touch", "remove", "empty", "break"]),
    )
    def spoil(self, name: str, how: str) -> None:
        if name not in self.disk:
            return
        if how == "touch":
            self.disk[name] = replace(self.disk[name], stamp=self.stamp(name))
        elif how == "remove":
            self.path(name).unlink()
            del self.disk[name]
        else:
            self.path(name).write_bytes(b"" if how == "empty" else b"\x89PNG\r\n\x1a\n, no more")
            self.disk[name] = File(self.stamp(name), [], whole=False)

    @rule(name=st.sampled_from(PICTURES), to=st.sampled_from(PICTURES), same_bytes=st.booleans())
    def copy(self, name: str, to: str, same_bytes: bool) -> None:
        """Another name for a picture, in the other container too."""
        if name == to or not self.disk.get(name, NOTHING).whole:
            return
        container = self.disk[name].container if same_bytes else to[-3:]
        if same_bytes:
            shutil.copyfile(self.path(name), self.path(to))
        else:
            with Image.open(self.path(name)) as image:
                image.save(self.path(to))
        self.disk[to] = File(self.stamp(to), self.disk[name].found, container)

    # --- stores are opened and written ------------------------------------------------------------

    def writer(self) -> Handle:
        """The store that holds the lock, or may take it."""
        if all(handle.read_only for handle in self.handles):
            self.reopen(0, "write")
        may = [handle for handle in self.handles if not handle.read_only]
        return next((handle for handle in may if handle.writing), may[-1])

    @rule(
        given=st.lists(specs, min_size=1, max_size=6), keep=st.sampled_from(["auto", "yes", "no"])
    )
    def ingest(self, given: list[str], keep: str) -> None:
        handle, counts = self.writer(), Counts()
        arguments: list[Path | str] = []
        files: list[str] = []
        for spec in given:
            name, _, kind = spec.partition("?")
            if spec == FOLDER:
                here = sorted(name for name in PICTURES if name in self.disk)
                counts.skipped += 1
                arguments.append(self.pictures)
            elif spec.startswith("synthetic:"):
                seed, n = (int(value.split("=")[1]) for value in kind.split("&"))
                self.model.ingest_array(f"{name}?seed={seed}", synthetic(seed, n), keep, counts)
                arguments.append(spec)
                continue
            elif name not in self.disk:
                continue
            elif name in ARRAYS:
                file = self.disk[name].as_8bit if kind else self.disk[name]
                self.model.ingest_array(str(self.root / spec), file, keep, counts)
                arguments.append(self.root / spec)
                continue
            else:
                here = [name]
                arguments.append(self.path(name))
            for name in here:
                self.model.ingest_file(str(self.path(name)), self.disk[name], keep, counts)
            files += here
        if not arguments:
            return
        reported = Counts.of(handle.store.ingest(*map(str, arguments), keep_pixels=keep))
        if len(files) > len(set(files)):
            # Whether a file is committed by the time it is met again depends on where chunks end.
            for one in (counts, reported):
                one.unchanged += one.duplicates
                one.duplicates = 0
        assert reported == counts
        handle.writing, handle.seen = True, self.model.view()

    @rule(n=st.integers(0, 14))
    def ingest_all(self, n: int) -> None:
        self.ingest([FOLDER, *ARRAYS, f"synthetic:bits?seed=1&n={n}"], "auto")

    @rule(which=st.integers(0, 1), spec=st.sampled_from(["synthetic:bits?n=1&seed=3", FOLDER]))
    def ingest_where_it_may_not_be(self, which: int, spec: str) -> None:
        handle, other = self.handles[which], self.handles[1 - which]
        source = self.pictures if spec == FOLDER else spec
        if handle.read_only:
            with pytest.raises(UsageError, match="read-only"):
                handle.store.ingest(source)
        elif other.writing:
            with pytest.raises(StoreLockedError, match=f"process {os.getpid()} on "):
                handle.store.ingest(source)
        with pytest.raises(UsageError, match="no such file"):
            handle.store.ingest(self.root / "gone.png")

    @rule(ids=st.sets(st.integers(0, 40), min_size=1, max_size=6))
    def remove_images(self, ids: set[int]) -> None:
        self.remove({first.id for first in self.model.images.values()} & ids, ids)

    @rule(number=st.integers(0), value=st.none() | st.integers(0, 2))
    def update(self, number: int, value: int | None) -> None:
        """What is said of an image changes; of rows of arrays that share a record nothing is."""
        if not self.model.images:
            return
        handle = self.writer()
        found = list(self.model.images)[number % len(self.model.images)]
        first = self.model.images[found]
        metadata = {"n": value} if value is not None else None
        if handle.store.session.snapshot.tables.records.is_shared(first.id):
            assert first.container == "array"
            with pytest.raises(UsageError, match="is a row of an array"):
                handle.store.update(first.id, metadata=metadata)
            return
        assert handle.store.update(first.id, metadata=metadata).metadata == metadata
        self.model.images[found] = replace(first, metadata=metadata)
        handle.writing, handle.seen = True, self.model.view()

    @rule(share=st.floats(0, 1), seed=st.integers(0, 99))
    def remove_many_images(self, share: float, seed: int) -> None:
        ids = sorted(first.id for first in self.model.images.values())
        chosen = set(random.Random(seed).sample(ids, int(share * len(ids))))
        self.remove(chosen, chosen)

    def remove(self, there: set[int], asked: set[int]) -> None:
        handle, before = self.writer(), self.model.view()
        self.model.remove_images(there)
        if asked:
            report = handle.store.remove(ids=asked)
            assert report.not_found == tuple(map(str, sorted(asked - there)))
            self.expect_report(report, before)
            handle.writing, handle.seen = True, self.model.view()

    @rule(
        given=st.lists(
            st.one_of(
                st.sampled_from((*PICTURES, *ARRAYS, FOLDER, ".", "nothing.png")),
                st.sampled_from(ARRAYS).map(lambda name: name + AS_8BIT),
                st.builds(
                    "{}{}#{}".format,
                    st.sampled_from(ARRAYS),
                    st.sampled_from(["", AS_8BIT]),
                    st.integers(0, 12),
                ),
                st.builds("synthetic:bits?seed={}".format, st.integers(1, 2)),
                st.builds(
                    "synthetic:bits?seed={}#{}".format, st.integers(1, 2), st.integers(0, 13)
                ),
            ),
            min_size=1,
            max_size=6,
            unique=True,
        )
    )
    def remove_sources(self, given: list[str]) -> None:
        handle, before = self.writer(), self.model.view()
        names = []
        for one in given:
            if one.startswith("synthetic:"):
                names.append(one)
            elif one in (FOLDER, "."):
                names.append(str(self.pictures if one == FOLDER else self.root))
            else:
                names.append(str(self.path(one)))
        missing = tuple(name for name in names if not copy.deepcopy(self.model).remove_source(name))
        for name in names:
            self.model.remove_source(name)
        report = handle.store.remove(sources=names)
        assert report.not_found == missing
        self.expect_report(report, before)
        handle.writing, handle.seen = True, self.model.view()

    @rule()
    def optimize(self) -> None:
        handle = self.writer()
        report = handle.store.optimize()
        assert (report.skipped, report.interrupted) == ((), False)
        handle.writing, handle.seen = True, self.model.view()
        state = handle.store.session.snapshot.state
        for number, size in state.extents.get(extents.PIXELS.name, []):
            assert state.dead.get(str(number), 0) <= 0.2 * size
        live = {number for number, _ in state.extents.get(extents.PIXELS.name, [])}
        files = {int(path.stem) for path in (self.where / "pixels").glob("*")}
        assert live <= files <= {*live, max(live, default=0) + 1}

    def expect_report(self, report: RemoveReport, before: View) -> None:
        after = self.model.view()
        assert report.images == len(before.images) - len(after.images)
        lost = sum(map(len, before.sources.values())) - sum(map(len, after.sources.values()))
        assert report.sources == lost

    @rule(which=st.integers(0, 1), how=st.sampled_from(["refresh", "read", "write"]))
    def reopen(self, which: int, how: str) -> None:
        handle = self.handles[which]
        if how == "refresh":
            handle.store.refresh()
            handle.seen = self.model.view()
        else:
            handle.store.close()
            self.handles[which] = self.open(read_only=how == "read")

    # --- stores are read --------------------------------------------------------------------------

    def query(self, found: Picture) -> np.ndarray | str:
        """An image as something to look up."""
        values = found.array()
        if found.kind is Kind.U8 and values.max() <= 1:
            # As an array it would be of bits; a file may say that it is not.
            if found not in self.as_files:
                path = self.root / f"query{len(self.as_files)}.npy"
                np.save(path, values[None])
                self.as_files[found] = f"{path}{AS_8BIT}#0"
            return self.as_files[found]
        return values.astype(np.bool_) if found.kind is Kind.BITS else values

    def compare(self, store: Store, seen: View) -> None:
        """Everything that a store has to show, and nothing else."""
        info = store.info()
        assert len(store) == info.images == len(seen.images)
        assert info.sources == sum(map(len, seen.sources.values()))
        removed = seen.next_id - 1 - len(seen.images)
        assert (info.rejects, info.vectors, info.removed) == (seen.rejects, 0, removed)
        for found, first in seen.images.items():
            (hit,) = store.lookup(self.query(found), tiers=IDENTICAL).identical
            sources = seen.sources[found]
            assert (hit.id, hit.verified, hit.source_count) == (
                first.id,
                first.verified,
                len(sources),
            )
            assert set(hit.sources) <= sources
            assert len(hit.sources) == min(len(sources), SOURCES_SHOWN)
            listed = store.sources(first.id)
            assert (set(listed), len(listed)) == (sources, len(sources))
            record = store.get(first.id)
            assert (record.id, record.kind, record.channels, record.frames) == (
                first.id,
                found.kind,
                3,
                1,
            )
            assert (record.height, record.width) == (found.height, found.width)
            assert (record.container, record.file_bytes) == (first.container, first.file_bytes)
            assert record.metadata == first.metadata
        there = {first.id for first in seen.images.values()}
        gone = sorted({*range(1, seen.next_id)} - there)
        assert store.session.snapshot.removed_ids().ids().tolist() == gone
        for id_ in {*range(seen.next_id + 1)} - there:
            with pytest.raises(UsageError, match="no image"):
                store.sources(id_)

    @invariant()
    def each_store_shows_what_it_has_to(self) -> None:
        for handle in self.handles:
            handle.seen = self.model.view()
            self.compare(handle.store, handle.seen)

    @rule(which=st.integers(0, 1), number=st.integers(0), bit=st.integers(0))
    def look_up_with_a_flipped_bit(self, which: int, number: int, bit: int) -> None:
        handle = self.handles[which]
        if handle.seen.images:
            found = list(handle.seen.images)[number % len(handle.seen.images)]
            values = bytearray(found.values)
            values[bit % len(values)] ^= 1
            self.expect(handle, replace(found, values=bytes(values)))

    @rule(which=st.integers(0, 1), look=looks, seed=SEEDS | st.just(UNKNOWN))
    def look_up(self, which: int, look: Look, seed: int) -> None:
        """Whether it is there or not, and as something else than an array too."""
        handle, found = self.handles[which], picture(look.kind, look.values(seed))
        hits = self.expect(handle, found)
        values = found.array() * np.uint8(255 if look.kind is Kind.BITS else 1)
        if look.kind is Kind.BITS or not np.isin(values, (0, 255)).all():
            image = Image.fromarray(values)
            file = io.BytesIO()
            image.save(file, "PNG")
            for query in (image, file.getvalue()):
                result = handle.store.lookup(query, tiers=IDENTICAL)
                assert [hit.id for hit in result.identical] == hits

    def expect(self, handle: Handle, found: Picture) -> list[int]:
        result = handle.store.lookup(self.query(found), tiers=IDENTICAL)
        first = handle.seen.images.get(found)
        hits = [hit.id for hit in result.identical]
        assert hits == ([first.id] if first else [])
        return hits

    @rule(which=st.integers(0, 1))
    def look_sources_up(self, which: int) -> None:
        """Sources are named in the form that a lookup takes."""
        handle = self.handles[which]
        for name in PICTURES:
            if name in self.disk and not self.disk[name].whole:
                with pytest.raises(ImageError):
                    handle.store.lookup(self.path(name))
        for found, sources in handle.seen.sources.items():
            for source in sources:
                if self.reads(source) == found:
                    result = handle.store.lookup(source, tiers=IDENTICAL)
                    assert [hit.id for hit in result.identical] == [handle.seen.images[found].id]

    def reads(self, source: str) -> Picture | None:
        """The image that a source's name stands for on disk by now."""
        if source.startswith("synthetic:"):
            seed, row = (int(part.strip("#")) for part in source.split("seed=")[1].split("#"))
            return synthetic(seed, row + 1).found[row]
        path, _, row_ = source.partition("#")
        name, _, kind = Path(path).name.partition("?")
        file = self.disk.get(name)
        if file is None or int(row_ or 0) >= len(file.found):
            return None
        return (file.as_8bit if kind else file).found[int(row_ or 0)]

    @rule(which=st.integers(0, 1))
    def check(self, which: int) -> None:
        handle = self.handles[which]
        report = handle.store.check()
        assert report.problems == ()
        assert report.images == len(handle.seen.images)


@pytest.mark.slow
def test_images_that_share_a_key_live_and_go_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_buckets(monkeypatch)
    key = hashing.key

    def one_of_three(canonical: Buffer, seed: int) -> bytes:
        return bytes([key(canonical, 0)[0] % 3]) * hashing.KEY_BYTES

    monkeypatch.setattr(hashing, "key", one_of_three)
    monkeypatch.setattr(
        hashing, "keys", lambda many, seed: [one_of_three(one, seed) for one in many]
    )
    run_state_machine_as_test(
        lambda: Walk(tmp_path),
        settings=settings(
            max_examples=EXAMPLES // 2, stateful_step_count=STEPS, deadline=None, print_blob=True
        ),
    )


@pytest.mark.slow
def test_a_store_is_a_dict_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_buckets(monkeypatch)
    run_state_machine_as_test(
        lambda: Walk(tmp_path),
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, print_blob=True
        ),
    )
