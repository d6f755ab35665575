"""The write path: wires the rooms, one commit a chunk.

    items → prepare (read, hash, decode, digest, fingerprint; in threads) → known? → encode → commit

The images of a chunk are prepared while the chunk before is encoded and committed. An image that
cannot be read becomes a row of the rejects and the run goes on; what stops a run is the store. Such a
row has the stamp of its file: while neither that nor the decoder changes, the file is not read again.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from engine.config import (
    CHUNK_ENCODED_ROWS,
    CHUNK_FILES,
    CHUNK_ROWS,
    CHUNK_VECTOR_BYTES,
    CHUNK_VECTORS,
    EXACT_ROWS,
    KEEP_BITS_LIMIT,
    check_keep_pixels,
    cpu_count,
)
from engine.encoders.onnx import EncodingStoppedError, OnnxEncoder
from engine.errors import ImageError, SourceError, StoreDamagedError, UsageError
from engine.images import canonical, fingerprint, hashing
from engine.images.canonical import HEADER_BYTES
from engine.index.background import StoppedError, Work
from engine.index.maintain import Indexing
from engine.ingest.given_arrays import (
    CheckedBlock,
    GivenArray,
    check_admission,
    checked,
    is_begun,
)
from engine.memory import MemoryGate, PeakMemory
from engine.records import Buffer, IngestReport, Kind, Pixels
from engine.sources.items import (
    WITHOUT_METADATA,
    ArchiveItem,
    ArrayItem,
    FileItem,
    Item,
    Member,
    Problem,
    RowBlock,
    Skipped,
    VectorItem,
)
from engine.storage.ballast import NoRoomError
from engine.storage.changeset import Chunk, NewImage, NewName, NewRows
from engine.storage.rows import ARRAY, ArchiveRow, ArrayRow, NameRow, Run
from engine.storage.writer import REJECTS, StoreFiles

Picture = npt.NDArray[np.uint8]
Vector = npt.NDArray[np.float32]  # (dim,)
_log = logging.getLogger("engine")
_HASHED_ROWS = 64  # at a time
_NAMED = 10  # images in a warning
_SEGMENT_ROWS = 16 * EXACT_ROWS  # unindexed vectors after which a running ingest stops to index
_SOON = 0.1  # seconds
_LAST_BATCH = 8
_FINISHING = 0.5  # seconds that a run which is to stop goes on to encode what is prepared
T = TypeVar("T")


@dataclass(slots=True)
class _Prepared:
    """One image file, read; ``image`` is None where its bytes are those of image ``known``."""

    item: FileItem | Member
    file_hash: bytes
    known: int | None = None
    image: NewImage | None = None
    picture: Picture | None = None


_Waiting = tuple[FileItem | Member, Future[_Prepared | Problem]]
_Encoded = tuple[_Prepared, Vector | None]  # with the vector that it gets if it is new


@dataclass(slots=True)
class _Group:
    """Members of an archive that are committed together, and what was met between them."""

    files: list[Member] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    skipped: int = 0
    notes: list[str] = field(default_factory=list)  # of those that were skipped
    size: int = 0  # bytes that it holds while it waits
    rejected: int = 0  # of it
    before: list[tuple[int, int, int]] = field(default_factory=list)
    """What was met before each file: how many problems, skipped and notes."""

    @property
    def count(self) -> int:
        return len(self.files) + len(self.problems) + self.skipped

    def add(self, file: Member) -> None:
        self.before.append((len(self.problems), self.skipped, len(self.notes)))
        self.files.append(file)
        self.size += file.held

    def skip(self, note: str) -> None:
        self.skipped += 1
        if note:
            self.notes.append(note)

    def until(self, file: FileItem | Member) -> _Group:
        """What was met before one of its files."""
        at = next(i for i, other in enumerate(self.files) if other is file)
        problems, skipped, notes = self.before[at]
        return _Group(self.files[:at], self.problems[:problems], skipped, self.notes[:notes])


@dataclass(slots=True)
class _Archive:
    """An archive while it is read, and how far it is committed."""

    name: bytes
    row: ArchiveRow
    again: bool = False  # something in it is to be tried again at the next run

    def pass_by(self, group: _Group, *, rejected: int) -> None:
        """Note that a group of its members is done."""
        row = self.row
        self.row = replace(
            row,
            done=row.done + group.count,
            images=row.images + len(group.files) + len(group.problems) - rejected,
            rejected=row.rejected + rejected,
            skipped=row.skipped + group.skipped,
        )


@dataclass(slots=True)
class _Counts:
    added: int = 0
    duplicates: int = 0
    unchanged: int = 0
    rejected: int = 0
    skipped: int = 0
    notes: Counter[str] = field(default_factory=Counter)

    @property
    def seen(self) -> int:
        return self.added + self.duplicates + self.unchanged + self.rejected


@dataclass(slots=True)
class _Pending:
    """What a chunk is about to add, found by proof: equal images inside one chunk are one image."""

    chunk: Chunk = field(default_factory=Chunk)
    ids: dict[bytes, int] = field(default_factory=dict)
    vectors: list[npt.NDArray[np.float32]] = field(default_factory=list)  # of the chunk's images


@dataclass(slots=True)
class _Rows:
    """A block of rows of an array, hashed, or what one worker has hashed of it."""

    block: RowBlock
    shape: Pixels
    keys: list[bytes]
    proofs: list[bytes]
    fingerprints: npt.NDArray[np.uint8]  # (n, 32)
    qualities: npt.NDArray[np.uint8]  # (n,)
    keeps: bool  # whether the pixels of those that are new are kept

    def part(self, start: int, end: int) -> _Rows:
        """Rows [start, end) of the block."""
        block, at = self.block, slice(start, end)
        return replace(
            self,
            block=replace(block, first=block.first + start, rows=block.rows[at]),
            keys=self.keys[at],
            proofs=self.proofs[at],
            fingerprints=self.fingerprints[at],
            qualities=self.qualities[at],
        )


class Ingest:
    """One run over some sources. ``run`` may be called once."""

    def __init__(
        self,
        store: StoreFiles,
        encoder: OnnxEncoder | None,
        *,
        keep_pixels: str = "auto",
        workers: int | None = None,
        normalize: bool = False,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        """``progress`` is told how many items are done; ``stop``, asked often, ends the run.

        What is finished by then is committed.

        ``normalize``: divide vectors that are brought by their length.
        """
        check_keep_pixels(keep_pixels)
        if workers is not None and workers < 1:
            raise UsageError(f"workers must be 1 or more, not {workers}")
        self._store = store
        self._encoder = encoder
        self._keep = keep_pixels
        self._normalize = normalize
        self._workers = workers or cpu_count()
        self._progress = progress or (lambda done: None)
        self._stop = stop or (lambda: False)
        memory = store.memory
        self._decoding = memory.beside_encoder(encoder.image_size) if encoder else memory.decoding
        self._gate = MemoryGate(self._decoding, crowded=self._crowd)
        self._reading = MemoryGate(memory.reading)
        # What is kept of the images of a group, and their shrunk pictures, wait for the commit.
        each = KEEP_BITS_LIMIT + (3 * encoder.image_size**2 if encoder else 0)
        self._group_files = max(1, min(CHUNK_FILES, store.memory.chunk // each))
        self._counts = _Counts()
        self._reject_lines: list[dict[str, Any]] = []  # of the chunk that is being made
        self._done = 0
        self._failure: Exception | None = None  # of whoever made the items
        self._stopped_at: float | None = None  # when it was seen that the run is to stop
        self._peak = PeakMemory()
        self._bare = 0  # images for which the encoder gave no vector
        self._some_bare: list[int] = []  # the ids of the first ones

    def run(self, items: Iterable[Item]) -> IngestReport:
        """Ingest everything; returns what was done."""
        with self._peak.sampled():
            return self._run(items)

    def _run(self, items: Iterable[Item]) -> IngestReport:
        started = time.perf_counter()
        self._store.become_writer()
        try:
            self._take_all(items)
        except NoRoomError as error:
            self._store.give_up(error)
            raise
        self._warn_of_bare()
        self._index(EXACT_ROWS)
        if self._failure is not None:
            raise self._failure
        return self._report(time.perf_counter() - started)

    def _take_all(self, items: Iterable[Item]) -> None:
        # Threads, not processes: decoding, hashing and the encoder all let go of the GIL.
        with _pool(self._workers) as pool:
            waiting: list[_Waiting] = []
            for group in self._groups(items):
                if self._stop():
                    break
                if isinstance(group, list):
                    ahead = self._begin(pool, self._changed(group))
                    self._commit_files(waiting)
                    waiting = ahead
                else:
                    self._commit_files(waiting)
                    waiting = []
                    if isinstance(group, ArchiveItem):
                        self._archive(group, pool)
                    elif isinstance(group, VectorItem):
                        self._vectors(group, pool)
                    else:
                        self._array(group, pool)
                if self._stop():
                    break
            self._commit_files(waiting)

    # --- grouping ---------------------------------------------------------------------------------

    def _groups(
        self, items: Iterable[Item]
    ) -> Iterator[list[FileItem | Member] | ArrayItem | VectorItem | ArchiveItem]:
        """Files in groups of one commit; arrays and archives alone. Problems and skipped end here."""
        group: list[FileItem | Member] = []
        problems: list[Problem] = []
        size = 0
        for item in self._until_it_fails(items):
            if self._stop():
                break
            if isinstance(item, Problem):
                problems.append(item)
                if len(problems) >= CHUNK_FILES:
                    self._reject(problems)
                    problems = []
            elif isinstance(item, Skipped):
                self._counts.skipped += 1
                self._advance(1)
            elif isinstance(item, FileItem | Member):
                group.append(item)
                size += item.size if isinstance(item, FileItem) else 2 * item.held
                if len(group) >= self._group_files or size >= self._store.memory.chunk:
                    yield group
                    group, size = [], 0
            else:
                if group:
                    yield group
                    group, size = [], 0
                yield item
        self._reject(problems)
        if group:
            yield group

    def _until_it_fails(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; what making them raises is kept until all before it is committed."""
        try:
            yield from items
        except Exception as error:
            self._failure = error

    def _changed(self, group: Sequence[FileItem | Member]) -> list[FileItem | Member]:
        """The files of a group that are new or changed by their stamp; the rest is not read."""
        changed: list[FileItem | Member] = []
        for item, known in zip(group, self._store.names([i.name for i in group]), strict=True):
            if known and (known.mtime_ns, known.size) == (item.mtime_ns, item.size):
                self._counts.unchanged += 1
                self._advance(1)
            else:
                changed.append(item)
        return self._promising(changed)

    def _promising(self, items: Sequence[FileItem | Member]) -> list[FileItem | Member]:
        """Those that were not rejected before as they are now; these count as rejected again."""
        promising: list[FileItem | Member] = []
        rows = self._store.rejects([item.name for item in items])
        for item, row in zip(items, rows, strict=True):
            if row is not None and is_final(row, item.mtime_ns, item.size):
                self._counts.rejected += 1
                self._advance(1)
            else:
                promising.append(item)
        return promising

    # --- stopping ---------------------------------------------------------------------------------

    def _ready(self, future: Future[T]) -> bool:
        """Wait for a worker. Once the run is to stop: whether it is done already."""
        while not future.done():
            if self._stop():
                future.cancel()
                return False
            wait([future], _SOON)
        return True

    def _late(self) -> bool:
        """Whether the run is to stop, and has had its time to encode what is prepared."""
        if not self._stop():
            return False
        now = time.monotonic()
        self._stopped_at = now if self._stopped_at is None else self._stopped_at
        return now - self._stopped_at >= _FINISHING

    # --- files ------------------------------------------------------------------------------------

    def _begin(
        self, pool: ThreadPoolExecutor, items: Iterable[FileItem | Member]
    ) -> list[_Waiting]:
        return [(item, pool.submit(self._prepare, item)) for item in items]

    def _prepare(self, item: FileItem | Member) -> _Prepared | Problem:
        """Everything about one file that needs its bytes or pixels; runs in a worker thread."""
        memory = self._store.memory
        try:
            if isinstance(item, Member) and item.decoded is not None:
                found = item.decoded
                image = self._new_image(found.pixels, found.container, b"", b"")
                image.metadata = item.metadata
                return _Prepared(item, b"", None, image, self._picture(found.pixels))
            # Of a member of an archive the bytes are here already, and counted with its group.
            waiting = item.size if isinstance(item, FileItem) else 0
            with self._reading.hold(min(waiting, memory.max_file)):
                data = item.read(memory.max_file)
                file_hash = hashing.file_hash(data)
                known = self._store.files([file_hash])[0]
                if known is not None:
                    return _Prepared(item, file_hash, known)
                with self._gate.hold(min(canonical.decoding_bytes(data), self._decoding)):
                    decoded = canonical.decode(data, max_bytes=self._decoding)
                    image = self._new_image(decoded.pixels, decoded.container, data, file_hash)
                    picture = self._picture(decoded.pixels)
        except ImageError as error:
            stamp = (0, 0) if error.retryable else (item.mtime_ns, item.size)
            return Problem(item.name, str(error), *stamp)
        except MemoryError:
            return Problem(item.name, "not enough memory to read it")
        if isinstance(item, Member):
            image.metadata = item.metadata
        return _Prepared(item, file_hash, None, image, picture)

    def _new_image(self, found: Pixels, container: str, data: bytes, file_hash: bytes) -> NewImage:
        form = found.canonical
        print_, quality = fingerprint.fingerprint(found)
        keep: Buffer | None = None
        small = found.kind is Kind.BITS and len(form) <= HEADER_BYTES + KEEP_BITS_LIMIT
        if self._keep == "yes" and not data:  # there is no file
            small = True
        if self._keep != "no" and small:  # a large scan takes far less as its file
            keep = form
        elif self._keep == "yes":
            if len(data) >> 32:
                raise ImageError(
                    '4 GiB or more cannot be kept: leave keep_pixels="yes" out', retryable=True
                )
            keep = data
        return NewImage(
            # The pixels are let go here: only what is kept of them waits for the commit.
            pixels=Pixels(found.kind, found.height, found.width, found.channels, found.frames, b""),
            key=hashing.key(form, self._store.settings.hash_seed),
            proof=hashing.proof(form),
            container=container,
            decoder=canonical.DECODER if data else "",
            file_bytes=len(data),
            file_hash=file_hash,
            fingerprint=print_,
            quality=quality,
            keep=keep,
            keeps_canonical=small,
        )

    def _crowd(self, crowded: bool) -> None:
        """Have the block cache make room for large images, and take it back after them."""
        memory = self._store.memory
        self._store.limit_cache(memory.crowded_cache if crowded else memory.block_cache)

    def _picture(self, found: Pixels) -> Picture | None:
        if self._encoder is None:
            return None
        return canonical.squash(canonical.to_rgb8(found), self._encoder.image_size)

    def _commit_files(
        self,
        waiting: Sequence[_Waiting],
        archive: _Archive | None = None,
        group: _Group | None = None,
    ) -> bool:
        """Commit what was prepared; of a group of an archive, also how far that is read by now.

        Once the run is to stop, what is ready is committed: of an archive all before the first that
        is not, since it is gone on with from there. False where something is left.
        """
        results: list[_Prepared | Problem] = []
        left: FileItem | Member | None = None  # the first that is not ready
        for item, future in waiting:
            if self._ready(future):
                results.append(future.result())
            else:
                left = left or item
                if group is not None:
                    break
        done = [result for result in results if isinstance(result, _Prepared)]
        encoded = self._encoded(done)
        if len(encoded) < len(done):
            first = done[len(encoded)]
            left = first.item
            if group is not None:
                results = results[: next(i for i, one in enumerate(results) if one is first)]
        rejects = [result for result in results if isinstance(result, Problem)]
        if rejects:
            self._advance(len(rejects))
        if group is not None:
            group = group if left is None else group.until(left)
            rejects += group.problems
            group.rejected = len(rejects)
        self._commit_prepared(encoded, rejects, archive, group)
        return left is None

    def _encoded(self, done: Sequence[_Prepared]) -> list[_Encoded]:
        """Each with the vector that it gets if it is new; fewer where the run is to stop."""
        if self._encoder is None:
            return [(prepared, None) for prepared in done]
        images = [prepared.image for prepared in done if prepared.image is not None]
        known = iter(self._store.images_of([image.key for image in images]))
        out: list[_Encoded] = []
        made: dict[bytes, Vector] = {}  # of each proof: any of equal images may be the one added
        batch: list[_Prepared] = []
        fresh: dict[bytes, Picture] = {}
        for number, prepared in enumerate(done, 1):
            batch.append(prepared)
            image = prepared.image
            if image is not None:
                there = any(row.proof == image.proof for row in next(known))
                if not there and image.proof not in made and prepared.picture is not None:
                    fresh[image.proof] = prepared.picture
            # The last ones are few at a time: what is encoded when time is up is committed.
            most = self._store.memory.encode_batch
            if self._stop():
                most = min(most, _LAST_BATCH)
            if len(fresh) < most and number < len(done):
                continue
            vectors = self._encode(list(fresh.values()))
            if len(vectors) < len(fresh):
                break
            made.update(zip(fresh, vectors, strict=True))
            out += [(one, made.get(one.image.proof) if one.image else None) for one in batch]
            batch, fresh = [], {}
        return out

    def _commit_prepared(
        self,
        done: Sequence[_Encoded],
        rejects: Sequence[Problem],
        archive: _Archive | None,
        group: _Group | None,
        *,
        last: bool = True,
    ) -> None:
        """Commit images that were read; where they do not fit the disk, half of them and then the rest.

        How far the archive is read goes with the ``last`` of them: until then they are read again.
        """
        before = self._marks(), archive.row if archive else None, group.rejected if group else 0
        try:
            self._try_prepared(done, list(rejects), archive, group, last=last)
        except NoRoomError:
            if len(done) < 2:
                raise
            self._go_back(before[0])
            if archive is not None and group is not None and before[1] is not None:
                archive.row, group.rejected = before[1], before[2]
            half = len(done) // 2
            self._commit_prepared(done[:half], [], archive, group, last=False)
            self._commit_prepared(done[half:], rejects, archive, group, last=last)

    def _try_prepared(
        self,
        done: Sequence[_Encoded],
        rejects: list[Problem],
        archive: _Archive | None,
        group: _Group | None,
        *,
        last: bool,
    ) -> None:
        known_rejects = len(rejects)
        pending = _Pending()
        before = self._store.names([prepared.item.name for prepared, _ in done])
        images = [prepared.image for prepared, _ in done if prepared.image is not None]
        known = iter(self._known(pending, images))
        named: dict[bytes, NewName] = {}
        without: list[Member] = []  # what is said of them
        for (prepared, vector), name_row in zip(done, before, strict=True):
            item = prepared.item
            if prepared.image is None:
                id_ = prepared.known
            else:
                id_ = next(known) or pending.ids.get(prepared.image.proof)
            self._advance(1)
            if archive is not None:
                # Met before in this very archive: it is the same image, or another of its name.
                same = _stands_for(item, name_row, named.get(item.name))
                if same is not None and same == id_:
                    self._counts.unchanged += 1
                    continue
                if same is not None:
                    reason = "another member of the archive has this name: rename one of them"
                    rejects.append(Problem(item.name, reason, item.mtime_ns, item.size))
                    continue
            if isinstance(item, Member) and item.note:
                without.append(item)
            if id_ is None:
                assert prepared.image is not None
                id_ = self._add(pending, prepared.image, vector)
            else:
                self._counts.duplicates += 1
                if isinstance(item, Member) and item.metadata:
                    self._describe(pending, id_, item.metadata)
            named[item.name] = NewName(
                item.name, id_, item.mtime_ns, item.size, prepared.file_hash, name_row
            )
        pending.chunk.names = list(named.values())
        self._say_without_metadata(without)
        if archive is not None and group is not None:
            group.rejected += len(rejects) - known_rejects
            archive.again |= any(not (found.mtime_ns or found.size) for found in rejects)
        if archive is not None and group is not None and last:
            archive.pass_by(group, rejected=group.rejected)
            self._counts.notes = self._counts.notes + Counter(group.notes)
            pending.chunk.archives = [(archive.name, archive.row)]
            self._counts.skipped += group.skipped
            self._advance(len(group.problems) + group.skipped)
        self._put_rejects(pending.chunk, rejects)
        self._commit(pending)

    def _say_without_metadata(self, members: Sequence[Member]) -> None:
        """List images that are taken in without their metadata, and why, beside the rejects."""
        if members:
            notes = Counter({WITHOUT_METADATA: len(members)})
            self._counts.notes = self._counts.notes + notes
        self._reject_lines += [
            {
                "source": os.fsdecode(found.name),
                "reason": f"taken without its metadata: {found.note}",
                "time": time.time(),
            }
            for found in members
        ]

    def _describe(self, pending: _Pending, id_: int, metadata: dict[str, object]) -> None:
        """Keep what is said of an image that is there already, or comes with this chunk."""
        first = self._store.state.next_id
        if id_ < first:
            pending.chunk.described.append((id_, metadata))
        elif pending.chunk.images[id_ - first].metadata is None:
            pending.chunk.images[id_ - first].metadata = metadata

    def _marks(self) -> tuple[_Counts, int]:
        """What is counted by now, to ``_go_back`` to."""
        return replace(self._counts), self._done

    def _go_back(self, marks: tuple[_Counts, int]) -> None:
        """Forget what was counted of a chunk that did not fit the disk."""
        counts, self._done = marks
        self._counts = replace(counts)
        self._reject_lines = []

    # --- archives ---------------------------------------------------------------------------------

    def _archive(self, item: ArchiveItem, pool: ThreadPoolExecutor) -> None:
        """Ingest the members of an archive that are not committed yet, group by group."""
        stamp = (item.mtime_ns, item.size)
        row = self._store.archive(item.name)
        begun = row is not None and (row.mtime_ns, row.size) == stamp
        if row is None or not begun:
            row = ArchiveRow(*stamp)
        self._counts.unchanged += row.images
        self._counts.rejected += row.rejected
        self._counts.skipped += row.skipped
        self._advance(row.done)
        if row.complete:
            return
        broken = self._store.rejects([item.name])[0]
        if begun and broken is not None and is_final(broken, *stamp):
            self._counts.rejected += 1
            self._advance(1)
            return
        archive = _Archive(item.name, row)
        waiting: tuple[list[_Waiting], _Group] | None = None
        problem: Problem | None = None
        groups = self._member_groups(item.members(row.done, self._store.memory.max_file))
        while True:
            try:
                group = next(groups, None)
            except (SourceError, ImageError) as error:
                problem = Problem(item.name, str(error), *((0, 0) if error.retryable else stamp))
                group = None
            if group is None:
                break
            self._gate.reserve(group.size + (waiting[1].size if waiting is not None else 0))
            # Also those that were rejected before: a name may stand for several members, and the bytes
            # are here already.
            ahead = self._begin(pool, group.files)
            if waiting is not None and not self._commit_files(waiting[0], archive, waiting[1]):
                return
            waiting = ahead, group
            # Nothing is read beside a large member.
            if group.size > 2 * self._store.memory.block:
                if not self._commit_files(ahead, archive, group):
                    return
                waiting = None
        if waiting is not None and not self._commit_files(waiting[0], archive, waiting[1]):
            return
        self._gate.reserve(0)
        if problem is not None:
            self._reject([problem])
        elif not self._stop():
            row = replace(archive.row, complete=True)
            # Read from its beginning next time: what was committed is unchanged then.
            row = ArchiveRow(*stamp) if archive.again else row
            self._store.commit(Chunk(archives=[(item.name, row)]))

    def _member_groups(self, members: Iterator[Member | Problem | Skipped]) -> Iterator[_Group]:
        """Members of one commit at a time; they are in memory, so groups are smaller than of files."""
        group = _Group()
        broken: SourceError | None = None
        while not self._stop():
            try:
                found = next(members, None)
            except SourceError as error:
                broken, found = error, None
            if found is None:
                break
            if isinstance(found, Member):
                group.add(found)
            elif isinstance(found, Problem):
                group.problems.append(found)
            else:
                group.skip(found.note)
            if group.count >= self._group_files or group.size >= self._store.memory.block // 2:
                yield group
                group = _Group()
        if group.count:
            yield group
        if broken is not None:
            raise broken

    # --- arrays -----------------------------------------------------------------------------------

    def _array(self, array: ArrayItem, pool: ThreadPoolExecutor) -> None:
        """Ingest the rows of an array that are not committed yet, block by block."""
        row = self._store.array(array.name)
        stamp = (array.mtime_ns, array.size)
        start = 0
        try:
            if array.row_bytes > self._store.memory.chunk:
                raise SourceError(
                    f"has rows of {array.row_bytes:,} bytes: raise memory=", retryable=True
                )
            if row is not None and row.kind is Kind.VECTOR:  # it was no array of images
                GivenArray(self._store, array.name, row.number).forget(0)
                row = None
            begun = row is not None and (row.mtime_ns, row.size) == stamp
            kind = array.kind if row is None or not begun else row.kind
            if row is None or (row.mtime_ns, row.size, row.kind) != (*stamp, kind):
                row = ArrayRow(self._store.state.next_array, *stamp, 0, kind)
            start = min(row.rows, array.count)
            self._counts.unchanged += start
            self._advance(start)
            broken = self._store.rejects([array.name])[0]
            if begun and broken is not None and is_final(broken, *stamp):
                self._counts.rejected += 1  # what is left of it cannot be read
                self._advance(max(array.count - start, 1))
                return
            most = CHUNK_ROWS if self._encoder is None else min(CHUNK_ROWS, CHUNK_ENCODED_ROWS)
            blocks = array.blocks(start, most, self._store.memory.block)
            for rows in self._rows_ahead(blocks, kind, pool):
                row, start = self._commit_rows(array.name, row, rows, array.count)
                if start < rows.block.first + len(rows.keys) or self._stop():
                    return
        except (SourceError, ImageError) as error:
            self._reject([Problem(array.name, str(error), *((0, 0) if error.retryable else stamp))])
            self._advance(max(array.count - start - 1, 0))

    def _rows_ahead(
        self, blocks: Iterator[RowBlock], kind: Kind, pool: ThreadPoolExecutor
    ) -> Iterator[_Rows]:
        """Each block with its hashes. While one is committed the next is hashed and a third read."""
        # The fingerprint of an 8-bit row takes 0.4 ms, so its block is dealt to all workers. Of a
        # bit image there is little to do but hash, and several threads that let go of the
        # interpreter's lock every 3 µs take a tenth longer than one.
        parts = 1 if kind is Kind.BITS else self._workers
        # A task waits only for tasks that were submitted before it, so one worker will do.
        reading = pool.submit(next, blocks, None)
        hashing = [pool.submit(self._hash, reading, part, parts) for part in range(parts)]
        reading = pool.submit(_next, blocks, reading)
        while all(self._ready(part) for part in hashing):
            rows = _joined([part.result() for part in hashing])
            if rows is None:
                return
            hashing = [pool.submit(self._hash, reading, part, parts) for part in range(parts)]
            reading = pool.submit(_next, blocks, reading)
            yield rows

    def _hash(self, reading: Future[RowBlock | None], part: int, parts: int) -> _Rows | None:
        """Everything about part of a block's rows that needs their pixels; runs in a worker thread."""
        block = reading.result()
        if block is None:
            return None
        at = [len(block.rows) * i // parts for i in (part, part + 1)]
        rows = block.rows[at[0] : at[1]]
        shape = canonical.from_canonical(memoryview(block.rows[0]))
        seed = self._store.settings.hash_seed
        keys: list[bytes] = []
        proofs: list[bytes] = []
        for first in range(0, len(rows), _HASHED_ROWS):
            some = list(rows[first : first + _HASHED_ROWS])
            keys += hashing.keys(some, seed)
            proofs += hashing.proofs(some)  # from the cache: they were just read
        if block.kind is Kind.BITS:
            bits = shape.height * shape.width * shape.channels
            prints, qualities = fingerprint.fingerprint_bits(rows[:, HEADER_BYTES:], bits)
            small = rows.shape[1] <= HEADER_BYTES + KEEP_BITS_LIMIT
            keeps = self._keep == "yes" or (self._keep == "auto" and small)
        else:
            made = [fingerprint.fingerprint(canonical.from_canonical(memoryview(r))) for r in rows]
            joined = np.frombuffer(b"".join(print_ for print_, _ in made), np.uint8)
            prints = joined.reshape(len(made), fingerprint.FINGERPRINT_BYTES)
            qualities = np.array([quality for _, quality in made], np.uint8)
            keeps = self._keep == "yes"
        self._peak.sample()
        return _Rows(block, shape._replace(canonical=b""), keys, proofs, prints, qualities, keeps)

    def _commit_rows(
        self, name: bytes, array: ArrayRow, rows: _Rows, count: int
    ) -> tuple[ArrayRow, int]:
        """Commit a block; where it does not fit the disk, half of it and then the rest.

        ``count`` is the array's number of rows. Returns how far it is committed then, and the first
        row that is not: one of this block where the run is to stop.
        """
        before = self._marks()
        try:
            return self._try_rows(name, array, rows, count)
        except NoRoomError:
            if len(rows.keys) < 2:
                raise
            self._go_back(before)
        half = len(rows.keys) // 2
        second = rows.part(half, len(rows.keys))
        array, end = self._commit_rows(name, array, rows.part(0, half), count)
        if end < second.block.first:
            return array, end
        return self._commit_rows(name, array, second, count)

    def _try_rows(
        self, name: bytes, array: ArrayRow, rows: _Rows, count: int
    ) -> tuple[ArrayRow, int]:
        pending = _Pending()
        ids = self._add_rows(pending, rows)
        if ids is None:
            ids = self._add_one_by_one(pending, rows)
        end = rows.block.first + len(ids)
        if not len(ids):
            return array, end
        there = max(array.rows, end)
        array = replace(array, rows=there, complete=there >= count)
        runs = [
            piece for run in runs_of(array.number, rows.block.first, ids) for piece in run.pieces()
        ]
        self._tell_runs(pending.chunk, rows.keys, ids, runs)
        pending.chunk.runs = runs
        pending.chunk.arrays = [(name, array)]
        self._commit(pending)
        self._advance(len(ids))
        return array, end

    def _add_rows(
        self, pending: _Pending, rows: _Rows, vectors: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.int64] | None:
        """The image of each row, new ones added by the column; None if any two share a key.

        Fewer where the run is to stop: of the rows before the first new one that is not encoded.
        ``vectors`` (n, dim) are those of the new images, if they are there already.
        """
        known = self._store.image_columns(rows.keys)
        proofs = np.frombuffer(b"".join(rows.proofs), np.uint8).reshape(-1, hashing.PROOF_BYTES)
        if known.shared.any() or (known.proofs != proofs[known.found]).any():
            return None
        ids = np.zeros(len(rows.keys), np.int64)
        ids[known.found] = known.ids
        new = np.flatnonzero(~known.found)
        keys = [rows.keys[i] for i in new] if len(new) < len(ids) else rows.keys
        order = np.arange(len(new))
        chosen = new  # the first row of each new image
        if len(set(keys)) < len(keys):
            at: dict[bytes, int] = {}
            order = np.array([at.setdefault(key, len(at)) for key in keys])
            if len({rows.proofs[i] for i in new}) != len(at):
                return None
            chosen = new[np.unique(order, return_index=True)[1]]
            keys = list(at)
        if self._encoder is not None and vectors is None:
            vectors = self._row_vectors(rows, chosen)
            if len(vectors) < len(chosen):
                end = int(chosen[len(vectors)])
                return self._add_rows(pending, rows.part(0, end), vectors) if end else ids[:0]
        ids[new] = self._store.state.next_id + order
        self._counts.added += len(chosen)
        self._counts.duplicates += len(ids) - len(chosen)
        if not len(chosen):
            return ids
        every = len(chosen) == len(ids)
        block = rows.block.rows
        pending.chunk.rows = NewRows(
            rows.shape,
            keys,
            rows.proofs if every else [rows.proofs[i] for i in chosen],
            rows.fingerprints[chosen],
            rows.qualities[chosen],
            np.ones(len(chosen), np.bool_),
            None if not rows.keeps else block if every else block[chosen],
        )
        if vectors is not None:
            pending.vectors.append(vectors)
        return ids

    def _row_vectors(self, rows: _Rows, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The vectors (n, dim) of some rows, fewer where the run is to stop."""
        vectors: list[npt.NDArray[np.float32]] = []
        most = self._store.memory.encode_batch
        for first in range(0, len(chosen), most):
            batch = [self._row_picture(rows, i) for i in chosen[first : first + most]]
            vectors.append(self._encode(batch))
            if len(vectors[-1]) < len(batch):
                break
        return np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32)

    def _row_picture(self, rows: _Rows, i: int) -> Picture:
        assert self._encoder is not None
        found = canonical.from_canonical(memoryview(rows.block.rows[i]))
        return canonical.squash(canonical.to_rgb8(found), self._encoder.image_size)

    def _add_one_by_one(self, pending: _Pending, rows: _Rows) -> npt.NDArray[np.int64]:
        """The image of each row, where different images have the same key; fewer as above."""
        views = [memoryview(row) for row in rows.block.rows]
        images = [
            NewImage(
                rows.shape,
                rows.keys[i],
                rows.proofs[i],
                ARRAY,
                "",
                0,
                b"",
                rows.fingerprints[i].tobytes(),
                int(rows.qualities[i]),
                view if rows.keeps else None,
                keeps_canonical=True,
            )
            for i, view in enumerate(views)
        ]
        ids: list[int] = []
        for image, known in zip(images, self._known(pending, images), strict=True):
            id_ = known or pending.ids.get(image.proof)
            if id_ is None:
                vector = None
                if self._encoder is not None:
                    encoded = self._encode([self._row_picture(rows, len(ids))])
                    if not len(encoded):
                        break
                    vector = encoded[0]
                id_ = self._add(pending, image, vector)
            else:
                self._counts.duplicates += 1
            ids.append(id_)
        return np.array(ids, np.int64)

    def _tell_runs(
        self, chunk: Chunk, keys: list[bytes], ids: npt.NDArray[np.int64], runs: Sequence[Run]
    ) -> None:
        """Note which images' rows may say that all their sources are in runs of several."""
        alone = np.array([run.id for run in runs if not run.several], np.int64)
        if not len(alone):
            return
        first = self._store.state.next_id
        if chunk.rows is not None:
            chunk.rows.in_runs = ~np.isin(first + np.arange(len(chunk.rows)), alone)
        known = np.flatnonzero((ids < first) & np.isin(ids, alone))
        touched = list({keys[i]: None for i in known})
        for key, found in zip(touched, self._store.images_of(touched), strict=True):
            # One that shares its key never says so.
            chunk.out_of_runs += [(key, row) for row in found[:1] if row.in_runs]

    # --- vectors ----------------------------------------------------------------------------------

    def _vectors(self, array: VectorItem, pool: ThreadPoolExecutor) -> None:
        """Ingest the rows of an array of vectors that are not committed yet, block by block."""
        row = self._store.array(array.name)
        stamp = (array.mtime_ns, array.size)
        start = 0
        try:
            if array.row_bytes > self._store.memory.chunk:
                raise SourceError(
                    f"has rows of {array.row_bytes:,} bytes: raise memory=", retryable=True
                )
            known = is_begun(array, row)
            if row is None or not known:
                same = row is not None and row.kind is Kind.VECTOR
                number = row.number if row is not None and same else self._store.state.next_array
                row = ArrayRow(number, *stamp, 0, Kind.VECTOR)
            start = row.rows
            self._counts.unchanged += start - row.rejected
            self._counts.rejected += row.rejected
            self._advance(start)
            broken = self._store.rejects([array.name])[0]
            if known and broken is not None and is_final(broken, *stamp):
                self._counts.rejected += 1  # what is left of it cannot be read
                self._advance(max(array.count - start, 1))
                return
            if start < array.count:
                check_admission(self._store, array.dim, normalize=self._normalize)
            given = GivenArray(self._store, array.name, row.number)
            if not known:
                given.forget(array.count)  # what is behind its end
            for block in self._vectors_ahead(array, start, pool):
                start = block.first + len(block.rows)
                row = self._commit_vectors(given, block, array, row)
                if self._stop():
                    return
        except (SourceError, ImageError) as error:
            self._reject([Problem(array.name, str(error), *((0, 0) if error.retryable else stamp))])
            self._advance(max(array.count - start - 1, 0))

    def _vectors_ahead(
        self, array: VectorItem, start: int, pool: ThreadPoolExecutor
    ) -> Iterator[CheckedBlock]:
        """Each block, checked. While one is committed the next is read and checked."""
        entry = self._store.manifest.encoder
        kept = entry is not None and self._store.vector_rows > 0
        normalize = entry.normalized if entry is not None and kept else self._normalize
        most = min(self._store.memory.block, CHUNK_VECTOR_BYTES)
        blocks = array.vectors(start, CHUNK_VECTORS, most)

        def read() -> CheckedBlock | None:
            block = next(blocks, None)
            self._peak.sample()
            return checked(block, normalize=normalize) if block is not None else None

        reading = pool.submit(read)
        while self._ready(reading) and (block := reading.result()) is not None:
            reading = pool.submit(read)
            yield block

    def _commit_vectors(
        self, given: GivenArray, block: CheckedBlock, array: VectorItem, row: ArrayRow
    ) -> ArrayRow:
        """Commit a block; where it does not fit the disk, half of it and then the rest.

        Returns how far the array is committed then.
        """
        before, end = self._marks(), block.first + len(block.rows)
        problems = block.problems(array.name, array.mtime_ns, array.size)
        rejected = row.rejected + sum(problem.rows for problem in problems)
        new = replace(row, rows=end, complete=end == array.count, rejected=rejected)
        try:
            self._try_vectors(given, block, array.name, new, problems)
        except NoRoomError:
            if len(block.rows) < 2:
                raise
            self._go_back(before)
            for half in block.halves():
                row = self._commit_vectors(given, half, array, row)
            return row
        return new

    def _try_vectors(
        self,
        given: GivenArray,
        block: CheckedBlock,
        name: bytes,
        array: ArrayRow,
        problems: Sequence[Problem],
    ) -> None:
        chunk, unchanged = given.take(block)
        if chunk.given is not None and not self._store.vector_rows:
            self._store.adopt_vectors(block.rows.shape[1], normalized=self._normalize)
            self._encoder = None  # from now on images get no vectors
        added = len(chunk.given) if chunk.given is not None else 0
        chunk.arrays = [(name, array)]
        self._put_rejects(chunk, problems)
        self._save(chunk)
        self._counts.added += added
        self._counts.unchanged += unchanged
        self._advance(len(block.rows))

    # --- both -------------------------------------------------------------------------------------

    def _known(self, pending: _Pending, images: Sequence[NewImage]) -> list[int | None]:
        """The stored image that each of ``images`` is, by key and then by proof."""
        rows = self._store.images_of([image.key for image in images])
        known: list[int | None] = []
        for image, candidates in zip(images, rows, strict=True):
            # One that shares its key never says that all its sources are in runs.
            image.first = candidates[0]._replace(in_runs=False) if candidates else None
            found = next((row for row in candidates if row.proof == image.proof), None)
            known.append(found.id if found else None)
            if found and found.in_runs:
                pending.chunk.out_of_runs.append((image.key, found))
        return known

    def _add(self, pending: _Pending, image: NewImage, vector: Vector | None) -> int:
        id_ = self._store.state.next_id + len(pending.chunk.images)
        pending.chunk.images.append(image)
        pending.ids[image.proof] = id_
        if vector is not None:
            pending.vectors.append(vector[np.newaxis])
        self._counts.added += 1
        return id_

    def _encode(self, pictures: Sequence[Picture]) -> npt.NDArray[np.float32]:
        """The vectors (n, dim) of a batch; none where the run is to stop before they are there."""
        if self._encoder is None:
            return np.empty((0, 0), np.float32)
        if pictures and not self._late():
            with suppress(EncodingStoppedError):
                return self._encoder.encode(pictures, self._late)
        return np.empty((0, self._encoder.dim), np.float32)

    def _commit(self, pending: _Pending) -> None:
        if pending.vectors:
            pending.chunk.vectors = np.concatenate(pending.vectors)
        self._peak.sample()
        first = self._store.state.next_id
        self._save(pending.chunk)
        if pending.chunk.vectors is not None:
            bare = np.flatnonzero(~pending.chunk.vectors.any(axis=1))
            self._bare += len(bare)
            self._some_bare += (first + bare[: _NAMED - len(self._some_bare)]).tolist()
        self._index(_SEGMENT_ROWS)

    def _reject(self, rejects: Sequence[Problem]) -> None:
        """Commit what could not be read, if anything."""
        if not rejects:
            return
        chunk = Chunk()
        self._put_rejects(chunk, rejects)
        self._save(chunk)
        self._advance(len(rejects))

    def _save(self, chunk: Chunk) -> None:
        """Commit a chunk, and then tell people of its rejects."""
        self._store.commit(chunk)
        lines, self._reject_lines = self._reject_lines, []
        if lines:
            self._store.log_rejects(lines)

    def _put_rejects(self, chunk: Chunk, rejects: Sequence[Problem]) -> None:
        """Record what could not be read; a row that says the same as before is not repeated."""
        self._counts.rejected += sum(found.rows for found in rejects)
        before = self._store.rejects([found.name for found in rejects]) if rejects else []
        for found, known in zip(rejects, before, strict=True):
            row = {
                "reason": found.reason,
                "mtime_ns": found.mtime_ns,
                "size": found.size,
                "decoder": canonical.DECODER,
            }
            if known != row:
                chunk.rejects.append((found.name, row))
                source = os.fsdecode(found.name)
                line = {"source": source, "reason": found.reason, "time": time.time()}
                self._reject_lines.append(line)

    def _index(self, least: int) -> None:
        """Index the vectors that are in no segment, if there are at least ``least`` of them."""
        if not self._store.vector_rows or self._stop():
            return
        work = Work(self._store.memory, lambda rows: self._peak.sample(), self._stop)
        try:
            Indexing(self._store, work).update(least)
        except StoppedError:
            _log.warning("the index was not built: the next ingest or optimize builds it")
        except (OSError, MemoryError, StoreDamagedError) as error:
            # Derived: the vectors are committed, and are searched exactly until it succeeds.
            what = error.strerror if isinstance(error, OSError) and error.strerror else error
            _log.warning("the index was not built: %s; lookups go on without it", what)

    def _warn_of_bare(self) -> None:
        """Name images that were added without a vector."""
        if self._bare:
            named = ", ".join(map(str, self._some_bare))
            more = self._bare - len(self._some_bare)
            _log.warning(
                "the encoder gave no vector for %d of the images (ids %s%s): they are found as "
                "identical and near, and as similar to nothing",
                self._bare,
                named,
                f" and {more} more" if more else "",
            )

    def _advance(self, count: int) -> None:
        self._done += count
        self._progress(self._done)

    def _report(self, seconds: float) -> IngestReport:
        self._peak.sample()
        counts = self._counts
        return IngestReport(
            seen=counts.seen,
            added=counts.added,
            duplicates=counts.duplicates,
            unchanged=counts.unchanged,
            rejected=counts.rejected,
            skipped=counts.skipped,
            seconds=round(seconds, 3),
            images_per_second=round(counts.seen / seconds, 1) if seconds else 0.0,
            peak_memory_bytes=self._peak.anonymous,
            peak_rss_bytes=self._peak.resident,
            rejects_file=str(self._store.path / REJECTS)
            if counts.rejected or WITHOUT_METADATA in counts.notes
            else None,
            interrupted=self._stop(),
            notes=dict(counts.notes),
        )


def is_final(reject: dict[str, Any], mtime_ns: int, size: int) -> bool:
    """Whether what was rejected would be again: it has not changed, nor has what decodes it."""
    stamp = (reject["mtime_ns"], reject["size"])
    return any(stamp) and stamp == (mtime_ns, size) and reject.get("decoder") == canonical.DECODER


def _stands_for(
    item: FileItem | Member, before: NameRow | None, chunk: NewName | None
) -> int | None:
    """The image that a member's name stands for already, in the same archive as it is now."""
    if chunk is not None:
        return chunk.id
    if before is not None and (before.mtime_ns, before.size) == (item.mtime_ns, item.size):
        return before.id
    return None


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Worker threads; what has not begun when an error ends the run is not begun any more."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="engine-ingest")
    try:
        yield pool
    finally:
        # Not waited for: an image may take a minute to decode, and nobody wants it any more.
        pool.shutdown(wait=False, cancel_futures=True)


def runs_of(array: int, first_row: int, ids: npt.NDArray[np.int64]) -> list[Run]:
    """The shortest list of runs that says which image each row of a block is.

    ``ids`` is (n,): the images of rows ``first_row`` … ``first_row + n - 1``.
    """
    runs: list[Run] = []
    steps = np.diff(ids)
    # Where the step changes, a run may end; between two such places it is constant.
    edges = [*(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(steps)] if len(steps) else []
    at = 0
    for edge in edges:
        step = int(steps[edge - 1])
        if at >= edge:
            continue
        if step in (0, 1):
            runs.append(Run(array, first_row + at, edge - at + 1, step, int(ids[at])))
            at = edge + 1
        else:
            while at < edge:
                runs.append(Run(array, first_row + at, 1, 1, int(ids[at])))
                at += 1
    if at < len(ids):
        runs.append(Run(array, first_row + at, 1, 1, int(ids[at])))
    return runs


def _joined(parts: Sequence[_Rows | None]) -> _Rows | None:
    """The parts of one block as one; None where there was no block."""
    there = [part for part in parts if part is not None and part.keys]
    if not there:
        return None
    if len(there) == 1:
        return there[0]
    return replace(
        there[0],
        keys=[key for part in there for key in part.keys],
        proofs=[proof for part in there for proof in part.proofs],
        fingerprints=np.concatenate([part.fingerprints for part in there]),
        qualities=np.concatenate([part.qualities for part in there]),
    )


def _next(blocks: Iterator[RowBlock], before: Future[RowBlock | None]) -> RowBlock | None:
    """The next block, once the one before it is there."""
    before.result()
    return next(blocks, None)
