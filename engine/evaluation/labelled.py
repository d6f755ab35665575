"""Opens sources of pictures with classes, one stream for training and one for testing.

a folder                a class is a folder in it
a tar, zip or Parquet   a class is the label in an image's metadata
FILE.npz                arrays x_train, y_train, x_test, y_test
x_….npy                 an array of pictures, with labels in y_….npy beside it
a folder of IDX files   train-images-idx3-ubyte, train-labels-idx1-ubyte and t10k-…, plain or .gz
…-images-idx3-ubyte     one of these, with its labels beside it
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from engine.errors import SourceError, UsageError
from engine.evaluation.pictures import Picture, Stream, shrunk
from engine.images import canonical as px
from engine.images.rgb_picture import to_rgb8
from engine.sources import npy
from engine.sources.arrays import NpyArray, open_array
from engine.sources.npy import NpyFile

TRAIN, TEST = "train", "test"

_IDX_SPLITS = {TRAIN: ("train",), TEST: ("t10k", "test")}
_IMAGES, _LABELS = "-images-idx3-ubyte", "-labels-idx1-ubyte"
_MAX_LABELS = 1 << 30  # bytes
_MAX_ROW = 64 << 20  # bytes
# The most bytes that gzip can unpack from one byte. A header that promises more is wrong.
_MAX_GROWTH = 1032
_ROWS, _ROW_BYTES = 256, 8 << 20


class Labelled(Protocol):
    """A stream of pictures with the interface of ``pictures.Stream``."""

    def names(self) -> Iterator[tuple[int, str]]:
        """The number and name of each picture."""

    def __call__(self, wanted: Callable[[int], bool] | None = None) -> Iterator[Picture]:
        """The pictures whose number is ``wanted``, or all, with their labels."""


def open_labelled(spec: str, split: str, pool: Executor) -> Labelled:
    """The pictures of a source; ``split`` chooses training or test if the source holds both.

    ``UsageError`` or ``SourceError`` if there is no such source.
    """
    path = Path(spec)
    if path.is_dir():
        for stem in _IDX_SPLITS[split]:
            found = _there(path / f"{stem}{_IMAGES}")
            if found is not None:
                return _Idx(found)
        return Stream([spec], pool)
    if _IMAGES in path.name and path.is_file():
        return _Idx(path)
    if path.suffix == ".npz" and path.is_file():
        return _Arrays(path, f"x_{split}.npy", path, f"y_{split}.npy")
    if path.suffix == ".npy" and path.is_file():
        if not path.name.startswith("x_"):
            raise UsageError(f"{path} has no labels: name it x_….npy and the labels y_….npy")
        return _Arrays(path, None, path.with_name("y_" + path.name[2:]), None)
    return Stream([spec], pool)


class _Arrays:
    """An array of pictures, and an array of whole numbers of the same length, their labels."""

    def __init__(self, x: Path, member: str | None, y: Path, label_member: str | None) -> None:
        try:
            array = open_array(x, member)
            labels = NpyFile(y, label_member)
        except OSError as error:
            raise SourceError(f"{error.filename or x} cannot be read: {error.strerror}") from None
        except SourceError as error:
            inside = f", as {member.removesuffix('.npy')}" if member else ""
            raise SourceError(f"{x}{inside}: {error}") from None
        if not isinstance(array, NpyArray):
            raise SourceError(f"{x} holds vectors: images are needed")
        n = array.count
        if labels.shape not in ((n,), (n, 1)) or labels.dtype.kind not in "iub":
            raise SourceError(
                f"{y} has labels of shape {labels.shape} and dtype {labels.dtype}: ({n},) of whole "
                f"numbers is needed"
            )
        if labels.dtype.itemsize * n > _MAX_LABELS:
            raise SourceError(f"{y} has more labels than fit in memory")
        with labels.data() as file:
            data = npy.read(file, labels.dtype.itemsize * n)
        if len(data) < labels.dtype.itemsize * n:
            raise SourceError(f"{y} was cut short")
        self._array = array
        self._labels = np.frombuffer(data, labels.dtype)
        self._name = str(x)

    def names(self) -> Iterator[tuple[int, str]]:
        return ((number, f"{self._name}#{number}") for number in range(self._array.count))

    def __call__(self, wanted: Callable[[int], bool] | None = None) -> Iterator[Picture]:
        for block in self._array.blocks(0, _ROWS, _ROW_BYTES):
            for number, row in enumerate(block.rows, block.first):
                if wanted is None or wanted(number):
                    rgb = to_rgb8(px.from_canonical(row.data))
                    label = str(int(self._labels[number]))
                    yield Picture(number, f"{self._name}#{number}", label, shrunk(rgb))


class _Idx:
    """IDX files, the format of MNIST: a file of grey pictures and a file of their labels, as bytes."""

    def __init__(self, images: Path) -> None:
        labels = _there(images.with_name(images.name.removesuffix(".gz").replace(_IMAGES, _LABELS)))
        if labels is None:
            raise SourceError(f"{images} has no labels beside it, in a file called …{_LABELS}")
        self._images, self._labels = images, labels
        with _idx(images, 3) as (_, shape), _idx(labels, 1) as (_, count):
            if shape[0] != count[0]:
                raise SourceError(
                    f"{images} has {shape[0]} pictures, but {labels} has {count[0]} labels"
                )
            if not 0 < math.prod(shape[1:]) <= _MAX_ROW:
                raise SourceError(f"{images} has pictures of {shape[1]} × {shape[2]}")
            self._count = shape[0]

    def names(self) -> Iterator[tuple[int, str]]:
        return ((number, f"{self._images}#{number}") for number in range(self._count))

    def __call__(self, wanted: Callable[[int], bool] | None = None) -> Iterator[Picture]:
        with _idx(self._images, 3) as (images, shape), _idx(self._labels, 1) as (labels, _):
            n, height, width = shape
            for number in range(n):
                data, label = images.read(height * width), labels.read(1)
                if len(data) < height * width or not label:
                    raise SourceError(f"{self._images} or its labels were cut short")
                if wanted is None or wanted(number):
                    grey = np.frombuffer(data, np.uint8).reshape(height, width, 1)
                    rgb = np.repeat(grey, 3, axis=2)
                    yield Picture(number, f"{self._images}#{number}", str(label[0]), shrunk(rgb))


@contextmanager
def _idx(path: Path, dimensions: int) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """Open an IDX file of bytes after its header, and return it with its shape."""
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            file: Any = gzip.GzipFile(fileobj=plain) if zipped else plain
            head = file.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or head[:4] != bytes((0, 0, 8, dimensions)):
                raise SourceError(
                    f"{path} is not an IDX file of bytes with {dimensions} dimensions"
                )
            shape = tuple(int(size) for size in np.frombuffer(head, ">u4", offset=4))
            if math.prod(shape) > _MAX_GROWTH * path.stat().st_size:
                raise SourceError(f"{path} was cut short, or its header gives a wrong size")
            yield file, shape
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None


def _there(path: Path) -> Path | None:
    """The file, or its gzip-compressed form; None if neither exists."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)
