"""Finds the teacher of a training, as ``engine train --teacher`` names it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.encoders import named, registry
from engine.encoders.onnx import OnnxEncoder
from engine.errors import EncoderError

if TYPE_CHECKING:
    from engine.training import Teacher  # which needs torch


def find_teacher(spec: str | Path) -> Teacher:
    """The teacher that ``spec`` names: an encoder, by name or folder, or a model such as a FILE.onnx.

    A model is imported in fp32 unless it asks for int8, because a teacher encodes each picture once.
    ``EncoderError`` if there is none, or if it cannot be used.
    """
    from engine.training import Teacher

    path = str(spec)
    try:
        files = named.find(path, precision="fp32")
    except EncoderError as error:
        if named.model_named(path) is not None or Path(path).exists():
            raise
        raise EncoderError(
            f"there is no teacher {path!r}: name one of {', '.join(registry.names())}, a folder that "
            f"'engine train --out' wrote, or a model to import such as a FILE.onnx"
        ) from error
    encoder = OnnxEncoder(files, device="auto")
    resize, side = files.preprocessing.resize, files.preprocessing.size
    return Teacher(
        files.name,
        path,
        files.sha256,
        files.dim,
        side,
        lambda pictures: encoder.encode([resize(each) for each in pictures]),
    )
