"""The images of a training run: which files they are, and their pixels, decoded once.

Pixels lie in one temporary file that is mapped, so memory does not grow with the number of images
and the kernel keeps in RAM what fits. The file has no name: however the process ends, it is gone.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from PIL import Image
from torch import Tensor

from engine import pixels
from engine.errors import ImageError, TrainingError, UsageError
from engine.records import Rejection

Array = npt.NDArray[np.uint8]

TRAIN = "train"
HELD_OUT = ("valid", "val", "test")
_IN_FLIGHT = 64  # files decoded between two progress reports; their shrunk pixels are in memory


@dataclass(frozen=True, slots=True)
class Picture:
    """One readable image: its place in the pixel file, and what of it the fingerprint counts."""

    name: str  # relative to its source, with "/"
    file_bytes: int
    offset: int
    height: int
    width: int


class PixelFile:
    """(H, W, 3) uint8 arrays of any sizes in a nameless file: all are appended, then read."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, prefix=".pixels-")  # noqa: SIM115
        self._map: mmap.mmap | None = None
        self.bytes = 0

    def append(self, array: Array) -> int:
        """Write an array; returns the offset to read it back from."""
        offset = self.bytes
        try:
            self._file.write(np.ascontiguousarray(array).data)
            self._file.flush()
        except OSError as error:
            raise TrainingError(
                f"cannot keep the decoded images: {error.strerror}; "
                f"make room in the folder of --out, or choose another"
            ) from None
        self.bytes += array.nbytes
        return offset

    def read(self, offset: int, height: int, width: int) -> Tensor:
        """(height, width, 3) uint8, a view of the map; to be read only."""
        if self._map is None:
            # Copy on write, because torch warns of memory that it must not write to.
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        flat = torch.frombuffer(
            self._map, dtype=torch.uint8, count=height * width * 3, offset=offset
        )
        return flat.view(height, width, 3)

    def close(self) -> None:
        """Give the disk space back; views that were read stay valid."""
        self._file.close()


class Pictures:
    """Readable images whose pixels lie in a ``PixelFile``; a sequence of (H, W, 3) uint8."""

    def __init__(self, file: PixelFile, pictures: Sequence[Picture]) -> None:
        self._file = file
        self.pictures = list(pictures)
        self.sizes = [(picture.height, picture.width) for picture in pictures]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Tensor:
        picture = self.pictures[index]
        return self._file.read(picture.offset, picture.height, picture.width)

    @property
    def fingerprint(self) -> str:
        """xxh3-128, in hex, of the sorted relative paths and file sizes."""
        digest = xxhash.xxh3_128()
        for name, size in sorted((picture.name, picture.file_bytes) for picture in self.pictures):
            digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
        return str(digest.hexdigest())


def list_images(sources: Sequence[str]) -> list[Path]:
    """The image files to train on, sorted within each source, each file once.

    A source is an image file or a folder, searched with its subfolders. A folder laid out as
    Roboflow does it, with ``train/`` beside ``valid/`` or ``test/``, gives what is in ``train/``.
    """
    return [path for path, _ in _unique(sources, held_out=False)]


def list_held_out(sources: Sequence[str]) -> list[Path]:
    """The image files in the ``valid/`` and ``test/`` of sources laid out as Roboflow does it."""
    return [path for path, _ in _unique(sources, held_out=True)]


def named_images(sources: Sequence[str], *, held_out: bool = False) -> list[tuple[Path, str]]:
    """Paths as ``list_images`` or ``list_held_out`` gives them, with their name in the source."""
    return _unique(sources, held_out=held_out)


def read_images(
    files: Sequence[tuple[Path, str]],
    file: PixelFile,
    *,
    side: int,
    square: int,
    pool: Executor,
    tick: Callable[[int, int], None],
) -> tuple[Pictures, Pictures, list[Rejection]]:
    """Decode each file once and append it to ``file`` in two sizes.

    Returns the pictures with their shorter side shrunk to ``side`` (never enlarged), the same
    pictures squashed to ``square`` × ``square`` as an encoder is given them, and what could not be
    read. ``tick`` is called with how many are done and how many there are.
    """
    shrunk: list[Picture] = []
    squashed: list[Picture] = []
    rejected: list[Rejection] = []
    done = 0
    for block in _blocks(files, _IN_FLIGHT):
        loaded = pool.map(lambda item: _load(item[0], side, square), block)
        for (path, name), result in zip(block, loaded, strict=True):
            if isinstance(result, str):
                rejected.append(Rejection(str(path), result))
                continue
            size, small, whole = result
            for array, into in ((small, shrunk), (whole, squashed)):
                height, width, _ = array.shape
                into.append(Picture(name, size, file.append(array), height, width))
        done += len(block)
        tick(done, len(files))
    return Pictures(file, shrunk), Pictures(file, squashed), rejected


def _load(path: Path, side: int, square: int) -> tuple[int, Array, Array] | str:
    """The file's size and its pixels in two sizes, or the reason why there are none."""
    try:
        data = path.read_bytes()
        rgb = pixels.to_rgb8(pixels.decode(data).pixels)
    except ImageError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return len(data), _shrunk(rgb, side), pixels.squash(rgb, square)


def _shrunk(rgb: Array, side: int) -> Array:
    height, width, _ = rgb.shape
    factor = side / min(height, width)
    if factor >= 1:
        return rgb
    target = (max(side, round(width * factor)), max(side, round(height * factor)))
    return np.asarray(Image.fromarray(rgb).resize(target, Image.Resampling.BILINEAR), np.uint8)


def _unique(sources: Sequence[str], *, held_out: bool) -> list[tuple[Path, str]]:
    found: dict[str, tuple[Path, str]] = {}
    for source in sources:
        for path, name in _of_source(Path(source), held_out):
            found.setdefault(os.path.realpath(path), (path, name))
    return list(found.values())


def _of_source(source: Path, held_out: bool) -> Iterator[tuple[Path, str]]:
    if source.is_file():
        if not held_out:
            yield source, source.name
        return
    if not source.is_dir():
        raise UsageError(f"{source}: there is no such folder or image to train on")
    splits = [name for name in HELD_OUT if (source / name).is_dir()]
    if splits and (source / TRAIN).is_dir():
        folders = [source / name for name in (splits if held_out else (TRAIN,))]
    else:
        folders = [] if held_out else [source]
    for folder in folders:
        for path in _walk(folder):
            yield path, path.relative_to(source).as_posix()


def _walk(folder: Path) -> Iterator[Path]:
    """Image files by their suffix, in a stable order; hidden files and folders are left out."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in pixels.SUFFIXES:
                yield Path(parent, name)


def _blocks(items: Sequence[tuple[Path, str]], size: int) -> Iterator[list[tuple[Path, str]]]:
    rest = iter(items)
    while block := list(islice(rest, size)):
        yield block
