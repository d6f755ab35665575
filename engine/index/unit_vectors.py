"""Divides vectors by their lengths, so that inner products are cosines."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def normalized(
    rows: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """The (n, d) float32 rows divided by their lengths, and their lengths: (n,) float64."""
    # In float64, the squares of very large and very small numbers do not overflow or vanish.
    wide = rows.astype(np.float64)
    # Invalid rows may hold NaN or infinite values.
    with np.errstate(invalid="ignore"):
        lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide))
        wide /= np.where(lengths > 0, lengths, 1)[:, None]
    return wide.astype(np.float32), lengths
