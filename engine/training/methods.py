"""The training methods: the loss of each, and the state that it keeps besides the network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from engine.errors import TrainingError
from engine.training.loss import Negatives, info_nce, label_loss, nt_xent
from engine.training.model import Classifier, SimCLR
from engine.training.settings import TrainSettings

Embed = Callable[[SimCLR, Tensor], Tensor]
"""A function (n, 3, S, S) float32 → (n, dim) float32 of unit length, in the precision of the run."""


class Contrastive:
    """SimCLR, whose loss needs only the batch; the base class of the other methods."""

    def __init__(self, settings: TrainSettings) -> None:
        self._temperature = settings.temperature
        self._negatives = Negatives(settings.hard_negatives, settings.tau_plus, settings.semi_hard)

    def loss(self, network: SimCLR, embed: Embed, rows: Sequence[int], views: Tensor) -> Tensor:
        """The loss, a scalar; ``views`` are (2n, 3, S, S), all first views of the n ``rows`` first."""
        z1, z2 = embed(network, views).chunk(2)
        return nt_xent(z1, z2, self._temperature, self._negatives)

    def after_step(self, network: SimCLR) -> None:
        """Update the state after the optimizer has changed the network."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained besides the network."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """The state that a run needs to resume, by name."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what ``tensors`` returned; ``KeyError`` or ``RuntimeError`` if it does not fit."""


class Momentum(Contrastive):
    """MoCo: a key encoder follows the network, and a queue holds the keys of past batches.

    Both views are queries, each with the other's key. The key encoder normalises with its running
    statistics, which follow the network's as its weights do (Cai et al., 2021, arXiv:2101.08482). Batch
    statistics would let a query recognise its own key among those of the queue. That is why MoCo
    shuffles batches among GPUs. In the first steps the key encoder follows faster, by
    1 - (1 + t) / (10 + t) at step t, so that short runs do not keep the keys of an untrained network.
    """

    def __init__(self, settings: TrainSettings, network: SimCLR) -> None:
        super().__init__(settings)
        device = next(network.parameters()).device
        self._momentum = settings.momentum
        self._key = copy.deepcopy(network).requires_grad_(False).eval()
        self._queue = torch.zeros(settings.queue, settings.dim, device=device)
        self._images = torch.full((settings.queue,), -1, device=device)  # of each key; -1: no key
        self._steps = torch.zeros((), dtype=torch.int64)
        self._written = torch.zeros((), dtype=torch.int64)  # keys written since the run began
        self._new: tuple[Tensor, Tensor] | None = None

    def loss(self, network: SimCLR, embed: Embed, rows: Sequence[int], views: Tensor) -> Tensor:
        """See ``Contrastive``."""
        n = len(rows)
        queries = embed(network, views)
        with torch.no_grad():
            keys = embed(self._key, views)
        images = torch.tensor(rows, device=keys.device).repeat(2)
        self._new = keys, images
        return info_nce(
            queries,
            keys.roll(n, 0),
            images,
            self._queue,
            self._images,
            self._temperature,
            self._negatives,
        )

    @torch.no_grad()
    def after_step(self, network: SimCLR) -> None:
        """Move the key encoder towards the network, and replace the oldest keys by the batch's."""
        steps = int(self._steps)
        momentum = min(self._momentum, (1 + steps) / (10 + steps))
        ours, theirs = self._key.state_dict(), network.state_dict()
        for name, value in ours.items():
            if value.is_floating_point():
                value.lerp_(theirs[name], 1 - momentum)
            else:
                value.copy_(theirs[name])
        self._steps += 1
        if self._new is not None and len(self._queue):
            keys, images = (part[-len(self._queue) :] for part in self._new)
            at = torch.arange(len(keys), device=keys.device) + int(self._written)
            at %= len(self._queue)
            self._queue[at] = keys
            self._images[at] = images
            self._written += len(keys)
        self._new = None

    def tensors(self) -> dict[str, Tensor]:
        """The key encoder, the queue and their counters."""
        kept = {f"key.{name}": value for name, value in self._key.state_dict().items()}
        return kept | {
            "queue": self._queue,
            "queue_images": self._images,
            "steps": self._steps,
            "written": self._written,
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """See ``Contrastive``."""
        copy_into(self.tensors(), tensors)


class Supervised(Contrastive):
    """Cross entropy of the labels that a linear classifier predicts from the embeddings."""

    def __init__(
        self, settings: TrainSettings, labels: Sequence[str | None], device: torch.device
    ) -> None:
        super().__init__(settings)
        self._classes = {name: i for i, name in enumerate(sorted({x for x in labels if x}))}
        without = sum(not label for label in labels)
        if without or len(self._classes) < 2:
            found = (
                f"{without} of {len(labels)} images have no label"
                if without
                else f"all {len(labels)} images have the same label"
            )
            raise TrainingError(
                f"{found}, but the method supervised needs labels to tell apart: put the images of "
                f"each class into a folder of its own, or choose another method"
            )
        self._labels = self.numbers(labels).to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed + 1)
            classifier = Classifier(settings.dim, len(self._classes), 1 / settings.temperature)
        self._classifier = classifier.to(device)

    def numbers(self, labels: Sequence[str | None]) -> Tensor:
        """The numbers of ``labels``, (n,) int64 on the CPU; -1 for one that is not trained on."""
        return torch.tensor([self._classes.get(label or "", -1) for label in labels])

    def loss(self, network: SimCLR, embed: Embed, rows: Sequence[int], views: Tensor) -> Tensor:
        """See ``Contrastive``."""
        labels = self._labels[torch.tensor(rows, device=self._labels.device)].repeat(2)
        return label_loss(self._classifier(embed(network, views)), labels)

    def accuracy(self, z: Tensor, labels: Sequence[str | None]) -> float | None:
        """The share of (n, dim) embeddings with the right label predicted; None if no label is known."""
        numbers = self.numbers(labels)
        known = numbers >= 0
        if not known.any():
            return None
        right = self._classifier(z).argmax(1).cpu() == numbers
        return float(right[known].float().mean())

    def parameters(self) -> dict[str, nn.Parameter]:
        """The classifier's parameters."""
        return dict(self._classifier.named_parameters())

    def tensors(self) -> dict[str, Tensor]:
        """The classifier's weights."""
        return self._classifier.state_dict()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """See ``Contrastive``."""
        copy_into(self.tensors(), tensors)


def method(settings: TrainSettings, network: SimCLR, labels: Sequence[str | None]) -> Contrastive:
    """A new method by ``settings``; ``labels`` are those of the images to train on."""
    if settings.method == "moco":
        return Momentum(settings, network)
    if settings.method == "supervised":
        return Supervised(settings, labels, next(network.parameters()).device)
    return Contrastive(settings)


@torch.no_grad()
def copy_into(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Copy tensors of the same names; ``KeyError`` or ``RuntimeError`` if one does not fit."""
    for name, value in ours.items():
        if value.shape != theirs[name].shape:
            raise RuntimeError(f"{name} has the shape {tuple(theirs[name].shape)}")
        value.copy_(theirs[name])
