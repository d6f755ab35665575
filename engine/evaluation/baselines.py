"""Baselines for encoders: vectors that need no training.

pixels       32 × 32 pixels, in colour and in grey
pdq          the engine's own fingerprints: 256 bits, as ± 1
untrained    a ResNet-18 with random weights; needs torch
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.evaluation.pictures import Array
from engine.images import canonical as px
from engine.images import fingerprint
from engine.images.preprocessing import squash

Vectors = npt.NDArray[np.float32]

PIXELS, PDQ, UNTRAINED = "pixels", "pdq", "untrained"
BASELINES = (PIXELS, PDQ, UNTRAINED)
PIXELS_SIDE = 32
PIXELS_DIM = 4 * PIXELS_SIDE * PIXELS_SIDE
PDQ_DIM = fingerprint.FINGERPRINT_BITS
UNTRAINED_SIZE = 96


def unit(vectors: npt.NDArray[Any]) -> Vectors:
    """(n, d) float32 with rows of unit length; a row that is zero or not finite becomes zero."""
    x = vectors.astype(np.float32)
    x[~np.isfinite(x).all(1)] = 0
    length = np.linalg.norm(x, axis=1, keepdims=True)
    out: Vectors = np.divide(x, length, out=np.zeros_like(x), where=length > 0)
    return out


def pixel_vectors(pictures: Sequence[Array]) -> Vectors:
    """n pictures (H, W, 3) uint8 → (n, ``PIXELS_DIM``) of unit length."""
    out = np.empty((len(pictures), PIXELS_DIM), np.float32)
    for row, picture in zip(out, pictures, strict=True):
        small = squash(picture, PIXELS_SIDE)
        row[: small.size] = small.reshape(-1)
        row[small.size :] = np.asarray(Image.fromarray(small).convert("L")).reshape(-1)
    return unit(out)


def pdq_vectors(pictures: Sequence[Array]) -> Vectors:
    """n pictures → (n, 256) bits as ± 1/16, with the inner product 1 - distance / 128.

    A vector is zero if the fingerprint's quality is too low.
    """
    out = np.zeros((len(pictures), PDQ_DIM), np.float32)
    for row, picture in zip(out, pictures, strict=True):
        bits, quality, least = picture_fingerprint(picture)
        if quality >= least:
            row[:] = np.unpackbits(bits) / np.float32(8) - np.float32(1 / 16)
    return out


def picture_fingerprint(picture: Array) -> tuple[Array, int, int]:
    """A picture's fingerprint (32,) uint8, its quality, and the minimum for a useful fingerprint."""
    pixels = px.from_array(picture)
    bits, quality = fingerprint.fingerprint(pixels)
    return np.frombuffer(bits, np.uint8), quality, fingerprint.min_quality(pixels.kind)


def untrained_network(seed: int) -> tuple[int, Callable[[Sequence[Array]], Vectors]]:
    """The network's output dimensions and its encode function; ``ImportError`` without torch."""
    import torch

    from engine.training.model import TRUNK_DIM, build, normalised
    from engine.training.settings import TrainSettings

    settings = TrainSettings(image_size=UNTRAINED_SIZE, seed=seed)
    trunk = build(settings).trunk.eval()

    def encode(pictures: Sequence[Array]) -> Vectors:
        batch = torch.from_numpy(np.stack([squash(each, UNTRAINED_SIZE) for each in pictures]))
        with torch.inference_mode():
            return unit(trunk(normalised(batch, settings.mean, settings.std)).numpy())

    return TRUNK_DIM, encode
