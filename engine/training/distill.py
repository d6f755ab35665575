"""Learning from a teacher, beside one of the methods or instead of it.

The teacher's vectors are projected to the dimensions of the network by their principal components, which
keep most of their cosines. The embedding of every view is drawn to the projected vector of its whole
picture. So the network's space becomes the teacher's, and no head has to be trained and thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import TrainingError
from engine.training.loss import taught
from engine.training.methods import Contrastive, Embed, copy_into
from engine.training.model import SimCLR
from engine.training.settings import TrainSettings
from engine.training.teacher import TeacherVectors

_SAMPLE = 8192  # vectors from which the principal components are found


class Taught(Contrastive):
    """A method whose loss is mixed with that of following a teacher.

    The loss is (1 - w) · that of the method + w · ``loss.taught``, with w = ``teacher_weight``. If w is
    1, the method has no part, and one view of each image is enough.
    """

    def __init__(
        self,
        settings: TrainSettings,
        inner: Contrastive,
        vectors: TeacherVectors,
        device: torch.device,
    ) -> None:
        super().__init__(settings)
        self.inner = inner
        self._weight = settings.teacher_weight
        self._vectors = vectors
        self._mean, self._basis = (part.to(device) for part in _components(vectors, settings.dim))

    def loss(self, network: SimCLR, embed: Embed, rows: Sequence[int], views: Tensor) -> Tensor:
        """See ``Contrastive``; ``views`` may be one of each row, if the teacher's is the only loss."""
        seen: list[Tensor] = []

        def remember(which: SimCLR, x: Tensor) -> Tensor:
            z = embed(which, x)
            if which is network:
                seen.append(z)
            return z

        other: Tensor | float = 0.0
        if self._weight < 1:
            other = (1 - self._weight) * self.inner.loss(network, remember, rows, views)
        else:
            remember(network, views)
        targets = self.targets(rows).repeat(len(views) // len(rows), 1)
        return other + self._weight * taught(torch.cat(seen), targets)

    def targets(self, rows: Sequence[int]) -> Tensor:
        """(len(rows), dim) float32 of unit length, or zero; ``rows`` are those of ``TeacherVectors``."""
        vectors = self._vectors.read(rows).to(self._mean.device)
        known = vectors.any(1, keepdim=True)
        return F.normalize((vectors - self._mean) @ self._basis, dim=1) * known

    def agreement(self, z: Tensor) -> float:
        """The mean cosine of (held out, dim) embeddings with what the teacher says of these pictures."""
        first = self._vectors.trained
        targets = self.targets(range(first, first + len(z)))
        return float((z * targets).sum(1).mean())

    def after_step(self, network: SimCLR) -> None:
        """See ``Contrastive``."""
        if self._weight < 1:
            self.inner.after_step(network)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Those of the method."""
        return self.inner.parameters() if self._weight < 1 else {}

    def tensors(self) -> dict[str, Tensor]:
        """The state of the method, and the projection of the teacher's vectors."""
        return {**self.inner.tensors(), "teacher.mean": self._mean, "teacher.basis": self._basis}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """See ``Contrastive``."""
        ours = {"teacher.mean": self._mean, "teacher.basis": self._basis}
        copy_into(ours, tensors)
        self.inner.load({name: value for name, value in tensors.items() if name not in ours})


def _components(vectors: TeacherVectors, dim: int) -> tuple[Tensor, Tensor]:
    """The mean (d,) of the teacher's vectors, and their first principal components (d, dim).

    They are of up to 8,192 evenly spread vectors to train on. Columns beyond their rank are zero.
    """
    count = min(_SAMPLE, vectors.trained)
    sample = vectors.read([i * vectors.trained // count for i in range(count)])
    sample = sample[sample.any(1)].double()
    if len(sample) < 2:
        raise TrainingError("the teacher makes no vectors of these images: choose another teacher")
    mean = sample.mean(0)
    centred = sample - mean
    n, d = centred.shape
    # By the smaller of the two matrices of products.
    if d <= n:
        values, axes = torch.linalg.eigh(centred.T @ centred)
    else:
        values, sides = torch.linalg.eigh(centred @ centred.T)
        axes = centred.T @ sides / values.clamp_min(0).sqrt()
    kept = torch.nan_to_num(axes.flip(1)[:, :dim], nan=0.0, posinf=0.0, neginf=0.0)
    kept = kept * (values.flip(0)[:dim] > 1e-9 * values.max())
    basis = torch.zeros(d, dim, dtype=torch.float32)
    basis[:, : kept.shape[1]] = kept.float()
    if not basis.any():
        raise TrainingError(
            "the teacher makes the same vector of all images: choose another teacher"
        )
    return mean.float(), basis
