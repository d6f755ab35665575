"""The images of a training run: what its sources hold, decoded once, and which of them are held out.

Sources are gone through up to three times: once without reading an image, for a key that says what
there is; once to decode everything, unless a cache has that key; and once more where the pictures
take more disk than they may and have to be smaller.
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image
from torch import Tensor

from engine.config import MemoryBudget
from engine.errors import ImageError, SourceError, UsageError
from engine.images import canonical, decode
from engine.images.rgb_picture import squash, to_rgb8
from engine.memory import MemoryGate
from engine.records import Rejection
from engine.sources.items import (
    ArchiveItem,
    ArrayItem,
    FileItem,
    Item,
    Member,
    Reject,
    RowBlock,
    Skipped,
    VectorItem,
    absolute,
)
from engine.sources.metadata import LABELS
from engine.sources.source_stream import Sources
from engine.training.cache import FORMAT, PictureFile, PictureWriter, find

Array = npt.NDArray[np.uint8]

TRAIN = "train"
HELD_OUT = ("valid", "val", "test")
HELD_OUT_SHARE = 0.05
HELD_OUT_IMAGES = 1024  # at most so many are held out
MAX_BYTES = 32 << 30  # of disk, for the decoded pictures
_HELD_OUT_FROM = 64  # images in all: of fewer none are held out by their names
_LONGEST = 8  # times the wanted shorter side: a strip of pixels would be kept as long as it is
_IN_FLIGHT = 64  # files, members or blocks of rows that are decoded or wait for those before them
_BLOCK_ROWS = 32  # of an array, decoded at a time
_IMAGES = "images"  # the folder beside "labels" in data sets for detection: it says nothing


class Pictures:
    """Some of the pictures of a file, in one of their two sizes; a sequence of (H, W, 3) uint8."""

    def __init__(self, file: PictureFile, which: npt.NDArray[np.int64], *, squashed: bool) -> None:
        rows, texts = file.rows[which], file.texts
        self._file = file
        self._heights = rows["height"].astype(np.int64)
        self._widths = rows["width"].astype(np.int64)
        self._offsets = rows["at"].astype(np.int64)
        if squashed:
            self._offsets += 3 * self._heights * self._widths
            self._heights[:] = self._widths[:] = file.square
        self._file_bytes = rows["file_bytes"]
        self.sizes: list[tuple[int, int]] = list(
            zip(self._heights.tolist(), self._widths.tolist(), strict=True)
        )
        self.names = [texts.names[row] for row in which]  # relative to their source, with "/"
        self.labels = [texts.labels[row] for row in which]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Tensor:
        height, width = self.sizes[index]
        return self._file.read(int(self._offsets[index]), height, width)

    @property
    def fingerprint(self) -> str:
        """xxh3-128, in hex, of relative names, labels and sizes of files, in their order.

        In their order, because it is their numbers that are drawn for a batch.
        """
        digest = xxhash.xxh3_128()
        sizes = self._file_bytes.tolist()
        for name, label, size in zip(self.names, self.labels, sizes, strict=True):
            digest.update(_bytes(f"{name}\0{label or ''}\0{size}\n"))
        return str(digest.hexdigest())


@dataclass(frozen=True, slots=True)
class Read:
    """Each picture in two sizes: shrunk to crop from, and squashed as an encoder is given it."""

    pictures: Pictures
    squashed: Pictures
    held_out: Pictures
    held_out_squashed: Pictures
    rejected: list[Rejection]
    side: (
        int  # of the shrunk pictures: smaller than it was asked for where the disk's bound wants it
    )
    reused: bool  # nothing was decoded: an earlier run kept these pictures
    close: Callable[[], None]  # gives the disk of what is not kept back; pictures stay valid


def read(
    sources: Sequence[str],
    *,
    side: int,
    square: int,
    folder: Path,
    pool: Executor,
    tick: Callable[[int, int], None],
    stop: Callable[[], bool] = lambda: False,
    cache: Path | None = None,
    max_bytes: int = MAX_BYTES,
    held_out: float | None = HELD_OUT_SHARE,
) -> Read:
    """Decode the images of all that ``engine ingest`` takes, but for vectors.

    Pictures are kept with the shorter side shrunk to ``side`` (never enlarged), and squashed to
    ``square`` × ``square``: in ``cache``, where later runs find them while the sources have not
    changed, else in a nameless file in ``folder``. Where they would take over ``max_bytes``, a
    smaller side is chosen, down to ``square``; ``UsageError`` says what that would take if it is
    still too much. ``tick`` is told how many items are done and about how many there are; once
    ``stop`` says so, ``KeyboardInterrupt`` is raised.

    Held out is what lies in ``valid/`` or ``test/`` beside ``train/`` (Roboflow's layout), else the
    share ``held_out`` by a hash of the name, of 64 images or more; at most 1,024. With None only
    the folders are, and with 0 nothing is: the folders are trained on too.
    """
    plan = _Plan(sources)
    key, total = plan.key((FORMAT, decode.DECODER, side, square, max_bytes))
    file = find(cache, key, square) if cache is not None else None
    reused = file is not None
    if file is None:
        reader = _Reader(square, pool, tick, stop, total)
        file = reader.read(plan, side, max_bytes, lambda: _writer(folder, cache, key))
    if reused:
        tick(total, total)
    trained, out = _split(file, held_out)
    return Read(
        Pictures(file, trained, squashed=False),
        Pictures(file, trained, squashed=True),
        Pictures(file, out, squashed=False),
        Pictures(file, out, squashed=True),
        list(file.texts.rejected),
        file.side,
        reused,
        file.close,
    )


def check(sources: Sequence[str]) -> None:
    """``UsageError`` for a source that is not there; nothing is read."""
    for source in sources:
        _parts(source)


def _writer(folder: Path, cache: Path | None, key: str) -> PictureWriter:
    return PictureWriter(folder, None) if cache is None else PictureWriter(cache, key)


def _split(
    file: PictureFile, share: float | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows to train on and the rows that are held out, each in their order."""
    by_folder = (file.rows["held_out"] != 0) & (share != 0)
    out, most = by_folder, HELD_OUT_IMAGES
    n = len(out)
    if share and not out.any() and n >= _HELD_OUT_FROM:
        out = np.ones(n, np.bool_)
        most = min(most, round(share * n))
    left = np.flatnonzero(out)
    hashes = np.array(
        [xxhash.xxh3_64_intdigest(_bytes(file.texts.names[row])) for row in left], np.uint64
    )
    kept = np.sort(left[np.argsort(hashes, kind="stable")[:most]])
    # By folder, what is over the limit is not trained on either.
    trained = np.flatnonzero(~by_folder)
    return np.setdiff1d(trained, kept, assume_unique=True), kept


# --- what there is --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """A source, or one of its splits."""

    sources: Sources
    base: bytes | None  # the folder that names are relative to; None: that which the item is in
    labels: str  # the folder, relative to that, which labels are relative to
    held_out: bool


@dataclass(frozen=True, slots=True)
class _Picture:
    """What is known of an image before it is decoded."""

    name: str
    label: str | None
    held_out: bool


class _Plan:
    """What is in all sources, each file once; it may be gone through several times."""

    def __init__(self, sources: Sequence[str]) -> None:
        """``UsageError`` for a source that is not there."""
        self._parts = [part for source in sources for part in _parts(source)]
        # What comes out of a pipe comes once.
        self._listed = list(self._found()) if "-" in sources else None
        self._spec = "\n".join(sources)

    def key(self, settings: tuple[object, ...]) -> tuple[str, int]:
        """What is cached under: settings, names, stamps and sizes; and how many items there are."""
        digest = xxhash.xxh3_128(_bytes(f"{settings}\n{self._spec}\n"))
        total = 0
        for part, item in self:
            name = item.name
            if isinstance(item, Reject):
                digest.update(b"%d %b %b\n" % (part.held_out, name, _bytes(item.reason)))
                continue
            # The rows of a synthetic set have no stamp; how many they are is not in its name.
            count = getattr(item, "count", 1) or 1
            stamp = b"%d %d %d" % (item.mtime_ns, item.size, count)
            digest.update(b"%d %b %b\n" % (part.held_out, name, stamp))
            total += count
        return str(digest.hexdigest()), total

    def __iter__(self) -> Iterator[tuple[_Part, Any]]:
        return iter(self._listed) if self._listed is not None else self._found()

    def _found(self) -> Iterator[tuple[_Part, Any]]:
        """Files, arrays, archives and problems, with the part they are of."""
        seen: set[bytes] = set()
        for part in self._parts:
            for item in part.sources:
                if isinstance(item, Skipped) or _is_hidden(part, item):
                    continue
                name = item.name
                if isinstance(item, FileItem):  # which links may lead to
                    name = os.path.realpath(name)
                mark = xxhash.xxh3_128_digest(name)
                if mark not in seen:
                    seen.add(mark)
                    yield part, item


def _parts(source: str) -> list[_Part]:
    folder = Path(source)
    if source == "-" or not folder.is_dir():
        return [_Part(Sources([source]), None, "", held_out=False)]
    base = absolute(source)
    splits = [name for name in HELD_OUT if (folder / name).is_dir()]
    if not splits or not (folder / TRAIN).is_dir():
        return [_Part(Sources([source]), base, "", held_out=False)]
    return [
        _Part(Sources([str(folder / name)]), base, name, held_out=name != TRAIN)
        for name in (TRAIN, *splits)
    ]


def _is_hidden(part: _Part, item: Item) -> bool:
    """Whether a file was found in a folder or under a name that begins with a dot."""
    if part.base is None or not isinstance(item, FileItem):
        return False
    inside = item.name[len(part.base) :]
    return inside.startswith(b".") or b"/." in inside


def _picture(part: _Part, name: bytes, metadata: dict[str, Any] | None = None) -> _Picture:
    """What an image is called, relative to its source, and the label that it has."""
    if part.base is not None:
        inside = name[len(part.base) :].lstrip(b"/")
    else:  # what follows "#" or "?" may hold slashes
        ends = [at for at in (name.find(b"#"), name.find(b"?")) if at >= 0]
        inside = name[name.rfind(b"/", 0, min(ends, default=len(name))) + 1 :]
    shown = os.fsdecode(inside)
    said = next((metadata[key] for key in LABELS if key in metadata), None) if metadata else None
    if isinstance(said, str | int):
        return _Picture(shown, str(said), part.held_out)
    member = shown.partition("#")[2] or shown
    return _Picture(shown, _folder(member, part.labels), part.held_out)


def _folder(name: str, base: str) -> str | None:
    """The first folder that a name is in, relative to ``base``; None if it is in none."""
    folders = [part for part in PurePosixPath(name).parts[:-1] if part not in ("/", ".", "..")]
    if base:
        folders = folders[1:]
        if folders[:1] == [_IMAGES]:
            folders = folders[1:]
    return folders[0] if folders else None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


# --- reading it -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Loaded:
    """One image, decoded; of one that is only measured there are no pixels."""

    picture: _Picture
    file_bytes: int
    size: tuple[int, int]  # as it was, height and width
    shrunk: Array | None = None
    squashed: Array | None = None


@dataclass(frozen=True, slots=True)
class _Failed:
    rejection: Rejection
    retryable: bool = False  # the next run may be luckier with the very same file


_Result = _Loaded | _Failed


class _Reader:
    """Goes through the items in their order and decodes in the threads of a pool."""

    def __init__(
        self,
        square: int,
        pool: Executor,
        tick: Callable[[int, int], None],
        stop: Callable[[], bool],
        total: int,
    ) -> None:
        self._square = square
        self._pool = pool
        self._tick = tick
        self._stop = stop
        self._total = total
        self._memory = MemoryBudget()
        self._gate = MemoryGate(self._memory.decoding)
        self._side: int | None = None  # None: pictures are measured only

    def read(
        self, plan: _Plan, side: int, most: int, writer: Callable[[], PictureWriter]
    ) -> PictureFile:
        """All pictures in at most ``most`` bytes."""
        sizes = array("q")
        file = self._written(plan, side, most, writer, sizes)
        if file is not None:
            return file
        smaller = _fitting(np.array(sizes, np.int64).reshape(-1, 2), side, self._square, most)
        file = self._written(plan, smaller, most, writer, array("q"))
        if file is None:  # they have grown meanwhile
            raise UsageError("the images changed while they were read: start again")
        return file

    def _written(
        self,
        plan: _Plan,
        side: int,
        most: int,
        writer: Callable[[], PictureWriter],
        sizes: array[int],
    ) -> PictureFile | None:
        """The pictures; None if they are more than ``most`` bytes, ``sizes`` then has all of them."""
        rejected: list[Rejection] = []
        whole = True
        into = writer()
        fits = True
        self._side = side
        try:
            for result in self._results(plan):
                if isinstance(result, _Failed):
                    rejected.append(result.rejection)
                    whole = whole and not result.retryable
                    continue
                sizes.extend(result.size)
                if result.shrunk is None or result.squashed is None:
                    continue
                fits = fits and into.bytes + result.shrunk.size + result.squashed.size <= most
                if not fits:
                    self._side = None
                    continue
                into.add(
                    result.picture.name,
                    result.picture.label,
                    result.file_bytes,
                    result.shrunk,
                    result.squashed,
                    held_out=result.picture.held_out,
                )
            if fits:
                return into.finish(rejected, side, self._square, keep=whole)
        except BaseException:
            into.abandon()
            raise
        into.abandon()
        return None

    def _results(self, plan: _Plan) -> Iterator[_Result]:
        """What became of every image, in order; a few are decoded ahead."""
        waiting: deque[tuple[int, Future[list[_Result]]]] = deque()
        held = 0
        done = 0
        try:
            for cost, task in self._tasks(plan):
                while waiting and (len(waiting) >= _IN_FLIGHT or held + cost > self._memory.chunk):
                    before, future = waiting.popleft()
                    results = future.result()
                    held -= before
                    done += len(results)
                    yield from results
                    self._tick(done, max(done, self._total))
                    if self._stop():
                        raise KeyboardInterrupt
                waiting.append((cost, self._pool.submit(task)))
                held += cost
            while waiting:
                results = waiting.popleft()[1].result()
                done += len(results)
                yield from results
                self._tick(done, self._total if not waiting else max(done, self._total))
                if self._stop():
                    raise KeyboardInterrupt
        finally:
            for _, future in waiting:
                future.cancel()

    def _tasks(self, plan: _Plan) -> Iterator[tuple[int, Callable[[], list[_Result]]]]:
        """What is to be done, with the bytes that it holds until then."""
        for part, item in plan:
            try:
                if isinstance(item, Reject):
                    yield 0, _refused(item.name, item.reason)
                elif isinstance(item, FileItem):
                    yield self._waiting, self._file(part, item)
                elif isinstance(item, VectorItem):
                    yield 0, _refused(item.name, "holds vectors: an encoder is trained on images")
                elif isinstance(item, ArchiveItem):
                    yield from self._archive(part, item)
                else:
                    yield from self._rows(part, item)
            except SourceError as error:
                yield 0, _refused(item.name, str(error))
            except OSError as error:
                yield 0, _refused(item.name, f"cannot be read: {error.strerror}", retryable=True)

    @property
    def _waiting(self) -> int:
        """Bytes of a picture in both its sizes, about, until it is written."""
        return 3 * (2 * self._side**2 + self._square**2) if self._side is not None else 0

    def _archive(
        self, part: _Part, archive: ArchiveItem
    ) -> Iterator[tuple[int, Callable[[], list[_Result]]]]:
        for member in archive.members(0, self._memory.max_file):
            if isinstance(member, Reject):
                yield 0, _refused(member.name, member.reason)
            elif isinstance(member, Member):
                yield member.memory_bytes + self._waiting, self._member(part, member)

    def _rows(
        self, part: _Part, rows: ArrayItem
    ) -> Iterator[tuple[int, Callable[[], list[_Result]]]]:
        if rows.row_bytes > self._memory.max_file:
            yield 0, _refused(rows.name, f"has rows of {rows.row_bytes:,} bytes, which is too much")
            return
        for block in rows.blocks(0, _BLOCK_ROWS, self._memory.block):
            cost = block.rows.nbytes + len(block.rows) * self._waiting
            yield cost, self._block(part, rows, block)

    def _file(self, part: _Part, item: FileItem) -> Callable[[], list[_Result]]:
        def load() -> list[_Result]:
            if item.size > self._memory.max_file:
                limit = f"{item.size:,} bytes are over the limit of {self._memory.max_file:,}"
                return [_failed(item.name, limit)]
            try:
                data = item.read(self._memory.max_file)
            except ImageError as error:
                return [_failed(item.name, str(error), retryable=True)]
            return [self._decoded(_picture(part, item.name), item.name, data)]

        return load

    def _member(self, part: _Part, member: Member) -> Callable[[], list[_Result]]:
        picture = _picture(part, member.name, member.metadata)
        return lambda: [self._decoded(picture, member.name, member.data)]

    def _block(self, part: _Part, rows: ArrayItem, block: RowBlock) -> Callable[[], list[_Result]]:
        def load() -> list[_Result]:
            results: list[_Result] = []
            for number, row in enumerate(block.rows, block.first):
                rgb = to_rgb8(canonical.from_canonical(row.data))
                picture = _picture(part, b"%b#%d" % (rows.name, number))
                results.append(self._shrunk(picture, rows.size, rgb))
            return results

        return load

    def _decoded(self, picture: _Picture, name: bytes, data: bytes) -> _Result:
        try:
            if self._side is None:
                return _Loaded(picture, len(data), decode.measured(data))
            with self._gate.hold(decode.decoding_bytes(data)):
                found = decode.decode(data, max_bytes=self._memory.decoding).pixels
                return self._shrunk(picture, len(data), to_rgb8(found))
        except ImageError as error:
            return _failed(name, str(error))
        except MemoryError:
            return _failed(name, "not enough memory to read it", retryable=True)

    def _shrunk(self, picture: _Picture, file_bytes: int, rgb: Array) -> _Loaded:
        height, width, _ = rgb.shape
        side = self._side
        if side is None:
            return _Loaded(picture, file_bytes, (height, width))
        squashed = squash(rgb, self._square)
        return _Loaded(picture, file_bytes, (height, width), shrunk(rgb, side), squashed)


def shrunk(rgb: Array, side: int) -> Array:
    """(H, W, 3) uint8 with the shorter side at ``side`` pixels, or as it is; never enlarged."""
    target = np.array([rgb.shape[:2]], np.int64)
    height, width = _targets(target, side)[0].tolist()
    if (height, width) == rgb.shape[:2]:
        return rgb
    image = Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8)


def _targets(sizes: npt.NDArray[np.int64], side: int) -> npt.NDArray[np.int64]:
    """(n, 2) heights and widths → what they are shrunk to."""
    shorter = sizes.min(1, keepdims=True)
    longest = _LONGEST * side
    factor = np.minimum(side / shorter, longest / sizes.max(1, keepdims=True))
    # Rounding must not take a shorter side below the crop that is wanted of it.
    least = np.minimum(np.where(factor * shorter >= side - 0.5, side, 1), sizes)
    small = np.maximum(least, np.rint(sizes * factor).astype(np.int64))
    return np.where(factor >= 1, sizes, small)


def _fitting(sizes: npt.NDArray[np.int64], side: int, square: int, most: int) -> int:
    """The largest side with which all pictures fit into ``most`` bytes; ``UsageError`` if none does."""

    def total(side: int) -> int:
        return int(_targets(sizes, side).prod(1).sum() + len(sizes) * square**2) * 3

    if side <= square or total(square) > most:
        smallest = min(side, square)
        raise UsageError(
            f"{len(sizes):,} pictures of {smallest} pixels a side take {_gib(total(smallest))} of "
            f"disk, and the bound is {_gib(most)}: raise it, or take a smaller image size or fewer "
            f"images"
        )
    low, high = square, side  # the one fits and the other does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if total(middle) <= most else (low, middle)
    return low


def _gib(count: int) -> str:
    return f"{count / (1 << 30):,.2f} GiB"


def _failed(name: bytes, reason: str, *, retryable: bool = False) -> _Failed:
    return _Failed(Rejection(os.fsdecode(name), reason), retryable)


def _refused(name: bytes, reason: str, *, retryable: bool = False) -> Callable[[], list[_Result]]:
    return lambda: [_failed(name, reason, retryable=retryable)]
