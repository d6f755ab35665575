"""Which networks of a run are saved, and when: the best one, and what the run goes on from."""

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

# A checkpoint of 180 MB after epochs of two batches would take longer than they: saving waits until
# it has been no more than this share of the time.
_SAVING_SHARE = 0.05

_log = logging.getLogger("engine.training")


class Saver:
    """Keeps the best network in memory until it is saved.

    ``best_epoch`` is that of the best network, ``saved_epoch`` that of the checkpoint on the disk, both
    0 before the first.
    """

    def __init__(self, folder: Path, trainer: Trainer) -> None:
        self.folder = folder
        self._trainer = trainer
        self.best_epoch = 0
        self.best_score: float | None = None
        self.saved_epoch = 0
        # Of the best network that is not saved yet.
        self._weights: dict[str, Tensor] = {}
        self._provenance: Provenance | None = None
        self._seconds = 0.0

    def resume(self, position: RunPosition) -> None:
        """Go on with the best network on the disk, if there is one."""
        if (self.folder / CHECKPOINT).is_file():
            self.best_epoch = self.saved_epoch = position.best_epoch
            self.best_score = position.best_score

    def consider(self, provenance: Provenance) -> None:
        """Keep the network as it is now if it is the best so far, by the score of ``provenance``."""
        score = provenance.score
        # Of equals the later one: it has learned for longer than so few images can tell.
        if score is None or self.best_score is None or score >= self.best_score:
            self.best_epoch, self.best_score = provenance.epoch, score
            self._weights = {
                name: value.detach().to("cpu", copy=True)
                for name, value in self._trainer.network.state_dict().items()
            }
            self._provenance = provenance

    def is_due(self, seconds: float) -> bool:
        """Whether saving has taken little enough of the ``seconds`` that the run has lasted."""
        return self._seconds <= _SAVING_SHARE * seconds

    def save(self, step: int, losses: float, last: Provenance) -> None:
        """Write the best network, if a newer one is, and then what the run goes on from.

        ``step`` is the number of steps taken, ``losses`` their sum in the epoch that is under way.
        In this order: should the run end between the two, it goes on from before that epoch, and
        finds the same network again.
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
