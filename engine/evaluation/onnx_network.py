"""Runs any ONNX file with one picture input, such as a network that was trained on ImageNet.

The input is (n, S, S, 3) or (n, 3, S, S). A uint8 input gets pixels as they are, and a float32 input
gets (pixel / 255 - mean) / std. The first output, flattened, is the vector.

A JSON file beside the network, ``net.json`` for ``net.onnx``, may set these fields:

    {"image_size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

``image_size`` is S for an input that takes pictures of any size. ``mean`` and ``std`` are of red, green
and blue, for channel values from 0 to 1. The defaults are the numbers above, the usual ones for
ImageNet.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.encoders.session import one_line, open_session
from engine.errors import EncoderError
from engine.evaluation.pictures import Array
from engine.images.preprocessing import squash

DEFAULT_SIZE = 224
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_MAX_SIZE = 1024  # pixels a side; 64 such pictures at a time take 800 MB as floats
_MAX_MODEL = (1 << 31) - 1  # bytes, ONNX's limit for a model in one file
_MAX_OPTIONS = 1 << 20  # bytes

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Options:
    """The fields of the JSON file beside the network; None for a missing one."""

    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Input:
    """The network's input."""

    name: str
    is_float: bool
    channels_last: bool
    size: int  # pixels a side
    one_at_a_time: bool


class OnnxNetwork:
    """A loaded network: pictures (H, W, 3) uint8 of any size to (n, dim) vectors of any length."""

    def __init__(self, path: Path) -> None:
        """Load the network; ``EncoderError`` if the file cannot be used."""
        self.name = path.stem
        self._path = path
        self._session = open_session(_contents(path, _MAX_MODEL), path)
        options = _options(path.with_suffix(".json"))
        self._input = _input(path, self._session, options)
        if not self._input.is_float and (options.mean or options.std):
            raise EncoderError(
                f"{path} takes uint8 pixels as they are: leave mean and std out of the file beside it"
            )
        self._mean = np.array(options.mean or IMAGENET_MEAN, np.float32)
        self._std = np.array(options.std or IMAGENET_STD, np.float32)
        size = self.image_size = self._input.size
        self.dim = self.encode([np.zeros((size, size, 3), np.uint8)]).shape[1]

    def encode(self, pictures: Sequence[Array]) -> npt.NDArray[Any]:
        """Vectors (len(pictures), dim), not normalised; ``EncoderError`` if the network fails."""
        batch: npt.NDArray[Any] = np.stack([squash(each, self._input.size) for each in pictures])
        if self._input.is_float:
            batch = (batch / np.float32(255) - self._mean) / self._std
        if not self._input.channels_last:
            batch = batch.transpose(0, 3, 1, 2)
        parts = np.split(batch, len(batch)) if self._input.one_at_a_time else [batch]
        vectors = np.concatenate([self._run(np.ascontiguousarray(part)) for part in parts])
        return vectors.reshape(len(pictures), -1)

    def _run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        try:
            output = self._session.run(None, {self._input.name: batch})[0]
        # ONNX Runtime has no error class of its own.
        except Exception as error:
            raise EncoderError(f"{self._path} cannot be run: {one_line(error)}") from None
        numbers = isinstance(output, np.ndarray) and output.dtype.kind in "fiu" and output.ndim
        if not numbers or len(output) != len(batch) or not output.size:
            raise EncoderError(f"{self._path} does not return numbers for each picture")
        return np.asarray(output)


def _contents(path: Path, limit: int) -> bytes:
    if not path.is_file():
        raise EncoderError(f"{path}: no such file")
    try:
        if path.stat().st_size > limit:
            raise EncoderError(f"{path} is too large: at most {limit:,} bytes are read")
        return path.read_bytes()
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error.strerror}") from None


def _input(path: Path, session: Any, options: _Options) -> _Input:
    """The network's only input; ``EncoderError`` if it does not take square pictures of one size."""
    inputs = [(each.name, each.type, each.shape) for each in session.get_inputs()]
    name, kind, shape = inputs[0] if len(inputs) == 1 else ("", "", [])
    first = len(shape) == 4 and shape[1] == 3
    last = len(shape) == 4 and shape[3] == 3 and not first
    if kind not in ("tensor(uint8)", "tensor(float)") or not (first or last):
        raise EncoderError(
            f"{path} takes {', '.join(f'{each[1]} {each[2]}' for each in inputs)}: one input is "
            f"needed, uint8 or float32, of (n, S, S, 3) or (n, 3, S, S)"
        )
    sides = shape[1:3] if last else shape[2:]
    fixed = {side for side in sides if isinstance(side, int)}
    if len(fixed) > 1 or not all(1 <= side <= _MAX_SIZE for side in fixed):
        raise EncoderError(
            f"{path} takes pictures of {' × '.join(map(str, sides))}: they must be square, and at "
            f"most {_MAX_SIZE:,} pixels a side"
        )
    size = fixed.pop() if fixed else options.image_size or DEFAULT_SIZE
    if options.image_size not in (None, size):
        raise EncoderError(
            f"{path} takes pictures of {size} pixels a side, not {options.image_size} as the file "
            f"beside it says: leave out image_size"
        )
    # The batch size is fixed, usually at 1.
    one_at_a_time = isinstance(shape[0], int)
    if one_at_a_time and shape[0] != 1:
        raise EncoderError(f"{path} takes {shape[0]} pictures at a time: export it for n or for 1")
    return _Input(name, kind == "tensor(float)", last, size, one_at_a_time)


def _options(path: Path) -> _Options:
    """Read the JSON file beside a network; ``EncoderError`` if it is not valid."""
    if not path.exists():
        return _Options()
    try:
        body = json.loads(_contents(path, _MAX_OPTIONS))
    except (ValueError, RecursionError) as error:
        raise EncoderError(f"{path} is not JSON: {one_line(error)}") from None
    known = ("image_size", "mean", "std")
    if not isinstance(body, dict) or not set(body) <= set(known):
        raise EncoderError(f"{path} must be a JSON object of {', '.join(known)} only")
    size = body.get("image_size")
    if size is not None and (type(size) is not int or not 1 <= size <= _MAX_SIZE):
        raise EncoderError(f"{path}: image_size must be a whole number from 1 to {_MAX_SIZE:,}")
    mean = _three_numbers(path, body, "mean")
    std = _three_numbers(path, body, "std")
    if std is not None and min(std) <= 0:
        raise EncoderError(f"{path}: std must be three numbers above 0")
    return _Options(size, mean, std)


def _three_numbers(path: Path, body: dict[str, Any], name: str) -> tuple[float, ...] | None:
    value = body.get(name)
    if value is None:
        return None
    good = isinstance(value, list) and len(value) == 3
    if not good or not all(_is_number(each) for each in value):
        raise EncoderError(f"{path}: {name} must be three numbers")
    return tuple(map(float, value))


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    # An int may exceed the limit, and NaN is not below it.
    return abs(value) <= sys.float_info.max
