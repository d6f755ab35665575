"""Vectors in .npy files, written block by block, so that they need not fit into memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from tokenize import TokenError

import numpy as np
import numpy.typing as npt

from engine.errors import UsageError

Vectors = npt.NDArray[np.float32]

BLOCK_ROWS = 1 << 16  # read, written or compared at a time: 34 MB of 128 dimensions


def write_array(path: Path, blocks: Iterable[Vectors], n: int, dim: int) -> None:
    """Write (n, dim) float32 from blocks of rows; the file appears only once it is complete."""
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (n, dim)}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, "<f4").data)
    unfinished.replace(path)


def open_array(path: Path) -> Vectors:
    """Map a file of float32 (n, dim); ``UsageError`` if it is anything else."""
    try:
        # Opening a pipe without a writer would wait for ever.
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is no file: name an .npy of vectors")
        # Headers of old versions raise warnings.
        with warnings.catch_warnings(action="ignore"):
            # Not np.load: it accepts other formats too, and advises to load them unsafely.
            rows: Vectors = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except (
        ValueError,
        ArithmeticError,
        SyntaxError,
        TokenError,
        RecursionError,
        MemoryError,
    ) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is no array of vectors: {reason[:200]}; name an .npy") from None
    if rows.dtype != np.float32 or rows.ndim != 2 or not rows.size:
        raise UsageError(
            f"{path} holds {rows.dtype} of shape {rows.shape}: vectors are float32, (n, dimensions)"
        )
    return rows


def blocks(rows: Vectors) -> Iterator[Vectors]:
    """The rows of an array in blocks."""
    for first in range(0, len(rows), BLOCK_ROWS):
        yield rows[first : first + BLOCK_ROWS]
