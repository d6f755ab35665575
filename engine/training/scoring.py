"""Scores a network on the held-out images: what the best network of a run is chosen by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.tensorboard import SummaryWriter

from engine.training.batches import Batches
from engine.training.methods import Supervised
from engine.training.model import normalised
from engine.training.neighbours_sheet import sheet
from engine.training.pictures import Pictures
from engine.training.settings import TrainSettings
from engine.training.trainer import Trainer
from engine.training.training_set import spread

SHEETS = "sheets"
SHEET_QUERIES, SHEET_NEAREST = 8, 6
_MAX_SHEETS = 10  # of one run
_BATCH = 64


@dataclass(frozen=True, slots=True)
class HeldOutScore:
    """How well held-out images are told apart, each figure a share of them."""

    recall: float
    accuracy: float | None  # where labels are learned and some are known
    best_by: float | None  # the one that the best network is chosen by


class Scorer:
    """Scores the network of a trainer, always on the same views."""

    def __init__(
        self,
        settings: TrainSettings,
        held_out: Pictures,
        squashed: Pictures,
        batches: Batches,
        trainer: Trainer,
        writer: SummaryWriter,
        folder: Path,
    ) -> None:
        """``squashed`` are the images ``held_out`` as an encoder is given them."""
        self._settings = settings
        self._held_out, self._squashed = held_out, squashed
        self._batches = batches
        self._trainer = trainer
        self._writer = writer
        self._folder = folder

    @torch.inference_mode()
    def score(self, epoch: int) -> HeldOutScore | None:
        """The score after an epoch, which leaves the network in eval mode; None of fewer than two.

        Recall@1: is a view's nearest clean image the one it is a view of? Clean images are squashed
        as an encoder is given them; the views are the same each epoch. Where labels are learned the
        best network is chosen by the share of the clean images whose label is found instead.
        """
        if len(self._held_out) < 2:
            return None
        network = self._trainer.network
        network.eval()
        generator = Generator().manual_seed(self._settings.seed + 1)
        parts, clean_parts = [], []
        for start in range(0, len(self._held_out), _BATCH):
            rows = range(start, min(start + _BATCH, len(self._held_out)))
            views = self._batches.views(self._held_out, rows, generator)
            parts.append(self._trainer.embed(network, views))
            pixels = torch.stack([self._squashed[row] for row in rows]).to(self._trainer.device)
            x = normalised(pixels, self._settings.mean, self._settings.std)
            clean_parts.append(self._trainer.embed(network, x))
        clean = torch.cat(clean_parts)
        nearest = (torch.cat(parts) @ clean.T).argmax(1)
        recall = float((nearest.cpu() == torch.arange(len(nearest))).float().mean())
        self._writer.add_scalar("held_out_recall_at_1", recall, epoch)
        score = HeldOutScore(recall, None, recall)
        if isinstance(self._trainer.method, Supervised):
            accuracy = self._trainer.method.accuracy(clean, self._held_out.labels)
            score = HeldOutScore(recall, accuracy, accuracy)
            if accuracy is not None:
                self._writer.add_scalar("held_out_accuracy", accuracy, epoch)
        epochs = self._settings.epochs
        if epoch % max(1, epochs // _MAX_SHEETS) == 0 or epoch == epochs:
            self._sheet(epoch, clean)
        return score

    def _sheet(self, epoch: int, clean: Tensor) -> None:
        """A picture of some held-out images, each with the nearest of the others."""
        queries = spread(len(clean), SHEET_QUERIES)
        cosines = clean[queries] @ clean.T
        cosines[range(len(queries)), queries] = -math.inf
        nearest = cosines.topk(min(SHEET_NEAREST, len(clean) - 1), 1).indices.tolist()
        image = sheet(
            [
                [self._squashed[row].numpy() for row in (query, *others)]
                for query, others in zip(queries, nearest, strict=True)
            ]
        )
        path = self._folder / SHEETS / f"epoch-{epoch:04}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
        self._writer.add_image("nearest", np.asarray(image), epoch, dataformats="HWC")
