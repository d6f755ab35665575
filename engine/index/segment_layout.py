"""The layout of a segment's file: IVF lists of short codes over ranges of vector rows.

    header, 4 KiB     magic, number of the quantizer, code bytes, lists, rows; xxh64
    sizes             uint32 (nlist,)
    list after list   each starts at a multiple of 64 bytes: codes in blocks of 32 rows, and then
                      int64 labels, as many as fit the blocks

A segment names rows by a *label*, their number within its ranges, and never names images. It can
always be built again from the vectors. It becomes live when the manifest names it. The file contains
no absolute path, so a store can be moved.

In a block the same 4 bits of 32 codes lie together, because FAISS's FastScan kernels compare 32 codes
at a time with a query's table. FAISS itself has these blocks only in memory. Mapped from a file, they
are searched as fast, need no loading, and take only memory that the kernel can reclaim. FAISS trusts
all that it reads, so the header is checked first, and the manifest has a checksum of the file. If a
version of FAISS arranges blocks differently, segments are refused, not misread: their vectors are
searched exactly, and nothing is built until another version is installed.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.images import hashing
from engine.storage.durable import UnreadableError

HEADER_BYTES = 4096
ALIGNED = 64  # bytes: what the kernels load at once
BLOCK = 32  # rows
LABEL_BYTES = 8
_HALF = BLOCK // 2
# The order of rows in the first half of a block; the second half has the same order plus 16.
_ORDER = np.array([0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15])
_HEADER = struct.Struct("<8sIIIQ")  # magic, quantizer, code bytes, nlist, rows
_MAGIC = b"ENGIVF01"
TESTED_FAISS = "1.15.1"

Codes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


def header(quantizer: int, code_bytes: int, nlist: int, rows: int) -> bytes:
    """The header, with its xxh64, of a segment with so many lists and rows."""
    head = _HEADER.pack(_MAGIC, quantizer, code_bytes, nlist, rows)
    return head + struct.pack("<Q", hashing.checksum(head))


def has_header(data: bytes, quantizer: int, code_bytes: int, nlist: int, rows: int) -> bool:
    """Whether a file that begins with ``data`` is a segment with so many lists and rows."""
    head, check = data[: _HEADER.size], data[_HEADER.size : _HEADER.size + 8]
    if int.from_bytes(check, "little") != hashing.checksum(head):
        return False
    return _HEADER.unpack(head) == (_MAGIC, quantizer, code_bytes, nlist, rows)


def padded(data: bytes) -> bytes:
    """Data padded with zeros to a multiple of 64 bytes, where the next list begins."""
    return data.ljust(-(-len(data) // ALIGNED) * ALIGNED, b"\0")


def pack_codes(codes: Codes) -> Codes:
    """Pack codes (n, bytes) into blocks of 32, the last padded with zeros: (⌈n / 32⌉ · 32 · bytes,)."""
    n, size = codes.shape
    rows = np.zeros((-(-n // BLOCK) * BLOCK, size), np.uint8)
    rows[:n] = codes
    columns = rows.reshape(-1, BLOCK, size).transpose(0, 2, 1)  # blocks, bytes of a code, rows
    out = np.empty((len(columns), size, 2, _HALF), np.uint8)
    for half in range(2):
        values = columns >> 4 * half & 15
        out[:, :, half] = values[:, :, _ORDER] | values[:, :, _ORDER + _HALF] << 4
    return out.reshape(-1)


def unpack_codes(blocks: Codes, n: int, size: int) -> Codes:
    """Unpack the codes (n, size) of ``pack_codes``."""
    parts = blocks.reshape(-1, size, 2, _HALF)
    columns = np.zeros((len(parts), size, BLOCK), np.uint8)
    for half in range(2):
        columns[:, :, _ORDER] |= (parts[:, :, half] & 15) << 4 * half
        columns[:, :, _ORDER + _HALF] |= (parts[:, :, half] >> 4) << 4 * half
    return columns.transpose(0, 2, 1).reshape(-1, size)[:n]


@cache
def is_layout_of_faiss() -> bool:
    """Whether ``pack_codes`` gives the same bytes as FAISS's own FastScan lists."""
    import faiss

    codes = np.arange(BLOCK, dtype=np.uint8)[:, None] * np.array([7, 11], np.uint8)
    index: Any = faiss.IndexIVFPQ(faiss.IndexFlatIP(4), 4, 1, 4, 4, faiss.METRIC_INNER_PRODUCT)
    labels = np.arange(BLOCK, dtype=np.int64)
    index.invlists.add_entries(0, BLOCK, faiss.swig_ptr(labels), faiss.swig_ptr(codes))
    index.ntotal = BLOCK
    index.is_trained = True
    theirs: Any = faiss.IndexIVFPQFastScan(index)
    ours = pack_codes(codes)
    found = faiss.rev_swig_ptr(theirs.invlists.get_codes(0), len(ours))
    return bool(np.array_equal(found, ours))


def require_layout_of_faiss() -> None:
    """Raise ``UnreadableError`` if the installed FAISS would misread whole segments."""
    if is_layout_of_faiss():
        return
    import faiss

    raise UnreadableError(
        f"FAISS {faiss.__version__} arranges codes differently: install faiss-cpu=={TESTED_FAISS}"
    )
