"""A teacher: another encoder, whose vectors of the training pictures the network learns to follow.

The vectors are made once, of whole pictures, and lie in a file of the run's folder until the training
ends: float16, a row of unit length a picture, those to train on before the held-out ones. A row of zeros
is a picture of which the teacher makes no vector. Each block is synced before the next is written. So
after a crash, all blocks but the last are whole, and the next run goes on from there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor

from engine.errors import TrainingError, UsageError
from engine.training.pictures import Pictures, RunPictures

Array = npt.NDArray[np.uint8]

PREFIX, SUFFIX = "teacher-", ".f16"
_BLOCK = 32  # pictures that the teacher sees at a time


@dataclass(frozen=True, slots=True)
class Teacher:
    """Another encoder. ``encode``: n pictures (H, W, 3) uint8 → (n, dim) numbers, of any length.

    ``path`` is how the user named it, ``sha256`` is of its file, and ``image_size`` is in pixels a side.
    """

    name: str
    path: str
    sha256: str
    dim: int
    image_size: int
    encode: Callable[[Sequence[Array]], npt.NDArray[Any]]

    def described(self) -> dict[str, Any]:
        """The part of a checkpoint's ``data`` about the teacher."""
        return {
            "name": self.name,
            "path": self.path,
            "sha256": self.sha256,
            "dim": self.dim,
            "image_size": self.image_size,
        }


class TeacherVectors:
    """A file of vectors, memory-mapped, so that memory does not grow with the pictures."""

    def __init__(self, path: Path, trained: int, held_out: int, dim: int) -> None:
        self.trained, self.held_out, self.dim = trained, held_out, dim
        shape = (trained + held_out, dim)
        self._rows = np.memmap(path, np.float16, "r", shape=shape)

    def read(self, rows: Sequence[int]) -> Tensor:
        """(len(rows), dim) float32 of about unit length, or zero; held-out ones follow the others."""
        return torch.from_numpy(self._rows[list(rows)].astype(np.float32))


def check_teacher(before: dict[str, Any] | None, teacher: Teacher | None, folder: Path) -> None:
    """``UsageError`` if a run would resume with another teacher than ``before`` describes.

    Without a ``teacher``, the vectors in the folder have to do, see ``vectors_of``.
    """
    if teacher is None:
        return
    if before is None:
        raise UsageError(
            f"the training in {folder} began without a teacher: leave out teacher=, or train into "
            f"another folder"
        )
    if before.get("sha256") != teacher.sha256:
        raise UsageError(
            f"the teacher {teacher.path} is not the one that the training in {folder} began with "
            f"({before.get('name')}, {before.get('path')}): name that, unchanged, or train into another "
            f"folder"
        )


def vectors_of(
    described: dict[str, Any],
    teacher: Teacher | None,
    read: RunPictures,
    folder: Path,
    *,
    tick: Callable[[int, int], None],
    stop: Callable[[], bool],
) -> TeacherVectors:
    """The vectors of all pictures by the teacher that ``described`` describes.

    Those that an earlier run left in ``folder`` are taken. ``UsageError`` if some are missing and
    ``teacher`` is None. ``KeyboardInterrupt`` once ``stop()`` is true; a later run then goes on.
    """
    counts = len(read.pictures), len(read.held_out)
    dim, total = int(described["dim"]), sum(counts)
    path = folder / f"{PREFIX}{_key(described, read)}{SUFFIX}"
    for other in folder.glob(f"{PREFIX}*{SUFFIX}"):
        if other != path:
            other.unlink()
    done = _whole_rows(path, 2 * dim, total)
    if done < total:
        if teacher is None:
            raise UsageError(
                f"{folder} lacks vectors of its teacher {described['name']}: name that teacher again "
                f"with teacher={described['path']}"
            )
        try:
            _write(path, teacher, read, done, tick, stop)
        except OSError as error:
            raise TrainingError(
                f"{path} cannot be written ({error.strerror or error}): it takes {2 * dim * total:,} "
                f"bytes; make room there"
            ) from None
    tick(total, total)
    return TeacherVectors(path, *counts, dim)


def remove_vectors(folder: Path) -> None:
    """Delete the vectors of a training that has ended."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        path.unlink(missing_ok=True)


def unit_vectors(teacher: Teacher, pictures: Sequence[Array]) -> npt.NDArray[np.float32]:
    """(len(pictures), dim) of unit length; zero for a vector that is zero or not finite."""
    found = np.asarray(teacher.encode(pictures))
    wanted = (len(pictures), teacher.dim)
    if found.shape != wanted or found.dtype.kind not in "fiu":
        raise TrainingError(
            f"the teacher {teacher.name} returned {found.shape} {found.dtype} instead of {wanted} "
            f"numbers: choose another"
        )
    with np.errstate(all="ignore"):
        # By the largest number first: the square of a large one is infinite.
        scaled = found.astype(np.float64) / np.abs(found).max(1, keepdims=True)
        vectors = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    good = np.isfinite(vectors).all(1, keepdims=True)
    return np.where(good, vectors, 0).astype(np.float32)


def _key(described: dict[str, Any], read: RunPictures) -> str:
    parts = (
        described["sha256"],
        described["dim"],
        read.side,
        read.pictures.fingerprint,
        read.held_out.fingerprint,
    )
    return str(xxhash.xxh3_128_hexdigest("\0".join(map(str, parts)).encode()))


def _whole_rows(path: Path, row_bytes: int, total: int) -> int:
    """How many rows of the file are certainly whole; of an unfinished file, all synced blocks."""
    if not path.is_file():
        return 0
    rows = path.stat().st_size // row_bytes
    return total if rows >= total else max(0, (rows - 1) // _BLOCK * _BLOCK)


def _write(
    path: Path,
    teacher: Teacher,
    read: RunPictures,
    done: int,
    tick: Callable[[int, int], None],
    stop: Callable[[], bool],
) -> None:
    """Append the rows from ``done`` on, which is a whole number of blocks."""
    trained = len(read.pictures)
    total = trained + len(read.held_out)
    # A file of the full length counts as whole. So the last byte of a block follows its sync.
    with path.open("r+b" if done else "wb") as file:
        file.truncate(done * 2 * teacher.dim)
        file.seek(0, os.SEEK_END)
        for start in range(done, total, _BLOCK):
            if stop():
                raise KeyboardInterrupt
            rows = range(start, min(start + _BLOCK, total))
            pictures = [_picture(read, row) for row in rows]
            block = unit_vectors(teacher, pictures).astype(np.float16).tobytes()
            file.write(block[:-1])
            file.flush()
            os.fsync(file.fileno())
            file.write(block[-1:])
            tick(rows.stop, total)
        file.flush()
        os.fsync(file.fileno())


def _picture(read: RunPictures, row: int) -> Array:
    pictures: Pictures = read.pictures
    if row >= len(pictures):
        pictures, row = read.held_out, row - len(pictures)
    return pictures[row].numpy()
