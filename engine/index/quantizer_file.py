"""Reads and writes a quantizer's file.

header, 4 KiB     magic, number, dim, nlist, parts, scale, smallest correction, step; xxh64
centroids         float32 (nlist, width)
codebook          float32 (parts, 16, width / parts)
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from engine.errors import StoreDamagedError
from engine.images import hashing
from engine.index.quantizer import VALUES, Quantizer, code_layout
from engine.storage import nofollow
from engine.storage.durable import cannot_read, inside, is_in_the_way, write_new
from engine.storage.index_files import quantizer_path
from engine.storage.manifest import QuantizerEntry

HEADER_BYTES = 4096
_HEADER = struct.Struct("<8sIIIIfff")  # magic, number, dim, nlist, parts, scale, least, step
_MAGIC = b"ENGQUANT"
_MIN_SCALE = float(np.finfo(np.float32).tiny)


def save_quantizer(quantizer: Quantizer, path: Path, number: int) -> tuple[int, int]:
    """Write a quantizer durably; returns the file's length and xxh64."""
    parts = quantizer.codebook.shape[0]
    numbers = (
        number,
        quantizer.dim,
        quantizer.nlist,
        parts,
        quantizer.scale,
        *quantizer.correction,
    )
    head = _HEADER.pack(_MAGIC, *numbers)
    head += struct.pack("<Q", hashing.checksum(head))
    body = [quantizer.centroids.block.tobytes(), quantizer.codebook.tobytes()]
    return write_new(path, [head.ljust(HEADER_BYTES, b"\0"), *body], path.parent.parent)


def read_quantizer(
    path: Path, number: int, dim: int, nlist: int, size: int, xxh64: int | None = None
) -> Quantizer:
    """Read a file of ``save_quantizer``; ``StoreDamagedError`` if it is anything else.

    ``UnreadableError`` if the file may be whole, but this process cannot read it.
    """
    width, parts = code_layout(dim)
    # Checked before the file is read into memory.
    if size != HEADER_BYTES + 4 * (nlist + VALUES) * width:
        raise StoreDamagedError(f"{path} does not match its entry in the manifest")
    try:
        root = path.parent.parent
        name = inside(path, root)
        data = nofollow.read_file(root, name) if nofollow.size(root, name) == size else b""
    except OSError as error:
        if is_in_the_way(error):
            raise cannot_read(path, error) from None
        raise StoreDamagedError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) < HEADER_BYTES:
        raise StoreDamagedError(f"{path} has the wrong length")
    if xxh64 is not None and hashing.checksum(data) != xxh64:
        raise StoreDamagedError(f"{path} is damaged: its checksum is wrong")
    head, check = data[: _HEADER.size], data[_HEADER.size : _HEADER.size + 8]
    magic, *own, scale, least, step = _HEADER.unpack(head)
    if int.from_bytes(check, "little") != hashing.checksum(head) or (magic, own) != (
        _MAGIC,
        [number, dim, nlist, parts],
    ):
        raise StoreDamagedError(f"{path} does not match its entry in the manifest")
    body = np.frombuffer(data, np.float32, offset=HEADER_BYTES)
    # FAISS raises for values that are not finite, and vectors are divided by the scale.
    if not (_MIN_SCALE <= scale < np.inf and np.isfinite([least, step]).all()):
        raise StoreDamagedError(f"{path} does not match its entry in the manifest")
    if not np.isfinite(body).all():
        raise StoreDamagedError(f"{path} does not match its entry in the manifest")
    centroids = body[: nlist * width].reshape(nlist, width)
    codebook = body[nlist * width :].reshape(parts, VALUES, width // parts)
    return Quantizer(dim, scale, centroids, codebook, (least, step))


def load_quantizer(store: Path, entry: QuantizerEntry, dim: int) -> Quantizer:
    """The quantizer that the manifest names; raises like ``read_quantizer``."""
    path = quantizer_path(store, entry.number)
    return read_quantizer(path, entry.number, dim, entry.nlist, entry.bytes, entry.xxh64)
