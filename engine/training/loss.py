"""The losses: NT-Xent, InfoNCE against a queue, cross entropy of labels, and following a teacher.

Both contrastive losses take ``Negatives``, the choice and the weights of the negatives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Negatives:
    """Which negatives count, and how much; by default all count equally.

    Let s be cosines divided by the temperature: s+ of an anchor with its positive, and s1 … sN with its
    N negatives. The loss of the anchor is -log(exp(s+) / (exp(s+) + G)), where G is the sum of exp(sj)
    over the negatives.

    - ``beta`` > 0 makes G the sum of wj · exp(sj), with the weights wj = N · exp(beta · sj) / sum over
      i of exp(beta · si), so that near negatives weigh more (Robinson, Chuang, Sra, Jegelka, 2021,
      Contrastive learning with hard negative samples, arXiv:2010.04592, section 3.1). The gradient
      goes through the weights too.
    - ``tau_plus`` > 0 is the assumed share of false negatives, which show the same as the anchor. It
      replaces G by max((G - tau_plus · N · exp(s+)) / (1 - tau_plus), N · exp(-1 / temperature))
      (Chuang et al., 2020, arXiv:2007.00224, equation 8).
    - ``semi_hard`` leaves out the negatives that are at least as near as the positive (after Schroff et
      al., 2015, arXiv:1503.03832, section 3.2). If that leaves no negative, the anchor keeps its
      farthest one.
    """

    beta: float = 0.0
    tau_plus: float = 0.0
    semi_hard: bool = False

    @property
    def plain(self) -> bool:
        """Whether all negatives count equally."""
        return not (self.beta or self.tau_plus or self.semi_hard)


ALL = Negatives()


def nt_xent(z1: Tensor, z2: Tensor, temperature: float, negatives: Negatives = ALL) -> Tensor:
    """NT-Xent (Chen et al., 2020, arXiv:2002.05709, equation 1), a scalar.

    ``z1`` and ``z2`` are (n, d) unit vectors; row i of each is a view of image i. Each of the 2n views
    is an anchor once. Its positive is the other view of its image. Its negatives are the 2n - 2 views of
    the other images. The result is the mean cross entropy over the 2n anchors, of cosines divided by
    ``temperature``, in float32.
    """
    n, _ = z1.shape
    z = torch.cat((z1, z2)).float()  # (2n, d)
    logits = z @ z.T / temperature  # (2n, 2n)
    itself = torch.eye(2 * n, dtype=torch.bool, device=z.device)
    logits = logits.masked_fill(itself, float("-inf"))
    # (2n,): views i and i + n show the same image.
    positive = torch.arange(2 * n, device=z.device).roll(n)
    return _contrast(logits, positive, temperature, negatives)


def info_nce(
    queries: Tensor,
    keys: Tensor,
    images: Tensor,
    queue: Tensor,
    queue_images: Tensor,
    temperature: float,
    negatives: Negatives = ALL,
) -> Tensor:
    """InfoNCE of MoCo (He et al., 2020, arXiv:1911.05722, equation 1), a scalar in float32.

    ``queries`` and ``keys`` are (m, d) unit vectors; row i of each is a different view of image
    ``images[i]``. The keys have no gradient. ``queue`` has (q, d) keys of earlier batches, and
    ``queue_images`` (q,) their images, -1 for a free place. The positive of query i is key i. Its
    negatives are all keys of other images, in its own batch and in the queue, so there are negatives
    from the first step on. MoCo itself uses the whole queue and nothing else. But a queue that is long
    compared with the data holds keys of the same image, which are not negatives.
    """
    m, _ = queries.shape
    logits = queries.float() @ torch.cat((keys, queue)).float().T / temperature  # (m, m + q)
    others = torch.cat((images, queue_images))
    out = (others == images[:, None]) | (others == -1)
    positive = torch.arange(m, device=queries.device)
    out[positive, positive] = False
    return _contrast(logits.masked_fill(out, float("-inf")), positive, temperature, negatives)


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of (m, classes) logits with (m,) int64 labels, a scalar in float32."""
    return F.cross_entropy(logits.float(), labels)


def taught(z: Tensor, targets: Tensor, temperature: float = 0.1) -> Tensor:
    """How far embeddings are from a teacher's vectors of the same images, a scalar in float32.

    ``z`` is (m, d) of unit length, one row a view. ``targets`` is (m, d): row i is the teacher's vector
    of the whole image that view i is of, of unit length, or zero if it makes none. Two terms are added.
    The first is the mean of 1 - cosine. The second compares each view with the targets of the whole
    batch: the cross entropy of the softmax of the view's cosines with that of its own target's cosines,
    over ``temperature`` (Fang et al., 2021, SEED, arXiv:2101.04731, with the batch in place of a queue).
    The first alone does not care which wrong image a view is near.
    """
    known = targets.any(1)
    z, targets = z.float()[known], targets[known]
    if not len(z):
        return z.sum()
    direct = 1 - (z * targets).sum(1).mean()
    theirs = (targets @ targets.T / temperature).softmax(1)
    relations = F.cross_entropy(z @ targets.T / temperature, theirs)
    return direct + relations


def _contrast(logits: Tensor, positive: Tensor, temperature: float, negatives: Negatives) -> Tensor:
    """The loss of (m, k) cosines over the temperature, -inf if left out, and (m,) positive columns."""
    if negatives.plain:
        return F.cross_entropy(logits, positive)
    at = positive[:, None]
    near = logits.gather(1, at)  # (m, 1)
    there = torch.isfinite(logits).scatter(1, at, False)
    far = logits.masked_fill(~there, float("-inf"))
    if negatives.semi_hard:
        kept = there & (logits < near)
        farthest = logits.detach().masked_fill(~there, float("inf")).argmin(1, keepdim=True)
        none_left = ~kept.any(1, keepdim=True)
        kept = kept.scatter(1, farthest, kept.gather(1, farthest) | none_left)
        there = there & kept
        far = far.masked_fill(~there, float("-inf"))
    log_count = there.sum(1).log()  # (m,): log N
    log_sum = far.logsumexp(1)  # (m,): log G
    if negatives.beta:
        log_sum = _hard(far, negatives.beta, log_count)
    if negatives.tau_plus:
        log_sum = _debiased(log_sum, near[:, 0], log_count, temperature, negatives.tau_plus)
    return F.softplus(log_sum - near[:, 0]).mean()


def _hard(far: Tensor, beta: float, log_count: Tensor) -> Tensor:
    """The logarithm of the weighted sum, without computing the weights themselves."""
    return log_count + ((1 + beta) * far).logsumexp(1) - (beta * far).logsumexp(1)


def _debiased(
    log_sum: Tensor, near: Tensor, log_count: Tensor, temperature: float, tau_plus: float
) -> Tensor:
    # The largest possible logit. Relative to it, nothing overflows.
    top = 1 / temperature
    wrong = tau_plus * (log_count + near - top).exp()
    corrected = ((log_sum - top).exp() - wrong) / (1 - tau_plus)
    least = (log_count - 2 * top).exp().clamp_min(math.exp(-80))
    return torch.maximum(corrected, least).log() + top
