"""The contrastive loss NT-Xent."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """NT-Xent (Chen et al., 2020, arXiv:2002.05709, equation 1), a scalar.

    ``z1`` and ``z2`` are (n, d) unit vectors: row i of either is a view of image i. Every one of
    the 2n views is an anchor once. Its positive is the other view of its image, its negatives are
    the 2n - 2 views of the other images; it is never compared with itself. The result is the mean
    cross entropy over the 2n anchors, of cosines over ``temperature``; it is taken in float32.
    """
    n, _ = z1.shape
    z = torch.cat((z1, z2)).float()  # (2n, d)
    logits = z @ z.T / temperature  # (2n, 2n)
    itself = torch.eye(2 * n, dtype=torch.bool, device=z.device)
    logits = logits.masked_fill(itself, float("-inf"))
    positive = torch.arange(2 * n, device=z.device).roll(n)  # (2n,): i and i + n belong together
    return F.cross_entropy(logits, positive)
