"""Index segments: immutable on-disk IVF lists of short codes over ranges of vector rows.

    header, 4 KiB     magic, number of the quantizer, code bytes, lists, rows; xxh64
    sizes             uint32 (nlist,)
    list after list   each from a multiple of 64 bytes on: codes in blocks of 32 rows, and then labels,
                      int64, as many as fit the blocks

A segment names rows by a *label*, their number within its ranges, and never images; it can always be
built again from the vectors. It becomes live when the manifest names it. Nothing in the file is an
absolute path, so a store can be moved.

In a block the same 4 bits of 32 codes lie together, as FAISS's FastScan kernels compare them with a
query's table, 32 at a time. FAISS has such blocks in memory only; laid out so in a file, and mapped,
they are searched as fast, take no memory that the kernel could not have back, and need no loading.
FAISS believes whatever it reads, so the header is checked before, and the manifest has a checksum of
it all. Should a version of FAISS arrange blocks otherwise, segments are refused, not misread.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engine.errors import StoreDamagedError
from engine.images import hashing
from engine.index.quantizer import Quantizer
from engine.storage import nofollow
from engine.storage.bitmap import IdSet
from engine.storage.durable import file_checksum, fsync_dir, inside, write_new
from engine.storage.manifest import INDEX_FOLDER, SegmentEntry

SUFFIX = ".ivf"
LABEL_BYTES = 8
_HEADER_BYTES = 4096
_ALIGNED = 64  # bytes: what the kernels load at once
_BLOCK = 32  # rows
_HALF = _BLOCK // 2
# Which row of a block is the n-th of its first half; the second half follows it by 16.
_ORDER = np.array([0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15])
_HEADER = struct.Struct("<8sIIIQ")  # magic, quantizer, code bytes, nlist, rows
_MAGIC = b"ENGIVF01"
_ONE_QUERY = 10  # FAISS's number of a search list by list, with a heap
_WRITTEN = 8 << 20  # bytes of lists that are put together before they are written

Codes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class InLists(Protocol):
    """Codes and labels by the list."""

    sizes: npt.NDArray[np.int64]  # (nlist,)

    def of(self, number: int) -> tuple[Codes, Labels]:
        """The codes and labels of one list, of which each is asked for once, in their order."""


class Lists:
    """Rows sorted by list: what a segment is written from."""

    def __init__(self, lists: npt.NDArray[np.int64], codes: Codes, nlist: int) -> None:
        """``lists`` (n,) and ``codes`` (n, code bytes) of the rows labelled 0 to n - 1."""
        self.labels = np.argsort(lists, kind="stable")
        self.codes = codes[self.labels]
        self.sizes = np.bincount(lists, minlength=nlist)
        self._ends = np.cumsum(self.sizes)

    def of(self, number: int) -> tuple[Codes, Labels]:
        """The codes and labels of one list."""
        end = int(self._ends[number])
        start = end - int(self.sizes[number])
        return self.codes[start:end], self.labels[start:end]


def path_of(store: Path, number: int) -> Path:
    """Where segment ``number`` lies."""
    return store / INDEX_FOLDER / f"{number:08d}{SUFFIX}"


def make_folder(store: Path) -> None:
    """The folder that segments and quantizers lie in, if it is not there."""
    if nofollow.make_folder(store, INDEX_FOLDER):
        fsync_dir(store)


def write(
    path: Path,
    quantizer: int,
    nlist: int,
    code_bytes: int,
    pieces: Sequence[tuple[InLists, int]],
) -> tuple[int, int]:
    """Write a segment whose lists are those of ``pieces`` put together; its length and xxh64.

    Each piece comes with how much its labels are raised by. It is durable when this returns, and live
    once the manifest names it. ``OSError`` where it cannot be written; nothing is left of it then.
    """
    root = path.parent.parent
    make_folder(root)
    sizes = np.sum([piece.sizes for piece, _ in pieces], axis=0).astype(np.uint32)
    head = _HEADER.pack(_MAGIC, quantizer, code_bytes, nlist, int(sizes.sum()))
    head += struct.pack("<Q", hashing.checksum(head))

    def parts() -> Iterator[bytes]:
        ready = [head.ljust(_HEADER_BYTES, b"\0"), _padded(sizes.tobytes())]
        size = 0
        for number in range(nlist):
            found = [(piece.of(number), raised) for piece, raised in pieces]
            codes = np.concatenate([codes for (codes, _), _ in found])
            labels = np.zeros(-(-len(codes) // _BLOCK) * _BLOCK, np.int64)
            labels[: len(codes)] = np.concatenate([mine + raised for (_, mine), raised in found])
            ready.append(_padded(packed(codes).tobytes() + labels.tobytes()))
            size += len(ready[-1])
            if size >= _WRITTEN:
                yield b"".join(ready)
                ready, size = [], 0
        yield b"".join(ready)

    return write_new(path, parts(), root)


def packed(codes: Codes) -> Codes:
    """Codes (n, bytes) in blocks of 32, the last one filled up with zeros: (⌈n / 32⌉ · 32 · bytes,)."""
    n, size = codes.shape
    rows = np.zeros((-(-n // _BLOCK) * _BLOCK, size), np.uint8)
    rows[:n] = codes
    columns = rows.reshape(-1, _BLOCK, size).transpose(0, 2, 1)  # of a block, byte by byte
    out = np.empty((len(columns), size, 2, _HALF), np.uint8)
    for half in range(2):
        values = columns >> 4 * half & 15
        out[:, :, half] = values[:, :, _ORDER] | values[:, :, _ORDER + _HALF] << 4
    return out.reshape(-1)


def unpacked(blocks: Codes, n: int, size: int) -> Codes:
    """The codes (n, size) that ``packed`` put into blocks."""
    parts = blocks.reshape(-1, size, 2, _HALF)
    columns = np.zeros((len(parts), size, _BLOCK), np.uint8)
    for half in range(2):
        columns[:, :, _ORDER] |= (parts[:, :, half] & 15) << 4 * half
        columns[:, :, _ORDER + _HALF] |= (parts[:, :, half] >> 4) << 4 * half
    return columns.transpose(0, 2, 1).reshape(-1, size)[:n]


class Segment:
    """One segment, mapped. Several threads may search it at once."""

    def __init__(self, path: Path, entry: SegmentEntry, quantizer: Quantizer) -> None:
        """Map it; ``StoreDamagedError`` if the file is gone, cut or not what the manifest says."""
        self.entry = entry
        self._path = path
        self._quantizer = quantizer
        root = path.parent.parent
        try:
            fd = nofollow.open_file(root, inside(path, root))
        except OSError as error:
            raise StoreDamagedError(f"{path} cannot be read: {error}") from None
        try:
            self._map_file(fd)
        finally:
            os.close(fd)

    def _map_file(self, fd: int) -> None:
        path, entry = self._path, self.entry
        nlist, code_bytes = self._quantizer.nlist, self._quantizer.code_bytes
        try:
            if os.fstat(fd).st_size != entry.bytes or entry.bytes < _HEADER_BYTES:
                raise StoreDamagedError(f"{path} has the wrong length")
            self._map = mmap.mmap(fd, entry.bytes, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise StoreDamagedError(f"{path} cannot be read: {error}") from None
        head = self._map[: _HEADER.size + 8]
        check = hashing.checksum(head[: _HEADER.size])
        said = _HEADER.unpack(head[: _HEADER.size])
        wanted = (_MAGIC, entry.quantizer, code_bytes, nlist, entry.rows)
        if said != wanted or int.from_bytes(head[_HEADER.size :], "little") != check:
            raise StoreDamagedError(f"{path} holds something else")
        start = _HEADER_BYTES + -(-4 * nlist // _ALIGNED) * _ALIGNED
        if start > entry.bytes:
            raise StoreDamagedError(f"{path} is cut short")
        self.sizes = np.frombuffer(self._map, np.uint32, nlist, _HEADER_BYTES).astype(np.int64)
        self._capacities = -(-self.sizes // _BLOCK) * _BLOCK
        lengths = self._capacities * (code_bytes + LABEL_BYTES)
        self._ends = start + np.cumsum(-(-lengths // _ALIGNED) * _ALIGNED)
        self._starts = np.append(start, self._ends[:-1])
        if int(self._ends[-1]) != entry.bytes or int(self.sizes.sum()) != entry.rows:
            raise StoreDamagedError(f"{path} holds something else")
        try:
            self._one, self._many = self._open(fd)
        except (RuntimeError, MemoryError) as error:
            raise StoreDamagedError(f"{path} cannot be read: {error}") from None

    def of(self, number: int) -> tuple[Codes, Labels]:
        """The codes and labels of one list."""
        code_bytes = self._quantizer.code_bytes
        start, size = int(self._starts[number]), int(self.sizes[number])
        length = int(self._capacities[number]) * code_bytes
        blocks = np.frombuffer(self._map, np.uint8, length, start)
        return unpacked(blocks, size, code_bytes), self._labels(number)

    def _labels(self, number: int) -> Labels:
        length = int(self._capacities[number]) * self._quantizer.code_bytes
        start = int(self._starts[number]) + length
        return np.frombuffer(self._map, np.int64, int(self.sizes[number]), start)

    def lists_of(self, wanted: IdSet) -> tuple[Labels, npt.NDArray[np.int64]]:
        """The labels that are wanted, ascending, and the list of each; reads all labels."""
        found: list[tuple[Labels, npt.NDArray[np.int64]]] = []
        for number in np.flatnonzero(self.sizes).tolist():
            labels = self._labels(number)
            labels = labels[wanted.has(labels)]
            found.append((labels, np.full(len(labels), number, np.int64)))
        labels, lists = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.argsort(labels, kind="stable")
        return labels[order], lists[order]

    def sizes_of(self, wanted: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """How many labels of each list are wanted, (rows,) by label; reads all labels."""
        sizes = np.zeros(len(self.sizes), np.int64)
        for number in np.flatnonzero(self.sizes).tolist():
            labels = self._labels(number)
            if self.entry.ordered:  # they follow each other
                first = int(labels[0])
                sizes[number] = np.count_nonzero(wanted[first : first + len(labels)])
            else:
                sizes[number] = np.count_nonzero(wanted[np.clip(labels, 0, len(wanted) - 1)])
        return sizes

    def ask_for(self, lists: npt.NDArray[np.int64]) -> None:
        """Have the kernel read these lists, all together."""
        if hasattr(mmap, "MADV_WILLNEED"):
            for number in np.unique(lists[lists >= 0]).tolist():
                start = int(self._starts[number]) // mmap.PAGESIZE * mmap.PAGESIZE
                length = int(self._ends[number]) - start
                self._map.madvise(mmap.MADV_WILLNEED, start, length)

    def problem(self) -> str | None:
        """What is wrong with its file, or None; reads all of it."""
        return problem(self._path, self.entry.bytes, self.entry.xxh64)

    def names_every_row(self) -> bool:
        """Whether its labels name each row once, as those of an undamaged segment do; reads them all."""
        rows = self.entry.rows
        seen = IdSet.none(rows)
        for number in np.flatnonzero(self.sizes).tolist():
            seen.add(self._labels(number))
        return len(seen) == rows

    def candidates(
        self,
        fitted: npt.NDArray[np.float32],
        depth: int,
        close: npt.NDArray[np.float32],
        lists: npt.NDArray[np.int64],
        alive: npt.NDArray[np.uint8] | None,
    ) -> tuple[npt.NDArray[np.float32], Labels]:
        """Rows that may be close to (nq, width) queries, by their codes.

        ``close`` and ``lists`` (nq, nprobe) are the nearest lists; ``alive`` is a bitmap of the labels
        that count. Returns approximate inner products and labels (nq, depth), padded with -1; of a
        damaged segment labels may be anything below the number of its rows.
        """
        import faiss

        _faiss: Any = faiss  # its type stubs know nothing of arrays
        nq, nprobe = lists.shape
        index = self._one if nq == 1 else self._many
        params: Any = faiss.SearchParametersIVF()
        params.nprobe = nprobe
        selector: Any = None
        if alive is not None:
            selector = _faiss.IDSelectorBitmap(alive)
            params.sel = selector
        scores = np.empty((nq, depth), np.float32)
        labels = np.empty((nq, depth), np.int64)
        index.search_preassigned_c(
            nq,
            faiss.swig_ptr(fitted),
            depth,
            faiss.swig_ptr(lists),
            faiss.swig_ptr(close),
            faiss.swig_ptr(scores),
            faiss.swig_ptr(labels),
            False,
            params,
        )
        if labels.view(np.uint64).max(initial=0) >= self.entry.rows:  # negative ones are as large
            labels[(labels < 0) | (labels >= self.entry.rows)] = -1
        return scores, labels

    def _open(self, fd: int) -> tuple[Any, Any]:
        """The lists as FAISS searches them where they lie: for one query, and for many."""
        import faiss

        if not _is_as_faiss_has_it():
            raise RuntimeError("this version of FAISS arranges codes otherwise")
        table = np.empty((len(self.sizes), 3), np.uint64)  # size, capacity, offset
        table[:, 0], table[:, 1], table[:, 2] = self.sizes, self._capacities, self._starts
        lists: Any = faiss.OnDiskInvertedLists()
        lists.nlist = self._quantizer.nlist
        lists.code_size = self._quantizer.code_bytes
        # The very file that was looked at, whatever its name stands for by now.
        opened = Path(f"/dev/fd/{fd}")
        lists.filename = str(opened if opened.exists() else self._path)
        lists.read_only = True
        lists.totsize = self.entry.bytes
        lists.lists.resize(lists.nlist)
        bytes_ = table.view(np.uint8).reshape(-1)
        faiss.memcpy(lists.lists.data(), faiss.swig_ptr(bytes_), len(bytes_))
        lists.do_mmap()
        one, many = (faiss.IndexIVFPQFastScan(self._quantizer.empty_index()) for _ in range(2))
        many.replace_invlists(lists, True)
        lists.this.disown()  # it is the index's now
        one.replace_invlists(lists, False)
        one.implem = _ONE_QUERY
        one.ntotal = many.ntotal = self.entry.rows
        return one, many


@cache
def _is_as_faiss_has_it() -> bool:
    """Whether ``packed`` gives the bytes that FAISS's own FastScan lists have."""
    import faiss

    codes = np.arange(_BLOCK, dtype=np.uint8)[:, None] * np.array([7, 11], np.uint8)
    index: Any = faiss.IndexIVFPQ(faiss.IndexFlatIP(4), 4, 1, 4, 4, faiss.METRIC_INNER_PRODUCT)
    labels = np.arange(_BLOCK, dtype=np.int64)
    index.invlists.add_entries(0, _BLOCK, faiss.swig_ptr(labels), faiss.swig_ptr(codes))
    index.ntotal = _BLOCK
    index.is_trained = True
    theirs: Any = faiss.IndexIVFPQFastScan(index)
    ours = packed(codes)
    found = faiss.rev_swig_ptr(theirs.invlists.get_codes(0), len(ours))
    return bool(np.array_equal(found, ours))


def problem(path: Path, size: int, xxh64: int) -> str | None:
    """What is wrong with a segment's or a quantizer's file, or None; reads all of it."""
    try:
        found = file_checksum(path, path.parent.parent)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "its checksum is wrong" if found != (size, xxh64) else None


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // _ALIGNED) * _ALIGNED, b"\0")
