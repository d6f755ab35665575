"""Checks the output of a model, and makes each vector one of length 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import EncoderError


def unit_rows(
    vectors: Any, shape: tuple[int, int], name: str, inputs: str
) -> npt.NDArray[np.float32]:
    """The output of the encoder ``name`` as unit vectors; a row is zero if it is zero or not finite.

    ``EncoderError`` if the output is not ``shape``, (n, dim), of float32. ``inputs`` names what it was
    made of.
    """
    if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32 or vectors.shape != shape:
        found = f"{getattr(vectors, 'shape', '')} {getattr(vectors, 'dtype', type(vectors))}"
        raise EncoderError(
            f"the encoder {name!r} returned {found.strip()} for {shape[0]} {inputs}, "
            f"instead of {shape} float32: export it again"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        good = np.isfinite(norms) & (norms > 0)
        unit: npt.NDArray[np.float32] = np.where(good, vectors / np.where(good, norms, 1), 0)
    return unit
