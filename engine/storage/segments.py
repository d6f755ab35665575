"""Index segments: immutable on-disk IVF lists of short codes over ranges of vector rows.

    header, 4 KiB     magic, number of the quantizer, code bytes, lists, rows; xxh64
    sizes             uint32 (nlist,), padded to 8 bytes
    list after list   codes (n, code bytes) and then labels int64 (n,), n rounded up so that the
                      labels lie at a multiple of 8

A segment names rows by a *label*, their number within its ranges, and never images; it can always be
built again from the vectors. It becomes live when the manifest names it. Nothing in the file is an
absolute path, so a store can be moved. The lists lie as FAISS's own on-disk lists do: FAISS searches
them mapped, at once, or turns them into FastScan's form in memory, which is thirty times as fast. It
believes whatever it reads, so the header is checked before, and the manifest has a checksum of it all.
"""

from __future__ import annotations

import math
import mmap
import struct
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engine import digest
from engine.errors import StoreDamagedError
from engine.storage.files import file_checksum, fsync_dir, write_new
from engine.storage.idset import IdSet
from engine.storage.manifest import INDEX_FOLDER, SegmentEntry
from engine.storage.quantizer import Quantizer

SUFFIX = ".ivf"
LABEL_BYTES = 8
_HEADER_BYTES = 4096
_HEADER = struct.Struct("<8sIIIQ")  # magic, quantizer, code bytes, nlist, rows
_MAGIC = b"ENGIVF01"
_ONE_QUERY = 10  # FAISS's number of a search list by list, with a heap
_WRITTEN = 8 << 20  # bytes of lists that are put together before they are written

Codes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

# Codes that are in memory, shared by all stores that this process has open on the same file.
_resident: weakref.WeakValueDictionary[tuple[str, int, int], _Resident] = (
    weakref.WeakValueDictionary()
)
_making = threading.Lock()


class _Resident:
    """A segment's codes in memory, in FastScan's form."""

    def __init__(self, mapped: Any, quantizer: Quantizer) -> None:
        import faiss

        self.quantizer = quantizer  # whose centroids the index points to
        self.many: Any = faiss.IndexIVFPQFastScan(mapped)
        # The same lists, searched in the way that is quicker for one query.
        self.one: Any = faiss.IndexIVFPQFastScan(quantizer.empty_index())
        lists: Any = self.many.invlists
        self.one.replace_invlists(lists, False)
        self.one.ntotal = self.many.ntotal
        self.one.implem = _ONE_QUERY


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
    if not (store / INDEX_FOLDER).is_dir():
        (store / INDEX_FOLDER).mkdir()
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
    make_folder(path.parent.parent)
    sizes = np.sum([piece.sizes for piece, _ in pieces], axis=0).astype(np.uint32)
    head = _HEADER.pack(_MAGIC, quantizer, code_bytes, nlist, int(sizes.sum()))
    head += struct.pack("<Q", digest.checksum(head))

    def parts() -> Iterator[bytes]:
        yield head.ljust(_HEADER_BYTES, b"\0")
        yield _padded(sizes.tobytes(), 8)
        ready, size = [], 0
        for number in range(nlist):
            found = [(piece.of(number), raised) for piece, raised in pieces]
            codes = b"".join([codes.tobytes() for (codes, _), _ in found])
            labels = b"".join([(labels + raised).tobytes() for (_, labels), raised in found])
            length = _capacity(len(codes) // code_bytes, code_bytes)
            ready += [codes.ljust(length * code_bytes, b"\0"), labels]
            ready.append(bytes(length * LABEL_BYTES - len(labels)))
            size += length * (code_bytes + LABEL_BYTES)
            if size >= _WRITTEN:
                yield b"".join(ready)
                ready, size = [], 0
        yield b"".join(ready)

    return write_new(path, parts())


class Segment:
    """One segment, mapped. Several threads may search it at once."""

    def __init__(self, path: Path, entry: SegmentEntry, quantizer: Quantizer) -> None:
        """Map it; ``StoreDamagedError`` if the file is gone, cut or not what the manifest says."""
        self.entry = entry
        self._path = path
        self._quantizer = quantizer
        nlist, code_bytes = quantizer.nlist, quantizer.code_bytes
        try:
            with path.open("rb") as file:
                if path.stat().st_size != entry.bytes or entry.bytes < _HEADER_BYTES:
                    raise StoreDamagedError(f"{path} has the wrong length")
                self._map = mmap.mmap(file.fileno(), entry.bytes, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise StoreDamagedError(f"{path} cannot be read: {error}") from None
        head = self._map[: _HEADER.size + 8]
        check = digest.checksum(head[: _HEADER.size])
        said = _HEADER.unpack(head[: _HEADER.size])
        wanted = (_MAGIC, entry.quantizer, code_bytes, nlist, entry.rows)
        if said != wanted or int.from_bytes(head[_HEADER.size :], "little") != check:
            raise StoreDamagedError(f"{path} holds something else")
        start = _HEADER_BYTES + -(-4 * nlist // 8) * 8
        if start > entry.bytes:
            raise StoreDamagedError(f"{path} is cut short")
        self.sizes = np.frombuffer(self._map, np.uint32, nlist, _HEADER_BYTES).astype(np.int64)
        self._capacities = _capacities(self.sizes, code_bytes)
        ends = start + np.cumsum(self._capacities) * (code_bytes + LABEL_BYTES)
        if int(ends[-1]) != entry.bytes or int(self.sizes.sum()) != entry.rows:
            raise StoreDamagedError(f"{path} holds something else")
        self._starts = ends - self._capacities * (code_bytes + LABEL_BYTES)
        self._held: _Resident | None = None
        try:
            self._mapped = self._open()
        except (RuntimeError, MemoryError) as error:
            raise StoreDamagedError(f"{path} cannot be read: {error}") from None

    def of(self, number: int) -> tuple[Codes, Labels]:
        """The codes and labels of one list: views of the map."""
        code_bytes = self._quantizer.code_bytes
        start, size = int(self._starts[number]), int(self.sizes[number])
        codes = np.frombuffer(self._map, np.uint8, size * code_bytes, start)
        labels_at = start + int(self._capacities[number]) * code_bytes
        labels = np.frombuffer(self._map, np.int64, size, labels_at)
        return codes.reshape(size, code_bytes), labels

    def names_every_row(self) -> bool:
        """Whether its labels name each row once, as those of an undamaged segment do; reads them all."""
        rows = self.entry.rows
        seen = IdSet.none(rows)
        for number in np.flatnonzero(self.sizes).tolist():
            seen.add(self.of(number)[1])
        return len(seen) == rows

    @property
    def resident_bytes(self) -> int:
        """What its codes take in memory: FastScan's blocks are of 32 rows."""
        code_bytes = self._quantizer.code_bytes
        blocks = int(np.sum(-(-self.sizes // 32) * 32))
        return int(blocks * code_bytes + self.entry.rows * LABEL_BYTES)

    @property
    def is_resident(self) -> bool:
        """Whether its codes are in memory."""
        return self._held is not None

    def hold(self) -> None:
        """Have its codes in memory from now on; they are shared within this process."""
        if self._held is None:
            self._quantizer.hasten()
            name = (str(self._path.resolve()), self.entry.number, self.entry.xxh64)
            with _making:
                held = _resident.get(name)
                if held is None:
                    held = _Resident(self._mapped, self._quantizer)
                    _resident[name] = held
            self._held = held

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
        held = self._held
        nq, nprobe = lists.shape
        index = self._mapped
        if held is not None:
            index = held.one if nq == 1 else held.many
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
        labels[(labels < 0) | (labels >= self.entry.rows)] = -1
        return scores, labels

    def _open(self) -> Any:
        """The lists as FAISS searches them where they lie."""
        import faiss

        table = np.empty((len(self.sizes), 3), np.uint64)  # size, capacity, offset
        table[:, 0], table[:, 1], table[:, 2] = self.sizes, self._capacities, self._starts
        lists: Any = faiss.OnDiskInvertedLists()
        lists.nlist = self._quantizer.nlist
        lists.code_size = self._quantizer.code_bytes
        lists.filename = str(self._path)
        lists.read_only = True
        lists.totsize = self.entry.bytes
        lists.lists.resize(lists.nlist)
        bytes_ = table.view(np.uint8).reshape(-1)
        faiss.memcpy(lists.lists.data(), faiss.swig_ptr(bytes_), len(bytes_))
        lists.do_mmap()
        index = self._quantizer.empty_index()
        index.replace_invlists(lists, True)
        lists.this.disown()  # it is the index's now
        index.ntotal = self.entry.rows
        return index


def problem(path: Path, size: int, xxh64: int) -> str | None:
    """What is wrong with a segment's or a quantizer's file, or None; reads all of it."""
    try:
        found = file_checksum(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "its checksum is wrong" if found != (size, xxh64) else None


def _capacity(size: int, code_bytes: int) -> int:
    step = 8 // math.gcd(code_bytes, 8)
    return -(-size // step) * step


def _capacities(sizes: npt.NDArray[np.int64], code_bytes: int) -> npt.NDArray[np.int64]:
    step = 8 // math.gcd(code_bytes, 8)
    return -(-sizes // step) * step


def _padded(data: bytes, to: int) -> bytes:
    return data.ljust(-(-len(data) // to) * to, b"\0")
