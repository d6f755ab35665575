"""Scores a network on the held-out images, to choose the best network of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.tensorboard import SummaryWriter

from engine.training.batches import Batches
from engine.training.distill import Taught
from engine.training.methods import Supervised
from engine.training.model import normalised
from engine.training.neighbours_sheet import sheet
from engine.training.pictures import Pictures
from engine.training.settings import TrainSettings
from engine.training.trainer import Trainer
from engine.training.training_set import spread

SHEETS = "sheets"
SHEET_QUERIES, SHEET_NEAREST = 8, 6
_MAX_SHEETS = 10  # per run
_BATCH = 64


@dataclass(frozen=True, slots=True)
class HeldOutScore:
    """How well the network separates the held-out images, as shares of them."""

    recall: float
    accuracy: float | None  # set if labels are learned and some of the images have a known one
    best_by: float | None  # the score by which the best network is chosen


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
        """``squashed`` are the images ``held_out``, squashed as for an encoder."""
        self._settings = settings
        self._held_out, self._squashed = held_out, squashed
        self._batches = batches
        self._trainer = trainer
        self._writer = writer
        self._folder = folder

    @torch.inference_mode()
    def score(self, epoch: int) -> HeldOutScore | None:
        """Score the network after an epoch; None for fewer than two images. Leaves it in eval mode.

        Recall@1 is the share of views whose nearest clean image is their own. Clean images are squashed
        as for an encoder, and the views are the same in each epoch. If labels are learned, the best
        network is instead chosen by the share of clean images with the right label predicted, and if a
        teacher is followed, by the mean cosine of the views with the teacher's vectors of their images.
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
        method = self._trainer.method
        if isinstance(method, Taught):
            agreement = method.agreement(torch.cat(parts))
            self._writer.add_scalar("held_out_teacher_cosine", agreement, epoch)
            score = HeldOutScore(recall, None, agreement)
            method = method.inner
        if isinstance(method, Supervised):
            accuracy = method.accuracy(clean, self._held_out.labels)
            score = HeldOutScore(recall, accuracy, accuracy)
            if accuracy is not None:
                self._writer.add_scalar("held_out_accuracy", accuracy, epoch)
        epochs = self._settings.epochs
        if epoch % max(1, epochs // _MAX_SHEETS) == 0 or epoch == epochs:
            self._sheet(epoch, clean)
        return score

    def _sheet(self, epoch: int, clean: Tensor) -> None:
        """Save a sheet of some held-out images, each with the nearest of the others."""
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
