"""What is compared: encoders and baselines, each of which makes unit vectors of pictures.

simclr, or a folder                an encoder, as 'engine ingest --encoder' takes it
FILE.onnx                          any network of one input of pictures; see ``_Network``
pixels                             32 × 32 pixels, in colour and in grey
pdq                                the engine's own fingerprints: 256 bits, as ± 1
untrained                          a ResNet-18 as it is before any training; needs torch
efficientnet-lite0=FILE.pth        a network trained on ImageNet with its classes; needs torch
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.config import cpu_count
from engine.encoders import registry
from engine.encoders.onnx import OnnxEncoder
from engine.errors import EncoderError, UsageError
from engine.evaluation.pictures import Array
from engine.images import canonical as px
from engine.images import fingerprint
from engine.images.rgb_picture import squash

Vectors = npt.NDArray[np.float32]

PIXELS, PDQ, UNTRAINED, LITE0 = "pixels", "pdq", "untrained", "efficientnet-lite0"
BASELINES = (PIXELS, PDQ, UNTRAINED, LITE0)
UNTRAINED_SIZE = 96

_SIDE = 32
_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
_STD = np.array((0.229, 0.224, 0.225), np.float32)
_DEFAULT_SIZE = 224  # of a network that takes pictures of any size
_MAX_SIZE = 1024  # pixels a side: 64 such pictures at a time take 800 MB as floats


@dataclass(frozen=True, slots=True)
class Entrant:
    """One that takes part. ``encode``: (H, W, 3) uint8 each → (n, dim), of unit length or zero."""

    name: str
    what: str  # in words, for the report
    dim: int
    encode: Callable[[Sequence[Array]], Vectors]


@dataclass(frozen=True, slots=True)
class Absent:
    """One that cannot take part here, and why."""

    name: str
    reason: str


def find(spec: str, *, seed: int) -> Entrant | Absent:
    """The entrant that is called so. ``EncoderError`` or ``UsageError`` if there is none."""
    if spec == PIXELS:
        what = f"{_SIDE} × {_SIDE} pixels, colour and grey"
        return Entrant(spec, what, 4 * _SIDE * _SIDE, lambda pictures: unit(_raw(pictures)))
    if spec == PDQ:
        what = "PDQ fingerprints, Hamming distance"
        return Entrant(spec, what, fingerprint.FINGERPRINT_BITS, _fingerprints)
    if spec == UNTRAINED:
        return _with_torch(spec, lambda: _untrained(seed))
    name, _, path = spec.partition("=")
    if name == LITE0:
        if not path:
            raise UsageError(f"name the weights: {LITE0}=FILE.pth")
        return _with_torch(name, lambda: _lite0(Path(path)))
    if spec.lower().endswith(".onnx"):
        return _network(Path(spec))
    try:
        files = registry.find(spec)
    except EncoderError as error:
        if Path(spec).is_dir() and not (Path(spec) / registry.DESCRIPTION).exists():
            raise EncoderError(
                f"{spec} holds no {registry.DESCRIPTION}: name a folder that 'engine train --out' "
                f"wrote, whose training has ended"
            ) from None
        if Path(spec).exists():
            raise
        raise EncoderError(
            f"no encoder {spec!r}: give one of {', '.join(registry.names())}, a folder that "
            f"'engine train --out' wrote, a FILE.onnx, or {', '.join(BASELINES[:3])} or "
            f"{LITE0}=FILE.pth"
        ) from error
    encoder = OnnxEncoder(files)
    return Entrant(files.name, str(files.model), files.dim, encoder.encode)


def find_all(specs: Sequence[str], *, seed: int) -> tuple[list[Entrant], list[Absent]]:
    """All that are named, under names that differ; ``UsageError`` if none can take part."""
    entrants: list[Entrant] = []
    absent: list[Absent] = []
    for spec in dict.fromkeys(specs):
        found = find(spec, seed=seed)
        if isinstance(found, Absent):
            absent.append(found)
            continue
        name, number = found.name, 2
        while name in {other.name for other in entrants}:
            name, number = f"{found.name}-{number}", number + 1
        entrants.append(Entrant(name, found.what, found.dim, found.encode))
    if not entrants:
        reasons = "; ".join(f"{each.name}: {each.reason}" for each in absent)
        raise UsageError(f"nothing to evaluate: {reasons or 'name at least one encoder'}")
    return entrants, absent


def unit(vectors: npt.NDArray[Any]) -> Vectors:
    """(n, d) with rows of unit length; what is zero or not finite becomes zero."""
    x = vectors.astype(np.float32)
    x[~np.isfinite(x).all(1)] = 0
    length = np.linalg.norm(x, axis=1, keepdims=True)
    out: Vectors = np.divide(x, length, out=np.zeros_like(x), where=length > 0)
    return out


def _raw(pictures: Sequence[Array]) -> Vectors:
    out = np.empty((len(pictures), 4 * _SIDE * _SIDE), np.float32)
    for row, picture in zip(out, pictures, strict=True):
        small = squash(picture, _SIDE)
        row[: 3 * _SIDE * _SIDE] = small.reshape(-1)
        row[3 * _SIDE * _SIDE :] = np.asarray(Image.fromarray(small).convert("L")).reshape(-1)
    return out


def _fingerprints(pictures: Sequence[Array]) -> Vectors:
    """Bits as ± 1/16, whose inner product is 1 - distance / 128; zero where the quality is too low."""
    out = np.zeros((len(pictures), fingerprint.FINGERPRINT_BITS), np.float32)
    for row, picture in zip(out, pictures, strict=True):
        bits, quality, least = picture_print(picture)
        if quality >= least:
            row[:] = np.unpackbits(bits) / np.float32(8) - np.float32(1 / 16)
    return out


def picture_print(picture: Array) -> tuple[Array, int, int]:
    """A picture's fingerprint (32,) uint8, its quality, and the least that says something."""
    pixels = px.from_array(picture)
    bits, quality = fingerprint.fingerprint(pixels)
    return np.frombuffer(bits, np.uint8), quality, fingerprint.min_quality(pixels.kind)


def _with_torch(name: str, make: Callable[[], Entrant]) -> Entrant | Absent:
    try:
        return make()
    except ImportError as error:
        return Absent(name, f"needs {error.name}: pip install 'image-index-engine[train]'")


def _untrained(seed: int) -> Entrant:
    import torch

    from engine.training.model import TRUNK_DIM, build, normalised
    from engine.training.settings import TrainSettings

    settings = TrainSettings(image_size=UNTRAINED_SIZE, seed=seed)
    trunk = build(settings).trunk.eval()

    def encode(pictures: Sequence[Array]) -> Vectors:
        batch = torch.from_numpy(np.stack([squash(each, UNTRAINED_SIZE) for each in pictures]))
        with torch.inference_mode():
            return unit(trunk(normalised(batch, settings.mean, settings.std)).numpy())

    what = f"ResNet-18 before training, {UNTRAINED_SIZE} × {UNTRAINED_SIZE} pixels"
    return Entrant(UNTRAINED, what, TRUNK_DIM, encode)


def _lite0(path: Path) -> Entrant:
    import torch

    from engine.evaluation import lite0

    network = lite0.load(path)

    def encode(pictures: Sequence[Array]) -> Vectors:
        batch = torch.from_numpy(np.stack([squash(each, lite0.SIZE) for each in pictures]))
        with torch.inference_mode():
            return unit(network(batch).numpy())

    return Entrant(LITE0, f"EfficientNet-Lite0 trained on ImageNet, {path}", lite0.DIM, encode)


def _network(path: Path) -> Entrant:
    """A bare ONNX file of one input; its first output, made flat, is the vector.

    The input is (n, S, S, 3) uint8, which is given pixels, or float32 (n, 3, S, S), which is given
    values of 0 … 1 normalised with ImageNet's mean and deviation.
    """
    import onnxruntime

    if not path.is_file():
        raise EncoderError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpu_count()
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    try:
        session: Any = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime has no error class of its own to name here
        raise EncoderError(f"{path} cannot be loaded: {' '.join(str(error).split())}") from None
    inputs = [(each.name, each.type, each.shape) for each in session.get_inputs()]
    name, kind, shape = inputs[0] if len(inputs) == 1 else ("", "", [])
    last = len(shape) == 4 and shape[3] == 3 and kind == "tensor(uint8)"
    first = len(shape) == 4 and shape[1] == 3 and kind == "tensor(float)"
    if not (last or first):
        raise EncoderError(
            f"{path} takes {', '.join(f'{each[1]} {each[2]}' for each in inputs)}: one input is "
            f"needed, uint8 (n, S, S, 3) or float32 (n, 3, S, S)"
        )
    sides = shape[1:3] if last else shape[2:]
    given = {side for side in sides if isinstance(side, int)}
    if len(given) > 1 or not all(1 <= side <= _MAX_SIZE for side in given):
        raise EncoderError(
            f"{path} takes pictures of {' × '.join(map(str, sides))}: they have to be square, and "
            f"at most {_MAX_SIZE:,} pixels a side"
        )
    size = given.pop() if given else _DEFAULT_SIZE
    alone = isinstance(shape[0], int)  # a batch of fixed size, mostly of 1
    if alone and shape[0] != 1:
        raise EncoderError(f"{path} takes {shape[0]} pictures at a time: export it for n or for 1")

    def encode(pictures: Sequence[Array]) -> Vectors:
        batch: npt.NDArray[Any] = np.stack([squash(picture, size) for picture in pictures])
        if first:
            batch = ((batch / np.float32(255) - _MEAN) / _STD).transpose(0, 3, 1, 2)
        parts = np.split(batch, len(batch)) if alone else [batch]
        try:
            vectors = [session.run(None, {name: np.ascontiguousarray(x)})[0] for x in parts]
        except Exception as error:
            raise EncoderError(f"{path} cannot be run: {' '.join(str(error).split())}") from None
        for vector, part in zip(vectors, parts, strict=True):
            numbers = isinstance(vector, np.ndarray) and vector.dtype.kind in "fiu" and vector.ndim
            if not numbers or len(vector) != len(part) or not vector.size:
                raise EncoderError(f"{path} does not give numbers for each picture")
        return unit(np.concatenate(vectors).reshape(len(pictures), -1))

    dim = encode([np.zeros((size, size, 3), np.uint8)]).shape[1]
    return Entrant(path.stem, str(path), dim, encode)
