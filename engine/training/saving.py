"""Saves the best network of a run and the state to resume it, when a checkpoint is due."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from torch import Tensor

from engine.training.checkpoint import (
    CHECKPOINT,
    Provenance,
    RunPosition,
    save_checkpoint,
    save_last,
)
from engine.training.trainer import Trainer

# A checkpoint of 180 MB takes longer than an epoch of two batches. So saving waits until it has taken no
# more than this share of the time.
_SAVING_SHARE = 0.05

_log = logging.getLogger("engine.training")


class Saver:
    """Keeps the best network in memory until it is saved.

    ``best_epoch`` is the epoch of the best network, and ``saved_epoch`` that of the checkpoint on the
    disk. Both are 0 before the first.
    """

    def __init__(self, folder: Path, trainer: Trainer) -> None:
        self.folder = folder
        self._trainer = trainer
        self.best_epoch = 0
        self.best_score: float | None = None
        self.saved_epoch = 0
        # The best network, until it is saved.
        self._weights: dict[str, Tensor] = {}
        self._provenance: Provenance | None = None
        self._seconds = 0.0

    def resume(self, position: RunPosition) -> None:
        """Continue with the best network on the disk, if there is one."""
        if (self.folder / CHECKPOINT).is_file():
            self.best_epoch = self.saved_epoch = position.best_epoch
            self.best_score = position.best_score

    def consider(self, provenance: Provenance) -> None:
        """Keep a copy of the network if it is the best so far, by the score of ``provenance``."""
        score = provenance.score
        # Of equal scores the later wins: it has learned longer, and few images may not show it.
        if score is None or self.best_score is None or score >= self.best_score:
            self.best_epoch, self.best_score = provenance.epoch, score
            self._weights = {
                name: value.detach().to("cpu", copy=True)
                for name, value in self._trainer.network.state_dict().items()
            }
            self._provenance = provenance

    def is_due(self, seconds: float) -> bool:
        """Whether saving has taken at most its share of the ``seconds`` of the run."""
        return self._seconds <= _SAVING_SHARE * seconds

    def save(self, step: int, losses: float, last: Provenance) -> None:
        """Write the best network if it is new, and then the state from which the run resumes.

        ``step`` is the number of steps taken, ``losses`` the sum of the losses in the current epoch. If
        the process dies between the two writes, the run resumes from an earlier step and finds the same
        network again.
        """
        began = time.perf_counter()
        if self._provenance is not None:
            save_checkpoint(self.folder, self._weights, self._provenance)
            self.saved_epoch = self.best_epoch
            self._weights, self._provenance = {}, None
        position = RunPosition(step, losses, last.loss, self.best_epoch, self.best_score)
        save_last(self.folder, self._trainer.tensors(), last, position)
        self._seconds += time.perf_counter() - began
        _log.info("saved step %d in %s; the best epoch is %d", step, self.folder, self.best_epoch)
