"""One memory-mapped segment of the index: searched by its codes, or read list by list."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import StoreDamagedError, StoreError
from engine.index.quantizer import Quantizer
from engine.index.segment_layout import (
    ALIGNED,
    BLOCK,
    HEADER_BYTES,
    LABEL_BYTES,
    Codes,
    Labels,
    has_header,
    require_layout_of_faiss,
    unpack_codes,
)
from engine.storage import nofollow
from engine.storage.bitmap import IdSet
from engine.storage.durable import UnreadableError, cannot_read, inside, is_in_the_way
from engine.storage.index_files import file_problem
from engine.storage.manifest import SegmentEntry

_ONE_QUERY = 10  # the FAISS implementation that searches list by list, with a heap


class Segment:
    """One memory-mapped segment. Several threads may search it at once."""

    def __init__(self, path: Path, entry: SegmentEntry, quantizer: Quantizer) -> None:
        """Map the file; ``StoreDamagedError`` if it is gone, cut or does not match ``entry``.

        ``UnreadableError`` or ``MemoryError`` if the file may be whole, but cannot be opened or mapped.
        """
        self.entry = entry
        self._path = path
        self._quantizer = quantizer
        root = path.parent.parent
        try:
            fd = nofollow.open_file(root, inside(path, root))
        except OSError as error:
            raise _unopened(path, error) from None
        try:
            self._map_file(fd)
        finally:
            os.close(fd)

    def _map_file(self, fd: int) -> None:
        path, entry = self._path, self.entry
        nlist, code_bytes = self._quantizer.nlist, self._quantizer.code_bytes
        try:
            if os.fstat(fd).st_size != entry.bytes or entry.bytes < HEADER_BYTES:
                raise StoreDamagedError(f"{path} has the wrong length")
            self._map = mmap.mmap(fd, entry.bytes, access=mmap.ACCESS_READ)
        except OSError as error:
            raise _unopened(path, error) from None
        except ValueError as error:
            raise StoreDamagedError(f"{path} cannot be read: {error}") from None
        head = self._map[:HEADER_BYTES]
        if not has_header(head, entry.quantizer, code_bytes, nlist, entry.rows):
            raise StoreDamagedError(f"{path} does not match its entry in the manifest")
        start = HEADER_BYTES + -(-4 * nlist // ALIGNED) * ALIGNED
        if start > entry.bytes:
            raise StoreDamagedError(f"{path} is cut short")
        self.sizes = np.frombuffer(self._map, np.uint32, nlist, HEADER_BYTES).astype(np.int64)
        self._capacities = -(-self.sizes // BLOCK) * BLOCK
        lengths = self._capacities * (code_bytes + LABEL_BYTES)
        self._ends = start + np.cumsum(-(-lengths // ALIGNED) * ALIGNED)
        self._starts = np.append(start, self._ends[:-1])
        if int(self._ends[-1]) != entry.bytes or int(self.sizes.sum()) != entry.rows:
            raise StoreDamagedError(f"{path} does not match its entry in the manifest")
        require_layout_of_faiss()
        try:
            self._one, self._many = self._open(fd)
        except RuntimeError as error:
            # The file is consistent, but FAISS could not open or map it.
            raise _refused_by_faiss(path, error) from None

    def take(self, number: int) -> tuple[Codes, Labels]:
        """The codes and labels of one list."""
        code_bytes = self._quantizer.code_bytes
        start, size = int(self._starts[number]), int(self.sizes[number])
        length = int(self._capacities[number]) * code_bytes
        blocks = np.frombuffer(self._map, np.uint8, length, start)
        return unpack_codes(blocks, size, code_bytes), self._labels(number)

    def _labels(self, number: int) -> Labels:
        length = int(self._capacities[number]) * self._quantizer.code_bytes
        start = int(self._starts[number]) + length
        return np.frombuffer(self._map, np.int64, int(self.sizes[number]), start)

    def lists_of(self, wanted: IdSet) -> tuple[Labels, npt.NDArray[np.int64]]:
        """The wanted labels that the segment has, ascending, and the list of each; reads all labels."""
        found: list[tuple[Labels, npt.NDArray[np.int64]]] = []
        for number in np.flatnonzero(self.sizes).tolist():
            labels = self._labels(number)
            labels = labels[wanted.has(labels)]
            found.append((labels, np.full(len(labels), number, np.int64)))
        labels, lists = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.argsort(labels, kind="stable")
        return labels[order], lists[order]

    def sizes_of(self, wanted: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """The number of wanted labels in each list (nlist,); ``wanted`` (rows,) is by label."""
        sizes = np.zeros(len(self.sizes), np.int64)
        for number in np.flatnonzero(self.sizes).tolist():
            labels = self._labels(number)
            # The labels of each list are consecutive.
            if self.entry.ordered:
                first = int(labels[0])
                sizes[number] = np.count_nonzero(wanted[first : first + len(labels)])
            else:
                sizes[number] = np.count_nonzero(wanted[np.clip(labels, 0, len(wanted) - 1)])
        return sizes

    def ask_for(self, lists: npt.NDArray[np.int64]) -> None:
        """Tell the kernel to read these lists ahead."""
        if hasattr(mmap, "MADV_WILLNEED"):
            for number in np.unique(lists[lists >= 0]).tolist():
                start = int(self._starts[number]) // mmap.PAGESIZE * mmap.PAGESIZE
                length = int(self._ends[number]) - start
                self._map.madvise(mmap.MADV_WILLNEED, start, length)

    def problem(self, step: Callable[[], None] = lambda: None) -> str | None:
        """What is wrong with the file, or None, like ``file_problem``; reads all of it."""
        return file_problem(self._path, self.entry.bytes, self.entry.xxh64, step)

    def names_every_row(self) -> bool:
        """Whether the labels name each row, as in an undamaged segment; reads all labels."""
        rows = self.entry.rows
        seen = IdSet.none(rows)
        for number in np.flatnonzero(self.sizes).tolist():
            seen.add(self._labels(number))
        return len(seen) == rows

    def candidates(
        self,
        queries: npt.NDArray[np.float32],
        depth: int,
        close: npt.NDArray[np.float32],
        lists: npt.NDArray[np.int64],
        alive: npt.NDArray[np.uint8] | None,
    ) -> tuple[npt.NDArray[np.float32], Labels]:
        """Rows that may be close to (nq, width) queries, by their codes.

        ``close`` and ``lists`` (nq, nprobe) are the nearest lists; ``alive`` is a bitmap of the wanted
        labels. Returns approximate inner products and labels (nq, depth), padded with -1. A damaged
        segment may give any labels below the number of its rows.
        """
        import faiss

        _faiss: Any = faiss  # its type stubs lack arrays
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
            faiss.swig_ptr(queries),
            depth,
            faiss.swig_ptr(lists),
            faiss.swig_ptr(close),
            faiss.swig_ptr(scores),
            faiss.swig_ptr(labels),
            False,
            params,
        )
        # As uint64, negative labels are large too.
        if labels.view(np.uint64).max(initial=0) >= self.entry.rows:
            labels[(labels < 0) | (labels >= self.entry.rows)] = -1
        return scores, labels

    def _open(self, fd: int) -> tuple[Any, Any]:
        """Two FAISS indexes over the mapped lists: for one query, and for many."""
        import faiss

        table = np.empty((len(self.sizes), 3), np.uint64)  # size, capacity, offset
        table[:, 0], table[:, 1], table[:, 2] = self.sizes, self._capacities, self._starts
        lists: Any = faiss.OnDiskInvertedLists()
        lists.nlist = self._quantizer.nlist
        lists.code_size = self._quantizer.code_bytes
        # The file that was checked, even if another one has its name now.
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
        lists.this.disown()  # ``many`` owns it now
        one.replace_invlists(lists, False)
        one.implem = _ONE_QUERY
        one.ntotal = many.ntotal = self.entry.rows
        return one, many


def _unopened(path: Path, error: OSError) -> StoreError:
    if is_in_the_way(error):
        return cannot_read(path, error)
    return StoreDamagedError(f"{path} cannot be read: {error.strerror}")


def _refused_by_faiss(path: Path, error: RuntimeError) -> StoreError:
    """The error to raise if FAISS failed: its message contains that of the system."""
    said = str(error)
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES):
        if os.strerror(number) in said:
            return cannot_read(path, OSError(number, os.strerror(number)))
    return UnreadableError(f"{path} cannot be searched by FAISS: {' '.join(said.split())}")
