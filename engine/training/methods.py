"""What a step learns from: the loss of each method, with what it keeps beside the network."""

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
"""(n, 3, S, S) float32 → (n, dim) float32 of unit length, in the precision of the run."""


class Contrastive:
    """SimCLR: the loss is taken over the batch, and nothing is kept; the base of the others."""

    def __init__(self, settings: TrainSettings) -> None:
        self._temperature = settings.temperature
        self._negatives = Negatives(settings.hard_negatives, settings.tau_plus, settings.semi_hard)

    def loss(self, network: SimCLR, embed: Embed, rows: Sequence[int], views: Tensor) -> Tensor:
        """A scalar; ``views`` are (2n, 3, S, S), first all the first views of the n ``rows``."""
        z1, z2 = embed(network, views).chunk(2)
        return nt_xent(z1, z2, self._temperature, self._negatives)

    def after_step(self, network: SimCLR) -> None:
        """Called once the optimizer has changed the network."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained beside the network."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """All that a run needs to go on, by name."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take what ``tensors`` gave; ``KeyError`` or ``RuntimeError`` where it does not fit."""


class Momentum(Contrastive):
    """MoCo: keys come from an encoder that follows the network, and those of past batches stay.

    Both views are queries, each with the other's key. The key encoder normalises with its running
    statistics, which follow the network's as its weights do (Cai et al., 2021, arXiv:2101.08482):
    statistics of the batch would tell a query's own key from those in the queue, which is why MoCo
    shuffles batches among GPUs. In the first steps it follows faster, by 1 - (1 + t) / (10 + t) at
    step t, so that short runs do not keep the keys of an untrained network.
    """

    def __init__(self, settings: TrainSettings, network: SimCLR) -> None:
        super().__init__(settings)
        device = next(network.parameters()).device
        self._momentum = settings.momentum
        self._key = copy.deepcopy(network).requires_grad_(False).eval()
        self._queue = torch.zeros(settings.queue, settings.dim, device=device)
        self._images = torch.full((settings.queue,), -1, device=device)  # whose keys; -1: none yet
        self._steps = torch.zeros((), dtype=torch.int64)
        self._written = torch.zeros((), dtype=torch.int64)  # keys, since the run began
        self._new: tuple[Tensor, Tensor] | None = None

    def loss(self, network: SimCLR, embed: Embed, rows: Sequence[int], views: Tensor) -> Tensor:
        """As its base says."""
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
        """Let the key encoder follow, and put the batch's keys in the place of the oldest."""
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
        """The key encoder, the queue and their counts."""
        kept = {f"key.{name}": value for name, value in self._key.state_dict().items()}
        return kept | {
            "queue": self._queue,
            "queue_images": self._images,
            "steps": self._steps,
            "written": self._written,
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """As its base says."""
        _copy_into(self.tensors(), tensors)


class Supervised(Contrastive):
    """Cross entropy of each image's label, read from the embedding by a linear classifier."""

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
                f"{found}, and the method supervised learns to tell labels apart: put the images "
                f"of each class in a folder of its own, or choose another method"
            )
        self._labels = self.numbers(labels).to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed + 1)
            classifier = Classifier(settings.dim, len(self._classes), 1 / settings.temperature)
        self._classifier = classifier.to(device)

    def numbers(self, labels: Sequence[str | None]) -> Tensor:
        """(n,) int64 on the CPU; -1 for a label that is not among those of the training."""
        return torch.tensor([self._classes.get(label or "", -1) for label in labels])

    def loss(self, network: SimCLR, embed: Embed, rows: Sequence[int], views: Tensor) -> Tensor:
        """As its base says."""
        labels = self._labels[torch.tensor(rows, device=self._labels.device)].repeat(2)
        return label_loss(self._classifier(embed(network, views)), labels)

    def accuracy(self, z: Tensor, labels: Sequence[str | None]) -> float | None:
        """The share of (n, dim) embeddings that get their label; None where none is known."""
        numbers = self.numbers(labels)
        known = numbers >= 0
        if not known.any():
            return None
        right = self._classifier(z).argmax(1).cpu() == numbers
        return float(right[known].float().mean())

    def parameters(self) -> dict[str, nn.Parameter]:
        """The classifier's."""
        return dict(self._classifier.named_parameters())

    def tensors(self) -> dict[str, Tensor]:
        """The classifier's weights."""
        return self._classifier.state_dict()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """As its base says."""
        _copy_into(self.tensors(), tensors)


def method(settings: TrainSettings, network: SimCLR, labels: Sequence[str | None]) -> Contrastive:
    """The method of the settings, fresh; ``labels`` are those of the images to train on."""
    if settings.method == "moco":
        return Momentum(settings, network)
    if settings.method == "supervised":
        return Supervised(settings, labels, next(network.parameters()).device)
    return Contrastive(settings)


@torch.no_grad()
def _copy_into(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, value in ours.items():
        if value.shape != theirs[name].shape:
            raise RuntimeError(f"{name} has the shape {tuple(theirs[name].shape)}")
        value.copy_(theirs[name])
