"""Divides vectors by their lengths, so that inner products are cosines."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def normalized(
    rows: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """(n, d) float32 rows divided by their lengths, and these: (n,) float64."""
    wide = rows.astype(np.float64)  # squares of large and of small numbers are numbers there
    with np.errstate(invalid="ignore"):  # of rows that are no vectors
        lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide))
        wide /= np.where(lengths > 0, lengths, 1)[:, None]
    return wide.astype(np.float32), lengths
