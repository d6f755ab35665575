"""Finds the teacher of a training, as ``engine train --teacher`` names it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.encoders import registry
from engine.encoders.onnx import OnnxEncoder
from engine.errors import EncoderError
from engine.evaluation.onnx_network import OnnxNetwork
from engine.images import hashing

if TYPE_CHECKING:
    from engine.training import Teacher  # which needs torch


def find_teacher(spec: str | Path) -> Teacher:
    """The teacher that ``spec`` names: an encoder, by name or folder, or a FILE.onnx.

    The input of the ONNX file is as in ``onnx_network``.
    ``EncoderError`` if there is none, or if it cannot be used.
    """
    from engine.training import Teacher

    path = str(spec)
    if path.lower().endswith(".onnx"):
        network = OnnxNetwork(Path(path))
        sha256 = hashing.file_hash(Path(path).read_bytes()).hex()
        side = network.image_size
        return Teacher(network.name, path, sha256, network.dim, side, network.encode)
    try:
        files = registry.find(path)
    except EncoderError as error:
        if Path(path).exists():
            raise
        raise EncoderError(
            f"there is no teacher {path!r}: name one of {', '.join(registry.names())}, a folder that "
            f"'engine train --out' wrote, or a FILE.onnx with one picture input"
        ) from error
    encoder = OnnxEncoder(files)
    resize, side = files.preprocessing.resize, files.preprocessing.size
    return Teacher(
        files.name,
        path,
        files.sha256,
        files.dim,
        side,
        lambda pictures: encoder.encode([resize(each) for each in pictures]),
    )
